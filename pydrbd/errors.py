"""The tree of pydrbd's errors. Each class carries the exit code that drbdadm would give.

Floor: words. A message says what happened, to which resource, what state things are in
now and what to do next. `str(error)` is the whole text a user reads; nothing adds a
traceback to it.
"""

from __future__ import annotations

from typing import Self

from pydrbd.advice import after_failure, after_refusal
from pydrbd.vocabulary import Failure, Refusal


def _harmless(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def with_notes(error: Exception) -> str:
    """The text of an error, and of what whoever passed it on had to add (`add_note`)."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


class PydrbdError(Exception):
    """Base of all expected errors. Exit code 20: internal or system problem.

    Of a command of several steps: the verb of the `step` that failed ('': not known), and its volume.
    """

    exit_code = 20
    step: str = ""
    volume: int | None = None

    def at(self, step: str, volume: int | None = None) -> Self:
        """This error, which now says where it happened; an earlier word counts."""
        self.step = self.step or step
        self.volume = volume if self.volume is None else self.volume
        return self


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


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


class CommandFailed(PydrbdError):
    """A command failed with one of DRBD's numbered failures."""

    exit_code = 10

    def __init__(self, resource: str, failure: Failure, detail: str = "") -> None:
        self.resource, self.failure, self.detail = resource, failure, detail
        text = f"{resource}: Failure: ({failure.value}) {failure.text}"
        super().__init__(_lines(text, detail, after_failure(resource, failure, detail)))


class StateRefused(PydrbdError):
    """A state change was refused; printed and coded as drbdsetup does. `verb`: by which command, if known."""

    def __init__(self, resource: str, refusal: Refusal, detail: str = "", verb: str = "") -> None:
        self.resource, self.refusal, self.detail = resource, refusal, detail
        self.exit_code = refusal.exit_code
        text = f"{resource}: State change failed: ({refusal.value}) {refusal.text}"
        super().__init__(_lines(text, detail, after_refusal(resource, refusal, detail, verb)))


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


class CannotRepair(PydrbdError):
    """What a verify finds could not be repaired as things are now; nothing has changed."""

    exit_code = 11


class CannotResolve(PydrbdError):
    """A split brain was not resolved; the text says how both nodes are now."""

    exit_code = 11


class OutOfSync(PydrbdError):
    """A verify has found blocks that differ, and they were not repaired (4: as fsck says it)."""

    exit_code = 4
