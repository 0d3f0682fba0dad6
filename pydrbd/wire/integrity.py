"""The digests of data-integrity-alg: put on when a packet leaves, checked when it comes.

Floor: wire. Neighbours: framing (`encode` without them), decoder (cuts them off the data), auth (hashes).
DATA, DATA_REPLY and RS_DATA_REPLY carry one, over their data only; TRIM and ZEROES carry none.
"""

from __future__ import annotations

from pydrbd.errors import ProtocolViolation
from pydrbd.wire import auth, framing
from pydrbd.wire.framing import H100, H100_MAGIC, Buffer, Packet
from pydrbd.wire.packets import BlockReply, Data


def digest_bytes(algorithm: str) -> int:
    """Length of the digests; 0 without data-integrity-alg."""
    return auth.digest_size(algorithm) if algorithm else 0


def encode(packet: Packet, algorithm: str) -> list[Buffer]:
    """As framing.encode, with the digest if `packet` carries one."""
    if not algorithm or not packet.DIGESTED:
        return framing.encode(packet)
    body = packet.body()
    head = packet.head() + auth.digest(algorithm, body)
    first = H100.pack(H100_MAGIC, packet.volume, packet.COMMAND, len(head) + len(body), 0) + head
    return [first, body]


def check(packet: Packet, algorithm: str) -> None:
    """Raises ProtocolViolation if `packet` carries a digest that is not that of its data."""
    if not (algorithm and isinstance(packet, Data | BlockReply)):
        return
    if auth.digest(algorithm, packet.data) != packet.digest:
        raise ProtocolViolation(
            f"Digest integrity check FAILED: {packet.NAME} from the peer, sector {packet.sector},"
            f" {len(packet.data)} bytes: the data were changed on the way, or by the peer while it sent them"
        )
