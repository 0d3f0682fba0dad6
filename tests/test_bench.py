"""The bench: figures, medians, verdicts and tables by examples; and every contender for a moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench import facts, measure, misses, resync, scale, stacks, vm
from tests.bench.__main__ import PARTS, parser, plan_of
from tests.bench.board import Report, comparisons, section
from tests.bench.jobs import CONTENDERS, GIB, KIB, MIB, ROWS, TARGETS, Bound, Plan, Row, judged, verdict
from tests.bench.measure import Figures
from tests.bench.table import Section, markdown, number, text

SMALL = Row("randwrite", 4 * KIB, 16)
LARGE = Row("write", 128 * KIB, 8)
FLUSH = Row("randwrite", 4 * KIB, 1, flush=True)


def latencies(mean: float, p99: float, p999: float) -> dict[str, object]:
    return {"mean": mean, "percentile": {"99.000000": p99, "99.900000": p999}}


def fio_job(kind: str, requests: int, block: int, flush: bool = False) -> dict[str, object]:
    """What fio's JSON has of a job of 2 s, as far as it is read."""
    idle = {"total_ios": 0, "io_bytes": 0, "iops": 0.0, "bw_bytes": 0, "lat_ns": {}}
    done = {
        "total_ios": requests,
        "io_bytes": requests * block,
        "iops": requests / 2,
        "bw_bytes": requests * block // 2,
        "lat_ns": latencies(20_000.0, 30_000, 40_000),
    }
    sync = latencies(100_000.0, 200_000, 300_000) if flush else {}
    return {"read": idle, "write": idle, kind: done, "sync": {"lat_ns": sync}}


def test_figures_of_small_requests() -> None:
    found = measure.figures(SMALL, fio_job("write", 50_000, 4 * KIB), {"Primary": 1.5, "Secondary": 0.5})
    assert found == Figures(25_000, 20, 30, 40, {"Primary": 3.0, "Secondary": 1.0})


def test_figures_of_large_requests() -> None:
    found = measure.figures(LARGE, fio_job("write", 16384, 128 * KIB), {"nbdkit": 3.0})
    assert found.rate == pytest.approx(GIB / 1e6)
    assert found.cpu == {"nbdkit": 1.5}


def test_figures_of_reads() -> None:
    assert measure.figures(Row("randread", 4 * KIB, 1), fio_job("read", 1000, 4 * KIB), {}).rate == 500


def test_latency_of_a_write_includes_its_flush() -> None:
    found = measure.figures(FLUSH, fio_job("write", 1000, 4 * KIB, flush=True), {})
    assert (found.mean, found.p99, found.p999) == (120, 230, 340)


def test_nothing_done_is_no_figure() -> None:
    with pytest.raises(ValueError, match="no request of randwrite-4k-d16-c1"):
        measure.figures(SMALL, fio_job("write", 0, 4 * KIB), {})


def test_median_goes_figure_by_figure() -> None:
    rounds = [Figures(1, 9, 5, 7, {"a": 3}), Figures(3, 8, 4, 9, {"a": 1}), Figures(2, 7, 6, 8, {"a": 2})]
    assert measure.median(rounds) == Figures(2, 8, 5, 8, {"a": 2})


def test_spread_between_rounds() -> None:
    def cell(*rates: float) -> list[Figures]:
        return [Figures(rate, 1, 1, 1) for rate in rates]

    (note,) = measure.spread_note({("a", "C"): cell(100, 90, 110), ("b", "A"): cell(50, 100, 200)})
    assert "85% apart (median), 150% at the most (b, A)" in note
    assert measure.spread_note({("a", "C"): cell(100)}) == []


def test_each_round_begins_with_another_contender() -> None:
    assert [measure.rotated("abc", number) for number in range(4)] == [
        *map(list, ("abc", "bca", "cab", "abc"))
    ]
    assert measure.rotated([], 1) == []


def test_cpu_seconds_counts_what_a_process_has_used() -> None:
    before = measure.cpu_seconds(os.getpid())
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert measure.cpu_seconds(os.getpid()) - before >= 0.08


@pytest.mark.parametrize(
    ("value", "bound", "expected"),
    [
        (1.3, Bound(1.3), "met"),
        (1.299, Bound(1.3), "met"),  # printed as 1.30
        (0.45, Bound(1.3), "missed by 0.85"),
        (2.0, Bound(2.0, at_most=True), "met"),
        (2.5, Bound(2.0, at_most=True, unit=" s"), "missed by 0.50 s"),
        (0.1, Bound(2.0, at_most=True), "met"),
    ],
)
def test_verdict(value: float, bound: Bound, expected: str) -> None:
    assert verdict(value, bound) == expected


def test_judged() -> None:
    assert judged(0.31, Bound(2, at_most=True, unit=" s")) == "0.31 s (≤2: met)"
    assert judged(0.5, Bound(0.7)) == "0.50 (≥0.7: missed by 0.20)"


def test_every_target_belongs_to_a_row() -> None:
    names = [row.id for row in ROWS]
    assert len(set(names)) == len(names)
    assert set(TARGETS) <= set(names)
    assert set(CONTENDERS) == set(stacks.STARTERS)


def test_comparisons_go_down_the_lines_of_a_row() -> None:
    found = {"C": Figures(50, 1, 1, 1), "qemu": Figures(20, 1, 1, 1), "limit": Figures(1000, 1, 1, 1)}
    mirror, unix, limit = comparisons(SMALL, found)
    assert mirror == ["2.50", "target 2.5", "met", "", ""]
    assert unix == ["-", "", "", "", ""]
    assert limit == ["0.05", "target 0.25", "missed by 0.20", "", ""]
    assert comparisons(Row("read", MIB, 1), found)[0] == ["2.50", "", "", "", ""]


def test_main_table_shows_what_did_not_run_as_a_dash() -> None:
    cells = {SMALL.id: {"C": Figures(12_345, 20, 30, 40, {"Primary": 3, "Secondary": 1.25})}}
    made = section([SMALL], cells)
    assert all(len(row) == len(made.columns) for row in made.rows)
    assert made.rows[0][:4] == ["4K random write, depth 16", "1/s", "12 300", "-"]
    assert made.rows[4][1:3] == ["CPU s", "3.00 + 1.25"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.524, "0.52"), (9.996, "10.0"), (53.14, "53.1"), (99.96, "100"), (531.4, "531"), (5312, "5 310"),
     (999.7, "1 000"), (140_499, "140 000"), (0, "0.00")],
)  # fmt: skip
def test_number(value: float, expected: str) -> None:
    assert number(value) == expected


def test_tables_as_text_and_markdown() -> None:
    made = Section("Title", ["", "a|b"], [["one", "1"], ["two", "2"]], ["a note"], [1])
    lines = text([made]).splitlines()
    assert "Title" in lines[1]
    assert [line.split() for line in lines if line.startswith(("one", "two"))] == [["one", "1"], ["two", "2"]]
    assert "| --- | ---: |" in markdown([made])
    assert "|  | a\\|b |" in markdown([made])
    assert "- a note" in markdown([made])


def test_text_is_not_squeezed() -> None:
    wide = Section("Wide", ["", "a", "b"], [["x" * 90, "y" * 90, "z z"]])
    assert f"{'x' * 90}   {'y' * 90}   z z" in text([wide])


def test_plan_from_the_command_line() -> None:
    assert plan_of(parser().parse_args([])) == Plan()
    quick = plan_of(parser().parse_args(["--quick", "--seconds", "0.5", "--only", "randread*"]))
    assert (quick.rounds, quick.seconds) == (1, 0.5)
    assert [row.id for row in ROWS if quick.wants(row.id)] == ["randread-4k-d16-c1"]
    assert not any(quick.wants(name) for name in PARTS)
    assert Plan(only="resync").wants("resync-speed")


def test_a_failure_is_noted_and_the_rest_goes_on() -> None:
    def fails() -> None:
        raise AssertionError("no mirror")

    report = Report()
    assert not report.attempt("qemu", fails)
    assert report.attempt("limit", lambda: None)
    assert report.failures == ["qemu: AssertionError: no mirror"]


def test_tables_of_the_other_parts() -> None:
    made = resync.speed_section(GIB, {"full": 1.0, "nbdcopy": 0.5, "nbdcopy --flush": 0.75}, (0.1, 0.05))
    assert made.rows[0][3:] == ["0.50 (≥0.7: missed by 0.20)", "0.75"]
    assert made.rows[3][3] == "0.20 of its time"
    one, two = Figures(100, 1, 10, 20), Figures(80, 1, 15, 30)
    made = resync.latency_section({"none": one, "full": two, "none (2)": one, "limited": two}, 700.0, 70)
    assert [row[5] for row in made.rows] == ["", "1.50", "", "1.50 (≤2: met)"]
    cells = {
        (row.id, area): Figures(rate, 1, 1, 1)
        for row in misses.ROWS
        for area, rate in (("hot", 100), ("cold", 50))
    }
    assert misses.section(cells, {"hot": 128 * MIB, "cold": GIB}).rows[1][-1] == "0.50"
    memory = [{"alpha VmRSS": 100.0, "alpha VmHWM": 150.0, "beta VmRSS": 90.0, "beta VmHWM": 90.0}]
    row = scale.line("1t", 0.1, [0.3, 0.4], memory)
    assert row[2:] == [
        "0.40 s (≤2: met)",
        "100",
        "150",
        "68 MiB (≤100: met)",
        "118 MiB (≤100: missed by 18 MiB)",
    ]


def test_settle_waits_for_what_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([0.1, 0.2, 0.3, 0.3, 0.9])
    monkeypatch.setattr(measure, "cpu_seconds", lambda _pid: next(looks))
    measure.settle({"busy": 1})
    assert next(looks) == 0.9, "it looked again although nothing had been done any more, or not often enough"


def test_virtual_machine_rows_from_its_files() -> None:
    rounds = 2
    job = json.dumps({"jobs": [fio_job("write", 1000, 4 * KIB)]})
    files = {
        f"{vm.label(name, row, at)}.json": f"fio: a warning\n{job}".encode()
        for row in vm.ROWS for name in vm.CONTENDERS for at in range(rounds)
    }  # fmt: skip
    cells = vm.cells_of(files, rounds)
    made = vm.section({key: measure.median(found) for key, found in cells.items()})
    assert all(len(row) == len(made.columns) for row in made.rows)
    assert made.rows[0][2:] == ["500", "500", "500", "1.00 (≥0.5: met)", "1.00"]
    lines = vm.script(rounds, 1.0).splitlines()
    assert {line.split()[2] + ".json" for line in lines if line.startswith("cell ")} == set(files)


def test_facts_say_whether_the_hot_path_is_compiled(tmp_path: Path) -> None:
    found = facts.facts(tmp_path)
    assert found["pydrbd"].endswith(("compiled hot path: yes", "compiled hot path: no"))
    assert "cores" in found["machine"]


def test_one_cell_of_every_contender(tmp_path: Path, session_folder: Path) -> None:
    """The command itself, with a row that is short; no word about how fast anything is."""
    out, page = tmp_path / "out.json", tmp_path / "out.md"
    options = ["--quick", "--seconds", "0.3", "--area", "16", "--only", FLUSH.id]
    command = [sys.executable, "-m", "tests.bench", *options, "--json", str(out), "--markdown", str(page)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    cells = result["figures"]["main"][FLUSH.id]
    assert set(cells) == set(CONTENDERS)
    assert all(len(rounds) == 1 and rounds[0]["rate"] > 0 for rounds in cells.values())
    assert list(cells["C"][0]["cpu"]) == ["Primary", "Secondary"]
    assert "target 1.2" in done.stdout
    assert "### " in page.read_text()
    assert not list(session_folder.glob("pydrbd-bench-*"))
