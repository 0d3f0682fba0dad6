"""What a resource is like on this node: its process, its disks, the way to the peer.

Floor: outer. Never hangs: connecting has a time-out, the process is asked with one, and disks (whose
file system may be dead) are looked at in threads that are not waited for longer than DISK_SECONDS.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydrbd.config import ResourceView, unimplemented
from pydrbd.errors import PydrbdError
from pydrbd.integrations.doctor.facts import PeerFacts, ProcessFacts, ResourceFacts, VolumeFacts
from pydrbd.integrations.doctor.gather_disk import gather_disk, queue_setting
from pydrbd.runtime.addresses import LinkOptions, dialing_socket, is_local
from pydrbd.version import __version__
from pydrbd.vocabulary import Conn, Disk

if TYPE_CHECKING:
    from pydrbd.cli.resource import LocalResource

T = TypeVar("T")
DISK_SECONDS = 5.0
CONNECT_SECONDS = 2.0
_ASK_SECONDS = 3.0
#: include/linux/sched.h: what PR_SET_IO_FLUSHER sets; /proc/PID/stat shows it in field 9.
_FLUSHER = 0x00080000 | 0x00100000
_IP_MTU, _IPV6_MTU = 14, 24
_UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}


def gather_resource(resource: LocalResource, memory_total: int) -> ResourceFacts:
    """The facts of one resource; never raises a PydrbdError."""
    view = resource.view
    local, peer = view.local_address, view.peer_address
    process, attached, connection = _process(resource)
    present = is_local(local.family, local.host)
    connected = connection == Conn.CONNECTED.connection_word
    return ResourceFacts(
        name=view.name,
        node=view.node_name,
        local=str(local),
        local_present=present,
        peer=str(peer),
        peer_name=view.peer_name,
        unimplemented=tuple(unimplemented(view)),
        net=view.net,
        process=process,
        crashed=resource.crashed(),
        connection=connection,
        peer_facts=_peer(view, connected=connected) if present else PeerFacts(),
        volumes=tuple(_volume(resource, number, number in attached) for number in sorted(view.volumes)),
        memory_total=memory_total,
    )


def within(seconds: float, action: Callable[[], T], otherwise: T) -> T:
    """The action's result, or `otherwise` when it takes longer; the thread is left behind then."""
    result: list[T] = []
    thread = threading.Thread(target=lambda: result.append(action()), daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0] if result else otherwise


# --- process ---------------------------------------------------------------------------------------
def _process(resource: LocalResource) -> tuple[ProcessFacts | None, set[int], str]:
    """(process, volumes with an attached disk, connection)."""
    pid = resource.pid()
    if not pid:
        return None, set(), ""
    facts = ProcessFacts(
        pid=pid,
        io_flusher=_flusher(pid),
        oom_score_adj=_number(f"/proc/{pid}/oom_score_adj"),
        rss=_rss(pid),
        our_version=__version__,
    )
    try:
        version = str(resource.call("version", timeout=_ASK_SECONDS)["version"])
        snapshot = resource.snapshot()
    except (PydrbdError, OSError, KeyError, TypeError):
        return replace(facts, answers=False), set(), ""
    attached = {volume.number for volume in snapshot.volumes if volume.disk is not Disk.DISKLESS}
    return replace(facts, version=version), attached, snapshot.connection.connection_word


def _flusher(pid: int) -> bool | None:
    """Whether all its threads have PR_SET_IO_FLUSHER."""
    flags = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):  # a thread may end meanwhile
                text = (task / "stat").read_text(errors="replace")
                flags.append(int(text[text.rindex(")") + 2 :].split()[6]))
    return all(flag & _FLUSHER == _FLUSHER for flag in flags) if flags else None


def _rss(pid: int) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) << 10
    return None


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


# --- disks -------------------------------------------------------------------------------------
def _volume(resource: LocalResource, number: int, attached: bool) -> VolumeFacts:
    volume = resource.view.volumes[number]
    hangs = VolumeFacts(
        number=number,
        disk=volume.disk,
        problem=f"looking at it took longer than {DISK_SECONDS:.0f} s: the disk or its file system hangs",
        options=volume.disk_options,
    )

    def look() -> VolumeFacts:
        try:
            return gather_disk(volume, attached=attached)
        except OSError as error:
            return replace(hangs, problem=str(error))

    return _mapped(resource, within(DISK_SECONDS, look, hangs))


def _mapped(resource: LocalResource, facts: VolumeFacts) -> VolumeFacts:
    from pydrbd.mapping.map import mapped

    with contextlib.suppress(OSError, PydrbdError):
        device = mapped(resource.run_dir, resource.app.node, resource.name, facts.number)
        if device is not None:
            timeout = queue_setting(os.stat(device.path).st_rdev, "io_timeout")
            return replace(facts, mapped=device.path, mapped_kind=device.kind, io_timeout=int(timeout or 0))
    return facts


# --- peer --------------------------------------------------------------------------------------
def _peer(view: ResourceView, *, connected: bool) -> PeerFacts:
    """Connect to the peer's port from our own address, unless the connection stands already."""
    local, peer = view.local_address, view.peer_address
    options = LinkOptions(view.name, (local.host, local.port), (peer.host, peer.port))
    interface, mtu = _interface(local.host)
    facts = PeerFacts(interface=interface, interface_mtu=mtu)
    try:
        sock, target = dialing_socket(options)
    except OSError as error:
        return replace(facts, outcome="unreachable", detail=error.strerror or str(error))
    with sock:
        if connected:
            return replace(facts, outcome="running", path_mtu=_path_mtu_udp(sock.family, target))
        sock.settimeout(CONNECT_SECONDS)
        begin = time.monotonic()
        try:
            sock.connect(target)
        except TimeoutError:
            return replace(facts, outcome="timeout", seconds=CONNECT_SECONDS)
        except ConnectionRefusedError:
            seconds = time.monotonic() - begin
            return replace(
                facts, outcome="refused", seconds=seconds, path_mtu=_path_mtu_udp(sock.family, target)
            )
        except OSError as error:
            return replace(facts, outcome="unreachable", detail=error.strerror or str(error))
        return replace(facts, outcome="connected", seconds=time.monotonic() - begin, path_mtu=_path_mtu(sock))


def _path_mtu(sock: socket.socket) -> int:
    """What the kernel believes of the path of a connected socket (0: it does not tell)."""
    level, option = (
        (socket.IPPROTO_IPV6, _IPV6_MTU) if sock.family == socket.AF_INET6 else (socket.IPPROTO_IP, _IP_MTU)
    )
    try:
        return sock.getsockopt(level, option)
    except OSError:
        return 0


def _path_mtu_udp(family: int, target: object) -> int:
    """The same without a TCP connection: a connected UDP socket sends nothing."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(target)  # type: ignore[arg-type]
        except OSError:
            return 0
        return _path_mtu(sock)


def _interface(host: str) -> tuple[str, int]:
    """(name, MTU) of the interface that has the address; ('', 0) if the tool `ip` does not tell."""
    import json

    from pydrbd.integrations.doctor.gather_host import output_of

    with contextlib.suppress(ValueError, KeyError, TypeError):
        for link in json.loads(output_of(["ip", "-json", "address", "show"]) or "[]"):
            if any(entry.get("local") == host.partition("%")[0] for entry in link.get("addr_info", [])):
                return str(link["ifname"]), int(link["mtu"])
    return "", 0
