"""What can stop work that is done by a server. All of it is resumable: what came is kept."""

from __future__ import annotations

from sidr_core.errors import SidrError


class EndpointError(SidrError):
    """The server refuses on principle: a wrong key, an unknown model, a parameter it does not take."""

    free = True  # a refused call is not charged


class TeacherUnavailable(SidrError):
    """The server did not answer often enough in a row. Everything that came is kept; run again to go on."""


class BudgetExhausted(SidrError):
    """incomplete (budget): the next call could exceed the budget. Everything that came is kept."""


class LedgerError(SidrError):
    """The ledger cannot be read or written."""
