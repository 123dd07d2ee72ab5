"""What can stop work that is done by a server, and what can become of a single call.

All of it is resumable: every reply that came is kept.
"""

from __future__ import annotations

from sidr_core.errors import SidrError


class EndpointError(SidrError):
    """The server refuses on principle: a wrong key, an unknown model, a parameter it does not take.

    Attributes:
        status: the HTTP status of the refusal, if there is one.
    """

    free = True  # a refused call is not charged
    status: int | None = None


class TeacherUnavailable(SidrError):
    """The server did not answer often enough in a row. Everything that came is kept; run again to continue."""


class BudgetExhausted(SidrError):
    """incomplete (budget): the next call could exceed the budget. Everything that came is kept."""


class LedgerError(SidrError):
    """The ledger cannot be read or written."""


class CallFailed(Exception):
    """A request, or one attempt at it, gave no reply.

    Args:
        reason: a few words, without secrets.
        free: whether it is certain that nothing was charged.
        retry: whether another attempt may help.
        wait: seconds the server asked for.
        own_fault: whether the server refuses this one prompt and would take others.
        fix: what the user can do, if more than to run again.
    """

    def __init__(
        self,
        reason: str,
        *,
        free: bool,
        retry: bool = True,
        wait: float = 0.0,
        own_fault: bool = False,
        fix: str = "",
    ) -> None:
        super().__init__(reason)
        self.reason, self.free, self.retry, self.wait = reason, free, retry, wait
        self.own_fault, self.fix = own_fault, fix


class Stopped(Exception):
    """The run ends for a reason that is reported elsewhere; this request was not finished."""
