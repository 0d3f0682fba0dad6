"""One resource of this node as a command sees it: its configuration, its process, its devices.

Floor: outer. Neighbours: runtime/launch.py (starts and finds the process), control/client.py
(talks to it), mapping/ (its block devices). Nothing here loads the event loop.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydrbd.control.client import REPLY_TIMEOUT, Client, NotUpError, RemoteError, promotion_timeout
from pydrbd.engine.snapshot import ResourceSnapshot
from pydrbd.errors import CommandFailed, MappingError, PydrbdError
from pydrbd.integrations.identity import identity_of
from pydrbd.integrations.picture import Picture, snapshot_from
from pydrbd.vocabulary import Failure, Refusal, Role

if TYPE_CHECKING:
    from pydrbd.cli.context import App
    from pydrbd.config import ResourceView
    from pydrbd.mapping.device import MappedDevice
    from pydrbd.runtime.launch import RunPaths

#: Seconds that a node which crashed as Primary waits for its peer before a human's word counts.
RESUME_SECONDS = 5.0


class NotUp(CommandFailed):
    """The resource has no process here. `crashed`: it had one, and that ended without `down`."""

    def __init__(self, resource: str, detail: str, crashed: bool) -> None:
        self.crashed = crashed
        super().__init__(resource, Failure.RESOURCE_NOT_KNOWN, detail)


class ObjectMissing(PydrbdError):
    """`role`, `cstate`, `dstate` or `status` of something that is not there, in drbdsetup's words."""

    exit_code = 10

    def __init__(self, name: str, words: str, detail: str) -> None:
        super().__init__(f"{name}: {words}\n{detail}")


class LocalProcess:
    """A resource of this node by its name alone: its process, its supervisor, its devices."""

    def __init__(self, name: str, app: App) -> None:
        self.name, self.app = name, app

    @property
    def run_dir(self) -> Path:
        return self.app.run_dir

    @property
    def paths(self) -> RunPaths:
        """The files of the resource's process."""
        from pydrbd.runtime.launch import paths

        return paths(self.run_dir.absolute(), self.app.node, self.name)

    def pid(self) -> int | None:
        """The process of the resource (0 if it is just starting), None if it has none that lives."""
        from pydrbd.runtime.launch import running

        return running(self.run_dir, self.app.node, self.name)

    def crashed(self) -> bool:
        """Whether a process ended without `down`: it left its pid file."""
        return self.pid() is None and self.paths.pid_file.exists()

    def trouble(self) -> str:
        """What the supervisor of the process says of it when all is not well; '' otherwise."""
        from pydrbd.supervisor.remote import Remote

        return Remote(self.run_dir, self.app.node, self.name).trouble()

    def volumes(self) -> set[int]:
        """The volumes that are known to have, or may have, a block device."""
        from pydrbd.mapping.map import recorded_volumes

        return recorded_volumes(self.run_dir, self.app.node, self.name)

    # --- talking to the process ------------------------------------------------------------

    def call(self, verb: str, *, timeout: float | None = REPLY_TIMEOUT, **args: Any) -> Any:
        """A command's result. NotUp (exit code 10) when there is no process; RemoteError."""
        try:
            return Client(self.paths.control_socket, name=self.name).call(verb, timeout=timeout, **args)
        except NotUpError as error:
            raise self._not_up().at(verb, args.get("volume")) from error
        except PydrbdError as error:
            error.at(verb, args.get("volume"))
            raise

    def _not_up(self) -> NotUp:
        """Why nobody answers, and what to do."""
        crashed = self.crashed()
        if crashed and (trouble := self.trouble()):
            detail = f"The process of {self.name} on {self.app.node} has died. Its supervisor: {trouble}"
        elif crashed:
            detail = (
                f"The process of {self.name} on {self.app.node} was killed or crashed; "
                f"`pydrbd up {self.name}` starts it again, and nothing acknowledged is lost."
            )
        else:
            detail = f"{self.name} is not up on {self.app.node}; `pydrbd up {self.name}` starts it."
        return NotUp(self.name, detail, crashed)

    def call_unless_held(self, verb: str) -> None:
        """A command that is refused while a device is held open; the refusal names who holds it."""
        try:
            self.call(verb)
        except RemoteError as error:
            if f"({Refusal.DEVICE_IN_USE.value})" not in str(error):
                raise
            from pydrbd.cli.nbd_clients import clients_of

            found = clients_of(self.paths.nbd_socket) or ["a client that is not a process here"]
            text = f"{error}\nConnected to {self.paths.nbd_socket}: {', '.join(found)}."
            raise RemoteError(error.kind, text, error.exit_code) from error

    def snapshot(self) -> ResourceSnapshot:
        """The present state. NotUp; ControlError."""
        return snapshot_from(self.call("status", timeout=30.0))

    def unmap(self, volume: int, *, force: bool = False) -> None:
        """Take the volume's block device away, if it has one. StateRefused while somebody uses it.

        With `force` its users get I/O errors from now on.
        """
        from pydrbd.mapping.map import unmap_volume

        unmap_volume(self.run_dir, self.app.node, self.name, volume, force=force)

    def unmap_all(self) -> None:
        """Take all block devices of the resource away."""
        for volume in sorted(self.volumes()):
            self.unmap(volume)


class LocalResource(LocalProcess):
    """A resource of this node with what it is: as the configuration defines it, or as it runs.

    `config_file`: what a new process of it reads (None: the default).
    """

    def __init__(self, view: ResourceView, app: App, config_file: Path | None = None) -> None:
        super().__init__(view.name, app)
        self.view, self.config_file = view, config_file or app.config_file

    def volumes(self) -> set[int]:
        """The volumes that it has, and those that it does not have any more but whose device is there."""
        return super().volumes() | set(self.view.volumes)

    def call_peer_here(self, verb: str, **args: Any) -> Any:
        """A command's result from the peer's process, if that runs on this machine too; else None."""
        from pydrbd.runtime.launch import paths

        socket = paths(self.run_dir.absolute(), self.view.peer_name, self.name).control_socket
        try:
            return Client(socket, name=self.name).call(verb, timeout=30.0, **args)
        except NotUpError:
            return None

    def snapshot_or(self, words: str) -> ResourceSnapshot:
        """The present state; when the resource is not up, drbdsetup's `words` for that."""
        try:
            return self.snapshot()
        except NotUp as error:
            raise ObjectMissing(self.name, words, error.detail) from error

    def picture(self) -> Picture:
        """What `status` prints. NotUp."""
        return Picture(self.snapshot(), identity_of(self.view))

    def nbd_uri(self, volume: int) -> str:
        """The URI that NBD clients open."""
        from urllib.parse import quote

        return f"nbd+unix:///{volume}?socket={quote(str(self.paths.nbd_socket))}"

    # --- block devices -----------------------------------------------------------------------

    def map(self, volume: int, device: str | None = None) -> MappedDevice:
        """Make a block device of the volume; the present one is connected to the process anew.

        MappingError also for one that was mapped in another time as Primary: what waits in it is of then.
        """
        from pydrbd.mapping.map import map_volume, remap_volume

        names = (self.run_dir, self.app.node, self.name, volume)
        tenure = str(self.call("nbd-info")["tenure"])
        # Also of other volumes: after the next crash nobody could tell which of two times was the later.
        for number, present in self._waiting_devices().items():
            if present.tenure != tenure:
                raise MappingError(
                    f"{self.name}: {present.path} was mapped before this node became Primary again, and what "
                    f"waits in it must not come over newer data. `pydrbd unmap {self.name}/{number}` first "
                    f"(with --force if it is in use: its users get I/O errors)."
                )
        again = remap_volume(*names)
        if again is not None:
            return again
        wanted = device or self.view.volumes[volume].device.path or None
        return map_volume(*names, self.paths.nbd_socket, wanted, tenure)

    def _waiting_devices(self) -> dict[int, MappedDevice]:
        """The devices that keep their I/O for a new process, by volume."""
        from pydrbd.mapping.map import nbd_devices

        return nbd_devices(self.run_dir, self.app.node, self.name, self.view.volumes)

    def resume(self) -> bool:
        """Become Primary again for devices that wait since a crash. False: there are none, or no need.

        Their users go on where they were. TakenOver and CannotResume as RemoteError: not any more, not now.
        """
        from pydrbd.mapping.map import remap_volume
        from pydrbd.mapping.waiting import of_two_times

        waiting = self._waiting_devices()
        if not waiting or self.snapshot().role is Role.PRIMARY:
            return False
        tenure, *others = sorted({device.tenure for device in waiting.values()})
        if others:
            raise MappingError(of_two_times(self.name))
        try:
            limit = promotion_timeout(self.view.net.fencing)
            self.call("resume", timeout=limit, tenure=tenure, alone=True, seconds=RESUME_SECONDS)
        except RemoteError as error:
            text = (
                f"{error}\nBlock devices of {self.name} wait for their lost process and stand in the way: "
                f"`pydrbd unmap --force {self.name}` gives them up (their users get I/O errors)."
            )
            raise RemoteError(error.kind, text, error.exit_code) from error
        for volume in waiting:
            remap_volume(self.run_dir, self.app.node, self.name, volume)
        return True
