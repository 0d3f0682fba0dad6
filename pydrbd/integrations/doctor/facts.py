"""What the doctor knows: everything that was gathered, before anybody judges it.

Floor: outer, pure. gather_host and gather_resource fill these in; a value that could not be had is
None (or '' for texts), and the judge says so instead of guessing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from pydrbd.config import DiskOptions, NetOptions


class Level(StrEnum):
    """How a check ended. Only `fail` makes the exit code 1."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `advice`: what to change, for warn and fail."""

    level: Level
    text: str
    advice: str = ""


def ok(text: str) -> Finding:
    return Finding(Level.OK, text)


def warn(text: str, advice: str) -> Finding:
    return Finding(Level.WARN, text, advice)


def fail(text: str, advice: str) -> Finding:
    return Finding(Level.FAIL, text, advice)


def skipped(text: str) -> Finding:
    return Finding(Level.SKIPPED, text)


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """This machine. Sizes in bytes."""

    kernel: str = ""
    node: str = ""
    #: What `uname -n` says; `node` may have been given by hand.
    uname: str = ""
    root: bool = True
    capabilities: frozenset[str] = frozenset()
    #: '' when netlink reaches the nbd family, else why not.
    nbd_problem: str = ""
    nbd_module_installed: bool = False
    fuse_device: bool = False
    nbdfuse: bool = False
    loop_control: bool = False
    nbdkit: str = ""
    #: Why the Python plugin cannot be used, '' if it can.
    plugin_problem: str = ""
    plugin_python: str = ""
    python: str = ""
    drbd_utils: str = ""
    kernel_drbd: bool = False
    nofile: int = 1024
    memory_total: int = 0
    memory_available: int = 0
    run_dir: str = ""
    run_dir_problem: str = ""
    run_dir_fs: str = ""
    hung_task_panic: bool = False
    hung_task_seconds: int = 0
    #: The configuration's own trouble ('' if it could be read), and how many resources are meant here.
    config_problem: str = ""
    resources: int = 0
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ProcessFacts:
    """The running process of a resource. None: could not be read."""

    pid: int
    answers: bool = True
    io_flusher: bool | None = None
    oom_score_adj: int | None = None
    nofile: int | None = None
    rss: int | None = None
    version: str = ""
    our_version: str = ""


@dataclass(frozen=True, kw_only=True)
class PeerFacts:
    """The way to the peer. `outcome`: connected, refused, timeout, unreachable, running (asked of the
    process: the connection stands), or '' when it was not tried."""

    outcome: str = ""
    detail: str = ""
    seconds: float = 0.0
    interface: str = ""
    interface_mtu: int = 0
    path_mtu: int = 0


@dataclass(frozen=True, kw_only=True)
class VolumeFacts:
    """A volume's disk here. Sizes in bytes; `problem`: why the disk could not be looked at."""

    number: int
    disk: str | None = ""
    problem: str = ""
    block_device: bool = False
    attached: bool = False
    size: int = 0
    allocated: int = 0
    filesystem: str = ""
    filesystem_free: int = 0
    mount_point: str = ""
    #: queue/write_cache of the device at the bottom ('write back', 'write through'), '' if not known.
    write_cache: str = ""
    logical_block: int = 0
    read_only: bool = False
    direct_problem: str = ""
    metadata: str = ""
    metadata_problem: str = ""
    options: DiskOptions = field(default_factory=DiskOptions)
    #: The mapped block device ('' if none), and its queue/io_timeout in ms.
    mapped: str = ""
    mapped_kind: str = ""
    io_timeout: int = 0


@dataclass(frozen=True, kw_only=True)
class ResourceFacts:
    """A resource on this node."""

    name: str
    node: str = ""
    local: str = ""
    local_present: bool = True
    peer: str = ""
    peer_name: str = ""
    unimplemented: tuple[str, ...] = ()
    net: NetOptions = field(default_factory=NetOptions)
    process: ProcessFacts | None = None
    crashed: bool = False
    connection: str = ""
    peer_facts: PeerFacts = field(default_factory=PeerFacts)
    volumes: tuple[VolumeFacts, ...] = ()
    memory_total: int = 0
