"""What asking would cost, and what a finished dialogue cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from sidr_core.remote.dialogue import BYTES_PER_TOKEN, Call, Done
from sidr_core.remote.ledger import NANO, price_of
from sidr_core.settings.corpus import Price


@dataclass(frozen=True)
class Reply:
    """The end of a request.

    Args:
        value: an instance of the request's schema, or None.
        reason: why there is none: refusal, content_filter, truncated, overlong (longer than a reply can be), no_json,
            wrong_schema, or rejected (the server refuses this prompt); "" if fine.
        input_tokens, output_tokens, usd: of all replies that led here, at the price when they came.
        reused: whether nothing was called for it now.
    """

    value: BaseModel | None
    reason: str
    input_tokens: int
    output_tokens: int
    usd: float
    reused: bool


@dataclass(frozen=True)
class Estimate:
    """What asking would cost.

    Args:
        calls: requests that have to be sent. reused: those whose reply is in the ledger.
        input_tokens, output_tokens, usd: of the calls, repairs and retries aside.
        measured: earlier replies of this model on which the token counts are based. 0: a token is taken as 4 bytes
            of the request, and every reply as long as it may be.
    """

    calls: int
    reused: int
    input_tokens: int
    output_tokens: int
    usd: float
    measured: int


def estimate(
    calls: Iterable[Call], reused: int, measured: Mapping[str, tuple[int, int, int, int]], price: Price, discount: float
) -> Estimate:
    """Add up calls. `measured`: kind -> (replies, request bytes, input tokens, output tokens) of earlier ones."""
    count = inputs = outputs = nano_usd = 0
    measured_kinds: set[str] = set()
    request_bytes, input_tokens = (sum(sums[column] for sums in measured.values()) for column in (1, 2))
    tokens_per_byte = input_tokens / request_bytes if request_bytes else 1 / BYTES_PER_TOKEN
    for call in calls:
        of_kind = measured.get(call.kind)
        measured_kinds |= {call.kind} if of_kind else set()
        read = round(call.size * (of_kind[2] / of_kind[1] if of_kind and of_kind[1] else tokens_per_byte))
        written = round(of_kind[3] / of_kind[0]) if of_kind else call.most_output_tokens
        count, inputs, outputs = count + 1, inputs + read, outputs + written
        nano_usd += price_of(price, read, written, discount).nano_usd
    return Estimate(count, reused, inputs, outputs, nano_usd / NANO, sum(measured[kind][0] for kind in measured_kinds))


def reply_of(done: Done, reused: bool) -> Reply:
    """The reply that a finished dialogue comes to."""
    return Reply(
        done.value,
        done.reason,
        sum(stored.input_tokens for stored in done.replies),
        sum(stored.output_tokens for stored in done.replies),
        sum(stored.nano_usd for stored in done.replies) / NANO,
        reused,
    )
