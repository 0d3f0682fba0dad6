"""`resync-after`: a resync of this resource waits while another device of this node is in one.

Floor: outer. Neighbours: config/after.py (who waits for whom), feed.py (the other process's events),
engine/marks.py (the pause). Resources are processes of their own, so each listens to those that it waits for,
with a thread for each: to their events, or, where these have no place left for a listener, by asking now and
then.

A device counts as busy as with DRBD 8.4: in a resync or a verify, running or paused, or with any flag of a
pause; besides, while a resync of it is being prepared, because this is heard of a moment later. So a chain of
devices waits as a whole. A resource that is not up, or unknown here, holds nothing up. One whose process has
just gone may be about to come back (restart), and counts as it was for GRACE_SECONDS.

Invariant: what is not waited for any more (`follow`) sets no pause, and its last one has been ended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydrbd.config.after import Device
from pydrbd.control.client import Client, RemoteError
from pydrbd.engine import marks
from pydrbd.errors import ControlError
from pydrbd.runtime.launch import paths
from pydrbd.vocabulary import Conn

if TYPE_CHECKING:
    from pydrbd.node import Node

#: Seconds between two attempts to reach the process of another resource.
AGAIN_SECONDS = 1.0
#: Seconds without a sign of life after which a process counts as gone; it gives one every 2 s.
SILENCE_SECONDS = 10.0
#: Seconds that the last word of a process counts after its end.
GRACE_SECONDS = 5.0
#: Seconds that the start of this process waits to hear of the others.
FIRST_SECONDS = 2.0

_FLAGS = ("aftr_isp", "peer_isp", "user_isp")


def busy_volumes(snapshot: Any) -> frozenset[int] | None:
    """The volumes in a plain snapshot behind which others wait; None when it is no snapshot.

    Only what is needed is looked at: the other process may be of another version.
    """
    try:
        return frozenset(int(volume["number"]) for volume in snapshot["volumes"] if _is_busy(volume))
    except (TypeError, KeyError, ValueError):
        return None


def _is_busy(volume: Mapping[str, Any]) -> bool:
    in_resync = Conn.STARTING_SYNC_S <= int(volume["conn"]) <= Conn.PAUSED_SYNC_T
    return in_resync or any(volume[flag] for flag in _FLAGS)


class Dependencies:
    """What the volumes of one resource wait for."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._watchers: dict[str, Watcher] = {}
        self._wanted: Mapping[int, Device] = {}
        #: Resource -> its busy volumes, as far as it is heard of.
        self._busy: dict[str, frozenset[int]] = {}
        #: Volume -> the device behind which it has been put.
        self._paused: dict[int, Device] = {}
        #: Taken to change pauses, so that one is not set by a word that is older than the one that ended it.
        self._applying = threading.Lock()

    def follow(self, wanted: Mapping[int, Device]) -> None:
        """From now on each volume waits for `wanted[volume]`, and the others for nothing.

        Returns when the others have been heard of, or after FIRST_SECONDS.
        """
        names = {device.resource for device in wanted.values()}
        with self._lock:
            self._wanted = dict(wanted)
            gone = [self._watchers.pop(name) for name in self._watchers.keys() - names]
            new = [
                self._watchers.setdefault(name, Watcher(self, name)) for name in names - self._watchers.keys()
            ]
            for watcher in gone:
                self._busy.pop(watcher.name, None)
        for watcher in gone:
            watcher.stop()
        for watcher in new:
            watcher.start(self._client(watcher.name))
        self._apply()
        deadline = time.monotonic() + FIRST_SECONDS
        for watcher in new:
            watcher.heard.wait(max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        """The process ends: nothing is listened to any more, and no pause is changed."""
        with self._lock:
            gone, self._watchers = list(self._watchers.values()), {}
        for watcher in gone:
            watcher.stop()

    def told(self, watcher: Watcher, busy: frozenset[int]) -> None:
        """A watcher's word: which volumes of its resource are busy."""
        with self._lock:
            if self._watchers.get(watcher.name) is not watcher or self._busy.get(watcher.name) == busy:
                return
            self._busy[watcher.name] = busy
        self._apply()

    def _client(self, resource: str) -> Client:
        where = paths(self._node.run_dir, self._node.view.node_name, resource)
        return Client(where.control_socket, name=resource)

    def _apply(self) -> None:
        """Set and end pauses so that they are as is known now."""
        node = self._node
        with self._applying:
            with self._lock:
                due = {
                    number: device
                    for number, device in self._wanted.items()
                    if device.volume in self._busy.get(device.resource, ())
                }
            for number in sorted(due.keys() | self._paused.keys()):
                before, after = self._paused.get(number), due.get(number)
                device = after or before
                if (before is None) != (after is None) and device is not None:
                    volume, on = node.engine.volumes[number], after is not None
                    node.driver.run(marks.wait_behind(node.engine, volume, on, str(device)))
            self._paused = due


class Watcher:
    """Listens to one resource; its thread ends within some seconds after `stop`."""

    def __init__(self, dependencies: Dependencies, name: str) -> None:
        self.name = name
        #: Something is known, if only that it is not up.
        self.heard = threading.Event()
        self._dependencies = dependencies
        self._stopped = threading.Event()

    def start(self, client: Client) -> None:
        threading.Thread(
            target=self._watch, args=(client,), name=f"resync-after {self.name}", daemon=True
        ).start()

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self, client: Client) -> None:
        last_word = float("-inf")
        while not self._stopped.is_set():
            try:
                for busy in _words(client):
                    if self._stopped.is_set():
                        return
                    last_word = time.monotonic()
                    if busy is not None:
                        self._dependencies.told(self, busy)
                        self.heard.set()
            except ControlError:
                pass  # it is not up, has ended, or is silent
            if time.monotonic() - last_word >= GRACE_SECONDS:
                self._dependencies.told(self, frozenset())
                self.heard.set()
            self._stopped.wait(AGAIN_SECONDS)


def _words(client: Client) -> Iterator[frozenset[int] | None]:
    """What the resource says of its busy volumes, as it comes; None is a sign of life.

    ControlError at the end. Ends by itself when it may be asked again after a while.
    """
    try:
        yield from _heard(client.stream("events", timeout=SILENCE_SECONDS))
    except RemoteError:
        # No place for one more listener, or a version without the verb.
        try:
            yield busy_volumes(client.call("status", timeout=SILENCE_SECONDS))
        except RemoteError as error:
            raise ControlError(str(error)) from error


def _heard(messages: Iterable[Any]) -> Iterator[frozenset[int] | None]:
    for message in messages:
        if isinstance(message, dict):
            transition = message.get("transition", message)
            yield busy_volumes(transition.get("snapshot") if isinstance(transition, dict) else None)
        else:
            yield None
