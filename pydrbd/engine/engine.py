"""The engine of one resource on one node: a monitor that any thread may enter under the driver's mutex.

Floor: engine. Neighbours: orders (the contract with drivers), connection (packets), requests (clients),
admin (commands), sync and resync. This module owns the state: every change goes through
`enter_state`, which completes nothing (see state.imply) but acts on the difference (module aftermath).

Entry points that return a Script must be run by a driver; the plain ones act at once. After any
call the driver drains `engine.out`.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pydrbd.engine import admin, causes, disk_faults, generations, handshake, observe, peer_state, requests
from pydrbd.engine.aftermath import aftermath, write_refused
from pydrbd.engine.causes import Cause
from pydrbd.engine.clients import enter, leave
from pydrbd.engine.connection import Session
from pydrbd.engine.fencing import Fences
from pydrbd.engine.handshake import Phase
from pydrbd.engine.journal import Journal
from pydrbd.engine.lane import Lane
from pydrbd.engine.options import EngineOptions
from pydrbd.engine.orders import Await, DiskOrder, IoFailed, LinkAction, LogLine, Outputs, Script, Ticket
from pydrbd.engine.pressure import Pressure
from pydrbd.engine.renewal import finish_source
from pydrbd.engine.resume import resume as resume_primary
from pydrbd.engine.snapshot import ResourceSnapshot
from pydrbd.engine.state import State, describe_change, imply
from pydrbd.engine.suspension import Suspension
from pydrbd.engine.transfer_log import TransferLog
from pydrbd.engine.volume import Volume
from pydrbd.vocabulary import Conn, Disk, Role
from pydrbd.wire.packets import BlockAck, Channel, NegAck, Packet
from pydrbd.wire.packets import State as StatePacket

#: An idle epoch is ended after this many seconds, so that its extents cool down and little is
#: left to copy if the peer is lost.
EPOCH_IDLE_SECONDS = 0.3
#: How long the sockets stay open after we have refused a peer.
LINGER_SECONDS = 0.3


class Engine:
    """See the module. `entropy(n)` gives n random bytes (seeded in the simulator)."""

    def __init__(self, options: EngineOptions, entropy: Callable[[int], bytes]) -> None:
        self.options = options
        self.entropy = entropy
        self.out = Outputs()
        self.now = 0.0
        self.lane: Lane | None = None  # made by who drives the engine; one volume only
        self.volumes = {n: Volume(self, n, o) for n, o in sorted(options.volumes.items())}
        self.connection = Conn.STANDALONE
        self.session: Session | None = None
        self.transfer_log = TransferLog(self)
        self.pressure = Pressure(self)
        self.suspension = Suspension(self)
        self.fences = Fences(self)
        self.discard_my_data = self.tentative = self.auto_promoted = False
        self.listened = 0  #: how often in a row a kernel's peer was left to dial, see conflicts.asks_for_tie
        self.opens = 0  # how often a client that may write has opened a device
        self.last_disconnect = ""
        #: This node was a Primary that crashed, and another one has been Primary since.
        self.overtaken = False
        #: Serialises our own administrative commands that change states.
        self.busy: Ticket | None = None
        self._timers: list[tuple[float, int, Ticket]] = []
        self.sessions = self._timer_count = 0
        self._watchers: dict[Ticket, None] = {}
        self.journal = Journal(self)
        self.journal.take(causes.START)

    @property
    def role(self) -> Role:
        return next(iter(self.volumes.values())).state.role

    @property
    def peer_role(self) -> Role:
        roles = {v.state.peer for v in self.volumes.values()}
        return Role.PRIMARY if Role.PRIMARY in roles else min(roles, key=lambda r: r == Role.UNKNOWN)

    def log(self, level: str, text: str) -> None:
        self.out.log.append(LogLine(level, text))

    def spawn(self, name: str, script: Script[Any]) -> None:
        """Let the driver run a script in the background."""
        self.out.scripts.append((name, script))

    def is_stand_alone(self) -> bool:
        """There is no connection, and none is looked for."""
        return self.connection == Conn.STANDALONE

    def random_uuid(self) -> int:
        """A random UUID without the Primary bit, never one of the reserved values."""
        while True:
            uuid = generations.masked(int.from_bytes(self.entropy(8), "big"))
            if uuid > 4:
                return uuid

    def io_error(self, text: str) -> IoFailed:
        return IoFailed(errno.EIO, text)

    # --- state -----------------------------------------------------------------------------------

    def set_state(self, volume: Volume, *, cause: Cause | None = None, **changes: Any) -> None:
        """Change fields of a volume's state, with what they imply."""
        self.enter_state(volume, imply(replace(volume.state, **changes)), cause)

    def enter_state(self, volume: Volume, new: State, cause: Cause | None = None) -> None:
        """Make the completed state `new` the volume's; `cause` if it is not the one at hand (see journal)."""
        old, new = volume.state, self.suspension.judged(volume, new)
        if new == old:
            return
        if self.lane is not None:
            self.lane.close()
        if self.session is not None:
            volume.resync_may_have_ended = volume.resync.target_may_have_ended()
        self.journal.about_to_change(volume.number, old, new)
        volume.state = new
        self.log("info", f"volume {volume.number}: {describe_change(old, new)}")
        aftermath(self, volume, old, new)
        self.journal.changed(cause)
        self.changed()

    def mint(self, volume: Volume) -> None:
        """Make a new current UUID; no write completes before it is durable (DESIGN 4.5)."""
        assert volume.generation is not None
        uuid = generations.with_role(self.random_uuid(), volume.state.role == Role.PRIMARY)
        volume.generation = generations.new_current(volume.generation, uuid)
        volume.shared = volume.resync_may_have_ended = volume.owes_generation = False
        volume.touch()
        ticket = Ticket()
        volume.minting = ticket
        self.log("info", f"volume {volume.number}: new current UUID {uuid:016X}")
        self.spawn(f"new current UUID {volume.number}", self._minted(volume, ticket))

    def _minted(self, volume: Volume, ticket: Ticket) -> Script[None]:
        yield from volume.persist()
        if volume.minting is ticket:
            volume.minting = None
        ticket.resolve()
        if self.session is not None and volume.state.conn >= Conn.CONNECTED:
            tell = peer_state.send_generation if volume.negotiation.generation_owed else peer_state.send_uuids
            tell(self.session, volume)

    def persist_later(self, volume: Volume) -> None:
        """The superblock has changed; write it in the background."""
        volume.touch()
        self.spawn(f"superblock {volume.number}", volume.persist())

    def send_state(self, volume: Volume) -> None:
        """Tell the peer our state of a volume."""
        if self.session is not None and self.session.phase is Phase.RUNNING:
            self.session.send(StatePacket(volume.state.word, volume.number))

    def disk_failed(self, volume: Volume, order: DiskOrder, failure: IoFailed) -> None:
        """An order on the volume's present disk failed: do what on-io-error says."""
        disk_faults.order_failed(self, volume, order, failure)

    def attach_aborted(self, volume: Volume, why: str) -> None:
        """The peer's data and that of the disk being attached do not go together."""
        disk_faults.abort_attach(self, volume, why)

    # --- network -----------------------------------------------------------------------------------

    def link_up(self, resolve_conflicts: bool) -> int:
        """Both sockets exist, INITIAL packets are exchanged. Answers the session number.

        `resolve_conflicts`: this node accepted INITIAL_META (its peer dialed it). The next packet
        on the data socket, both ways, is CONNECTION_FEATURES.
        """
        self.sessions += 1
        if self.lane is not None:
            self.lane.table.set_sequence(0)
        self.session = Session(self, self.sessions, resolve_conflicts)
        self.connection = Conn.WF_REPORT_PARAMS
        self.journal.changed(causes.PATH)
        handshake.start(self.session)
        return self.sessions

    def connected(self, session: Session, volume: Volume) -> None:
        """The handshake of a volume is over (its state is Connected or above)."""
        if session.told_of.get(volume.number) == volume.incarnation:
            del session.told_of[volume.number]
        self.connection = Conn.CONNECTED
        self.discard_my_data = volume.discard_my_data = False
        self.last_disconnect = ""
        if volume.state.disk > Disk.FAILED:
            volume.exposed = 0

    def link_down(self, session: int, reason: Conn, text: str) -> None:
        """A socket ended or the decoder raised. Ignored when the session is not the current one."""
        if self.session is None or self.session.number != session:
            return
        if self.session.peer_closing:
            reason, text = Conn.TEAR_DOWN, "the peer disconnected"
        self._lose_connection(reason, text)
        self._reconnect()

    def drop(self, session: Session, reason: Conn, text: str, action: LinkAction = LinkAction.DROP) -> None:
        """Give this connection up and try again."""
        if self.session is session:
            self.out.link.append(action)
            self._lose_connection(reason, text)
            self._reconnect()

    def refuse_peer(self, why: str, rule: int = 0, cause: Cause | None = None) -> None:
        """Give the connection up and do not try again: a human must decide.

        The sockets stay open for a moment, so that the peer reads all that we sent and comes to the same
        verdict; nobody announces one.
        """
        self.log("error", why)
        cause = cause or causes.refused(why, rule)
        self._lose_connection(Conn.DISCONNECTING, why, cause)
        self.spawn("stand alone", self.journal.attributed(cause, self._linger()))

    def _linger(self) -> Script[None]:
        yield Await(self.timer(LINGER_SECONDS))
        if self.connection == Conn.DISCONNECTING:
            self.stand_alone()

    def stand_alone(self) -> None:
        """No connection, and none is looked for."""
        self.out.link.append(LinkAction.STOP)
        if self.session is not None:
            self._lose_connection(Conn.DISCONNECTING, "disconnected by the administrator")
        with self.journal.step():
            self.connection = Conn.STANDALONE
            for volume in self.volumes.values():
                self.set_state(volume, conn=Conn.STANDALONE)
        self.changed()

    def _lose_connection(self, reason: Conn, text: str, cause: Cause | None = None) -> None:
        if self.lane is not None:
            self.lane.close()
        session, self.session = self.session, None
        self.log(
            "warning" if reason != Conn.TEAR_DOWN else "info",
            f"connection lost ({reason.connection_word}): {text}",
        )
        self.last_disconnect = text
        with self.journal.step(cause or causes.lost(reason, text)):
            self._part(session, reason)

    def _part(self, session: Session | None, reason: Conn) -> None:
        self.connection = reason
        if session is not None:
            session.close()
        for volume in self.volumes.values():
            volume.negotiation.connection_lost()
            volume.resync_may_have_ended = volume.resync.target_may_have_ended()
        self.transfer_log.lose()
        self.pressure.outbox(full=False)
        for volume in self.volumes.values():
            volume.resync.reset()
            if volume.state.disk == Disk.NEGOTIATING:
                disk_faults.cut_off(self, volume, reason)
            elif self.fences.target_may_be_good(volume):
                self.set_state(volume, conn=reason, pdsk=Disk.DUNKNOWN)
            else:
                self.set_state(volume, conn=reason)
        self.fences.peer_lost(session)

    def _reconnect(self) -> None:
        for conn in (Conn.UNCONNECTED, Conn.WF_CONNECTION):
            with self.journal.step(causes.SEARCHING):
                self.connection = conn
                for volume in self.volumes.values():
                    self.set_state(volume, conn=conn)
        self.out.link.append(LinkAction.START)
        self.changed()

    def on_packets(self, session: int, channel: Channel, packets: Sequence[Packet]) -> None:
        """Packets in the order of the channel. Ignored when the session is not the current one."""
        for packet in packets:
            current = self.session
            if current is None or current.number != session:
                break
            self.traffic(session, channel)
            self.journal.ambient = causes.PEER
            current.handle(packet)
        self.journal.ambient = causes.NOTHING

    def traffic(self, session: int, channel: Channel) -> None:
        """Bytes came (part of a packet): the peer is alive."""
        current = self.session
        if current is None or current.number != session:
            return
        if channel is Channel.META:
            current.last_meta = self.now
        else:
            current.last_data = self.now
            current.pings.deadline = None

    def write_acked(self, packet: BlockAck, in_sync: bool) -> None:
        """The peer has a write (RECV_ACK, WRITE_ACK, RS_WRITE_ACK)."""
        requests.acked(self, packet, in_sync)

    def write_refused(self, packet: NegAck) -> None:
        """The peer could not write (NEG_ACK); under protocols A and B the client may have its answer."""
        request = self.transfer_log.refused(packet)
        write_refused(self, request)
        request.net.resolve()

    def blocks_in_sync(self, volume: Volume, offset: int, length: int) -> None:
        """Both disks hold the same data in this range."""
        if volume.set_in_sync(offset, length):
            self.source_may_end(volume)

    def source_may_end(self, volume: Volume) -> None:
        """End a resync as source when the bits are clear and the target has said that it is done."""
        resync, runs = volume.resync, volume.state.conn in (Conn.SYNC_SOURCE, Conn.PAUSED_SYNC_S)
        if runs and resync.active and resync.target_done and not volume.bitmap.count:
            finish_source(volume)

    # --- time ----------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Called about every 100 ms with the monotonic clock: pings, time-outs, resync pace."""
        self.now = now
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2].resolve(False)
        if self.session is not None:
            self.session.tick()
        since = self.transfer_log.open_since()
        if since is not None and now - since > EPOCH_IDLE_SECONDS:
            self.transfer_log.close_epoch()
        for volume in self.volumes.values():
            volume.resync.tick()
            volume.verify.tick()
            volume.activity_log.look_again()

    def timer(self, seconds: float) -> Ticket:
        """A ticket that resolves at the first tick after `seconds`."""
        ticket = Ticket()
        self._timer_count += 1
        heapq.heappush(self._timers, (self.now + seconds, self._timer_count, ticket))
        return ticket

    # --- clients (NBD) -----------------------------------------------------------------------------

    def open(self, volume: int, writable: bool) -> int:
        """An NBD client opens an export: 0, or the errno that refuses it (EROFS, EMEDIUMTYPE, ENODATA)."""
        return enter(self, volume, writable)

    def auto_promotes(self, volume: int, writable: bool) -> bool:
        """True when open() needs promote() to be run first (auto-promote yes, Secondary, writable)."""
        return self.options.auto_promote and writable and volume in self.volumes and self.role != Role.PRIMARY

    def close(self, volume: int, writable: bool) -> None:
        """An NBD client has gone; the last one of an automatic promotion demotes."""
        leave(self, volume, writable)

    def size(self, volume: int) -> int:
        """Size of the exported device in bytes (0: not known yet)."""
        return self.volumes[volume].size

    def read(self, volume: int, offset: int, length: int) -> Script[bytes | IoFailed]:
        return self.suspension.admitted(volume, lambda v: requests.read(self, v, offset, length))

    def write(
        self, volume: int, offset: int, data: bytes | memoryview, fua: bool = False
    ) -> Script[IoFailed | None]:
        return self.suspension.admitted(volume, lambda v: requests.write(self, v, offset, data, fua))

    def trim(self, volume: int, offset: int, length: int, fua: bool = False) -> Script[IoFailed | None]:
        return self._zero(volume, offset, length, True, True, fua)

    def zero(
        self, volume: int, offset: int, length: int, may_trim: bool, fua: bool = False
    ) -> Script[IoFailed | None]:
        return self._zero(volume, offset, length, False, may_trim, fua)

    def _zero(self, number: int, *what: Any) -> Script[IoFailed | None]:
        return self.suspension.admitted(number, lambda v: requests.zero(self, v, *what))

    def flush(self, volume: int) -> Script[IoFailed | None]:
        """Durable here and on the connected peer when it returns; covers writes of all connections."""
        return self.suspension.admitted(volume, requests.flush)

    # --- administration: scripts that raise StateRefused or CommandFailed ------------------------

    def attach(self, volume: int) -> Script[None]:
        return admin.attach(self, self.volumes[volume])

    def detach(self, volume: int, force: bool = False) -> Script[None]:
        return admin.detach(self, self.volumes[volume], force)

    def promote(self, force: bool = False, auto: bool = False) -> Script[None]:
        return admin.promote(self, force, auto)

    def resume(self, alone: bool = False, seconds: float = 0.0) -> Script[None]:
        """Become Primary again after a crash, unless another node has been Primary since."""
        return resume_primary(self, alone, seconds)

    def demote(self) -> Script[None]:
        return admin.demote(self)

    def connect(self, discard_my_data: bool = False, tentative: bool = False) -> Script[None]:
        """Returns at once with the connection in state WFConnection."""
        return admin.connect(self, discard_my_data, tentative)

    def disconnect(self, force: bool = False) -> Script[None]:
        return admin.disconnect(self, force)

    def invalidate(self, volume: int) -> Script[None]:
        return admin.invalidate(self, self.volumes[volume])

    def invalidate_remote(self, volume: int) -> Script[None]:
        return admin.invalidate_remote(self, self.volumes[volume])

    def new_current_uuid(self, volume: int, clear_bitmap: bool = False) -> Script[None]:
        return admin.new_current_uuid(self, self.volumes[volume], clear_bitmap)

    def down(self) -> Script[None]:
        """Demote, disconnect, detach: after it the process may end."""
        return admin.down(self)

    def wait_for(self, condition: Callable[[ResourceSnapshot], bool], timeout: float | None) -> Script[bool]:
        """Wait until the condition holds (checked at every state change). False: timed out."""
        return observe.wait_for(self, condition, timeout)

    # --- observation -------------------------------------------------------------------------------

    def changed(self) -> None:
        """Something that people wait for may be true now."""
        watchers, self._watchers = self._watchers, {}
        for ticket in watchers:
            ticket.resolve(True)

    def next_change(self, seconds: float) -> Script[None]:
        """Wait for the next change of state, at the most this long."""
        ticket = self.timer(seconds)
        self._watchers[ticket] = None
        yield Await(ticket)
        self._watchers.pop(ticket, None)

    def snapshot(self) -> ResourceSnapshot:
        return observe.snapshot(self)

    def invariants(self) -> None:
        """Assert what must hold between any two steps (DESIGN section 4, the part one node can see)."""
        observe.invariants(self)
