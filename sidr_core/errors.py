"""Errors that tell the user what was expected, what was found and what to do."""


class SidrError(Exception):
    """A mistake that the user can correct.

    Args:
        what: one line naming the thing that went wrong, and where.
        expected: what the code needs.
        found: what it got instead.
        fix: the next action for the user.
    """

    def __init__(self, what: str, *, expected: str, found: str, fix: str) -> None:
        self.what, self.expected, self.found, self.fix = what, expected, found, fix
        super().__init__(f"{what}\n  expected: {expected}\n  found:    {found}\n  fix:      {fix}")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.expected, self.found, self.fix))


def _rebuild(cls: type[SidrError], what: str, expected: str, found: str, fix: str) -> SidrError:
    return cls(what, expected=expected, found=found, fix=fix)


class ProfileError(SidrError):
    """The profile names something unknown or impossible."""


class InputError(SidrError):
    """A source file or table is missing, empty, of another layout, or too dirty."""


class NotMaterialized(SidrError):
    """An output that is needed has not been published yet."""


class SealedInput(SidrError):
    """A stage asked for a file that it has not declared (a test split, for one)."""


class CheckFailed(SidrError):
    """An output failed a blocking check: it is kept, but not published."""


class StoreError(SidrError):
    """A published output is damaged."""
