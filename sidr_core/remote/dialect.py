"""How one server wants a request: what it refuses is renamed or left out for the rest of the run.

The ledger keys a request by what we ask, not by these variants, so the replies of a server stay valid when it learns
or unlearns a parameter. A server that refuses a parameter never answers with it, so no key gets two meanings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

_UNSUPPORTED = re.compile(
    r"unsupported|(?:not|n't) (?:be )?(?:support|permit|allow|enabl)|unrecogni[sz]ed|unknown|unexpected|deprecated"
    r"|extra (?:inputs|fields|parameters)|extra_forbidden|only the default",
    re.IGNORECASE,
)
_SYSTEM = re.compile(r"system (?:role|message|prompt|instruction)|developer instruction", re.IGNORECASE)
_ALTERNATE = re.compile(r"roles must alternate", re.IGNORECASE)
_PARAMETER = re.compile(r'"param"\s*:\s*"(\w+)"')
_OTHER_NAME = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


@dataclass(frozen=True)
class Dialect:
    """What a server takes.

    Args:
        max_tokens: its name of the limit on a reply: OpenAI's newer models know `max_completion_tokens` only.
        other_name: whether the other name may still be tried.
        temperature: whether it takes one; reasoning models do not.
        system: whether it takes a system turn; without it the instruction stands at the head of the user's turn.
    """

    max_tokens: str = "max_tokens"
    other_name: bool = True
    temperature: bool = True
    system: bool = True

    def wire(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request body in the words of the server."""
        sent = dict(body)
        sent[self.max_tokens] = sent.pop("max_tokens")
        if not self.temperature:
            sent.pop("temperature", None)
        if not self.system and sent["messages"][0]["role"] == "system":
            system, user, *later = sent["messages"]
            sent["messages"] = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *later]
        return sent

    def adapted(self, refusal: str) -> tuple[Dialect, str] | None:
        """The dialect that avoids what a server refused, and a note for the user; None where none does.

        Args:
            refusal: the body of its 400 or 422, or as much of it as there is.
        """
        unsupported = _UNSUPPORTED.search(refusal)
        if self.system and (_ALTERNATE.search(refusal) or (_SYSTEM.search(refusal) and unsupported)):
            return replace(self, system=False), "no system turn: the instruction goes into the user's turn"
        if not unsupported:
            return None
        parameter = _PARAMETER.search(refusal)
        named = parameter[1] if parameter else refusal
        if self.other_name and re.search(rf"\b{self.max_tokens}\b", named):
            other = _OTHER_NAME[self.max_tokens]
            return replace(self, max_tokens=other, other_name=False), f"`{other}` instead of `{self.max_tokens}`"
        if self.temperature and re.search(r"\btemperature\b", named, re.IGNORECASE):
            return replace(self, temperature=False), "no `temperature`: the model's own is used"
        return None
