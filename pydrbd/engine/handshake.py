"""The handshake of a connection: features, authentication, PROTOCOL; behind it the packets of connection.py.

Floor: engine. Neighbours: connection (the Session, whose `phase` counts), peer_state (what a node then
says of its volumes). A peer that cannot be ours for good is refused (StandAlone); one that breaks the
order is a ProtocolViolation (the connection is tried again).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

from pydrbd.engine import causes, conflicts, peer_state, relocation
from pydrbd.engine.orders import Await, Script
from pydrbd.errors import ProtocolViolation
from pydrbd.version import PROTOCOL_MAX, PROTOCOL_MIN
from pydrbd.vocabulary import Conn, Protocol, after_sb_word
from pydrbd.wire import auth, packets
from pydrbd.wire.packets import Features, Packet

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.options import EngineOptions

OUR_FEATURES = Features.TRIM | Features.THIN_RESYNC | Features.WSAME | Features.WZEROES
#: In the reserved bytes of CONNECTION_FEATURES, which DRBD ignores: our flush waits for the peer's
#: barrier ack, so the peer need not flush before it takes the writes behind a barrier.
FLUSH_WAITS_MARK = b"pydrbd:flush-waits"
#: Flags of PROTOCOL.
DISCARD_MY_DATA, DRY_RUN = 1, 2


def our_features(integrity_alg: str) -> Features:
    """What we offer. Where there are digests a kernel's node takes the beginning of a ZEROES for one; without
    WZEROES both sides send TRIM instead, which then means zeros."""
    return OUR_FEATURES & ~Features.WZEROES if integrity_alg else OUR_FEATURES


class Phase(Enum):
    """What the data socket must carry next."""

    FEATURES = "CONNECTION_FEATURES"
    CHALLENGE = "AUTH_CHALLENGE"
    RESPONSE = "AUTH_RESPONSE"
    PROTOCOL = "PROTOCOL"
    RUNNING = "packets"


def start(session: Session) -> None:
    """The sockets exist: say what we can."""
    reserved = FLUSH_WAITS_MARK.ljust(60, b"\0")
    features = our_features(session.engine.options.data_integrity_alg)
    session.send(packets.ConnectionFeatures(PROTOCOL_MIN, features, PROTOCOL_MAX, reserved))


def take(session: Session, packet: Packet) -> None:
    """The next packet of the handshake. Raises ProtocolViolation if it is another one."""
    expected, step = _STEPS[session.phase]
    if type(packet) is not expected:
        text = f"expected {session.phase.value}, received {type(packet).__name__}"
        secrets = type(packet) in (packets.Protocol, packets.AuthChallenge)
        if session.phase in (Phase.CHALLENGE, Phase.PROTOCOL) and secrets:
            session.engine.refuse_peer(f"{text}: only one side has a shared secret configured")
            return
        raise ProtocolViolation(text)
    step(session, packet)


def _on_features(session: Session, packet: packets.ConnectionFeatures) -> None:
    version = min(packet.max or packet.min, PROTOCOL_MAX)
    if version < max(packet.min, PROTOCOL_MIN):
        session.engine.refuse_peer(
            f"incompatible DRBD dialects: we speak {PROTOCOL_MIN}-{PROTOCOL_MAX},"
            f" the peer {packet.min}-{packet.max}"
        )
        return
    session.features = packet.features & our_features(session.engine.options.data_integrity_alg)
    session.flush_waits = packet.reserved.startswith(FLUSH_WAITS_MARK)
    if conflicts.asks_for_tie(session):
        return
    if session.hmac_alg:
        session.challenge = session.engine.entropy(packets.CHALLENGE_BYTES)
        session.send(packets.AuthChallenge(session.challenge))
        session.phase = Phase.CHALLENGE
    else:
        _send_configuration(session)


def _on_challenge(session: Session, packet: packets.AuthChallenge) -> None:
    if packet.data == session.challenge:
        session.engine.refuse_peer("the peer sent our own challenge back: refused")
        return
    answer = auth.response(session.hmac_alg, session.secret, packet.data)
    session.send(packets.AuthResponse(answer))
    session.phase = Phase.RESPONSE


def _on_response(session: Session, packet: packets.AuthResponse) -> None:
    if not auth.response_matches(session.hmac_alg, session.secret, session.challenge, packet.data):
        session.engine.refuse_peer(
            "authentication of the peer failed: its shared-secret or cram-hmac-alg is not ours"
        )
        return
    _send_configuration(session)


def _send_configuration(session: Session) -> None:
    """Say what we are; a generation only when it is durable. A peer that takes itself for Outdated because of
    one that a power cut then takes from us would be overwritten with older data."""
    session.phase = Phase.PROTOCOL
    session.engine.fences.peer_is_there()
    if any(volume.minting or volume.in_use for volume in session.engine.volumes.values()):
        session.held = []
        session.engine.spawn("handshake", _configure_later(session))
    else:
        _configure(session)


def _configure_later(session: Session) -> Script[None]:
    engine = session.engine
    for volume in engine.volumes.values():
        # What it has grown by counts from here on.
        yield from relocation.measure(volume)
        while (minting := volume.minting) is not None:
            yield Await(minting)
    if engine.session is session:
        _configure(session)
        session.go_on()


def _configure(session: Session) -> None:
    engine = session.engine
    session.dry_run = engine.tentative
    flags = DISCARD_MY_DATA * engine.discard_my_data | DRY_RUN * engine.tentative
    if engine.options.allow_two_primaries:
        conflicts.say_who_decides(session)
    session.send(protocol_of(packets.Protocol, engine.options, flags))
    for volume in engine.volumes.values():
        volume.peer_uuids = volume.peer_sizes = None
        volume.discard_my_data = engine.discard_my_data
        engine.set_state(volume, cause=causes.PATH, conn=Conn.WF_REPORT_PARAMS)
        peer_state.send_parameters(session, volume)
        if volume.has_disk:
            session.told_of[volume.number] = volume.incarnation


def protocol_of(kind: type[packets.Protocol], options: EngineOptions, flags: int = 0) -> packets.Protocol:
    """PROTOCOL or PROTOCOL_UPDATE with these options."""
    o = options
    policies = (o.after_sb_0pri.number, o.after_sb_1pri.number, o.after_sb_2pri.number)
    return kind(o.protocol.number, *policies, flags, int(o.allow_two_primaries), o.data_integrity_alg)


def _on_protocol(session: Session, packet: packets.Protocol) -> None:
    engine = session.engine
    problem = protocol_mismatch(packet, engine.options, engine.discard_my_data)
    if problem:
        engine.refuse_peer(f"incompatible {problem}")
        return
    session.dry_run |= bool(packet.flags & DRY_RUN)
    session.phase = Phase.RUNNING


def protocol_mismatch(packet: packets.Protocol, options: EngineOptions, discard: bool) -> str | None:
    """The first net option of packet PROTOCOL that does not fit ours: its name, and what both nodes have."""
    ours = (options.after_sb_0pri, options.after_sb_1pri, options.after_sb_2pri)
    theirs = (packet.after_sb_0p, packet.after_sb_1p, packet.after_sb_2p)
    two, integrity = options.allow_two_primaries, options.data_integrity_alg
    table: tuple[tuple[str, object, object, str, str], ...] = (
        (
            "protocol",
            packet.protocol,
            options.protocol.number,
            _word(_LETTERS, packet.protocol),
            options.protocol,
        ),
        *(
            (f"after-sb-{n}pri", number, policy.mirrored.number, after_sb_word(number), policy.value)
            for n, (policy, number) in enumerate(zip(ours, theirs, strict=True))
        ),
        (
            "allow-two-primaries",
            packet.two_primaries,
            int(two),
            _word(_NO_YES, packet.two_primaries),
            _NO_YES[two],
        ),
        (
            "data-integrity-alg",
            packet.integrity_alg,
            integrity,
            packet.integrity_alg or "none",
            integrity or "none",
        ),
    )
    for name, told, fits, word, mine in table:
        if told != fits:
            values = f": {mine} here, {word} on the peer"
            if mine == word:
                values += " (discard-local on one node is discard-remote on the other)"
            return f"{name} settings{values}"
    if discard and packet.flags & DISCARD_MY_DATA:
        return "discard-my-data (both nodes want to discard) settings"
    return None


_NO_YES = {0: "no", 1: "yes"}
_LETTERS = {protocol.number: protocol.value for protocol in Protocol}


def _word(words: dict[int, str], number: int) -> str:
    """A number of packet PROTOCOL as it stands in the configuration."""
    return words.get(number, f"number {number}")


_STEPS: dict[Phase, tuple[type[Packet], Callable[[Session, Any], None]]] = {
    Phase.FEATURES: (packets.ConnectionFeatures, _on_features),
    Phase.CHALLENGE: (packets.AuthChallenge, _on_challenge),
    Phase.RESPONSE: (packets.AuthResponse, _on_response),
    Phase.PROTOCOL: (packets.Protocol, _on_protocol),
}
