"""How a new process of a resource gets into service: disks, connection, role, block devices.

Floor: outer. Neighbours: service (calls this), engine/resume.py (who may be Primary again).

The order is what makes it safe. The old process is gone before any of this. The new one attaches (which
reads the activity log) and connects; only then it asks to go on as Primary, which it may if nobody else
was Primary since; only then the devices are connected to it and the kernel sends again what was
under way. If another node has taken over, the devices are cut: what waits in them must
fail, because later it would come over newer data.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

from pydrbd.control.client import RemoteError, promotion_timeout
from pydrbd.errors import ConfigError, MappingError, PydrbdError, StateRefused
from pydrbd.mapping.waiting import of_two_times
from pydrbd.supervisor.devices import Devices
from pydrbd.supervisor.server import Server
from pydrbd.vocabulary import Conn, Disk, Failure, Refusal, Role

#: Seconds for the peer to be back before the first verdict; it is asked again and again after that.
PEER_SECONDS = 5.0


@dataclass
class Report:
    """How it went. `word` and `text` as in service.State; times in ms (`began`: the clock, in seconds)."""

    word: str = "watching"
    text: str = ""
    pause_ms: int = 0
    #: What the new process had come to how long after the end of the old one, in ms: it answers, its disks
    #: are attached, it is Primary, its devices work.
    steps: dict[str, int] = field(default_factory=dict)
    #: The same as readings of the clock.
    marks: dict[str, float] = field(default_factory=dict)
    #: Before the end of the old process: starting the new one.
    ready_ms: int = 0
    began: float = 0.0


class SwapFailed(PydrbdError):
    """A planned restart failed when the old process was gone already."""


def bring_up(
    server: Server, devices: Devices, *, begin: float, tenure: str = "", alone: bool = False
) -> Report:
    """Bring a new process into service. A PydrbdError: it is not, and must not stay.

    `begin`: when the old one ended, for the report. `tenure`: it was Primary for that time though no device
    is mapped. `alone`: it was without its peer, on good disks of its own.
    """
    marks = {"answers": time.monotonic()}
    status = server.call("status")
    for volume in status["volumes"]:
        configured = server.view.volumes.get(volume["number"])
        if configured is not None and configured.disk is not None and volume["disk"] == Disk.DISKLESS:
            _attach(server, volume["number"])
    marks["attached"] = time.monotonic()
    if status["connection"] == Conn.STANDALONE:
        server.call("connect", by_itself=True)
    report = resume_devices(server, devices, PEER_SECONDS, tenure=tenure, alone=alone)
    report.steps = {step: _ms(begin, when) for step, when in (marks | report.marks).items()}
    return report


def _attach(server: Server, volume: int) -> None:
    try:
        server.call("attach", volume=volume, by_itself=True)
    except RemoteError as error:
        if f"({Failure.DISK_CONFIGURED.value})" not in str(error):  # an `up` by hand was quicker
            raise


def resume_devices(
    server: Server, devices: Devices, seconds: float, *, tenure: str = "", alone: bool = False
) -> Report:
    """Go on as Primary, and connect the devices. MappingError, ControlError: the process must be replaced."""
    mapped = devices.mapped()
    name = server.view.name
    times = {device.tenure for device in mapped.values()}
    if not tenure:
        if not times:
            return Report()
        if len(times) > 1:
            return Report("waiting", of_two_times(name))
        (tenure,) = times
    if detached := server.withdrawn.disks:
        return Report("waiting", _of_a_detached_disk(name, min(detached)))
    try:
        limit = promotion_timeout(server.view.net.fencing)
        server.call("resume", timeout=limit, tenure=tenure, alone=alone, seconds=seconds, by_itself=True)
    except RemoteError as error:
        if error.kind == "TakenOver":
            for volume in mapped:
                devices.cut(volume)
            return Report(
                "overtaken",
                f"{error}. Its devices were cut off: what waited in them was not written, because newer "
                f"data would be lost. Unmount what was mounted here; this node goes on as Secondary.",
            )
        return Report(
            "waiting",
            f"{error}. Its devices wait, and so does who uses them. `pydrbd primary {name}` goes on without "
            f"the peer, if you know that it has not taken over; `pydrbd unmap --force {name}` gives them up.",
        )
    marks = {"primary": time.monotonic()}
    for volume, device in mapped.items():
        if device.tenure == tenure:
            devices.reattach(volume)
        else:  # what waits in it is older than what was written since
            devices.cut(volume)
    return Report(marks=marks | {"devices": time.monotonic()})


def _of_a_detached_disk(name: str, volume: int) -> str:
    return (
        f"{name}: the disk of volume {volume} was detached by command, and only disks can prove that nobody "
        "else was Primary since. Its devices wait, and so does who uses them. "
        f"`pydrbd unmap --force {name}` gives them up."
    )


def planned(server: Server, devices: Devices, *, force: bool) -> Report:
    """Replace a process that works. PydrbdError: the old one goes on, unless the text says otherwise."""
    name = server.view.name
    pid = server.pid
    if not pid:
        raise MappingError(f"{name}: has no process that could be restarted; `pydrbd up {name}` starts one")
    status = server.call("status")
    if not force:
        _check_may_swap(name, status, devices)
        _check_structure(server, status, devices)
    primary = status["role"] == Role.PRIMARY.value
    tenure = server.call("nbd-info")["tenure"] if primary else ""
    begin = time.monotonic()
    standby = server.standby()
    try:
        ready = time.monotonic()
        devices.before_swap()
        # As it is now: a peer that has come since then may take over as soon as the old process is gone.
        alone = _was_alone(server.call("status"))
        killed = time.monotonic()
        server.kill(pid)
    except BaseException:
        # Also when the old process is stuck in its disk: one that came after it would have no disk.
        standby.kill()
        standby.wait()
        with contextlib.suppress(PydrbdError):
            devices.after_swap()
        raise
    try:
        server.taken_over(standby)
        report = bring_up(server, devices, begin=killed, tenure=tenure, alone=alone)
    except PydrbdError as error:
        raise SwapFailed(
            f"{name}: the old process was ended, but the new one does not get into service: {error}"
        ) from error
    finally:
        with contextlib.suppress(PydrbdError):
            devices.after_swap()
    report.began, report.ready_ms = killed, _ms(begin, ready)
    return report


def _check_may_swap(name: str, status: dict[str, Any], devices: Devices) -> None:
    """StateRefused if clients would not come through a planned restart, or would go on too early."""
    if status.get("suspended_user"):  # a process of an older version may not say
        raise StateRefused(
            name,
            Refusal.IN_TRANSIENT_STATE,
            "I/O is suspended by command, and a new process would not know of it: requests would go on, into "
            f"the snapshot that may be under way. `pydrbd resume-io {name}` first; "
            f"`pydrbd restart --force {name}` restarts all the same.",
        )
    clients = sum(volume["open_count"] for volume in status["volumes"]) - len(devices.mapped())
    if clients > 0:
        raise StateRefused(
            name,
            Refusal.DEVICE_IN_USE,
            f"{clients} NBD client(s) beside the kernel's own would lose their connection, and a loop device "
            f"over FUSE would fail its I/O. `pydrbd restart --force {name}` restarts all the same.",
        )
    if status["role"] == Role.PRIMARY.value and (lacking := _lacking(status)):
        raise StateRefused(
            name,
            Refusal.NO_UP_TO_DATE_DISK,
            f"The disk of volume {lacking[0]} here is not UpToDate: by it a new process could not tell that "
            f"it may go on as Primary. Attach it and wait for the resync (`pydrbd wait-sync {name}`) or make "
            f"the peer Primary. `pydrbd restart --force {name}` restarts all the same; then clients wait, or "
            "fail.",
        )


def _check_structure(server: Server, status: dict[str, Any], devices: Devices) -> None:
    """ConfigError if a new process would have other disks or addresses, and somebody waits for it."""
    if status["role"] != Role.PRIMARY.value and not devices.mapped():
        return
    name = server.view.name
    if edited := server.edited():
        raise ConfigError(
            f"{name}: not restarted: its configuration was edited ({', '.join(edited)}), and with other "
            "disks, volumes or addresses a new process could not tell that it may go on as Primary. Its "
            f"users would wait. `pydrbd down {name}` and then `pydrbd up {name}` takes that over; "
            f"`pydrbd restart --force {name}` restarts all the same."
        )


def _lacking(status: dict[str, Any]) -> list[int]:
    """The volumes whose own disk is not UpToDate."""
    return [volume["number"] for volume in status["volumes"] if volume["disk"] != Disk.UP_TO_DATE]


def _was_alone(status: dict[str, Any]) -> bool:
    """Have clients seen the data of its own disks only, and could the peer not take over in order?"""
    return status["connection"] != Conn.CONNECTED and not _lacking(status)


def _ms(begin: float, end: float) -> int:
    return round(1000 * (end - begin))
