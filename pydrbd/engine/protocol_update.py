"""Net options that change while the nodes are connected: PROTOCOL_UPDATE and SYNC_PARAM89, heard and told.

Floor: engine. Neighbours: handshake (the same options, compared), retune (options of a running engine),
integrations/adjust.py (decides when the peer is told), wire/integrity.py (digests change in the stream).

As in DRBD 8.4, who receives PROTOCOL_UPDATE takes the sender's settings over for good, without comparing
them: the wire protocol, and the after-sb policies seen from its own side. Of data-integrity-alg it takes over
how the peer's data are checked: what a node itself sends carries the digests of its own configuration, so the
algorithm is one of each direction. The flags (discard-my-data, dry run) mean nothing here. Invariants:

- Bad content, and what contradicts this node's own configuration, changes nothing: the connection ends, and
  the next handshake compares the settings.
- Which answer a write needs is decided when it is sent, and stays so: dp_flags say it to the peer,
  Request.written and .wants_ack here. Nothing that was begun under C is answered under the rules of A or B.
- The lane is closed first, so its writes are Requests by then, with the answers of protocol C.
- Under A and B a kernel's node may have an answered write still in work, also when C has come since: reads go
  to its disk no more in this session (`Agreed.on_trust`).
- A second Primary comes only when what began before allow-two-primaries is over (conflicts.Earlier), and the
  option does not go while there are two.
- An answer of the lane to a resync's request may overtake packets that wait to be sent. So it gives none in a
  session in which there have been digests (`Agreed.digests`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydrbd.engine import causes, conflicts, handshake, peer_state
from pydrbd.engine.retune import AGREED, take_options
from pydrbd.engine.state import VERIFYING
from pydrbd.errors import CommandFailed, ProtocolViolation, StateRefused
from pydrbd.vocabulary import (
    AfterSb,
    Conn,
    Failure,
    Fencing,
    OnCongestion,
    Protocol,
    Refusal,
    Role,
    after_sb_word,
)
from pydrbd.wire import auth, packets

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.options import EngineOptions

_WORDS = tuple(AfterSb)
_HANDLED = (AfterSb.CALL_HANDLER, AfterSb.VIOLENTLY)
#: Option of the engine, and the policies that it may have.
_POLICIES: tuple[tuple[str, tuple[AfterSb, ...]], ...] = (
    ("after_sb_0pri", _WORDS[: _WORDS.index(AfterSb.CONSENSUS)]),
    ("after_sb_1pri", (AfterSb.DISCONNECT, AfterSb.CONSENSUS, AfterSb.SECONDARY, *_HANDLED)),
    ("after_sb_2pri", (AfterSb.DISCONNECT, *_HANDLED)),
)
_BY_NUMBER = {protocol.number: protocol for protocol in Protocol}
#: Options that are not changed while a volume is in one of these states (8.4: failures 148 and 149).
_IN_USE = (
    (
        "csums_alg",
        tuple(c for c in Conn if Conn.CONNECTED < c < Conn.MASK and c not in VERIFYING),
        Failure.CSUMS_RESYNC_RUNNING,
    ),
    ("verify_alg", VERIFYING, Failure.VERIFY_RUNNING),
)
#: Options of the engine that the peer may change while we are connected.
CHANGING = ("protocol", *(name for name, _ in _POLICIES), "allow_two_primaries", "verify_alg", "csums_alg")


class Agreed:
    """What has become of a session's settings since its handshake."""

    __slots__ = ("digests", "on_trust", "peer_integrity", "two_primaries")

    def __init__(self, options: EngineOptions) -> None:
        #: data-integrity-alg of what the peer sends; that of what we send is in the options.
        self.peer_integrity = options.data_integrity_alg
        #: There have been digests, in either direction.
        self.digests = bool(options.data_integrity_alg)
        #: Writes were answered before the peer had carried them out (protocols A and B).
        self.on_trust = options.protocol is not Protocol.C
        #: Two Primaries were allowed.
        self.two_primaries = options.allow_two_primaries

    def changed(self, options: EngineOptions) -> None:
        """The settings are these from now on."""
        self.digests |= bool(options.data_integrity_alg or self.peer_integrity)
        self.on_trust |= options.protocol is not Protocol.C
        self.two_primaries |= options.allow_two_primaries


def on_update(session: Session, packet: packets.ProtocolUpdate) -> None:
    """PROTOCOL_UPDATE. Raises ProtocolViolation; then nothing has changed."""
    engine, old = session.engine, session.engine.options
    new = _with(old, packet)
    if (why := contradiction(new, primary=engine.role == Role.PRIMARY)) is not None:
        raise ProtocolViolation(f"the peer changes the protocol to {new.protocol}: {why}")
    if old.allow_two_primaries and not new.allow_two_primaries and _both_primary(engine):
        raise ProtocolViolation("the peer changes allow-two-primaries to no, and both nodes are Primary")
    said = [
        f"{name.replace('_', '-')} to {getattr(new, name)}"
        for name in CHANGING
        if getattr(new, name) != getattr(old, name)
    ]
    if packet.integrity_alg != session.agreed.peer_integrity:
        said.append(f"the data-integrity-alg of its data to {packet.integrity_alg or 'none'}")
    session.agreed.peer_integrity = packet.integrity_alg
    if engine.lane is not None:
        # It opens again at the end of this hold, if it may.
        engine.lane.close()
    engine.options = new
    session.agreed.changed(new)
    if new.allow_two_primaries and not old.allow_two_primaries:
        conflicts.allowed(session)
    if said:
        text = f"the peer changes {', '.join(said)}"
        engine.log("info", text)
        engine.journal.noted(causes.peer(text))


def _with(options: EngineOptions, packet: packets.ProtocolUpdate) -> EngineOptions:
    """`options` with what the packet says. Raises ProtocolViolation."""
    protocol = _BY_NUMBER.get(packet.protocol)
    if protocol is None:
        raise ProtocolViolation(f"PROTOCOL_UPDATE with protocol {packet.protocol}, which does not exist")
    policies = {}
    told = (packet.after_sb_0p, packet.after_sb_1p, packet.after_sb_2p)
    for (name, allowed), number in zip(_POLICIES, told, strict=True):
        if number >= len(_WORDS) or _WORDS[number] not in allowed:
            raise ProtocolViolation(f"PROTOCOL_UPDATE: {name.replace('_', '-')} {after_sb_word(number)}")
        policies[name] = _WORDS[number].mirrored
    if packet.two_primaries > 1:
        raise ProtocolViolation(f"PROTOCOL_UPDATE with two-primaries {packet.two_primaries}")
    if packet.integrity_alg and not auth.digest_available(packet.integrity_alg):
        raise ProtocolViolation(f"the peer changes data-integrity-alg to {packet.integrity_alg}: not known")
    two = bool(packet.two_primaries)
    return replace(options, protocol=protocol, allow_two_primaries=two, **policies)  # type: ignore[arg-type]


def contradiction(options: EngineOptions, *, primary: bool) -> str | None:
    """Why this node cannot work with these settings, whatever the peer wants; None if it can."""
    if options.fencing is Fencing.RESOURCE_AND_STONITH and options.protocol is Protocol.A:
        return "fencing resource-and-stonith needs protocol B or C (154)"
    if options.allow_two_primaries and options.protocol is not Protocol.C:
        return "allow-two-primaries needs protocol C (139)"
    blocks = options.on_congestion is OnCongestion.BLOCK
    if primary and not blocks and options.protocol is not Protocol.A:
        return f"this Primary has on-congestion {options.on_congestion}, which needs protocol A"
    return None


def may_tell(engine: Engine, options: EngineOptions) -> bool:
    """Can the connected peer be told of what separates `options` from the running ones? If not, the
    connection has to be made anew. CommandFailed: not now, for what runs uses the algorithm, or there are two
    Primaries. StateRefused: not now, for there may be."""
    session, old = engine.session, engine.options
    if session is None or any(v.state.conn < Conn.CONNECTED for v in engine.volumes.values()):
        return False
    if old.allow_two_primaries and not options.allow_two_primaries:
        if _both_primary(engine):
            raise CommandFailed(old.resource, Failure.NEED_ALLOW_TWO_PRIMARIES)
        if engine.busy is not None:
            text = "A command runs, which may be making this node the second Primary. Try again after it."
            raise StateRefused(old.resource, Refusal.IN_TRANSIENT_STATE, text)
    if options.allow_two_primaries and not session.flush_waits and not session.resolve_conflicts:
        return False  # see conflicts.two_allowed
    for name, states, why in _IN_USE:
        changes = getattr(old, name) != getattr(options, name)
        if changes and any(v.state.conn in states for v in engine.volumes.values()):
            raise CommandFailed(old.resource, why)
    begins = options.data_integrity_alg and options.data_integrity_alg != old.data_integrity_alg
    # A kernel's node takes the beginning of a ZEROES for a digest, and TRIM means zeros only where ZEROES
    # was never agreed to.
    return not (begins and session.features & packets.Features.WZEROES and not session.flush_waits)


def _both_primary(engine: Engine) -> bool:
    return any(volume.state.two_primaries for volume in engine.volumes.values())


def tell(engine: Engine, options: EngineOptions) -> None:
    """Take `options` over, and tell the peer in the same step; only if it may be told."""
    session, old = engine.session, engine.options
    assert session is not None
    changed = [name for name in AGREED if getattr(old, name) != getattr(options, name)]
    take_options(engine, options, told=True)
    session.agreed.changed(options)
    if options.allow_two_primaries and not old.allow_two_primaries:
        conflicts.allowed(session)
    if set(changed) - {"verify_alg", "csums_alg"}:
        session.send(handshake.protocol_of(packets.ProtocolUpdate, options))
    if (options.verify_alg, options.csums_alg) != (session.verify_alg, session.csums_alg):
        session.verify_alg, session.csums_alg = options.verify_alg, options.csums_alg
        for volume in engine.volumes.values():
            peer_state.send_sync_param(session, volume)
    words = (f"{name.replace('_', '-')} to {getattr(options, name) or 'none'}" for name in changed)
    text = f"the peer is told of a change: {', '.join(words)}"
    engine.log("info", text)
    engine.journal.noted(causes.command(text))


def on_sync_param(session: Session, packet: packets.SyncParam) -> None:
    """While connecting both must have the same algorithms; later the peer's configuration may change, and
    ours follows."""
    engine = session.engine
    for name, theirs, ours in (
        ("verify-alg", packet.verify_alg, session.verify_alg),
        ("csums-alg", packet.csums_alg, session.csums_alg),
    ):
        if theirs == ours:
            continue
        volume = engine.volumes.get(packet.volume)
        connected = volume is not None and volume.state.conn >= Conn.CONNECTED
        if not connected or not (theirs == "" or auth.digest_available(theirs)):
            text = f"the peer has {theirs or 'none'}, we have {ours or 'none'}"
            engine.refuse_peer(f"incompatible {name} settings: {text}")
            return
        text = f"the peer changes {name} to {theirs or 'none'}"
        engine.log("info", text)
        engine.journal.noted(causes.peer(text))
        field = name.replace("-", "_")
        setattr(session, field, theirs)
        engine.options = replace(engine.options, **{field: theirs})  # type: ignore[arg-type]
