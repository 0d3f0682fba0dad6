"""The network between the two nodes: link establishment, four one-way channels, partitions.

Floor: sim. A link has two channels (data and meta), each a FIFO in each direction, with delays
that are independent of one another. What may happen to real sockets happens here: the two ends
come up and notice an end at different times, the end of one channel overtakes packets on the
other, and whatever was in flight when a link dies is lost from some packet on, separately in
each channel and direction. A partition either stalls the link (packets arrive after healing,
if both ends still live) or cuts it. Swarm runs add what NetFaults says: directions or single sockets
through which nothing passes, connect attempts that leave one end alone, streams that end inside a packet.

In a wire run, packets go through `encode` and a Decoder that is fed bytes cut at random places.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from pydrbd.engine.orders import LinkAction
from pydrbd.errors import ProtocolViolation
from pydrbd.sim.clock import Clock, Violation
from pydrbd.sim.net_faults import MOST_DELAY, NetFaults, Way
from pydrbd.vocabulary import Conn
from pydrbd.wire.decoder import Decoder, Phase
from pydrbd.wire.integrity import encode
from pydrbd.wire.packets import Channel, ConnectionFeatures, Packet, ProtocolUpdate

CHANNELS = (Channel.DATA, Channel.META)


@dataclass(frozen=True)
class NetProfile:
    """How the network behaves in one run (seconds, probabilities)."""

    delay: float = 0.0005
    #: Some packets take this many times longer.
    spike: float = 20.0
    spike_chance: float = 0.02
    establish: float = 0.05
    wire_bytes: bool = False
    #: data-integrity-alg of both nodes from the start; shows in a wire run only.
    integrity: str = ""


class Host:
    """What the network needs of a node; node.Node is one."""

    name: str

    def paused_until(self) -> float:
        """Until when the process is stopped: what comes for it waits in its sockets (the past: it runs)."""
        return 0.0

    def integrity(self) -> str:
        """data-integrity-alg of its running process."""
        return ""

    def link_up(self, resolve_conflicts: bool) -> int | None:
        """Both sockets exist. The session number; None if the process has died."""
        raise NotImplementedError

    def link_down(self, session: int, reason: Conn, text: str) -> None:
        raise NotImplementedError

    def packets(self, session: int, channel: Channel, packets: list[Packet]) -> None:
        raise NotImplementedError

    def traffic(self, session: int, channel: Channel) -> None:
        raise NotImplementedError


class _End:
    """One node's pair of sockets."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.session: int | None = None
        self.closed = False


class _Torn:
    """The first bytes of a packet whose stream was cut inside it."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class _Pipe:
    """One channel in one direction. A None in the queue is the end of the stream."""

    def __init__(self, source: _End, target: _End, channel: Channel) -> None:
        self.source = source
        self.target = target
        self.channel = channel
        self.queue: deque[tuple[float, Packet | _Torn | None]] = deque()
        self.last = 0.0
        self.scheduled = False
        start = Phase.FEATURES if channel is Channel.DATA else Phase.RUNNING
        self.decoder = Decoder(channel, start=start, integrity_alg=target.host.integrity())
        #: data-integrity-alg of what is sent from here on.
        self.integrity = source.host.integrity()

    def encode(self, packet: Packet) -> list[bytes]:
        """The bytes of the next packet."""
        pieces = [bytes(piece) for piece in encode(packet, self.integrity)]
        if isinstance(packet, ProtocolUpdate):
            self.integrity = packet.integrity_alg
        return pieces


class _Link:
    def __init__(self, one: _End, two: _End) -> None:
        self.ends = {one.host.name: one, two.host.name: two}
        self.pipes = {
            (source.host.name, channel): _Pipe(source, target, channel)
            for source, target in ((one, two), (two, one))
            for channel in CHANNELS
        }
        #: Nothing new gets through any more.
        self.cut = False
        #: A node was handed a packet that the other one never sent.
        self.strayed = False
        #: Through these nothing passes for the time being.
        self.stalled: set[Way] = set()

    def other(self, name: str) -> _End:
        return next(end for key, end in self.ends.items() if key != name)

    @property
    def over(self) -> bool:
        return all(end.closed for end in self.ends.values())


class Network:
    """The network of a pair. `hosts` is filled by the world before the first event."""

    def __init__(self, clock: Clock, profile: NetProfile, faults: NetFaults | None = None) -> None:
        self.faults = faults or NetFaults()
        self.clock = clock
        self.rng = clock.rng
        self.profile = profile
        self.hosts: dict[str, Host] = {}
        self.partitioned = False
        #: What these nodes send does not arrive: a one-way partition.
        self.mute: set[str] = set()
        #: What these nodes send takes this many times longer.
        self.slowed: dict[str, float] = {}
        self.link: _Link | None = None
        self._wants: set[str] = set()
        self._establishing = False
        #: This node leaves its peer to dial the next time.
        self._listens = ""
        #: A bit of the next data on their way is changed.
        self.flips = False
        #: Tells the checker of every packet handed to the network.
        self.on_send: Callable[[str, Packet], None] | None = None

    # --- what an engine asks for -----------------------------------------------------------
    def action(self, name: str, action: LinkAction) -> None:
        if action is LinkAction.START:
            self._wants.add(name)
            self._try_establish()
            return
        self._wants.discard(name)
        self._close(name, lossy=action is not LinkAction.STOP or self.rng.random() < 0.1)
        if action is LinkAction.DROP_AND_LISTEN:
            self._listens = name

    def send(self, name: str, channel: Channel, packet: Packet) -> None:
        """Put a packet on its way; without a link it is dropped, as a write to a closed socket is."""
        link = self.link
        if link is None or link.ends[name].closed or link.ends[name].session is None:
            self.clock.note(name, "unsent", packet)
            return
        if isinstance(packet, ConnectionFeatures) and self.faults.features is not None:
            mark = bytes(60) if name in self.faults.unmarked else packet.reserved
            packet = replace(packet, features=packet.features & self.faults.features, reserved=mark)
        if self.on_send is not None:
            self.on_send(name, packet)
        self._push(link, link.pipes[name, channel], packet)

    def died(self, name: str, *, silent: bool) -> None:
        """The process of `name` is gone; `silent`: its machine too, so nobody tells the peer."""
        self._wants.discard(name)
        self._close(name, lossy=True, silent=silent)

    def revived(self, name: str) -> None:
        """The machine is up again: it answers packets of an old link with a reset."""
        link = self.link
        if link is not None and link.ends[name].closed and not link.other(name).closed:
            if self.faults.unanswered and self.rng.random() < self.faults.unanswered:
                return
            self.clock.after(
                self.rng.uniform(0.0, 2.0), self._reset, link, link.other(name), "connection reset"
            )

    # --- partitions --------------------------------------------------------------------------
    def partition(self) -> None:
        """Nothing passes until `heal`. The link stalls, or dies and its ends notice some time or never."""
        self.partitioned = True
        link = self.link
        if link is None or link.over or self.rng.random() < 0.3:
            return
        link.cut = True
        for pipe in link.pipes.values():
            self._lose_suffix(pipe)
        for end in link.ends.values():
            if self.rng.random() < 0.5:
                self.clock.after(self.rng.uniform(0, 1.0), self._reset, link, end, "network unreachable")

    @property
    def disturbed(self) -> bool:
        """Something does not get through at present."""
        return self.partitioned or bool(self.mute) or bool(self.link and self.link.stalled)

    @property
    def honest(self) -> bool:
        """Neither node may find fault with what comes over the present link."""
        return self.link is None or not self.link.strayed

    def stray(self) -> None:
        """A node was handed a packet that nobody sent."""
        if self.link is not None:
            self.link.strayed = True

    def stall(self, ways: Iterable[Way]) -> None:
        """Nothing passes through these sockets of the present link until `heal`."""
        if self.link is not None:
            self.link.stalled.update(ways)

    def quiet(self) -> None:
        """The faults of swarm runs end; with the shortest time-outs that they draw, spikes are faults too."""
        self.profile = replace(self.profile, spike_chance=0.0)
        self.faults = replace(self.faults, slower={}, half_up=0.0, unanswered=0.0)
        self.slowed = {}
        self.heal()

    def heal(self) -> None:
        self.partitioned = False
        self.mute.clear()
        link = self.link
        if link is not None and not link.over:
            link.stalled.clear()
            for pipe in link.pipes.values():
                self._schedule(link, pipe)
            if link.cut:
                for end in link.ends.values():
                    self.clock.after(self.rng.uniform(0, 1.0), self._reset, link, end, "connection reset")
        self._try_establish()

    # --- inside ---------------------------------------------------------------------------------
    def _try_establish(self) -> None:
        if self._establishing or self.partitioned or self.mute or self._wants != set(self.hosts):
            return
        if self.link is not None and not self.link.over:
            return
        self._establishing = True
        self.clock.after(self.rng.expovariate(1 / self.profile.establish), self._establish)

    def _establish(self) -> None:
        self._establishing = False
        if self.partitioned or self.mute or self._wants != set(self.hosts):
            return
        one, two = (_End(host) for host in self.hosts.values())
        link = self.link = _Link(one, two)
        self._wants.clear()
        resolver = next((e for e in (one, two) if e.host.name == self._listens), self.rng.choice((one, two)))
        self._listens = ""
        for end in (one, two):
            self.clock.after(self.rng.uniform(0, 0.02), self._up, link, end, end is resolver)
        if self.faults.half_up and self.rng.random() < self.faults.half_up:
            self._fail_half(link, self.rng.choice((one, two)))

    def _fail_half(self, link: _Link, end: _End) -> None:
        """The attempt fails at one end, which dials on, while the other counts itself as connected; or the
        two have taken different sockets of a crossed attempt, and one of them leads nowhere."""
        if self.rng.random() < 0.5:
            channel = self.rng.choice(CHANNELS)
            link.stalled.update((name, channel) for name in link.ends)
            self.clock.after(self.rng.uniform(0.5, 30.0), self._reset, link, end, "connection reset")
            return
        end.closed = True
        self._wants.add(end.host.name)
        if self.rng.random() < 0.5:
            other = link.other(end.host.name)
            self.clock.after(self.rng.uniform(0, 2.0), self._reset, link, other, "connection reset")

    def _up(self, link: _Link, end: _End, resolver: bool) -> None:
        if end.closed or self._waits_for(end.host, self._up, link, end, resolver):
            return
        self.clock.note(end.host.name, "link up", "resolves conflicts" if resolver else "")
        # The session must be known before the first packets that link_up produces are sent.
        end.session = -1
        session = end.host.link_up(resolver)
        if session is None:
            end.closed = True
            return
        end.session = session
        for pipe in link.pipes.values():
            if pipe.target is end:
                self._schedule(link, pipe)

    def _close(self, name: str, *, lossy: bool, silent: bool = False) -> None:
        link = self.link
        if link is None or link.ends[name].closed:
            return
        link.ends[name].closed = True
        for (source, _), pipe in link.pipes.items():
            if source != name:
                pipe.queue.clear()
                continue
            if lossy:
                self._lose_suffix(pipe)
            if not silent:
                self._push(link, pipe, None)
        if silent:
            link.cut = True
        self._try_establish()

    def _push(self, link: _Link, pipe: _Pipe, packet: Packet | None) -> None:
        if link.cut or pipe.target.closed:
            return
        pipe.last = max(pipe.last, self.clock.now + self._delay(pipe))
        pipe.queue.append((pipe.last, packet))
        self._schedule(link, pipe)

    def _delay(self, pipe: _Pipe) -> float:
        delay = self.rng.expovariate(1 / self.profile.delay)
        if self.rng.random() < self.profile.spike_chance:
            delay *= self.profile.spike
        name = pipe.source.host.name
        slower = self.faults.slower.get((name, pipe.channel), 1.0) * self.slowed.get(name, 1.0)
        return delay if slower == 1.0 else min(delay * slower, MOST_DELAY)

    def _lose_suffix(self, pipe: _Pipe) -> None:
        lost: Packet | _Torn | None = None
        due = 0.0
        for _ in range(self.rng.randint(0, len(pipe.queue))):
            due, lost = pipe.queue.pop()
        if self.faults.torn and isinstance(lost, Packet):
            stream = b"".join(pipe.encode(lost))
            pipe.queue.append((due, _Torn(stream[: self.rng.randrange(len(stream))])))

    def _waits_for(self, host: Host, action: Callable[..., None], *args: object) -> bool:
        """Is the process stopped? Then it happens when it goes on."""
        pause = host.paused_until() - self.clock.now
        if pause > 0:
            self.clock.after(pause, action, *args)
        return pause > 0

    def _schedule(self, link: _Link, pipe: _Pipe) -> None:
        if pipe.queue and not pipe.scheduled:
            pipe.scheduled = True
            self.clock.after(max(0.0, pipe.queue[0][0] - self.clock.now), self._deliver, link, pipe)

    def _deliver(self, link: _Link, pipe: _Pipe) -> None:
        end = pipe.target
        pipe.scheduled = self._waits_for(end.host, self._deliver, link, pipe)
        if pipe.scheduled or end.closed or end.session is None or self.partitioned or not pipe.queue:
            return
        name = pipe.source.host.name
        if name in self.mute or (name, pipe.channel) in link.stalled:
            return
        # What one read of the socket brings: what is due, and sometimes what comes close behind.
        extra = self.rng.randint(1, 8) if self.rng.random() < 0.3 else 0
        batch: list[Packet | _Torn] = []
        ended = False
        while pipe.queue and (not batch or pipe.queue[0][0] <= self.clock.now or extra > 0):
            due, packet = pipe.queue.popleft()
            if due > self.clock.now:
                extra -= 1
            if packet is None:
                ended = True
                break
            batch.append(packet)
        if batch:
            self._hand_over(link, end, pipe, batch)
        if ended:
            self._reset(link, end, f"end of the {pipe.channel.value} stream")
        self._schedule(link, pipe)

    def _flip(self, link: _Link, whole: list[Packet], pieces: list[bytes]) -> None:
        """One bit of some packet's data is changed on the way, if any carries data."""
        bodies = [body for packet in whole if packet.DIGESTED for body in [bytes(packet.body())]]
        places = [index for index, piece in enumerate(pieces) if piece in bodies]
        if places:
            self.flips, link.strayed = False, True
            index = self.rng.choice(places)
            changed = bytearray(pieces[index])
            changed[self.rng.randrange(len(changed))] ^= 1 << self.rng.randrange(8)
            pieces[index] = bytes(changed)

    def _hand_over(self, link: _Link, end: _End, pipe: _Pipe, batch: list[Packet | _Torn]) -> None:
        assert end.session is not None
        name = end.host.name
        whole = [packet for packet in batch if isinstance(packet, Packet)]
        if not self.profile.wire_bytes:
            self.clock.note(name, "receives", whole)
            end.host.packets(end.session, pipe.channel, whole)
            return
        pieces = [piece for packet in whole for piece in pipe.encode(packet)]
        if self.flips and pipe.channel is Channel.DATA:
            self._flip(link, whole, pieces)
        stream = b"".join(pieces)
        stream += b"".join(piece.data for piece in batch if isinstance(piece, _Torn))
        cuts = sorted(self.rng.randint(0, len(stream)) for _ in range(self.rng.randint(0, 3)))
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            if end.closed:
                return
            packets: list[Packet] = []
            try:
                packets.extend(pipe.decoder.feed(stream[start:stop]))
            except ProtocolViolation as violation:
                if not link.strayed:
                    raise
                self.clock.note(name, "finds", violation)
                self._reset(link, end, str(violation))
                return
            self.clock.note(name, "receives", packets)
            if packets:
                end.host.packets(end.session, pipe.channel, packets)
            else:
                end.host.traffic(end.session, pipe.channel)
        if not pipe.decoder.between_packets and len(whole) == len(batch):
            raise Violation("wire", f"the decoder of {name} still waits after whole packets: {batch}")

    def _reset(self, link: _Link, end: _End, text: str) -> None:
        """`end` learns that the connection is over."""
        if end.closed or self._waits_for(end.host, self._reset, link, end, text):
            return
        end.closed = True
        if end.session is None:
            # It never came up: the dialing simply goes on.
            self._wants.add(end.host.name)
        else:
            reason = self.rng.choice((Conn.NETWORK_FAILURE, Conn.BROKEN_PIPE))
            self.clock.note(end.host.name, "link down", text)
            end.host.link_down(end.session, reason, text)
        other = link.other(end.host.name)
        if not other.closed and not link.cut:
            for pipe in link.pipes.values():
                if pipe.source is end:
                    self._lose_suffix(pipe)
                    self._push(link, pipe, None)
        self._try_establish()
