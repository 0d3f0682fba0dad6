"""One resource on one node, put together: configuration, engine, driver, disks, link, control socket.

Floor: outer (the composition root). Neighbours: nbd_plugin/pydrbd_plugin.py makes a Node in
nbdkit's process and serves NBD from its driver; control/server.py calls `command`.
Verbs of the control socket are the table VERBS: name -> function and its arguments.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydrbd.config import ResourceView
from pydrbd.config.view import handler_environment
from pydrbd.control.protocol import plain
from pydrbd.control.server import ControlServer
from pydrbd.engine.engine import Engine
from pydrbd.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from pydrbd.errors import CommandFailed, PydrbdError, TakenOver, UsageError, WaitTimeout
from pydrbd.format.gi import gi_line, show_gi
from pydrbd.integrations import feed, withdrawing
from pydrbd.integrations.dependencies import Dependencies
from pydrbd.mapping.waiting import refuse_beside_waiting
from pydrbd.node_options import commands_of, disk_specs, engine_options, link_options
from pydrbd.node_verbs import MORE_VERBS, REQUIRED, Verb
from pydrbd.runtime import memory
from pydrbd.runtime.disks import Disks
from pydrbd.runtime.driver import Driver
from pydrbd.runtime.handlers import Handlers
from pydrbd.runtime.history_file import HistoryFile
from pydrbd.runtime.lane import NativeLane
from pydrbd.runtime.launch import RunPaths, outlive_parent, paths, take_over
from pydrbd.runtime.link import Link
from pydrbd.runtime.logs import LogWriter
from pydrbd.runtime.loop import LoopThread
from pydrbd.runtime.workers import Workers
from pydrbd.version import __version__
from pydrbd.vocabulary import (
    Conn,
    Disk,
    Failure,
    Role,
)

#: New container objects until the youngest generation is collected (Python's own number: 700).
GC_THRESHOLD = 20_000
#: What nbdkit gets to end in order after `down`.
QUIT_SECONDS = 3.0


def _handler_environment(node: Node, view: ResourceView, volume: int) -> dict[str, str]:
    """The variables that handlers get, with those that say how things are now."""
    snapshot = node.snapshot()
    good = all(found.disk is Disk.UP_TO_DATE for found in snapshot.volumes)
    return {
        **handler_environment(view, volume),
        "DRBD_CONF": node.config,
        "DRBD_CSTATE": snapshot.connection.connection_word,
        "UP_TO_DATE_NODES": f"0x{good << view.node_id:08X}",
    }


def handlers_of(node: Node, view: ResourceView) -> Handlers:
    """What runs the handlers that `view` configures."""
    environment, told = partial(_handler_environment, node, view), partial(feed.handler, node)
    return Handlers(commands_of(view), environment, node.log, told=told)


class Node:
    """A resource's process from start() to `down`."""

    def __init__(
        self,
        view: ResourceView,
        run_dir: Path,
        *,
        quit_process: Callable[[], None] = lambda: None,
        config: str = "",
    ) -> None:
        """Makes no thread and opens nothing. `quit_process` is called after `down` has been answered.

        `config`: the file that `view` was read from, for those who ask.
        """
        self.view, self.config = view, config
        self.run_dir = run_dir
        self.paths: RunPaths = paths(run_dir, view.node_name, view.name)
        self._quit = quit_process
        self.engine = Engine(engine_options(view), secrets.token_bytes)
        self.log = LogWriter(view.name, path=self.paths.log_file)
        self.disks = Disks(disk_specs(view), self.log.put)
        self.workers = Workers()
        self.driver = Driver(self.engine, self.disks, self.workers, self.log)
        self.driver.lane = NativeLane.make(self.engine, self.driver.mutex, self.disks)
        self.driver.handlers = handlers_of(self, view)
        self.history = HistoryFile(self.paths.history_file)
        self.loop = LoopThread()
        self.link = Link(link_options(view), self.driver, self.loop)
        self.server = ControlServer(
            self, self.paths.control_socket, log=lambda text: self.log.put("error", text)
        )
        #: Names the time that this node is Primary, from its promotion on; a resumed one keeps its name.
        self.tenure = ""
        self.dependencies = Dependencies(self)
        self.ending, self.adjusting = threading.Lock(), threading.Lock()
        #: Held by a command that changes what is noted as taken away, from before its script until after it.
        self.withdrawing = threading.RLock()
        self._closed = threading.Lock()

    def start(self, lock: int | None = None) -> None:
        """Start all threads, and answer on the control socket. ControlError.

        `lock`: a descriptor of RES.lock that the process before this one holds locked; waits for its end.
        """
        if lock is not None:
            take_over(self.paths, lock)
        outlive_parent()
        faulthandler.enable()  # a fatal signal leaves the threads' stacks in the log
        self.log.start()
        for problem in memory.protect():
            self.log.put("warning", problem)
        self.history.start(self.driver.events)
        self.workers.start()
        self.loop.start()
        self.link.start()
        self.server.start()
        self.dependencies.follow(self.view.resync_after)
        # What exists now stays: the collector need not look at it, nor run at every few requests.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 10, 10)
        self.log.put("info", f"pydrbd {__version__} serves {self.view.name} on {self.view.node_name}")

    def close(self) -> None:
        """End what start() began, without a word to the engine (after `down`, or on SIGTERM); once."""
        if not self._closed.acquire(blocking=False):
            return
        self.dependencies.stop()
        self.driver.call(self.driver.events.end)
        self.server.stop()
        with contextlib.suppress(TimeoutError):
            self.link.stop()
        self.loop.stop()
        self.workers.stop()
        self.disks.close()
        self.history.stop()
        self.log.put("info", "the process ends")
        self.log.stop()
        self.paths.remove()

    # --- NBD -----------------------------------------------------------------------------------
    def open_export(self, name: str, writable: bool) -> int:
        """Open the export `name` (a volume's number) for a client; the volume.

        Promotes first where auto-promote asks for it. OSError with the errno for the client.
        """
        if not (name.isascii() and name.isdigit()) or int(name) not in self.view.volumes:
            raise OSError(errno.ENOENT, f"{self.view.name} has no volume {name[:40]!r}")
        volume = int(name)
        code = self.driver.call(lambda: self._open(volume, writable))
        # Twice at the most: the last client's automatic demotion may come in between.
        for _ in range(2):
            if not code or not self.driver.call(lambda: self.engine.auto_promotes(volume, writable)):
                break
            try:
                self.promote(auto=True)
            except PydrbdError as error:
                self.log.put("warning", f"auto-promote: {error}")
            code = self.driver.call(lambda: self._open(volume, writable))
        if code:
            role = self.snapshot().role.word
            text = f"{self.view.name}/{volume} cannot be opened now: {os.strerror(code)} (the role is {role})"
            self.log.put("info", text)
            raise OSError(code, text)
        return volume

    def _open(self, volume: int, writable: bool) -> int:
        """Under the mutex: Engine.open, and no export without a size."""
        code = self.engine.open(volume, writable)
        if code == 0 and not self.engine.size(volume):
            self.engine.close(volume, writable)
            return errno.ENODATA
        return code

    # --- control -------------------------------------------------------------------------------
    def command(self, verb: str, args: dict[str, Any]) -> Any:
        """Carry out a verb (worker threads of the control server). PydrbdErrors go back to the client."""
        entry = VERBS.get(verb)
        if entry is None:
            raise UsageError(f"{self.view.name}: its process does not know the verb {verb[:40]!r}")
        return entry.function(self, **entry.check(self.view.name, verb, args))

    def volume(self, snapshot: ResourceSnapshot, number: int) -> VolumeSnapshot:
        """The snapshot of one volume. CommandFailed when the resource has no such volume."""
        for volume in snapshot.volumes:
            if volume.number == number:
                return volume
        raise CommandFailed(
            self.view.name, Failure.MINOR_NOT_KNOWN, f"{self.view.name} has no volume {number}."
        )

    def snapshot(self) -> ResourceSnapshot:
        return self.driver.call(self.engine.snapshot)

    def promote(self, **how: bool) -> None:
        """Become Primary, for a new time unless it is Primary already."""
        begins, before = self.snapshot().role is not Role.PRIMARY, self.tenure
        if begins and how.get("auto"):
            refuse_beside_waiting(self.run_dir, self.view.node_name, self.view.name, self.view.volumes)
        self.driver.run(self.engine.promote(**how))
        if begins and self.tenure == before:  # else another command has begun it, and devices may be mapped
            self.tenure = secrets.token_hex(8)

    def resume(self, tenure: str, alone: bool, seconds: float, by_itself: bool = False) -> None:
        """Go on as the Primary of `tenure` after a crash. TakenOver, CannotResume."""
        begins, before = self.snapshot().role is not Role.PRIMARY, self.tenure
        script = self.engine.resume(alone, seconds)
        self.driver.run(withdrawing.because(self, "go on as Primary after a crash", script, by_itself))
        if begins and self.tenure == before:  # else another time has begun while this waited
            self.tenure = tenure
        if self.tenure != tenure:
            raise TakenOver(f"{self.view.name}: {self.view.node_name} is Primary for another time by now")

    def end(self) -> None:
        """After `down`: let the reply leave, close everything, end the process."""

        def finish() -> None:
            self.close()
            self._quit()
            time.sleep(QUIT_SECONDS)
            os._exit(0)  # an NBD client that does not let go must not keep the process

        threading.Thread(target=finish, name="end", daemon=True).start()


def _volume_script(name: str) -> Callable[..., None]:
    """A verb that runs the engine's script `name` on a volume that exists."""

    def act(node: Node, volume: int, **args: Any) -> None:
        node.volume(node.snapshot(), volume)
        node.driver.run(getattr(node.engine, name)(volume, **args))

    return act


def _script(name: str) -> Callable[..., None]:
    """A verb that runs the engine's script `name`."""

    def act(node: Node, **args: Any) -> None:
        node.driver.run(getattr(node.engine, name)(**args))

    return act


def _status(node: Node) -> Any:
    return plain(node.snapshot())


def _primary(node: Node, force: bool) -> None:
    node.promote(force=force)


def _resume(node: Node, tenure: str, alone: bool, seconds: float, by_itself: bool) -> None:
    node.resume(tenure, alone, seconds, by_itself)


_CONDITIONS: Mapping[str, Callable[[ResourceSnapshot], bool]] = {
    "connected": lambda snapshot: snapshot.connection is Conn.CONNECTED,
    "synced": lambda snapshot: all(volume.conn is Conn.CONNECTED for volume in snapshot.volumes),
}


def _wait(node: Node, condition: str, seconds: float) -> None:
    holds = _CONDITIONS.get(condition)
    if holds is None:
        known = " or ".join(_CONDITIONS)
        raise UsageError(f"{node.view.name}: wait knows the conditions {known}, not {condition[:40]!r}")
    if not node.driver.run(node.engine.wait_for(holds, seconds or None)):
        state = node.snapshot().connection.connection_word
        raise WaitTimeout(
            f"{node.view.name}: not {condition} within {seconds:g} s; the connection is {state}"
        )


def _get_gi(node: Node, volume: int) -> dict[str, str]:
    found = node.volume(node.snapshot(), volume)
    if found.generation is None:
        raise CommandFailed(node.view.name, Failure.NO_DISK, f"Volume {volume} is not attached.")
    return {"line": gi_line(found.generation, found.flags)}


def _show_gi(node: Node, volume: int) -> dict[str, str]:
    found = node.volume(node.snapshot(), volume)
    if found.generation is None:
        raise CommandFailed(node.view.name, Failure.NO_DISK, f"Volume {volume} is not attached.")
    return {"text": show_gi(found.generation, found.flags)}


def _version(node: Node) -> dict[str, Any]:
    return {
        "version": __version__,
        "pid": os.getpid(),
        "resource": node.view.name,
        "node": node.view.node_name,
    }


def _nbd_info(node: Node) -> dict[str, Any]:
    sizes = {str(volume.number): volume.size for volume in node.snapshot().volumes}
    return {"socket": str(node.paths.nbd_socket), "exports": sizes, "tenure": node.tenure}


def _latency(node: Node, reset: bool) -> dict[str, Any]:
    return node.driver.latency.figures(node.driver.lane, reset)


_VOLUME = {"volume": (int, REQUIRED)}
_FORCE = {"force": (bool, False)}
#: No administrator asks for it, the process is starting.
_BY_ITSELF = {"by_itself": (bool, False)}

VERBS: Mapping[str, Verb] = {
    **MORE_VERBS,
    "status": Verb(_status),
    "attach": Verb(withdrawing.attach, {**_VOLUME, **_BY_ITSELF}),
    "detach": Verb(withdrawing.detach, {**_VOLUME, **_FORCE}),
    "connect": Verb(
        withdrawing.connect, {"discard_my_data": (bool, False), "tentative": (bool, False), **_BY_ITSELF}
    ),
    "disconnect": Verb(withdrawing.disconnect, _FORCE),
    "primary": Verb(_primary, _FORCE),
    "resume": Verb(
        _resume,
        {"tenure": (str, REQUIRED), "alone": (bool, False), "seconds": (float, 0.0), **_BY_ITSELF},
    ),
    "secondary": Verb(_script("demote")),
    "invalidate": Verb(_volume_script("invalidate"), _VOLUME),
    "invalidate-remote": Verb(_volume_script("invalidate_remote"), _VOLUME),
    "new-current-uuid": Verb(_volume_script("new_current_uuid"), {**_VOLUME, "clear_bitmap": (bool, False)}),
    "get-gi": Verb(_get_gi, _VOLUME),
    "show-gi": Verb(_show_gi, _VOLUME),
    "wait": Verb(_wait, {"condition": (str, REQUIRED), "seconds": (float, 0.0)}),
    "down": Verb(withdrawing.down),
    "version": Verb(_version),
    "events": Verb(feed.events, {"since": (int, -1)}),
    "picture": Verb(feed.picture),
    "history": Verb(feed.history),
    "nbd-info": Verb(_nbd_info),
    "latency": Verb(_latency, {"reset": (bool, False)}),
}
