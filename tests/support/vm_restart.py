"""In a guest: crashes and restarts of the Primary's process under ext4 on the kernel's nbd client, with fio.

    vm_restart.py ROUNDS_CRASH ROUNDS_RESTART

Neighbours: tests/test_vm_restart.py runs it, vm_failover.sh has made the pair, its device and the mount. A
prober writes 4 KiB with O_DSYNC again and again: its longest wait around an event is the pause that
an application sees. Everything takes several times as long as on real hardware (software emulation).
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from pydrbd.runtime import launch
from pydrbd.supervisor.remote import Remote

RUN_DIR, MOUNT = Path("/run/pydrbd"), Path("/mnt/fs")
REMOTE = Remote(RUN_DIR, "alpha", "r0")


class Prober:
    """Direct writes of 4 KiB into one file, one after the other."""

    def __init__(self) -> None:
        self.waits: list[tuple[float, float]] = []
        self.errors: list[OSError] = []
        self.stop = False
        self.since = time.monotonic()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        block = mmap.mmap(-1, 4096)
        fd = os.open(MOUNT / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o600)
        number = 0
        while not self.stop:
            block[:8] = number.to_bytes(8, "big")
            self.since = begin = time.monotonic()
            try:
                os.pwrite(fd, block, number % 64 * 4096)
            except OSError as error:
                self.errors.append(error)
                return
            self.waits.append((begin, time.monotonic()))
            number += 1
            time.sleep(0.005)
        os.close(fd)

    def longest(self, begin: float, end: float) -> float:
        """Seconds of the longest write that overlaps the time between."""
        return max((b - a for a, b in list(self.waits) if a < end and b > begin), default=0.0)


def wait(what: str, condition: object, seconds: float = 90.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}: {REMOTE.state()}"
        time.sleep(0.02)


def flows(prober: Prober, count: int = 20) -> None:
    """Wait until the prober got on by so many writes."""
    wanted = len(prober.waits) + count
    wait("writes to go on", lambda: len(prober.waits) >= wanted or prober.errors)
    assert not prober.errors, prober.errors


def state() -> dict[str, object]:
    found = REMOTE.state()
    assert found is not None, "no supervisor"
    return found


def crash(prober: Prober, number: int) -> float:
    """kill -9; the longest wait of the prober, in seconds."""
    pid = launch.running(RUN_DIR, "alpha", "r0")
    assert pid
    begin = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    wait("the restart", lambda: state()["restarts"] == number)
    flows(prober)
    return prober.longest(begin, time.monotonic())


def restart(prober: Prober) -> tuple[float, dict[str, object]]:
    """pydrbd restart; the longest wait from then on, and what the command says."""
    begin = time.monotonic()
    report = REMOTE.restart(False)
    flows(prober)
    return prober.longest(begin, time.monotonic()), report


def tell(name: str, pauses: list[float], own: object) -> None:
    if pauses:
        text = " ".join(f"{1000 * pause:.0f}" for pause in pauses)
        median, longest = statistics.median(pauses), max(pauses)
        print(
            f"{name}: median {1000 * median:.0f} ms, longest {1000 * longest:.0f} ms ({text}; own: {own})",
            flush=True,
        )


def main() -> None:
    crashes, restarts = int(sys.argv[1]), int(sys.argv[2])
    ready = Path(f"{REMOTE.paths.pid_file}.next")
    wait("a process that is ready", ready.exists, 180)
    load = subprocess.Popen(
        [
            *("fio", "--name=load", f"--directory={MOUNT}", "--size=2m", "--rw=randwrite", "--bs=4k"),
            *("--ioengine=psync", "--numjobs=2", "--fsync=32", "--rate_iops=40", "--verify=crc32c"),
            *(
                "--verify_fatal=1",
                "--do_verify=1",
                "--time_based",
                f"--runtime={10 + 10 * (crashes + restarts)}",
            ),
            "--output-format=json",
        ],
        stdout=subprocess.PIPE,
    )
    prober = Prober()
    try:
        flows(prober)
        pauses: list[float] = []
        own: list[object] = []
        for number in range(1, crashes + 1):
            # A process kept ready, as it is most of the time.
            wait("a process that is ready", ready.exists, 180)
            time.sleep(0.5)
            pauses.append(crash(prober, number))
            own.append((state()["pause_ms"], state()["report"]))
        tell("crash", pauses, own)
        pauses, own = [], []
        for _ in range(restarts):
            pause, report = restart(prober)
            pauses.append(pause)
            own.append((report["pause_ms"], report["steps"]))
        tell("restart", pauses, own)
    finally:
        prober.stop = True
        prober.thread.join(60)
    output, _ = load.communicate(timeout=300)
    assert load.returncode == 0, output.decode()[-3000:]
    result = json.loads(output[output.index(b"{") :])
    assert all(job["error"] == 0 for job in result["jobs"]), result
    written = sum(job["write"]["total_ios"] for job in result["jobs"])
    print(f"fio: {written} writes, no error; prober: {len(prober.waits)} writes", flush=True)
    assert not prober.errors


if __name__ == "__main__":
    main()
