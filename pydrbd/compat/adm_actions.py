"""What drbdadm's verbs do: most are pydrbd's command of the same name, queries are answered right here.

Floor: outer. Neighbours: adm_verbs.py (the table), drbdadm.py (`Call`), setup_verbs.py (the same queries).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydrbd.compat import backend, drbdsetup
from pydrbd.compat.group_options import as_values
from pydrbd.compat.quick import ask
from pydrbd.compat.refused import REFUSED
from pydrbd.compat.refused_options import WITHOUT_EFFECT
from pydrbd.compat.run import Ended, implements, out, plain, pydrbd, say
from pydrbd.compat.setup_verbs import map_devices, udev_lines
from pydrbd.config.model import DeviceKind, Volume
from pydrbd.config.view import ResourceView, require_implemented
from pydrbd.errors import CommandFailed
from pydrbd.vocabulary import Conn, Disk, Failure

if TYPE_CHECKING:
    from pydrbd.compat.drbdadm import Call
    from pydrbd.compat.processes import Process

#: What drbdsetup ends with when there is no such object, and `adjust` when it is for a new process.
_NO_OBJECT = _NEEDS_PROCESS = 10


def _pass(call: Call, *arguments: str) -> int:
    return pydrbd(arguments, config=call.adm.config_file, node=call.adm.here.node, errors=call.errors)


def same(call: Call) -> int:
    """pydrbd's verb of the same name and with the same options."""
    useless = ("--force" if (call.verb, "force") in WITHOUT_EFFECT else "",)
    options = [option for option in plain(call.options()) if option not in useless]
    return _pass(call, call.verb, *options, call.target)


def invalidate(call: Call) -> int:
    """The only peer there is may be named."""
    source = call.adm.parsed.value("sync-from-peer-node-id", str(call.view.peer_node_id))
    if source != str(call.view.peer_node_id):
        raise Ended(_NO_OBJECT, f"{call.view.name}: No such connection")
    return _pass(call, "invalidate", call.target)


def primary(call: Call) -> int:
    """Promote, and make the devices; `--overwrite-data-of-peer` is the name that --force had."""
    parsed = call.adm.parsed
    force = parsed.flag("force") or parsed.flag("overwrite-data-of-peer")
    code = _pass(call, "primary", *(["--force"] if force else []), call.target)
    process = call.adm.here.process(call.view.name)
    if code == 0 and process is not None:
        map_devices(process, call.adm.here.node, call.adm.config_file)
    return code


def _require(verb: str) -> None:
    """A verb that this version may or may not have is refused by name if not."""
    if not implements(verb):
        raise Ended(1, f"drbdadm: {verb}: {REFUSED[verb]}")


def if_implemented(call: Call) -> int:
    """`same`, for a verb that may be missing."""
    _require(call.verb)
    return same(call)


def check_resize(call: Call) -> int:
    """For agents, before `up`: nothing is left to be done, because attach itself looks at the note of the
    disk's size, and moves internal metadata to the end of a disk that has grown."""
    return 0


def create_md(call: Call) -> int:
    peers = call.adm.parsed.value("max-peers", "1")
    if peers != "1":
        raise Ended(1, f"drbdadm: --max-peers={peers}: v08 metadata have a place for exactly one peer")
    return _pass(call, "create-md", *(["--force"] if call.adm.parsed.flag("force") else []), call.target)


def set_gi(call: Call) -> int:
    """`set-gi GI RESOURCE/VOLUME`."""
    if not call.words:
        raise Ended(1, "drbdadm: set-gi needs the identifiers: set-gi CURRENT:BITMAP:... RESOURCE/VOLUME")
    return _pass(call, "set-gi", *plain(call.options()), call.words[0], call.target)


def wait_for_all(call: Call) -> int:
    """wait-con-int: what the init script waits for at boot."""
    if call.adm.dry_run:
        for name in call.adm.meant():
            for line in backend.wait("wait-connect-resource")(call.adm.view(name), [], []):
                out(backend.printed(line))
        return 0
    return _pass(call, "wait-connect", "all") if call.adm.meant() else 0


# --- looking -----------------------------------------------------------------------------------


def query(call: Call) -> int:
    """role, cstate, dstate, status: asked of the process without any of pydrbd's own commands."""
    if call.verb == "status":
        return _status(call)
    process = call.adm.here.process(call.view.name)
    if process is None:
        return _pass(call, call.verb, call.target)
    return ask(process, call.verb, call.volumes)


def _status(call: Call) -> int:
    options = [f"--{name}" for name in ("verbose", "statistics", "json") if call.adm.parsed.flag(name)]
    if "all" in call.words:
        call.adm.all_names()
    names = [] if call.words == ("all",) else [word.partition("/")[0] for word in call.words]
    known = call.adm.names()
    for name in names:
        if name not in known:
            raise Ended(1, f"'{name}' not defined in your config (for this host).")
    code = 0
    for name in names or ([""] if not call.words else known):
        line = ["status", *([name] if name else []), *options]
        if call.adm.dry_run:
            out(backend.printed(["drbdsetup", *line]))
            continue
        failed = drbdsetup.run(line, config=call.adm.config_file, here=call.adm.here)
        if failed:
            say(f"Command '{backend.printed(['drbdsetup', *line])}' terminated with exit code {failed}")
        code = code or failed
    return code


def dump(call: Call) -> int:
    """dump, dump-xml: of all with what is common to them, or of single resources alone."""
    from pydrbd.compat.drbdadm import named
    from pydrbd.config.dump import dump, dump_resource
    from pydrbd.config.dumpxml import dump_xml

    config, node = call.adm.config, call.adm.here.node
    found = [] if "all" in call.words else [named(call.adm, word) for word in call.words]
    for name, volume in found:
        if volume is not None and len(call.adm.view(name).volumes) > 1:
            raise Ended(1, f"{call.verb} operates on whole resources, but you specified a specific volume!")
    names = [name for name, _ in found]
    if call.verb == "dump-xml":
        out(dump_xml(config, names or None, node).rstrip("\n"))
    elif not names:
        out(dump(config).rstrip("\n"))
    for name in names if call.verb == "dump" else ():
        stacked = "stacked" if call.adm.lower(name) else "not stacked"
        out(f"# resource {name} on {node}: not ignored, {stacked}")
        out(dump_resource(config.resources[name]))
    return 0


# --- single steps ------------------------------------------------------------------------------


def new_resource(call: Call) -> int:
    """Start the process, with neither disk nor connection; they come with `adjust` or `attach`, `connect`."""
    from pydrbd.runtime.launch import start

    view, here = call.view, call.adm.here
    if here.process(view.name) is None:
        require_implemented(view)
        start(view, _path(call), here.run_dir)
    return 0


def _path(call: Call) -> Path | None:
    return Path(call.adm.config_file) if call.adm.config_file else None


def has_volume(call: Call) -> int:
    """new-minor: the process has all its volumes from the start, if they are the same configuration's."""
    process = call.adm.here.process(call.view.name)
    if process is None:
        raise CommandFailed(
            call.view.name, Failure.RESOURCE_NOT_KNOWN, "Start it with `new-resource` or `up`."
        )
    running = {volume["number"] for volume in process.description["volumes"]}
    if missing := [number for number in call.volumes if number not in running]:
        raise Ended(
            _NO_OBJECT, f"{call.view.name}: its process was started without volume {missing[0]}; down, up"
        )
    return 0


def has_peer(call: Call) -> int:
    """new-peer, new-path: the process knows its peer from the start."""
    process = call.adm.here.process(call.view.name)
    if process is None:
        raise CommandFailed(
            call.view.name, Failure.RESOURCE_NOT_KNOWN, "Start it with `new-resource` or `up`."
        )
    address = call.view.peer_address
    running = process.description["remote_host"]
    if list(running) != [address.family, address.host, address.port]:
        raise Ended(_NO_OBJECT, f"{call.view.name}: its process was started with another peer; down, up")
    return 0


def options(call: Call) -> int:
    """disk-options, net-options, resource-options, peer-device-options: what the configuration says now, and
    what is given over it."""
    return _pass(call, call.verb, *as_values(call.verb, call.options()), call.target)


def adjust(call: Call) -> int:
    """The verb `adjust`; a dry run prints the calls of drbdsetup, and ends as the real one would."""
    left: list[str] = []
    if call.adm.dry_run or call.adm.verbose:
        process = call.adm.here.process(call.view.name)
        if process is None:
            require_implemented(call.view)
            lines = backend.adjust(call.view, list(call.volumes), call.options())
        else:
            lines, left = _changes(call, process)
        for line in lines:
            out(backend.printed(line))
    if not call.adm.dry_run:
        return _pass(call, "adjust", *call.options(), call.view.name)
    if left:
        say("\n".join([f"{call.view.name}: needs a new process:", *(f"  {line}" for line in left)]))
    return _NEEDS_PROCESS if left else 0


def _changes(call: Call, process: Process) -> tuple[list[backend.Line], list[str]]:
    """What separates a running resource from its configuration: as calls of drbdsetup, and what needs a new
    process (with --dry-run options are among the calls, too: what reads them sees that something differs)."""
    view, skip = call.view, [option.removeprefix("--skip-") for option in call.options()]
    path = _path(call)
    parts = {"disk": "disk peer-device", "net": "net", "": "resource handlers"}
    asked = " ".join(names for part, names in parts.items() if part not in skip) if skip else ""
    answer = process.call("adjust", config=str(path.absolute()) if path else "", groups=asked, dry_run=True)
    found = [*answer["steps"], *(answer["left"] if call.adm.dry_run else [])]
    verbs = {step.partition(" ")[0] for step in found}
    groups = {
        "disk-options": ("disk", backend.disk_options),
        "peer-device-options": ("disk", backend.peer_device_options),
        "net-options": ("net", backend.net_options),
        "resource-options": ("resource", backend.resource_options),
    }
    lines: list[backend.Line] = []
    if "disconnect" in verbs and "net" not in skip:
        lines += backend.on_peer("disconnect")(view, [], [])
    for verb, (part, made) in groups.items():
        if verb in verbs and part not in skip:
            lines += made(view, list(call.volumes), ["--set-defaults"])
    snapshot = process.snapshot()
    diskless = [volume.number for volume in snapshot.volumes if volume.disk is Disk.DISKLESS]
    if "disk" not in skip:
        configured = [int(number) for number in answer.get("volumes", call.volumes)]
        lines += backend.attach(view, [number for number in configured if number in diskless], [])
    alone = snapshot.connection is Conn.STANDALONE
    if ("disconnect" in verbs or alone) and "net" not in skip:
        lines += backend.on_peer("connect")(view, [], [])
    return lines, [str(line) for line in answer["left"]]


def handler(call: Call) -> int:
    """Run the configured handler as an event would; its exit status."""
    from pydrbd.config.view import handler_environment

    command = str(call.view.handlers.value(call.verb))
    if not command:
        return 0
    if call.adm.dry_run:
        out(command)
        return 0
    process = call.adm.here.process(call.view.name)
    environment = {
        **os.environ,
        **handler_environment(call.view, min(call.volumes)),
        "DRBD_CONF": call.adm.config_file or (str(process.description["config"]) if process else ""),
        "DRBD_CSTATE": process.snapshot().connection.connection_word if process else "",
    }
    return subprocess.run(["/bin/sh", "-c", command], env=environment, check=False).returncode


# --- for scripts -------------------------------------------------------------------------------


def sh(answer: Callable[[ResourceView, Volume], str]) -> Callable[[Call], int]:
    """A verb that prints one line for each volume."""

    def act(call: Call) -> int:
        for number in call.volumes:
            _answer(call, answer(call.view, call.view.volumes[number]))
        return 0

    return act


def _answer(call: Call, text: str) -> None:
    out(f"{call.adm.variable}={text}" if call.adm.variable else text)


def sh_dev(_view: ResourceView, volume: Volume) -> str:
    if volume.device.kind in (DeviceKind.NBD, DeviceKind.PATH):
        return volume.device.path
    return f"/dev/drbd{backend.minor_of(volume)}"


def sh_minor(_view: ResourceView, volume: Volume) -> str:
    return str(backend.minor_of(volume))


def sh_ll_dev(_view: ResourceView, volume: Volume) -> str:
    return volume.disk or "none"


def sh_md_dev(_view: ResourceView, volume: Volume) -> str:
    return volume.meta_disk.path or volume.disk or "none"


def sh_md_idx(_view: ResourceView, volume: Volume) -> str:
    return backend.index_of(volume)


def sh_ip(view: ResourceView, _volume: Volume) -> str:
    return view.local_address.host


def sh_udev(call: Call) -> int:
    volume = call.view.volumes[call.volumes[0]]
    minor = backend.minor_of(volume)
    plain = volume.implicit and not call.adm.config.global_.udev_always_use_vnr
    for line in udev_lines(call.view.name, volume.number, minor, volume.disk or "", plain):
        out(line)
    return 0


def sh_resource(call: Call) -> int:
    _answer(call, call.view.name)
    return 0


def sh_resources(call: Call) -> int:
    for name in call.adm.meant():
        _answer(call, name)
    return 0


def sh_lr_of(call: Call) -> int:
    """The resource below."""
    lower = call.adm.lower(call.view.name)
    if not lower:
        raise Ended(1, "sh-lower-resource only available in stacked mode")
    _answer(call, lower)
    return 0


def sh_nop(call: Call) -> int:
    """Only read the configuration."""
    call.adm.names()
    return 0


def sh_mod_parms(call: Call) -> int:
    """What the module would be loaded with. There is none; the line is for scripts that want one."""
    call.adm.names()
    out(f"minor_count={call.adm.config.global_.minor_count}")
    return 0


def hidden_commands(_call: Call) -> int:
    from pydrbd.compat.adm_verbs import VERBS, Kind
    from pydrbd.compat.drbdadm import columns

    for title, kind in (
        ("These additional commands might be useful in scripts:", Kind.HELPER),
        ("These commands run the handler that is configured for an event:", Kind.HANDLER),
        ("These commands are for experts:", Kind.EXPERT),
    ):
        out(f"\n{title}\n")
        for line in columns([name for name, verb in VERBS.items() if verb.kind is kind]):
            out(line)
    out("")
    return 0
