"""Hash algorithms by the kernel's names: cram-hmac-alg, verify-alg, csums-alg, data-integrity-alg.

Floor: wire. Neighbours: packets (AUTH_CHALLENGE, AUTH_RESPONSE, OV_REPLY …), the engine's connection.
Randomness is the caller's: challenges are made elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac

import crc32c as _crc32c

from pydrbd.vocabulary import HASHES
from pydrbd.wire.framing import Buffer

#: Kernel name to hashlib's name.
_HASHES = {name: name.replace("-", "_") for name in HASHES}
_CRC32C = "crc32c"


def hash_available(name: str) -> bool:
    """Can `name` be used for cram-hmac-alg on this machine?"""
    return name in _HASHES and _HASHES[name] in hashlib.algorithms_available


def digest_available(name: str) -> bool:
    """Can `name` be used for verify-alg, csums-alg or data-integrity-alg? crc32c too, unlike for HMAC."""
    return name == _CRC32C or hash_available(name)


def digest_size(name: str) -> int:
    """Length of a digest in bytes. Raises ValueError for an algorithm that is not available."""
    if name == _CRC32C:
        return 4
    return _new(name).digest_size


def digest(name: str, data: Buffer) -> bytes:
    """Digest of `data`; crc32c as the kernel's: four bytes, little endian. Raises ValueError as above."""
    if name == _CRC32C:
        return _crc32c.crc32c(data).to_bytes(4, "little")
    hasher = _new(name)
    hasher.update(data)
    return hasher.digest()


def response(alg_name: str, secret: str | bytes, challenge: bytes) -> bytes:
    """The bytes of AUTH_RESPONSE: HMAC of `challenge` keyed with the shared secret, without any NUL."""
    if not hash_available(alg_name):
        raise ValueError(f"hash algorithm {alg_name!r} is not available")
    key = secret.encode() if isinstance(secret, str) else secret
    return hmac.digest(key, challenge, _HASHES[alg_name])


def response_matches(alg_name: str, secret: str | bytes, challenge: bytes, answer: bytes) -> bool:
    """Is `answer` the right response? Compared in constant time."""
    return hmac.compare_digest(response(alg_name, secret, challenge), answer)


def _new(name: str) -> hashlib._Hash:
    if not hash_available(name):
        raise ValueError(f"hash algorithm {name!r} is not available")
    return hashlib.new(_HASHES[name], usedforsecurity=False)
