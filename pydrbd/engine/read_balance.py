"""Which node's disk serves a client's read of a healthy pair (read-balancing).

Floor: engine. Neighbours: requests (asks), lane (stays closed on a Primary with any policy but prefer-local,
for it reads the own disk only).

Why a read at the peer is as good as one here: both disks are UpToDate, no bit of the range is set, and no
write to it is under way. A write that is over was either acknowledged by the peer or (protocols A and B) is
ahead of the request on the data socket, and a pydrbd peer keeps overlapping work in the order of arrival; a
later write is behind the request. A kernel's node gives both to its disk as they come, so where A or B has
been the protocol of this session it is not asked. So the read sees all writes that were over before it, and
none that began since. Should the peer not answer it, the own disk does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.format.bitmap_pages import bits_touched
from pydrbd.vocabulary import Conn, Disk

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.volume import Volume

PREFER_LOCAL = "prefer-local"
#: Policies that pydrbd has. (when-congested-remote asks the kernel for a sign that it gives no more.)
POLICIES = (
    *(PREFER_LOCAL, "prefer-remote", "round-robin", "least-pending", "32K-striping", "64K-striping"),
    *("128K-striping", "256K-striping", "512K-striping", "1M-striping"),
)
_HEALTHY = (Conn.CONNECTED, Conn.VERIFY_S, Conn.VERIFY_T)
#: Power of two of a stripe; every second one is read at the peer.
_STRIPES = {policy: 15 + place for place, policy in enumerate(POLICIES[4:])}


def from_peer(engine: Engine, volume: Volume, offset: int, length: int) -> bool:
    """Is this read to be asked of the peer, although the own disk could serve it?"""
    policy, state, session = volume.options.read_balancing, volume.state, engine.session
    if policy == PREFER_LOCAL or session is None or state.conn not in _HEALTHY:
        return False
    if session.agreed.on_trust and not session.flush_waits:
        return False
    if not state.disk == state.pdsk == Disk.UP_TO_DATE or volume.writes_here_only:
        return False
    touched = bits_touched(offset, length)
    if volume.bitmap.any_set(touched.start, touched.stop) or volume.ranges.overlapping(offset, length):
        return False
    # Behind a full outbox it would wait for other packets.
    return engine.pressure.congested is None and _chosen(policy, volume, session, offset)


def _chosen(policy: str, volume: Volume, session: Session, offset: int) -> bool:
    if policy == "round-robin":
        session.peers_turn = not session.peers_turn
        return session.peers_turn
    if policy == "least-pending":
        return volume.orders_under_way > len(session.replies)
    shift = _STRIPES.get(policy)
    return shift is None or bool(offset >> shift & 1)
