"""The fuzz targets: every kept input again, and a few seconds of new ones (all in all about a minute)."""

from __future__ import annotations

import mmap
import time
from pathlib import Path

import pytest

from tests.fuzz import harness
from tests.fuzz.__main__ import fuzz

#: Of fuzzing for each target.
FUZZ_SECONDS = 5
#: Nobody commits a corpus by accident that is larger than this, in bytes.
MOST_KEPT = 400 << 10


@pytest.mark.parametrize("name", harness.TARGETS)
def test_the_kept_corpus(name: str) -> None:
    target = harness.load(name)
    one = harness.within_limits(target.one)
    for data in target.seeds():
        assert len(data) <= target.max_len
        one(data)
    kept = harness.corpus(name)
    assert kept, f"{name} has no corpus"
    for path in kept:
        try:
            one(path.read_bytes())
        except Exception as error:
            pytest.fail(f"{path}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("name", harness.TARGETS)
def test_new_inputs(name: str, tmp_path: Path) -> None:
    result = fuzz(name, FUZZ_SECONDS, seed=1, work=tmp_path)
    print(result)
    assert not result.text, f"{result.text}\n{result.finding}"
    assert result.executions > len(harness.corpus(name)), result
    assert result.peak_mib < harness.PEAK_MIB


def test_the_memory_of_the_parent_does_not_count(tmp_path: Path) -> None:
    """A child begins with its parent's peak of resident memory; in the whole suite that is too much."""
    ballast = bytearray(2 * harness.PEAK_MIB << 20)
    ballast[:: mmap.PAGESIZE] = b"x" * len(range(0, len(ballast), mmap.PAGESIZE))
    result = fuzz("decoder", 1, seed=1, work=tmp_path)
    assert not result.text, result.text
    assert 0 < result.peak_mib < harness.PEAK_MIB


def test_a_fault_is_found_and_named(tmp_path: Path) -> None:
    """The chain from branches counted to a finding that names its input."""
    result = fuzz("planted", 60, seed=1, work=tmp_path)
    assert result.finding is not None, result
    assert result.finding.read_bytes().startswith(b"DRBD")
    assert "Finding: planted" in result.text


def test_the_limits_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SECONDS", 0.1)

    def busy(_data: bytes) -> None:
        end = time.thread_time() + 1.1 * harness.SECONDS
        while time.thread_time() < end:
            pass

    with pytest.raises(harness.Finding, match="processor time"):
        harness.within_limits(busy)(b"")
    peaks = iter((100 << 20, 200 << 20))
    monkeypatch.setattr(harness, "_peak", lambda: next(peaks))
    with pytest.raises(harness.Finding, match="grow by 100 MiB"):
        harness.within_limits(lambda _data: None)(b"")


def test_the_corpus_stays_small() -> None:
    sizes = {path: path.stat().st_size for name in harness.TARGETS for path in harness.corpus(name)}
    assert sum(sizes.values()) <= MOST_KEPT
