"""The tree of pydrbd's errors. Each class carries the exit code that drbdadm would give.

Floor: words. A message says what happened, to which resource, what state things are in
now and what to do next. `str(error)` is the whole text a user reads; nothing adds a
traceback to it.
"""

from __future__ import annotations

from pydrbd.vocabulary import Failure, Refusal


def _harmless(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


class PydrbdError(Exception):
    """Base of all expected errors. Exit code 20: internal or system problem."""

    exit_code = 20


class UsageError(PydrbdError):
    """Unknown resource in the arguments, or arguments that do not fit together."""

    exit_code = 1


class ConfigError(PydrbdError):
    """The configuration cannot be read or is not valid.

    The text quotes what stands in files: what would steer a terminal is shown as '?'.
    """

    exit_code = 10

    def __init__(self, message: str, *, file: str = "", line: int = 0, column: int = 0) -> None:
        self.message = _harmless(message)
        self.file, self.line, self.column = file, line, column
        place = f"{file}:{line}:{column}: " if file else ""
        super().__init__(_harmless(place) + self.message)


class NotImplementedOption(ConfigError):
    """A valid option of DRBD that pydrbd parses but does not implement; refused at `up` by name."""


class MetadataError(PydrbdError):
    """Metadata is missing, damaged, of another size or version, or in the way (create-md)."""

    exit_code = 1


class ExistingDataError(MetadataError):
    """create-md would overwrite or cut off what is there. `forcible`: `--force` goes over it.

    Exit code 1 for DRBD metadata, 40 for other data (as drbdmeta).
    """

    def __init__(self, message: str, *, exit_code: int, forcible: bool) -> None:
        self.exit_code, self.forcible = exit_code, forcible
        super().__init__(message)


class DiskError(PydrbdError):
    """A backing disk cannot be opened, locked, read or written."""

    exit_code = 10


class ProtocolViolation(PydrbdError):
    """The peer sent bytes that protocol 101 does not allow; `reason` names what."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class ControlError(PydrbdError):
    """A resource's process cannot be reached or answers nonsense."""

    exit_code = 10


class CommandFailed(PydrbdError):
    """A command failed with one of DRBD's numbered failures."""

    exit_code = 10

    def __init__(self, resource: str, failure: Failure, detail: str = "") -> None:
        self.resource, self.failure, self.detail = resource, failure, detail
        text = f"{resource}: Failure: ({failure.value}) {failure.text}"
        super().__init__(text + (f"\n{detail}" if detail else ""))


class StateRefused(PydrbdError):
    """A state change was refused; printed and coded as drbdsetup does."""

    def __init__(self, resource: str, refusal: Refusal, detail: str = "") -> None:
        self.resource, self.refusal, self.detail = resource, refusal, detail
        self.exit_code = refusal.exit_code
        text = f"{resource}: State change failed: ({refusal.value}) {refusal.text}"
        super().__init__(text + (f"\n{detail}" if detail else ""))


class TakenOver(PydrbdError):
    """A crashed Primary cannot go on as one: another node has been Primary since."""

    exit_code = 11


class CannotResume(PydrbdError):
    """A crashed Primary cannot go on as one by itself now, for instance before it has seen its peer."""

    exit_code = 11


class MappingError(PydrbdError):
    """A kernel block device could not be attached to or detached from the export."""


class WaitTimeout(PydrbdError):
    """wait-connect or wait-sync gave up (exit code 5, as drbdsetup)."""

    exit_code = 5
