"""The history in its file: it survives the process, is bounded, and whatever stands in it does no harm."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pydrbd.engine.causes import Cause, CauseKind
from pydrbd.engine.differences import Change
from pydrbd.runtime.events import HISTORY, Entry, Events
from pydrbd.runtime.history_file import HistoryFile, decode, encode


def entry(number: int) -> Entry:
    cause = Cause(CauseKind.HANDSHAKE, f"volume 0: verdict {number} \u2014 \n", number)
    changes = (Change("connection", None, "Connecting", "Connected"), Change("disk", 0, "", "Diskless"))
    return Entry(1_700_000_000.25 + number, number, cause, changes)


def written(path: Path, first: int, last: int) -> None:
    file = HistoryFile(path)
    file.start(Events())
    for number in range(first, last):
        file.put(entry(number))
    file.stop(20)


def test_the_next_process_reads_what_the_last_one_wrote(tmp_path: Path) -> None:
    path = tmp_path / "r0.history"
    assert HistoryFile(path).load() == []
    written(path, 1, 4)
    written(path, 4, 6)
    assert HistoryFile(path).load() == [entry(number) for number in range(1, 6)]
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_file_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "r0.history"
    written(path, 0, 5 * HISTORY)
    assert HistoryFile(path).load() == [entry(number) for number in range(4 * HISTORY, 5 * HISTORY)]
    assert len(path.read_text().splitlines()) <= 2 * HISTORY
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_entry_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "r0.history"
    good = encode(entry(1))
    path.write_bytes(b"\xff\xfe\n[]\n{}\nnull\n[1,2,3]\n" + good.encode() + b"\n" + good[:20].encode())
    assert HistoryFile(path).load() == [entry(1)]
    written(path, 2, 3)
    assert HistoryFile(path).load() == [entry(1), entry(2)]


def test_a_file_that_cannot_be_written_does_not_matter(tmp_path: Path) -> None:
    written(tmp_path / "missing" / "r0.history", 1, 3)
    folder = tmp_path / "folder.history"
    folder.mkdir()
    assert HistoryFile(folder).load() == []
    written(folder, 1, 3)


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=8).map(repr))
def test_no_line_does_harm(line: str) -> None:
    found = decode(line)
    assert found is None or decode(encode(found)) == found


def test_earlier_entries_stand_before_the_present_ones() -> None:
    events = Events()
    events.remember([entry(number) for number in range(HISTORY + 5)])
    assert [e.number for e in events.history] == list(range(5, HISTORY + 5))
