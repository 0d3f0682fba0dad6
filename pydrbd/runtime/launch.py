"""Starts, finds and stops the process of a resource: nbdkit with pydrbd's plugin.

Floor: runtime, but without the engine, threads or the event loop: commands load it.

The files of a resource are RUN_DIR/NODE/RES.pid, .sock (NBD), .ctl (control), .log and .lock.
The process holds a lock on RES.lock from before it starts until its last descriptor is closed,
so "is it running" is asked of the kernel, not of a number in a file; RES.pid left behind
without the lock means that the process was killed or crashed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydrbd import hotpath
from pydrbd.config.view import ResourceView
from pydrbd.errors import ControlError
from pydrbd.runtime import lockfile, memory

#: Seconds until the control socket must answer; far more than it takes, also on a machine that is overloaded.
START_TIMEOUT = 60.0
#: nbdkit's threads per connection; without the compiled hot path, more of them only hand the interpreter
#: lock around.
THREADS = 16
PURE_THREADS = 4
#: What a Unix socket's address can hold, without the closing NUL.
LONGEST_SOCKET_PATH = 107
#: What the files of a process are called that waits for the end of the present one.
_STANDBY = ".next"
_PR_SET_PDEATHSIG = 1
_LOG_TAIL_LINES = 12


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The files of one resource on one node."""

    folder: Path
    resource: str

    @property
    def pid_file(self) -> Path:
        return self.folder / f"{self.resource}.pid"

    @property
    def nbd_socket(self) -> Path:
        return self.folder / f"{self.resource}.sock"

    @property
    def control_socket(self) -> Path:
        return self.folder / f"{self.resource}.ctl"

    @property
    def log_file(self) -> Path:
        return self.folder / f"{self.resource}.log"

    @property
    def history_file(self) -> Path:
        return self.folder / f"{self.resource}.history"

    @property
    def lock_file(self) -> Path:
        return self.folder / f"{self.resource}.lock"

    @property
    def supervisor_socket(self) -> Path:
        return self.folder / f"{self.resource}.sup"

    @property
    def supervisor_lock(self) -> Path:
        return self.folder / f"{self.resource}.sup.lock"

    @property
    def withdrawn(self) -> Path:
        return self.folder / f"{self.resource}.withdrawn"

    def remove(self) -> None:
        """Remove what an ended process leaves, but not its log, its history and what a next one must know."""
        for path in (self.nbd_socket, self.control_socket, self.pid_file):
            path.unlink(missing_ok=True)


def paths(run_dir: Path, node: str, resource: str) -> RunPaths:
    """Where the files of `resource` on `node` are."""
    return RunPaths(run_dir / node, resource)


def running(run_dir: Path, node: str, resource: str) -> int | None:
    """The process of the resource (0 if it is just starting), None if it has none."""
    where = paths(run_dir, node, resource)
    if not lockfile.is_held(where.lock_file):
        return None
    try:
        return int(where.pid_file.read_text())
    except (OSError, ValueError):
        return 0


def nbdkit_command(
    view: ResourceView, config_file: Path | None, run_dir: Path, standby: int | None = None
) -> list[str]:
    """The command line of the resource's process; `standby`: the descriptor on which it waits first."""
    where = paths(run_dir.absolute(), view.node_name, view.name)
    spec = importlib.util.find_spec("nbd_plugin")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise ControlError(f"{view.name}: pydrbd's nbdkit plugin is not installed beside pydrbd")
    config = [f"config={config_file.absolute()}"] if config_file else []
    suffix = "" if standby is None else _STANDBY
    wait = [] if standby is None else [f"standby={standby}"]
    threads = THREADS if hotpath.filter_arguments() else PURE_THREADS
    return [
        *("nbdkit", "--foreground", "--newstyle", f"--threads={threads}"),
        *("--unix", f"{where.nbd_socket}{suffix}", "--pidfile", f"{where.pid_file}{suffix}"),
        *hotpath.filter_arguments(),
        *("python", str(Path(folders[0]) / "pydrbd_plugin.py")),
        *(*config, f"node={view.node_name}", f"resource={view.name}", f"run_dir={run_dir.absolute()}"),
        *hotpath.filter_parameters(),
        *wait,
    ]


def environment() -> dict[str, str]:
    """The process's environment: nbdkit embeds the system's Python, which must find this one's packages.

    And it must find its own library: left alone it takes that of the first python3 in PATH, which may
    be another one's (pyenv, conda).
    """
    spec = importlib.util.find_spec("pydrbd")
    assert spec is not None
    assert spec.origin is not None
    folders = [str(Path(spec.origin).parent.parent)]
    folders += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    path = os.pathsep.join(dict.fromkeys(folders))
    return {**env, "PYTHONHOME": sys.base_prefix, "PYTHONPATH": path, "PYTHONNOUSERSITE": "1"}


def start(
    view: ResourceView, config_file: Path | None, run_dir: Path, *, timeout: float = START_TIMEOUT
) -> int:
    """Start the resource's process and wait until its control socket answers; its pid. ControlError."""
    where = paths(run_dir.absolute(), view.node_name, view.name)
    _check_length(view.name, where.nbd_socket)
    command = nbdkit_command(view, config_file, run_dir)
    try:
        where.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        with _locked(view.name, where) as lock, where.log_file.open("ab") as log, _io_flusher():
            where.remove()
            begin = log.tell()
            process = _spawn(command, log, lock)
    except OSError as error:
        raise _no_start(view.name, error) from error
    _wait_for_answer(view.name, where, process, begin, timeout)
    return process.pid


def start_standby(
    view: ResourceView,
    config_file: Path | None,
    run_dir: Path,
    *,
    ready: bool = True,
    timeout: float = START_TIMEOUT,
) -> subprocess.Popen[bytes]:
    """Start a process that takes over at the moment at which the present one has ended. ControlError.

    With `ready`, returns when all is loaded and it waits for RES.lock, with nothing of the disk open. Kill
    it (it has nothing) if it shall not take over. It dies with the thread that called this.
    """
    where = paths(run_dir.absolute(), view.node_name, view.name)
    _check_length(view.name, Path(f"{where.nbd_socket}{_STANDBY}"))
    sign = Path(f"{where.pid_file}{_STANDBY}")
    for left in (sign, Path(f"{where.nbd_socket}{_STANDBY}")):
        left.unlink(missing_ok=True)
    try:
        lock = os.open(where.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            command = nbdkit_command(view, config_file, run_dir, lock)
            with where.log_file.open("ab") as log, _io_flusher():
                begin = log.tell()
                process = _spawn(command, log, lock)
        finally:
            os.close(lock)
    except OSError as error:
        raise _no_start(view.name, error) from error
    if ready:
        # nbdkit writes its pid file when the plugin has loaded everything, right before it waits.
        _wait_until(view.name, where, process, begin, timeout, sign.exists)
    return process


def wait_for_take_over(
    view: ResourceView, run_dir: Path, process: subprocess.Popen[bytes], *, timeout: float = START_TIMEOUT
) -> None:
    """Wait until a standby process serves (the one before it was killed). ControlError."""
    where = paths(run_dir.absolute(), view.node_name, view.name)

    def serves() -> bool:
        try:
            mine = int(where.pid_file.read_text()) == process.pid
        except (OSError, ValueError):
            return False
        return mine and _answers(where.control_socket)

    _wait_until(view.name, where, process, 0, timeout, serves)


def take_over(where: RunPaths, lock: int) -> None:
    """In a standby process: wait for the end of the present one, then take its place.

    The lock is granted by the kernel when the last descriptor of the other process is closed: after
    that, nothing of it can reach the disk any more. Nothing may be opened before.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.replace(f"{where.nbd_socket}{_STANDBY}", where.nbd_socket)
    os.replace(f"{where.pid_file}{_STANDBY}", where.pid_file)


def _spawn(command: list[str], log: IO[bytes], lock: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment(),
        cwd="/",
        start_new_session=True,
        pass_fds=(lock,),
    )


def _no_start(name: str, error: OSError) -> ControlError:
    if isinstance(error, FileNotFoundError) and shutil.which("nbdkit") is None:
        return ControlError(
            f"{name}: nbdkit is not installed (Debian: apt install nbdkit nbdkit-plugin-python)"
        )
    return ControlError(f"{name}: cannot start its process: {error}")


def stop(run_dir: Path, node: str, resource: str, timeout: float) -> None:
    """Wait until the process has ended by itself; after `timeout` seconds kill it. Removes what it left,
    also what the next process would take from it.

    A process that still runs after its `down` hangs in I/O: its disk or an NBD client is stuck.
    """
    where = paths(run_dir, node, resource)
    deadline = time.monotonic() + timeout
    killed = False
    while (pid := running(run_dir, node, resource)) is not None:
        if time.monotonic() >= deadline:
            if killed:
                raise ControlError(f"{resource}: its process {pid} does not end, not even when killed")
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed, deadline = True, time.monotonic() + 5.0
        time.sleep(0.02)
    where.remove()
    where.withdrawn.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(name: str, where: RunPaths) -> Iterator[int]:
    """The descriptor of RES.lock, locked. ControlError when a process has it."""
    lock = os.open(where.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not lockfile.take(lock):
            raise ControlError(f"{name}: its process runs already; see `pydrbd status {name}`")
        yield lock
    finally:
        os.close(lock)  # the new process has a copy, and with it the lock


@contextlib.contextmanager
def _io_flusher() -> Iterator[None]:
    """Children get PR_SET_IO_FLUSHER: writing back dirty pages must not make our process wait for itself.

    Needs CAP_SYS_RESOURCE; without it things work, but a storm of dirty pages may slow down to a halt.
    """
    was_on = memory.io_flusher() is True
    on = memory.set_io_flusher(on=True)
    try:
        yield
    finally:
        if on and not was_on:
            memory.set_io_flusher(on=False)


def outlive_parent() -> None:
    """In the resource's process: stay when the command that started it ends.

    nbdkit --foreground asks the kernel (as --exit-with-parent does) for a SIGTERM at that moment.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def _check_length(name: str, path: Path) -> None:
    length = len(os.fsencode(path))
    if length > LONGEST_SOCKET_PATH:
        raise ControlError(
            f"{name}: the path of its NBD socket has {length} bytes, and {LONGEST_SOCKET_PATH} is the limit: "
            f"{path}; set PYDRBD_RUN_DIR to a shorter folder"
        )


def _wait_for_answer(
    name: str, where: RunPaths, process: subprocess.Popen[bytes], begin: int, timeout: float
) -> None:
    def answers() -> bool:
        return where.pid_file.exists() and _answers(where.control_socket)

    try:
        _wait_until(name, where, process, begin, timeout, answers)
    except ControlError:
        if process.returncode == -signal.SIGKILL:
            where.remove()
        raise


def _wait_until(
    name: str,
    where: RunPaths,
    process: subprocess.Popen[bytes],
    begin: int,
    timeout: float,
    done: Callable[[], bool],
) -> None:
    """Wait for a process that starts; one that does not get there is killed. ControlError."""
    deadline = time.monotonic() + timeout
    pause = 0.005
    while not done():
        if process.poll() is not None:
            raise ControlError(f"{name}: {_why_it_ended(process.returncode, where.log_file, begin)}")
        if time.monotonic() >= deadline:
            process.kill()
            process.wait()
            raise ControlError(
                f"{name}: its process did not answer within {timeout:.0f} s and was killed; "
                f"see {where.log_file}"
            )
        time.sleep(pause)
        pause = min(0.02, pause * 1.3)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _why_it_ended(code: int, log_file: Path, begin: int) -> str:
    """The text for a process that ended while starting: a known cause, else the end of its log."""
    cause = _plugin_problem()
    if cause:
        return cause
    with log_file.open("rb") as log:
        log.seek(begin)
        lines = log.read(64 << 10).decode(errors="replace").strip().splitlines()
    tail = "\n".join(lines[-_LOG_TAIL_LINES:]) or "it wrote nothing"
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"its process {how} while starting; the end of {log_file}:\n{tail}"


def _plugin_problem() -> str:
    """What is wrong with nbdkit's Python plugin; '' if nothing is."""
    command = ["nbdkit", "--dump-plugin", "python"]
    dump = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=10)
    if dump.returncode:
        return "nbdkit has no Python plugin (Debian: apt install nbdkit-plugin-python)"
    found = dict(line.split("=", 1) for line in dump.stdout.splitlines() if "=" in line)
    version = found.get("python_version", "")
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version.split(".")[:2] != mine.split("."):
        return (
            f"nbdkit's Python plugin embeds Python {version}, but pydrbd is installed for Python {mine}; "
            f"install pydrbd with the system's interpreter (/usr/bin/python3 -m venv ...)"
        )
    return ""
