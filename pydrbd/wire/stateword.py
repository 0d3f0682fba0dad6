"""The 32-bit state word of STATE and STATE_CHG_REQ.

Floor: wire. Neighbours: vocabulary (the enums' numbers), the engine's state (what the fields mean).
Bit 0 is the least significant bit of the big-endian word: role 0-1, peer role 2-3, connection 4-8,
disk 9-12, peer disk 13-16, suspended by user 17, sync paused by dependency 18, by the peer 19, by the
user 20, suspended for lack of data 21, for fencing 22. Bits 23-31 are unused and ignored.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, TypeVar

from pydrbd.errors import ProtocolViolation
from pydrbd.vocabulary import Conn, Disk, Role

ROLE_MASK = 0x3
PEER_MASK = 0xC
CONN_MASK = 0x1F0
DISK_MASK = 0x1E00
PDSK_MASK = 0x1E000

_PEER_SHIFT, _CONN_SHIFT, _DISK_SHIFT, _PDSK_SHIFT = 2, 4, 9, 13
_SUSP_USER, _AFTR_ISP, _PEER_ISP, _USER_ISP, _SUSP_NOD, _SUSP_FEN = (1 << bit for bit in range(17, 23))

#: How the receiver of a request names the sender's connection state; states not listed become 0.
_MIRRORED_CONN: dict[int, int] = {
    Conn.CONNECTED: Conn.CONNECTED,
    Conn.STARTING_SYNC_S: Conn.STARTING_SYNC_T,
    Conn.STARTING_SYNC_T: Conn.STARTING_SYNC_S,
    Conn.DISCONNECTING: Conn.TEAR_DOWN,
    Conn.VERIFY_S: Conn.VERIFY_T,
    Conn.MASK: Conn.MASK,
}

_E = TypeVar("_E", bound=IntEnum)


class StateFields(NamedTuple):
    """The fields of a state word, as its sender sees them."""

    role: Role
    peer: Role
    conn: Conn
    disk: Disk
    pdsk: Disk
    susp_user: bool = False
    aftr_isp: bool = False
    peer_isp: bool = False
    user_isp: bool = False
    susp_nod: bool = False
    susp_fen: bool = False


def pack_state(
    role: Role,
    peer: Role,
    conn: Conn,
    disk: Disk,
    pdsk: Disk,
    susp_user: bool = False,
    aftr_isp: bool = False,
    peer_isp: bool = False,
    user_isp: bool = False,
    susp_nod: bool = False,
    susp_fen: bool = False,
) -> int:
    """The state word of these fields. `pack_state(*fields)` undoes `unpack_state`."""
    flags = (susp_user, aftr_isp, peer_isp, user_isp, susp_nod, susp_fen)
    word = role | peer << _PEER_SHIFT | conn << _CONN_SHIFT | disk << _DISK_SHIFT | pdsk << _PDSK_SHIFT
    return word | sum(1 << 17 + number for number, flag in enumerate(flags) if flag)


def _field(kind: type[_E], number: int, what: str, word: int) -> _E:
    try:
        return kind(number)
    except ValueError:
        raise ProtocolViolation(
            f"state word {word:#010x} from the peer: {what} {number} does not exist"
        ) from None


def unpack_state(word: int) -> StateFields:
    """The fields of a state word. Raises ProtocolViolation for numbers that name nothing."""
    conn = word >> _CONN_SHIFT & 0x1F
    if conn == Conn.MASK:
        raise ProtocolViolation(
            f"state word {word:#010x} from the peer: connection state {conn} does not exist"
        )
    return StateFields(
        _field(Role, word & 3, "role", word),
        _field(Role, word >> _PEER_SHIFT & 3, "peer role", word),
        _field(Conn, conn, "connection state", word),
        _field(Disk, word >> _DISK_SHIFT & 15, "disk state", word),
        _field(Disk, word >> _PDSK_SHIFT & 15, "peer disk state", word),
        bool(word & _SUSP_USER),
        bool(word & _AFTR_ISP),
        bool(word & _PEER_ISP),
        bool(word & _USER_ISP),
        bool(word & _SUSP_NOD),
        bool(word & _SUSP_FEN),
    )


def _mirror_word(word: int) -> int:
    conn = word >> _CONN_SHIFT & 0x1F
    other = (word & ROLE_MASK) << _PEER_SHIFT | (word & PEER_MASK) >> _PEER_SHIFT
    other |= _MIRRORED_CONN.get(conn, 0) << _CONN_SHIFT
    disks = _PDSK_SHIFT - _DISK_SHIFT
    other |= (word & DISK_MASK) << disks | (word & PDSK_MASK) >> disks
    return other | (_PEER_ISP if word & (_AFTR_ISP | _USER_ISP) else 0)


def mirror(mask: int, value: int) -> tuple[int, int]:
    """(mask, value) of STATE_CHG_REQ or CONN_ST_CHG_REQ as its receiver sees them.

    Role and disk change places with those of the peer, the connection state goes through the table
    above, the sender's own sync pauses become the peer's, everything else becomes 0. Raises
    ProtocolViolation if a field is masked in part or its value names nothing.
    """
    for field, what in (
        (ROLE_MASK, "role"),
        (PEER_MASK, "peer role"),
        (CONN_MASK, "connection"),
        (DISK_MASK, "disk"),
        (PDSK_MASK, "peer disk"),
    ):
        if mask & field not in (0, field):
            raise ProtocolViolation(f"state change from the peer: mask {mask:#010x} cuts the field {what}")
    wanted = value & mask
    unpack_state(wanted)
    return _mirror_word(mask), _mirror_word(wanted)
