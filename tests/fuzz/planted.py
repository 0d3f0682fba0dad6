"""Fuzz target with a planted fault, reached by following the coverage: a test of the fuzzing itself."""

from __future__ import annotations

from tests.fuzz.harness import Finding, Target


def one(data: bytes) -> None:
    head = data.ljust(4, b"\0")
    if head[0] == 0x44:  # noqa: SIM102 - one branch for each byte is what leads there
        if head[1] == 0x52:  # noqa: SIM102
            if head[2] == 0x42:  # noqa: SIM102
                if head[3] == 0x44:
                    raise Finding("planted")


TARGET = Target("planted", one, lambda: [b"seed"], 16)
