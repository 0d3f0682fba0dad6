"""Why a state changed: the kinds of causes, and the sentences that say them.

Floor: engine, pure. Neighbour: journal (puts a cause to every transition). The kinds are few, so that
tools can tell them apart; the text is for people: no full stop, no resource's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydrbd.vocabulary import Conn


class CauseKind(StrEnum):
    """What changes states."""

    #: Nobody said (it follows from what came before).
    NONE = ""
    #: The process began: nothing is attached or connected; and what it does by itself then.
    START = "start"
    #: A command of the administrator here.
    COMMAND = "command"
    #: Word from the peer: its state, or what it asked for.
    PEER = "peer"
    #: The connection was lost or is being looked for.
    CONNECTION = "connection"
    #: What the two nodes found when they met; `rule` is the row of the table of generations (0: none).
    HANDSHAKE = "handshake"
    #: An error of this node's disk.
    DISK = "disk"
    #: The course of a resync, or of an online verify.
    RESYNC = "resync"
    #: A client opened or closed the device.
    CLIENT = "client"
    #: A handler was called, or has ended.
    HANDLER = "handler"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a state changed."""

    kind: CauseKind
    text: str
    rule: int = 0


NOTHING = Cause(CauseKind.NONE, "")
START = Cause(CauseKind.START, "the process started")
PEER = Cause(CauseKind.PEER, "the peer said so")
OPENED = Cause(CauseKind.CLIENT, "the first client opened the device")
CLOSED = Cause(CauseKind.CLIENT, "the last client closed the device")
SEARCHING = Cause(CauseKind.CONNECTION, "this node looks for its peer")
PATH = Cause(CauseKind.CONNECTION, "a TCP connection to the peer was made")
VERIFIED = Cause(CauseKind.RESYNC, "the online verify has compared all that it was to")
GONE = Cause(CauseKind.DISK, "the disk was let go of")


def command(words: str) -> Cause:
    """The administrator gave a command."""
    return Cause(CauseKind.COMMAND, words)


def starting(words: str) -> Cause:
    """What a process does by itself when it starts, in the words of the command."""
    return Cause(CauseKind.START, words)


def lost(reason: Conn, text: str) -> Cause:
    """A connection ended."""
    return Cause(CauseKind.CONNECTION, f"connection lost ({reason.connection_word}): {text}")


def refused(text: str, rule: int = 0) -> Cause:
    """The handshake came to the end that these nodes must not be connected."""
    return Cause(CauseKind.HANDSHAKE, text, rule)


def decided(rule: int, verdict: str) -> Cause:
    """The nodes compared their generations."""
    return Cause(CauseKind.HANDSHAKE, f"the nodes compared their data: {verdict}", rule)


def disk_error(text: str) -> Cause:
    """The own disk failed."""
    return Cause(CauseKind.DISK, f"local I/O error: {text}")


def fenced(status: int, text: str) -> Cause:
    """fence-peer has answered."""
    return Cause(CauseKind.HANDLER, f"fence-peer ended with exit status {status}: {text}")


def peer(text: str) -> Cause:
    """The peer said or asked something."""
    return Cause(CauseKind.PEER, text)


def resync(text: str) -> Cause:
    """A step of a resync."""
    return Cause(CauseKind.RESYNC, text)
