"""What each verb of drbdsetup does, on processes found by resource name or device minor number.

Floor: outer. Neighbours: drbdsetup.py (the table of verbs), processes.py, run.py. What only looks is done
here, on the control socket; what changes something is passed to pydrbd's own command of that meaning, which
takes the resource from its process as well: no verb reads a configuration.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass

from pydrbd.compat.getopt import Parsed
from pydrbd.compat.processes import Here, Process
from pydrbd.compat.refused import REFUSED
from pydrbd.compat.run import Ended, implements, out, plain, pydrbd, say
from pydrbd.control.client import NotUpError, RemoteError
from pydrbd.vocabulary import Failure

#: drbdsetup's words for an object that is not there, all with exit code 10.
_NO_OBJECT = 10
#: `get-gi` of a volume without a disk.
_NO_DISK = 1


@dataclass(frozen=True, slots=True)
class Call:
    """One command: its verb, its arguments by name, its options."""

    verb: str
    arguments: dict[str, str]
    parsed: Parsed
    here: Here
    config: str = ""

    def number(self, name: str) -> int:
        """An argument that must be a number."""
        text = self.arguments[name]
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise Ended(20, f"drbdsetup {self.verb}: {name} must be a number, not '{text}'")
        return int(text)

    def process(self, words: str = "") -> Process:
        """The resource's process; `words`: drbdsetup's when there is none."""
        name = self.arguments["resource"]
        found = self.here.process(name)
        if found is None:
            raise Ended(_NO_OBJECT, f"{name}: {words or _failure(Failure.RESOURCE_NOT_KNOWN)}")
        self._check_peer(found)
        return found

    def _check_peer(self, process: Process) -> None:
        peer = process.description["peer_node_id"]
        if "peer_node_id" in self.arguments and self.number("peer_node_id") != peer:
            raise Ended(_NO_OBJECT, f"{process.name}: No such connection")

    def target(self) -> tuple[Process, str]:
        """The process and RESOURCE or RESOURCE/VOLUME, by whatever names the object."""
        if "minor" in self.arguments:
            process, volume = self.by_minor()
            return process, f"{process.name}/{volume}"
        process = self.process()
        if "volume" not in self.arguments:
            return process, process.name
        return process, f"{process.name}/{self.volume(process)}"

    def volume(self, process: Process) -> int:
        """The volume argument, checked."""
        number = self.number("volume")
        if number not in (volume["number"] for volume in process.description["volumes"]):
            raise Ended(_NO_OBJECT, f"{process.name}: {_failure(Failure.MINOR_NOT_KNOWN)}")
        return number

    def by_minor(self, words: str = "") -> tuple[Process, int]:
        """The process and volume of the minor number."""
        minor = self.number("minor")
        found = self.here.by_minor(minor)
        if found is None:
            raise Ended(_NO_OBJECT, f"{minor}: {words or _failure(Failure.MINOR_NOT_KNOWN)}")
        return found

    def pass_on(self, verb: str, *options: str) -> int:
        """The same for `pydrbd VERB OPTIONS TARGET`."""
        _, target = self.target()
        return self.pydrbd(verb, *options, target)

    def pydrbd(self, *words: str) -> int:
        """`pydrbd WORDS`, on what runs; the configuration may be gone."""
        return pydrbd(words, config=self.config, node=self.here.node, running=True)


def _failure(failure: Failure) -> str:
    return f"Failure: ({failure.value}) {failure.text}"


def _when(call: Call, name: str) -> list[str]:
    return [f"--{name}"] if call.parsed.flag(name) else []


# --- looking -----------------------------------------------------------------------------------


def role(call: Call) -> int:
    out(call.process("Unknown resource").snapshot().role.word)
    return 0


def cstate(call: Call) -> int:
    out(call.process("No such connection").snapshot().connection.connection_word)
    return 0


def dstate(call: Call) -> int:
    process, number = call.by_minor("No such device")
    for volume in process.snapshot().volumes:
        if volume.number == number:
            out(f"{volume.disk.word}/{volume.peer_disk.word}")
    return 0


def status(call: Call) -> int:
    """Text or JSON of one resource or all of them."""
    everything = call.arguments["resource"] == "all"
    processes = call.here.all_up() if everything else [call.process("No such resource")]
    pictures = []
    for process in processes:
        try:
            pictures.append(process.picture())
        except NotUpError:
            if not everything:
                raise
    if call.parsed.flag("json"):
        from pydrbd.integrations.status_json import render_json

        sys.stdout.write(render_json(pictures))
        return 0
    from pydrbd.integrations.status import render

    terminal = sys.stdout.isatty()
    colour = call.parsed.value("color", "auto")
    wanted = terminal and not os.environ.get("NO_COLOR")
    painted = colour in ("always", "") or (colour == "auto" and wanted)
    sys.stdout.write(
        render(
            pictures,
            verbose=call.parsed.flag("verbose"),
            statistics=call.parsed.flag("statistics"),
            columns=shutil.get_terminal_size((80, 24)).columns if terminal else 80,
            terminal=terminal,
            paint=_paint if painted else lambda word, _mood: word,
        )
    )
    return 0


_COLOURS = {"good": "32", "busy": "33", "bad": "31", "primary": "1;36"}


def _paint(word: str, mood: str) -> str:
    return f"\033[{_COLOURS[mood]}m{word}\033[0m" if mood in _COLOURS else word


def show(call: Call) -> int:
    from pydrbd.integrations.show import show_json, show_text

    everything = call.arguments["resource"] == "all"
    processes = call.here.all_up() if everything else [call.process("No such resource")]
    found = [process.description for process in processes]
    render = show_json if call.parsed.flag("json") else show_text
    sys.stdout.write(render(found, defaults=call.parsed.flag("show-defaults")))
    return 0


def identifiers(call: Call) -> int:
    """get-gi, show-gi."""
    process = call.process()
    try:
        answer = process.call(call.verb, volume=call.volume(process))
    except RemoteError as error:
        if f"({Failure.NO_DISK.value})" in str(error):
            raise Ended(_NO_DISK, "Device has no disk") from None
        raise
    out(str(answer["line" if call.verb == "get-gi" else "text"]))
    return 0


def events2(call: Call) -> int:
    """Passed to `pydrbd events2`."""
    if not implements("events2"):
        raise Ended(20, "drbdsetup: events2: not implemented by this version of pydrbd")
    name = call.arguments["resource"]
    options = [word for word in call.parsed.given() if not word.startswith("--color")]
    return call.pydrbd("events2", *options, name)


def udev(call: Call) -> int:
    """The lines that udev's rules read."""
    process, number = call.by_minor("No such device")
    volume = next(volume for volume in process.description["volumes"] if volume["number"] == number)
    single = len(process.description["volumes"]) == 1
    for line in udev_lines(process.name, number, call.number("minor"), str(volume["disk"]), single):
        out(line)
    return 0


def udev_lines(resource: str, volume: int, minor: int, disk: str, single: bool) -> list[str]:
    """The names of a device as udev is told; `single`: volume 0, alone, goes without number."""
    by_res = f"drbd/by-res/{resource}" if single and volume == 0 else f"drbd/by-res/{resource}/{volume}"
    lines = [f"DEVICE=drbd{minor}", f"SYMLINK={by_res}", f"SYMLINK_BY_RES={by_res}"]
    if disk:
        lines.append(f"SYMLINK_BY_DISK=drbd/by-disk/{disk.removeprefix('/dev/').lstrip('/')}")
    return lines


# --- changing ----------------------------------------------------------------------------------


def primary(call: Call) -> int:
    """Promote; then the devices that the configuration calls /dev/drbdN are made as well."""
    code = call.pass_on("primary", *_when(call, "force"))
    if code == 0:
        process, _ = call.target()
        map_devices(process, call.here.node, call.config)
    return code


def map_devices(process: Process, node: str, config: str) -> None:
    """Map what `primary` itself does not, where the kernel has nbd; that it fails is only said."""
    if not (os.path.exists("/sys/module/nbd") or os.path.exists("/sys/block/nbd0")):
        return
    for volume in process.description["volumes"]:
        if not str(volume["device"]).startswith("/dev/nbd"):
            path = str(volume["device"]) or f"/dev/drbd{volume['minor']}"
            target = f"{process.name}/{volume['number']}"
            if pydrbd(["map", target, path], config=config, node=node, running=True):
                say(f"{target}: Primary, but {path} could not be made; see `pydrbd map --help`")


def secondary(call: Call) -> int:
    return call.pass_on("secondary")


def connect(call: Call) -> int:
    return call.pass_on("connect", *_when(call, "discard-my-data"), *_when(call, "tentative"))


def disconnect(call: Call) -> int:
    return call.pass_on("disconnect", *_when(call, "force"))


def detach(call: Call) -> int:
    return call.pass_on("detach", *_when(call, "force"))


def attach(call: Call) -> int:
    """Only the disk of the configuration: pydrbd's process takes its disks from there."""
    process, number = call.by_minor()
    volume = next(volume for volume in process.description["volumes"] if volume["number"] == number)
    wanted = call.arguments["lower_dev"], call.arguments["meta_data_dev"]
    known = str(volume["disk"]), str(volume["meta_disk"] or volume["disk"])
    if tuple(map(os.path.realpath, wanted)) != tuple(map(os.path.realpath, known)):
        raise Ended(
            _NO_OBJECT,
            f"{call.arguments['minor']}: {_failure(Failure.OPEN_BACKING_DEVICE)}\n"
            f"{process.name}/{number} runs with disk {known[0]} and metadata on {known[1]}; "
            "edit the configuration, then `drbdadm adjust`.",
        )
    return call.pass_on("attach")


def check_resize(call: Call) -> int:
    """For a disk that may have grown: the process notes its size itself, and looks at the note at attach."""
    call.number("minor")
    return 0


def new_current_uuid(call: Call) -> int:
    return call.pass_on("new-current-uuid", *_when(call, "clear-bitmap"))


def invalidate(call: Call) -> int:
    process, _ = call.by_minor()
    source = call.parsed.value("sync-from-peer-node-id", "-1")
    if source not in ("-1", str(process.description["peer_node_id"])):
        raise Ended(_NO_OBJECT, f"{process.name}: No such connection")
    return call.pass_on("invalidate")


def invalidate_remote(call: Call) -> int:
    return call.pass_on("invalidate-remote")


def same(call: Call) -> int:
    """Verbs that are called the same here and there."""
    return call.pass_on(call.verb)


def if_implemented(call: Call) -> int:
    """A verb that this version may or may not have; refused by name if not."""
    if not implements(call.verb):
        raise Ended(20, f"drbdsetup: {call.verb}: {REFUSED[call.verb]}")
    return call.pass_on(call.verb, *plain(call.parsed.given()))


def take_options(call: Call) -> int:
    """net-options and its like."""
    from pydrbd.compat.group_options import take

    return take(call)


def down(call: Call) -> int:
    """Of one resource or all; one that is not up is no error."""
    return call.pydrbd("down", call.arguments["resource"])


def wait(call: Call) -> int:
    """wait-connect-*, wait-sync-*."""
    verb = "wait-connect" if call.verb.startswith("wait-connect") else "wait-sync"
    timeouts = ("wfc-timeout", "degr-wfc-timeout", "outdated-wfc-timeout")
    options = [f"--{name}={call.parsed.value(name)}" for name in timeouts if name in call.parsed.options]
    return call.pass_on(verb, *options, *_when(call, "wait-after-sb"))
