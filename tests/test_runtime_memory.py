"""What protects a resource's process when memory is short, asked of the kernel."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pydrbd.runtime import memory
from tests.support.pair import Pair

#: include/linux/sched.h: what PR_SET_IO_FLUSHER sets, and /proc/PID/stat shows in field 9.
_PF_MEMALLOC_NOIO, _PF_LOCAL_THROTTLE = 0x00080000, 0x00100000
_FLUSHER = _PF_MEMALLOC_NOIO | _PF_LOCAL_THROTTLE


def _flags(task: Path) -> int:
    text = (task / "stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[6])


def _tasks(pid: int) -> dict[str, int]:
    """The flags of each thread of a process; a thread may end while they are read (the control
    server's workers come and go), which is no finding."""
    flags = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            flags[task.name] = _flags(task)
    return flags


def _may() -> bool:
    """Do the tests run with CAP_SYS_RESOURCE? (tests/test_vm_memory.py always does.)"""
    status = Path("/proc/self/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    return bool(int(mask, 16) >> 24 & 1)


def test_a_resources_process_is_protected_as_far_as_that_is_permitted(
    session_folder: Path, tmp_path: Path
) -> None:
    pair = Pair(tmp_path, session_folder)
    try:
        pid = pair.alpha.start()
        tasks = _tasks(pid)
        assert len(tasks) > 5
        ordinary = [task for task, flags in tasks.items() if flags & _FLUSHER != _FLUSHER]
        assert len(ordinary) == (0 if _may() else len(tasks))
        assert memory.oom_score_adj(pid) == (memory.OOM_NEVER if _may() else 0)
        assert ("oom_score_adj cannot" in pair.alpha.log()) is not _may()
        assert ("PR_SET_IO_FLUSHER is not set" in pair.alpha.log()) is not _may()
        pair.alpha.down()
    finally:
        pair.close()
    assert memory.oom_score_adj() == 0, "the command that started it is as it was"
    assert memory.io_flusher() is not True


def test_the_score_can_be_chosen(
    session_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(tmp_path, session_folder)
    try:
        for text, score, said in (("300", 300, ""), ("keep", 0, ""), ("much", 0, "must be a number")):
            monkeypatch.setenv(memory.OOM_VARIABLE, text)
            pid = pair.beta.start()
            assert memory.oom_score_adj(pid) == score
            assert said in pair.beta.log()
            pair.beta.down()
    finally:
        pair.close()


def test_without_the_capability_it_runs_and_says_so(session_folder: Path, tmp_path: Path) -> None:
    code = "from pydrbd.runtime import memory; print(memory.protect())"
    command = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-all", "--ambient-caps=-all"]
    run = subprocess.run(
        [*command, sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert "needs CAP_SYS_RESOURCE" in run.stdout
    assert "oom_score_adj cannot be set to -1000" in run.stdout
    assert "PR_SET_IO_FLUSHER is not set" in run.stdout


def test_what_a_protected_process_starts_is_ordinary() -> None:
    """As a process starts its handlers: from a thread of its own."""
    seen: list[int] = []

    def start_handlers() -> None:
        memory.set_io_flusher(on=True)
        with memory.ordinary(), subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
            seen.append(_flags(Path(f"/proc/{child.pid}")) & _FLUSHER)
        seen.append(_flags(Path(f"/proc/self/task/{threading.get_native_id()}")) & _FLUSHER)

    thread = threading.Thread(target=start_handlers)
    thread.start()
    thread.join()
    assert seen == [0, _FLUSHER if _may() else 0]

    # In a program of its own, which has raised its score: lowering it is not permitted to everybody.
    raised = "from pathlib import Path; Path('/proc/self/oom_score_adj').write_text('400'); "
    raised += (
        "import subprocess; from pydrbd.runtime import memory; COMMAND = 'cat /proc/self/oom_score_adj'; "
    )
    for command, score in (("COMMAND.split()", "400"), ("memory.ordinary_shell(COMMAND)", "0")):
        program = [sys.executable, "-c", f"{raised} subprocess.run({command})"]
        output = subprocess.run(program, capture_output=True, text=True, check=True, timeout=30).stdout
        assert output.split() == [score]
