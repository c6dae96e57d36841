"""Errors that a user can act on.

All derive from `SightlineError`. Each error names what is wrong (file, field, value) and the remedy; the command line prints it as
`error[CODE]: ...` on stderr and exits with the exit code of its class. Any other exception is a bug in Sightline.
"""

import re

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{6,}\b")


def without_addresses(text: str) -> str:
    """Returns a text without the addresses of objects, which differ from run to run: `<BytesIO object at 0x7f...>`."""
    return _ADDRESS.sub("", text) if "0x" in text else text


class SightlineError(Exception):
    """Base class of all errors that a user can act on.

    Args:
        message: what is wrong: the file or field, the value, and what was expected.
        remedy: what to do; printed after the message.
    """

    code = "error"
    exit_code = 2

    def __init__(self, message: str, remedy: str = "") -> None:
        message = without_addresses(message)
        super().__init__(message)
        self.message = message
        self.remedy = without_addresses(remedy)

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()

    def __reduce__(self) -> tuple[type["SightlineError"], tuple[str, str]]:
        return type(self), (self.message, self.remedy)


class UsageError(SightlineError):
    """The arguments of a command or function cannot work."""

    code = "usage"


class ConfigError(SightlineError):
    """A configuration key is unknown, duplicate, out of range, of the wrong type, or contradicts another key."""

    code = "config"


class DataError(SightlineError):
    """A data file as a whole cannot be used (truncated, of another format, outside its folder)."""

    code = "data"


class SkipLimitError(SightlineError):
    """More records were skipped than the skip limit allows."""

    code = "data-budget"
    exit_code = 3


class NumericsError(SightlineError):
    """A loss, gradient, weight or feature is NaN or infinite."""

    code = "numerics"
    exit_code = 4


class StorageError(SightlineError):
    """A checkpoint or another file cannot be written, or its content does not match its hashes."""

    code = "storage"
    exit_code = 5


class DistributedError(SightlineError):
    """A rank or a loader worker died or missed its deadline."""

    code = "distributed"
    exit_code = 6


class Stopped(SightlineError):
    """A signal arrived; the state is saved, and running the same command again continues from it."""

    code = "stopped"
    exit_code = 75


class RecordError(SightlineError):
    """A record cannot be used; it is skipped and counted under `reason`.

    Args:
        reason: snake_case name under which reports count it.
        message: what is wrong with the record.
    """

    code = "record"

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type["RecordError"], tuple[str, str]]:  # type: ignore[override]
        return type(self), (self.reason, self.message)
