"""The engine of one resource on one node: a monitor that any thread may enter under the driver's mutex.

Floor: engine. (Interface first; the bodies follow.)

Entry points that return a Script must be run by a driver; the plain ones act at once.
After any call the driver drains `engine.out`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydrbd.engine.options import EngineOptions
from pydrbd.engine.orders import IoFailed, Outputs, Script, Ticket
from pydrbd.engine.snapshot import ResourceSnapshot
from pydrbd.vocabulary import Conn
from pydrbd.wire.packets import Channel, Packet


class Engine:
    def __init__(self, options: EngineOptions, entropy: Callable[[int], bytes]) -> None:
        """`entropy(n)` gives n random bytes (secrets.token_bytes in production, seeded in the simulator)."""
        self.options = options
        self.out = Outputs()
        self.now = 0.0

    # --- clients (NBD) -------------------------------------------------------------------
    def open(self, volume: int, writable: bool) -> int:
        """An NBD client opens an export: 0, or the errno that refuses it (EROFS, EMEDIUMTYPE, ENODATA)."""
        raise NotImplementedError

    def auto_promotes(self, volume: int, writable: bool) -> bool:
        """True when open() needs promote() to be run first (auto-promote yes, Secondary, writable)."""
        raise NotImplementedError

    def close(self, volume: int, writable: bool) -> None:
        raise NotImplementedError

    def size(self, volume: int) -> int:
        """Size of the exported device in bytes (0: not known yet)."""
        raise NotImplementedError

    def read(self, volume: int, offset: int, length: int) -> Script[bytes | IoFailed]:
        raise NotImplementedError

    def write(self, volume: int, offset: int, data: bytes, fua: bool = False) -> Script[IoFailed | None]:
        raise NotImplementedError

    def trim(self, volume: int, offset: int, length: int, fua: bool = False) -> Script[IoFailed | None]:
        raise NotImplementedError

    def zero(self, volume: int, offset: int, length: int, may_trim: bool, fua: bool = False) -> Script[IoFailed | None]:
        raise NotImplementedError

    def flush(self, volume: int) -> Script[IoFailed | None]:
        """Durable here and on the connected peer when it returns; covers writes of all connections."""
        raise NotImplementedError

    # --- administration: scripts that raise StateRefused or CommandFailed ------------------
    def attach(self, volume: int) -> Script[None]:
        raise NotImplementedError

    def detach(self, volume: int, force: bool = False) -> Script[None]:
        raise NotImplementedError

    def promote(self, force: bool = False) -> Script[None]:
        raise NotImplementedError

    def demote(self) -> Script[None]:
        raise NotImplementedError

    def connect(self, discard_my_data: bool = False) -> Script[None]:
        """Returns at once with the connection in state WFConnection."""
        raise NotImplementedError

    def disconnect(self, force: bool = False) -> Script[None]:
        raise NotImplementedError

    def invalidate(self, volume: int) -> Script[None]:
        raise NotImplementedError

    def invalidate_remote(self, volume: int) -> Script[None]:
        raise NotImplementedError

    def new_current_uuid(self, volume: int, clear_bitmap: bool = False) -> Script[None]:
        raise NotImplementedError

    def down(self) -> Script[None]:
        """Demote, disconnect, detach: after it the process may end."""
        raise NotImplementedError

    def wait_for(self, condition: Callable[[ResourceSnapshot], bool], timeout: float | None) -> Script[bool]:
        """Wait until the condition holds (checked at every state change and tick). False: timed out."""
        raise NotImplementedError

    # --- network ---------------------------------------------------------------------------
    def link_up(self, resolve_conflicts: bool) -> int:
        """Both sockets exist, INITIAL packets are exchanged. Answers the session number.

        `resolve_conflicts`: this node accepted INITIAL_META (its peer dialed it). The next packet
        on the data socket, both ways, is CONNECTION_FEATURES.
        """
        raise NotImplementedError

    def link_down(self, session: int, reason: Conn, text: str) -> None:
        """A socket ended or the decoder raised: reason NETWORK_FAILURE, BROKEN_PIPE, TIMEOUT or
        PROTOCOL_ERROR. Ignored when the session is not the current one."""
        raise NotImplementedError

    def on_packets(self, session: int, channel: Channel, packets: Sequence[Packet]) -> None:
        """Packets in the order of the channel. Ignored when the session is not the current one."""
        raise NotImplementedError

    def traffic(self, session: int, channel: Channel) -> None:
        """Bytes came (part of a packet): the peer is alive."""
        raise NotImplementedError

    def tick(self, now: float) -> None:
        """Called about every 100 ms with the monotonic clock: pings, time-outs, resync pace."""
        raise NotImplementedError

    # --- observation -------------------------------------------------------------------------
    def snapshot(self) -> ResourceSnapshot:
        raise NotImplementedError

    def invariants(self) -> None:
        """Assert what must hold between any two steps (DESIGN section 4, the part one node can see)."""
        raise NotImplementedError

    def timer(self, seconds: float) -> Ticket:
        """A ticket that resolves at the first tick after `seconds`."""
        raise NotImplementedError
