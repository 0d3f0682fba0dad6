"""When a planned restart is refused, and what is left when it fails before the old process is gone.

The process is a pretended one: `recovery.planned` sees it through `Server` and `Devices` only. With real
processes: test_supervisor.py.
"""

from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pydrbd.errors import ConfigError, ControlError, StateRefused
from pydrbd.mapping.device import MappedDevice
from pydrbd.runtime.handlers import PATIENT_SECONDS
from pydrbd.runtime.withdrawn import NOTHING
from pydrbd.supervisor import recovery
from pydrbd.supervisor.devices import Devices
from pydrbd.supervisor.server import Server
from pydrbd.vocabulary import Conn, Disk, Role

OLD = 4711


class Stage:
    """A Primary with one mapped volume. `statuses`: what it answers, the last one from then on."""

    def __init__(self, *statuses: tuple[Conn, Disk]) -> None:
        self.statuses = list(statuses)
        net = SimpleNamespace(fencing="dont-care")
        self.view = SimpleNamespace(name="r0", net=net, volumes={0: SimpleNamespace(disk="/dev/x")})
        self.pid, self.withdrawn = OLD, NOTHING
        self.waiting: subprocess.Popen[bytes] | None = None
        self.said: list[str] = []
        self.resumed: dict[str, Any] = {}
        self.stuck = False
        #: The times as Primary in which its volumes were mapped.
        self.times = ["t"]
        self.changes: list[str] = []

    # --- Server
    def call(self, verb: str, **args: Any) -> Any:
        if verb == "nbd-info":
            return {"tenure": "t"}
        if verb == "resume":
            self.resumed = args
        if verb != "status":
            return {}
        conn, disk = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        volume = {"number": 0, "disk": disk.value, "open_count": 1}
        return {"role": Role.PRIMARY.value, "connection": conn.value, "volumes": [volume]}

    def standby(self) -> subprocess.Popen[bytes]:
        self.waiting = subprocess.Popen(["sleep", "600"])
        return self.waiting

    def kill(self, pid: int) -> None:
        assert pid == OLD
        self.said.append("kill")
        if self.stuck:
            raise ControlError("r0: process 4711 does not end, not even when killed: its disk hangs")

    def taken_over(self, process: subprocess.Popen[bytes]) -> None:
        assert process is self.waiting

    def edited(self) -> list[str]:
        return self.changes

    # --- Devices
    def mapped(self) -> dict[int, MappedDevice]:
        return {
            number: MappedDevice(f"/dev/nbd{number}", "nbd", 4096, "test", "", str(number), tenure=tenure)
            for number, tenure in enumerate(self.times)
        }

    def reattach(self, volume: int) -> None:
        self.said.append(f"reattach {volume}")

    def cut(self, volume: int) -> None:
        self.said.append(f"cut {volume}")

    def before_swap(self) -> None:
        self.said.append("before")

    def after_swap(self) -> None:
        self.said.append("after")

    def planned(self, *, force: bool = False) -> recovery.Report:
        try:
            return recovery.planned(cast(Server, self), cast(Devices, self), force=force)
        finally:
            if self.waiting is not None and not self.stuck:
                self.waiting.kill()
                self.waiting.wait()


def test_one_that_was_without_its_peer_goes_on_without_it() -> None:
    stage = Stage((Conn.WF_CONNECTION, Disk.UP_TO_DATE))
    assert stage.planned().word == "watching"
    assert stage.said == ["before", "kill", "reattach 0", "after"]
    assert stage.resumed["alone"] is True


@pytest.mark.parametrize("fencing", ["dont-care", "resource-only"])
def test_a_new_process_that_fences_its_peer_is_not_taken_for_one_that_hangs(fencing: str) -> None:
    stage = Stage((Conn.WF_CONNECTION, Disk.UP_TO_DATE))
    stage.view.net.fencing = fencing
    stage.planned()
    # The handler may have to wait for another one.
    handlers = PATIENT_SECONDS["fence-peer"] + PATIENT_SECONDS["unfence-peer"]
    assert (stage.resumed["timeout"] > handlers) == (fencing == "resource-only")


def test_a_peer_that_came_while_the_new_process_was_loaded_is_asked() -> None:
    stage = Stage((Conn.WF_CONNECTION, Disk.UP_TO_DATE), (Conn.CONNECTED, Disk.UP_TO_DATE))
    stage.planned()
    assert stage.resumed["alone"] is False


@pytest.mark.parametrize("disk", [Disk.DISKLESS, Disk.FAILED, Disk.INCONSISTENT])
@pytest.mark.parametrize("conn", [Conn.CONNECTED, Conn.WF_CONNECTION])
def test_a_primary_that_shows_its_peers_data_is_not_restarted(conn: Conn, disk: Disk) -> None:
    """By its own disk the new process would go on with older data than clients have seen, or not at all."""
    stage = Stage((conn, disk))
    with pytest.raises(StateRefused, match="volume 0 here is not UpToDate"):
        stage.planned()
    assert stage.waiting is None
    assert stage.said == []
    stage.planned(force=True)
    assert stage.resumed["alone"] is False, "only a human knows whether those data may be shown"


def test_one_whose_disks_were_edited_is_not_restarted_under_its_users() -> None:
    stage = Stage((Conn.CONNECTED, Disk.UP_TO_DATE))
    stage.changes = ["volume 0 disk /dev/x -> /dev/y"]
    with pytest.raises(ConfigError, match="volume 0 disk /dev/x -> /dev/y"):
        stage.planned()
    assert stage.said == []
    assert stage.planned(force=True).word == "watching"


def test_a_process_that_does_not_end_leaves_no_other_one_behind() -> None:
    """The one that waited would come after it, and nobody would attach its disk."""
    stage = Stage((Conn.CONNECTED, Disk.UP_TO_DATE))
    stage.stuck = True
    with pytest.raises(ControlError, match="its disk hangs"):
        stage.planned()
    assert stage.waiting is not None
    try:
        assert stage.waiting.poll() is not None
    finally:
        stage.waiting.kill()
        stage.waiting.wait()
    assert stage.said == ["before", "kill", "after"]


@pytest.mark.parametrize("older", ["a", "z"])
def test_what_waits_in_a_device_of_an_earlier_time_is_not_written(older: str) -> None:
    """It was left by a crash, and an automatic promotion has begun a new time over it."""
    stage = Stage((Conn.CONNECTED, Disk.UP_TO_DATE))
    stage.times = [older, "t"]
    assert stage.planned().word == "watching"
    assert stage.resumed["tenure"] == "t"
    assert stage.said == ["before", "kill", "cut 0", "reattach 1", "after"]


def test_devices_of_two_times_wait_when_nobody_knows_which_is_the_later() -> None:
    stage = Stage((Conn.CONNECTED, Disk.UP_TO_DATE))
    stage.times = ["a", "t"]
    report = recovery.resume_devices(cast(Server, stage), cast(Devices, stage), 0.0)
    assert report.word == "waiting"
    assert "unmap --force r0/VOLUME" in report.text
    assert not stage.resumed
    assert stage.said == []
