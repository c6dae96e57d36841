"""Errors that a user can act on.

One root. Each error names what is wrong (file, field, value) and the remedy; the command line turns it into one line
`error[CODE]: ...` on stderr and the exit code of its class. Anything else that escapes is a bug of ours.
"""


class SightlineError(Exception):
    """Root of all errors for users.

    Args:
        message: what is wrong: the file or field, what was given, what was expected.
        remedy: what to do about it; printed after the message.
    """

    code = "error"
    exit_code = 2

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()

    def __reduce__(self) -> tuple[type["SightlineError"], tuple[str, str]]:
        return type(self), (self.message, self.remedy)


class UsageError(SightlineError):
    """A command was called in a way that cannot work."""

    code = "usage"


class ConfigError(SightlineError):
    """A configuration key is unknown, mistyped, duplicate, out of range, or at odds with another."""

    code = "config"


class DataError(SightlineError):
    """A file of data as a whole cannot be used (torn, wrong format, outside its folder)."""

    code = "data"


class SkipLimitError(SightlineError):
    """More records were skipped than the budget allows."""

    code = "data-budget"
    exit_code = 3


class NumericsError(SightlineError):
    """Loss, gradient or weights are not finite."""

    code = "numerics"
    exit_code = 4


class StorageError(SightlineError):
    """A checkpoint or another artefact cannot be written, or fails its hashes."""

    code = "storage"
    exit_code = 5


class DistributedError(SightlineError):
    """A rank, or a loader worker, died or missed its deadline."""

    code = "distributed"
    exit_code = 6


class Stopped(SightlineError):
    """A signal arrived; the state is saved and the same command continues from it."""

    code = "stopped"
    exit_code = 75


class RecordError(SightlineError):
    """One record cannot be used: it is skipped and counted under `reason`.

    Args:
        reason: a short snake_case name that reports count by.
        message: what is wrong with this record.
    """

    code = "record"

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type["RecordError"], tuple[str, str]]:  # type: ignore[override]
        return type(self), (self.reason, self.message)
