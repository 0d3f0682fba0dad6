"""Hashes by the kernel's names: published test vectors, and what is not available."""

from __future__ import annotations

import pytest

from pydrbd.wire import auth


@pytest.mark.parametrize(
    ("alg", "key", "message", "expected"),
    [
        # RFC 2202 and RFC 4231, test case 2.
        ("md5", "Jefe", b"what do ya want for nothing?", "750c783e6ab0b503eaa86e310a5db738"),
        ("sha1", "Jefe", b"what do ya want for nothing?", "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
        (
            "sha256",
            b"Jefe",
            b"what do ya want for nothing?",
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
    ],
)
def test_response(alg: str, key: str | bytes, message: bytes, expected: str) -> None:
    answer = auth.response(alg, key, message)
    assert answer.hex() == expected
    assert auth.response_matches(alg, key, message, answer)
    assert not auth.response_matches(alg, key, message + b"x", answer)
    assert not auth.response_matches(alg, "other", message, answer)
    assert not auth.response_matches(alg, key, message, answer[:-1])


def test_digests() -> None:
    assert auth.digest("sha1", b"abc").hex() == "a9993e364706816aba3e25717850c26c9cd0d89d"
    # CRC-32C of "123456789" is 0xe3069283; the kernel stores it little endian.
    assert auth.digest("crc32c", memoryview(b"123456789")).hex() == "839206e3"
    for name in ("md5", "sha1", "sha256", "sha512", "sha3-256", "crc32c"):
        assert auth.digest_available(name)
        assert len(auth.digest(name, b"")) == auth.digest_size(name)


@pytest.mark.parametrize("name", ["", "sha3", "SHA1", "blake9", "crc32", "hmac(sha1)"])
def test_unavailable(name: str) -> None:
    assert not auth.hash_available(name)
    assert not auth.digest_available(name)
    with pytest.raises(ValueError, match="not available"):
        auth.digest(name, b"")
    with pytest.raises(ValueError, match="not available"):
        auth.response(name, "secret", b"challenge")


def test_crc32c_is_no_hash_for_authentication() -> None:
    assert not auth.hash_available("crc32c")
