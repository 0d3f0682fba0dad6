"""The supervisor of one resource: it follows the resource's process, and replaces it.

Floor: outer. Neighbours: recovery (how a new process gets into service), server (the process), devices
(block devices whose I/O waits), backoff, cli/supervise.py (the command).

One loop does everything, one thing at a time; commands come in on RES.sup and are handed to it. It
acts when the process has ended, when the kernel reports a dead connection of one of its devices, and
when the process does not answer on its control socket for a long time. That question needs the
engine's mutex and no disk: a disk that is slow, for minutes if need be, is no reason to act.

Invariants:
- A process is replaced only after it is gone (see server).
- A process that ended in order (`down`) while no device of it is mapped is not replaced.
- RES.sup.lock is held for as long as the supervisor lives: there is one at the most. A command that restarts
  a process without one holds it meanwhile: two new processes would take each other's files.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydrbd.config import ResourceView
from pydrbd.control.client import NotUpError
from pydrbd.control.server import ControlServer
from pydrbd.errors import ControlError, PydrbdError, UsageError
from pydrbd.runtime import lockfile
from pydrbd.supervisor.backoff import BackOff
from pydrbd.supervisor.devices import Devices
from pydrbd.supervisor.recovery import Report, SwapFailed, bring_up, planned, resume_devices
from pydrbd.supervisor.server import Server, reap
from pydrbd.vocabulary import Role

Log = Callable[[str, str], None]
#: How a process ends that was told to; nothing is restarted then.
_IN_ORDER = "ended in order"
#: Seconds until the next attempt when no process can be kept ready.
_SPARE_PAUSE = 60.0


@dataclass(frozen=True)
class Settings:
    """Seconds. `health`: the process must answer within that (0: it is never asked); `ask`: how often it is
    asked; `retry`: how often a device whose I/O waits for the peer is tried again."""

    health: float = 30.0
    ask: float = 5.0
    retry: float = 0.5
    #: While devices are mapped, keep a loaded process ready that takes over at once (about 40 MB).
    standby: bool = True


@dataclass
class State:
    """What `status` tells of a supervisor. `word`: watching, starting, back-off, waiting, overtaken."""

    word: str = "watching"
    text: str = ""
    restarts: int = 0
    #: Of the last restart, in milliseconds: from the end of the old process to I/O through the new one.
    pause_ms: int = 0
    report: dict[str, Any] = field(default_factory=dict)


class Supervisor:
    """See the module. `run` is the loop; `command` answers on the control socket, from any thread."""

    def __init__(
        self,
        view: ResourceView,
        config_file: Path | None,
        run_dir: Path,
        devices: Devices,
        log: Log,
        settings: Settings | None = None,
    ) -> None:
        self.view, self.devices, self.log = view, devices, log
        self.settings = settings or Settings()
        self.server = Server(view, config_file, run_dir)
        self.state = State()
        self._backoff = BackOff()
        self._served_since = 0.0
        self._asked = 0.0
        self._stop = threading.Event()
        self._ended = threading.Event()
        #: Waits on RES.lock, has nothing else, and dies with us.
        self._spare: subprocess.Popen[bytes] | None = None
        self._spare_view: ResourceView | None = None
        self._spare_after = 0.0
        self._restart: Future[Any] | None = None
        self._restart_force = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._control = ControlServer(
            self, self.server.paths.supervisor_socket, log=lambda text: log("error", text)
        )

    # --- life ----------------------------------------------------------------------------------
    def run(self) -> None:
        """Supervise until told to stop, or until the process has ended in order. ControlError."""
        with the_only_one(self.server.paths.supervisor_lock, self.view.name):
            self._control.start()
            self.log("info", f"the supervisor watches {self.view.name}")
            try:
                self._adopt()
                while not self._stop.is_set() and self._step():
                    pass
            finally:
                self._drop_spare()
                self._ended.set()
                self._fail_request("the supervisor ends")
                self._control.stop()
                self.log("info", "the supervisor ends")

    def _adopt(self) -> None:
        """A process that was there before may have devices that wait for it."""
        self._served_since = time.monotonic()
        if self.server.pid and self.devices.mapped():
            with contextlib.suppress(PydrbdError):
                status = self.server.call("status", timeout=self.settings.health or 30.0)
                primary = status["role"] == Role.PRIMARY.value
                problem = self._resume() if not primary or not self.devices.answer() else ""
                if problem and not primary:  # else it was in service, and its disk may only be slow
                    self._note(Report("waiting", f"{self.view.name}: its process {problem}"))

    def _step(self) -> bool:
        """Wait for one event and act on it. False: the process has ended in order."""
        pid = self.server.pid
        if pid is None or (self._spare is not None and pid == self._spare.pid):
            return self._gone("has ended")
        descriptor = self.server.follow(pid) if pid else None
        if descriptor is None:
            self._sleep(0.02)
            return True
        try:
            reason = self._watch(descriptor)
        finally:
            os.close(descriptor)
        if reason:
            self.log("error", f"process {pid} {reason}; killing it")
            with contextlib.suppress(ControlError):
                self.server.kill(pid)
            self._recover()
        elif reason is None:
            return self._gone(reap(pid))
        return True

    def _watch(self, process: int) -> str | None:
        """Wait until something happens: why the process must go, '' if it need not, None if it has gone."""
        poll = select.poll()
        ear = self.devices.hear()
        for descriptor in (process, self._wake, ear):
            if descriptor is not None:
                poll.register(descriptor, select.POLLIN)
        waiting = self.state.word == "waiting"
        ready = [fd for fd, _ in poll.poll(1000 * (self.settings.retry if waiting else self.settings.ask))]
        if process in ready:
            return None
        if self._wake in ready:
            self._drain_wake()
        if ear in ready and self.devices.dead():
            # The end of the process comes as a dead connection too, and counts first.
            return None if select.select([process], [], [], 0.2)[0] else "lost a connection of the kernel"
        if self._restart is not None:
            self._planned()
        elif waiting and not self._stop.is_set() and (problem := self._resume()):
            return problem
        reason = self._health()
        if not reason and self.state.word == "watching":
            self._keep_spare()
        return reason

    def _resume(self) -> str:
        """Try to bring the devices that wait to the process; why the process must go, '' if it need not."""
        try:
            self._note(resume_devices(self.server, self.devices, self.settings.retry))
        except PydrbdError as error:
            return f"does not get into service: {error}"
        return ""

    def _health(self) -> str:
        limit = self.settings.health
        now = time.monotonic()
        if not limit or now - self._asked < self.settings.ask:
            return ""
        try:
            role = self.server.call("status", timeout=limit)["role"]
            if self.state.word == "overtaken" and role == Role.PRIMARY:
                self.state.word, self.state.text = "watching", ""  # somebody has seen to it
        except NotUpError:
            pass  # it is ending, or just starting
        except PydrbdError:
            if time.monotonic() - now >= limit:
                return f"has not answered for {limit:g} s"
        self._asked = time.monotonic()
        return ""

    # --- what to do ------------------------------------------------------------------------------
    def _gone(self, how: str) -> bool:
        """The process has ended. False if that was in order."""
        if not self.server.paths.pid_file.exists() and not self.devices.mapped():
            self.log("info", f"the process {_IN_ORDER}")
            return False
        self.log("error", f"the process {how}; starting it again")
        self._recover()
        return True

    def _recover(self) -> None:
        """Start processes until one serves."""
        begin = time.monotonic()
        self._backoff.died(begin - self._served_since if self._served_since else 0.0)
        while not self._stop.is_set():
            self._served_since = 0.0
            self._pause()
            if self._stop.is_set():
                return
            self._read_again()
            spare, self._spare = self._spare, None
            if spare is not None and self._spare_view != self.server.view:
                # What `adjust` has changed since (fencing, say) must hold in the next process as well.
                self.log("info", "the configuration was edited: another process than the one kept ready")
                spare.kill()
                spare.wait()
                spare = None
            if spare is None and self.server.pid is not None:
                self._adopt()  # somebody else was quicker
                return
            self.state.word, self.state.text = "starting", "its process is being started again"
            try:
                if spare is not None:
                    self.server.taken_over(spare)
                else:
                    self.server.start()
                report = bring_up(self.server, self.devices, begin=begin)
            except PydrbdError as error:
                self._failed(error)
                continue
            self.state.restarts += 1
            self._served(report, begin)
            return

    def _read_again(self) -> None:
        """The configuration may have been edited: other options, more volumes."""
        self.server.read_again()
        self.devices.volumes = sorted(self.server.view.volumes)

    def _pause(self) -> None:
        delay = self._backoff.delay
        if not delay:
            return
        self.state.word = "back-off"
        self.state.text = (
            f"its process has failed {self._backoff.failures} times in a row; next attempt in {delay:g} s"
        )
        self.log("error", self.state.text)
        self._sleep(delay)

    def _failed(self, error: PydrbdError) -> None:
        self.log("error", f"the new process does not get into service: {error}")
        self._backoff.died(0.0)
        try:
            self.server.end()
        except ControlError as stuck:
            self.log("error", str(stuck))

    def _planned(self) -> None:
        request, self._restart = self._restart, None
        assert request is not None
        self._drop_spare()  # it may have loaded what is to be replaced
        self._read_again()
        begin = 0.0
        try:
            self.state.word, self.state.text = "starting", "a planned restart"
            report = planned(self.server, self.devices, force=self._restart_force)
            begin = report.began
        except SwapFailed as error:
            _answer(request, error)
            self._failed(error)
            self._recover()
            return
        except PydrbdError as error:
            self.state = State(restarts=self.state.restarts, pause_ms=self.state.pause_ms)
            _answer(request, error)
            return
        self._served(report, begin)
        _answer(request, asdict(report))

    def _keep_spare(self) -> None:
        wanted = self.settings.standby and bool(self.devices.mapped())
        if not wanted:
            self._drop_spare()
        elif self._spare is not None and self._spare.poll() is not None:
            self.log("error", "the process that is kept ready has ended; the next one in a minute")
            self._spare, self._spare_after = None, time.monotonic() + _SPARE_PAUSE
        elif self._spare is None and time.monotonic() >= self._spare_after:
            try:
                self._read_again()
                self._spare_view = self.server.view
                self._spare = self.server.standby(ready=False)
            except ControlError as error:
                self._spare_after = time.monotonic() + _SPARE_PAUSE
                self.log("error", f"no process can be kept ready: {error}")

    def _drop_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None and spare.pid != self.server.pid:
            spare.kill()
            spare.wait()

    def _served(self, report: Report, begin: float) -> None:
        self._served_since = self._asked = time.monotonic()
        self.state.pause_ms = round(1000 * (self._served_since - begin))
        report.pause_ms = self.state.pause_ms
        self.state.report = dict(report.steps)
        self._note(report)
        if report.word == "watching":
            steps = ", ".join(f"{step} {ms}" for step, ms in report.steps.items())
            self.log("info", f"the new process serves after {self.state.pause_ms} ms ({steps})")

    def _note(self, report: Report) -> None:
        if (report.word, report.text) != (self.state.word, self.state.text) and report.text:
            self.log("error", report.text)
        self.state.word, self.state.text = report.word, report.text

    # --- commands --------------------------------------------------------------------------------
    def command(self, verb: str, args: dict[str, Any]) -> Any:
        """state; stop (the resource itself goes on); restart {force}. PydrbdErrors go to the client."""
        if verb == "state" and not args:
            return {**asdict(self.state), "pid": os.getpid()}
        if verb == "stop" and not args:
            self._stop.set()
            self._wake_up()
            if not self._ended.wait(100.0):
                raise ControlError(f"{self.view.name}: its supervisor is busy and does not end")
            return {}
        if verb == "restart" and set(args) <= {"force"}:
            return self._request_restart(bool(args.get("force", False)))
        raise UsageError(f"{self.view.name}: its supervisor does not know {verb[:40]!r} with these arguments")

    def _request_restart(self, force: bool) -> Any:
        request: Future[Any] = Future()
        if self._restart is not None:
            raise ControlError(f"{self.view.name}: a restart is under way already")
        self._restart_force, self._restart = force, request
        self._wake_up()
        try:
            return request.result(150.0)
        except TimeoutError as error:
            if self._restart is request:
                self._restart = None  # who asked is told no, so it must not happen later
            raise ControlError(f"{self.view.name}: its supervisor did not come to the restart") from error

    def _fail_request(self, why: str) -> None:
        request, self._restart = self._restart, None
        if request is not None:
            _answer(request, ControlError(f"{self.view.name}: not restarted: {why}"))

    def _wake_up(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _sleep(self, seconds: float) -> None:
        """Until `seconds` have passed, or a command has come."""
        if select.select([self._wake], [], [], seconds)[0]:
            self._drain_wake()


def _answer(request: Future[Any], result: Any) -> None:
    with contextlib.suppress(InvalidStateError):
        if isinstance(result, BaseException):
            request.set_exception(result)
        else:
            request.set_result(result)


@contextlib.contextmanager
def the_only_one(path: Path, name: str) -> Iterator[None]:
    """For who replaces processes, a supervisor or a command: hold RES.sup.lock. ControlError: others do."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not lockfile.take(descriptor):
            raise ControlError(f"{name}: it has a supervisor already, or is being restarted")
        yield
    finally:
        os.close(descriptor)
