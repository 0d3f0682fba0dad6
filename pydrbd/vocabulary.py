"""DRBD's words: roles, states and refusals, with the numbers they have on the wire.

Floor: words. The members' values are those of the 32-bit state word of protocol 101
(packet STATE); `word` is what drbdadm and drbdsetup print. Order matters: disk and
connection states are compared with < and > as DRBD does.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class Role(IntEnum):
    """Role of a node for a resource (2 bits of the state word)."""

    UNKNOWN = 0
    PRIMARY = 1
    SECONDARY = 2

    @property
    def word(self) -> str:
        return self.name.capitalize()


class Disk(IntEnum):
    """State of one disk (4 bits of the state word)."""

    DISKLESS = 0
    ATTACHING = 1
    FAILED = 2
    NEGOTIATING = 3
    INCONSISTENT = 4
    OUTDATED = 5
    DUNKNOWN = 6
    CONSISTENT = 7
    UP_TO_DATE = 8

    @property
    def word(self) -> str:
        return _DISK_WORDS.get(self, self.name.capitalize())


_DISK_WORDS = {Disk.DUNKNOWN: "DUnknown", Disk.UP_TO_DATE: "UpToDate"}


class Conn(IntEnum):
    """Connection state of one volume as 8.4 has it: connection and replication in one (5 bits)."""

    STANDALONE = 0
    DISCONNECTING = 1
    UNCONNECTED = 2
    TIMEOUT = 3
    BROKEN_PIPE = 4
    NETWORK_FAILURE = 5
    PROTOCOL_ERROR = 6
    TEAR_DOWN = 7
    WF_CONNECTION = 8
    WF_REPORT_PARAMS = 9
    CONNECTED = 10
    STARTING_SYNC_S = 11
    STARTING_SYNC_T = 12
    WF_BITMAP_S = 13
    WF_BITMAP_T = 14
    WF_SYNC_UUID = 15
    SYNC_SOURCE = 16
    SYNC_TARGET = 17
    VERIFY_S = 18
    VERIFY_T = 19
    PAUSED_SYNC_S = 20
    PAUSED_SYNC_T = 21
    AHEAD = 22
    BEHIND = 23
    #: Only in the mask of a state change request.
    MASK = 31

    @property
    def connection_word(self) -> str:
        """The word of the connection object (DRBD 9 names): 'Connecting', 'Connected', 'StandAlone'…"""
        return _CONNECTION_WORDS.get(self, "Connected")

    @property
    def replication_word(self) -> str:
        """The word of the peer device: 'Off' without a connection, 'Established' when idle."""
        return _REPLICATION_WORDS.get(self, "Off")


_CONNECTION_WORDS = {
    Conn.STANDALONE: "StandAlone",
    Conn.DISCONNECTING: "Disconnecting",
    Conn.UNCONNECTED: "Unconnected",
    Conn.TIMEOUT: "Timeout",
    Conn.BROKEN_PIPE: "BrokenPipe",
    Conn.NETWORK_FAILURE: "NetworkFailure",
    Conn.PROTOCOL_ERROR: "ProtocolError",
    Conn.TEAR_DOWN: "TearDown",
    Conn.WF_CONNECTION: "Connecting",
    Conn.WF_REPORT_PARAMS: "Connecting",
}
_REPLICATION_WORDS = {
    Conn.CONNECTED: "Established",
    Conn.STARTING_SYNC_S: "StartingSyncS",
    Conn.STARTING_SYNC_T: "StartingSyncT",
    Conn.WF_BITMAP_S: "WFBitMapS",
    Conn.WF_BITMAP_T: "WFBitMapT",
    Conn.WF_SYNC_UUID: "WFSyncUUID",
    Conn.SYNC_SOURCE: "SyncSource",
    Conn.SYNC_TARGET: "SyncTarget",
    Conn.VERIFY_S: "VerifyS",
    Conn.VERIFY_T: "VerifyT",
    Conn.PAUSED_SYNC_S: "PausedSyncS",
    Conn.PAUSED_SYNC_T: "PausedSyncT",
    Conn.AHEAD: "Ahead",
    Conn.BEHIND: "Behind",
}


class Protocol(StrEnum):
    """Replication protocol (net option `protocol`): when a write counts as done."""

    A = "A"
    B = "B"
    C = "C"

    @property
    def number(self) -> int:
        """The number in packet PROTOCOL."""
        return "ABC".index(self.value) + 1


class Refusal(IntEnum):
    """Why a state change is refused; the numbers of packet STATE_CHG_REPLY and of drbdsetup's text."""

    TWO_PRIMARIES = -1
    NO_UP_TO_DATE_DISK = -2
    NO_LOCAL_DISK = -4
    NO_REMOTE_DISK = -5
    CONNECTED_OUTDATES = -6
    PRIMARY_NOP = -7
    RESYNC_RUNNING = -8
    ALREADY_STANDALONE = -9
    CW_FAILED_BY_PEER = -10
    IS_DISKLESS = -11
    DEVICE_IN_USE = -12
    NO_NET_CONFIG = -13
    NO_VERIFY_ALG = -14
    NEED_CONNECTION = -15
    LOWER_THAN_OUTDATED = -16
    IN_TRANSIENT_STATE = -18
    CONCURRENT_ST_CHG = -19
    INTERRUPTED = -21
    TIMEOUT = -23

    @property
    def text(self) -> str:
        """The sentence drbdsetup prints after the number."""
        return _REFUSAL_TEXTS[self]

    @property
    def exit_code(self) -> int:
        """The exit code of drbdsetup and drbdadm for this refusal."""
        return _REFUSAL_EXITS.get(self, 11)


_REFUSAL_EXITS = {
    Refusal.NO_UP_TO_DATE_DISK: 17,
    Refusal.NO_LOCAL_DISK: 16,
    Refusal.LOWER_THAN_OUTDATED: 5,
}
_REFUSAL_TEXTS = {
    Refusal.TWO_PRIMARIES: "Multiple primaries not allowed by config",
    Refusal.NO_UP_TO_DATE_DISK: "Need access to UpToDate data",
    Refusal.NO_LOCAL_DISK: "Can not resync without local disk",
    Refusal.NO_REMOTE_DISK: "Can not resync without remote disk",
    Refusal.CONNECTED_OUTDATES: "Refusing to be Outdated while Connected",
    Refusal.PRIMARY_NOP: "Refusing to be Primary while peer is not outdated",
    Refusal.RESYNC_RUNNING: "Can not start OV/resync since it is already active",
    Refusal.ALREADY_STANDALONE: "Can not disconnect a StandAlone device",
    Refusal.CW_FAILED_BY_PEER: "State change was refused by peer node",
    Refusal.IS_DISKLESS: "Device is diskless, the requested operation requires a disk",
    Refusal.DEVICE_IN_USE: "Device is held open by someone",
    Refusal.NO_NET_CONFIG: "Have no net/connection configuration",
    Refusal.NO_VERIFY_ALG: "Need a verify algorithm to start online verify",
    Refusal.NEED_CONNECTION: "State change requires a connection",
    Refusal.LOWER_THAN_OUTDATED: "Disk state is lower than outdated",
    Refusal.IN_TRANSIENT_STATE: "In transient state, retry after next state change",
    Refusal.CONCURRENT_ST_CHG: "Concurrent state changes detected and aborted",
    Refusal.INTERRUPTED: "Interrupted state change",
    Refusal.TIMEOUT: "Timeout in operation",
}


#: Hash algorithms by the kernel's names; crc32c is none for a secret, but good for comparing blocks.
HASHES = (
    "md5",
    "sha1",
    "sha224",
    "sha256",
    "sha384",
    "sha512",
    "sha3-224",
    "sha3-256",
    "sha3-384",
    "sha3-512",
)
DIGESTS = ("crc32c", *HASHES)


class OnIoError(StrEnum):
    """What a node does about an error of its own disk (disk option on-io-error)."""

    DETACH = "detach"
    PASS_ON = "pass_on"
    CALL_HANDLER = "call-local-io-error"


class AfterSb(StrEnum):
    """What to do about a split brain by itself (net options after-sb-0pri, -1pri, -2pri)."""

    DISCONNECT = "disconnect"
    YOUNGER_PRIMARY = "discard-younger-primary"
    OLDER_PRIMARY = "discard-older-primary"
    ZERO_CHANGES = "discard-zero-changes"
    LEAST_CHANGES = "discard-least-changes"
    LOCAL = "discard-local"
    REMOTE = "discard-remote"
    CONSENSUS = "consensus"
    SECONDARY = "discard-secondary"
    CALL_HANDLER = "call-pri-lost-after-sb"
    VIOLENTLY = "violently-as0p"

    @property
    def number(self) -> int:
        """The number in packet PROTOCOL."""
        return _AFTER_SB.index(self)

    @property
    def mirrored(self) -> AfterSb:
        """What the peer must have: the same policy, seen from its side."""
        return {AfterSb.LOCAL: AfterSb.REMOTE, AfterSb.REMOTE: AfterSb.LOCAL}.get(self, self)


_AFTER_SB = tuple(AfterSb)


def after_sb_word(number: int) -> str:
    """The word of a number in packet PROTOCOL, for messages."""
    return _AFTER_SB[number].value if number < len(_AFTER_SB) else f"number {number}"


class OnCongestion(StrEnum):
    """What a Primary does when too much is on its way to the peer (on-congestion)."""

    BLOCK = "block"
    PULL_AHEAD = "pull-ahead"
    DISCONNECT = "disconnect"


class Fencing(StrEnum):
    """What a node does about a peer that it cannot reach (net option fencing)."""

    DONT_CARE = "dont-care"
    RESOURCE_ONLY = "resource-only"
    RESOURCE_AND_STONITH = "resource-and-stonith"


class OnNoData(StrEnum):
    """What becomes of clients' requests while a Primary has no good disk within reach (resource option
    on-no-data-accessible)."""

    IO_ERROR = "io-error"
    SUSPEND_IO = "suspend-io"


class RrConflict(StrEnum):
    """What a Primary does that a resync would make the target (net option rr-conflict)."""

    DISCONNECT = "disconnect"
    CALL_HANDLER = "call-pri-lost"
    VIOLENTLY = "violently"


class Failure(IntEnum):
    """Why an administrative command fails (drbdsetup prints `Failure: (N) TEXT`, exit code 10)."""

    LOCAL_ADDRESS_IN_USE = 102
    OPEN_BACKING_DEVICE = 104
    OPEN_MD_DEVICE = 105
    DISK_TOO_SMALL = 111
    METADATA_IO = 118
    NO_METADATA = 119
    DISCARD_IMPOSSIBLE = 123
    DISK_CONFIGURED = 124
    NET_CONFIGURED = 125
    MINOR_NOT_KNOWN = 127
    RESIZE_RESYNC = 130
    NO_PRIMARY = 131
    PAUSE_IS_SET = 134
    PAUSE_IS_CLEAR = 135
    NO_DISK = 138
    PROTOCOL_C_REQUIRED = 139
    CSUMS_RESYNC_RUNNING = 148
    VERIFY_RUNNING = 149
    DATA_NOT_CURRENT = 150
    CONNECTED = 151
    PAUSED_BY_DEPENDENCY = 156
    PAUSED_BY_PEER = 157
    RESOURCE_NOT_KNOWN = 158
    RESOURCE_IN_USE = 159
    INVALID_REQUEST = 162
    NEED_ALLOW_TWO_PRIMARIES = 164
    METADATA_UNCLEAN = 165
    IMPLICIT_SHRINK = 170

    @property
    def text(self) -> str:
        return _FAILURE_TEXTS[self]


_FAILURE_TEXTS = {
    Failure.LOCAL_ADDRESS_IN_USE: "Local address(port) already in use.",
    Failure.OPEN_BACKING_DEVICE: "Can not open backing device.",
    Failure.OPEN_MD_DEVICE: "Can not open meta device.",
    Failure.DISK_TOO_SMALL: "Low.dev. smaller than requested DRBD-dev. size.",
    Failure.METADATA_IO: "IO error(s) occurred during initial access to meta-disk.",
    Failure.NO_METADATA: "No valid meta-data signature found.",
    Failure.DISCARD_IMPOSSIBLE: "--discard-my-data not allowed when primary.",
    Failure.DISK_CONFIGURED: "Device is attached to a disk (use detach first)",
    Failure.NET_CONFIGURED: "Device has a net-config (use disconnect first)",
    Failure.MINOR_NOT_KNOWN: "Device minor not allocated",
    Failure.RESIZE_RESYNC: "Resize not allowed during resync.",
    Failure.NO_PRIMARY: "Need one Primary node to resize.",
    Failure.PAUSE_IS_SET: "Sync-pause flag is already set",
    Failure.PAUSE_IS_CLEAR: "Sync-pause flag is already cleared",
    Failure.NO_DISK: "Device does not have a disk-config",
    Failure.PROTOCOL_C_REQUIRED: "Protocol C required",
    Failure.CSUMS_RESYNC_RUNNING: "Can not change csums-alg while resync is in progress",
    Failure.VERIFY_RUNNING: "Can not change verify-alg while online verify runs",
    Failure.DATA_NOT_CURRENT: "Can only attach to the data we lost last (see kernel log).",
    Failure.CONNECTED: "Need to be StandAlone",
    Failure.PAUSED_BY_DEPENDENCY: "The resync is paused by a resync-after dependency",
    Failure.PAUSED_BY_PEER: "The resync is paused by the peer node",
    Failure.RESOURCE_NOT_KNOWN: "Unknown resource",
    Failure.RESOURCE_IN_USE: "Resource still in use (delete all minors first)",
    Failure.INVALID_REQUEST: "Invalid configuration request",
    Failure.METADATA_UNCLEAN: "unclean meta-data found",
    Failure.NEED_ALLOW_TWO_PRIMARIES: (
        "Can not clear allow_two_primaries as long as\nthere a primaries on both sides"
    ),
    Failure.IMPLICIT_SHRINK: "Implicit device shrinking not allowed.",
}
