"""A configuration as values: what the files say, resource by resource, host by host.

Floor: words. Neighbours: reader.py makes these, dump.py prints them, view.py flattens them for
one node. Everything is frozen; maps are read-only. Option groups hold only what their own
section gives (`given`); inheritance from `common` is applied in view.py. Volumes, though, are
complete in their host: what a resource says for all hosts has been filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from pydrbd.config.options import (
    DiskOptions,
    GlobalOptions,
    Handlers,
    NetOptions,
    PeerDeviceOptions,
    ResourceOptions,
    StartupOptions,
)
from pydrbd.config.syntax import Place

NOWHERE = Place("", 0, 0)


@dataclass(frozen=True, slots=True)
class Address:
    """An endpoint; `host` is an address (never a name), without the brackets of IPv6."""

    family: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.family == "ipv6" else self.host
        return f"{host}:{self.port}"


class DeviceKind(StrEnum):
    """How the `device` statement names the device."""

    MINOR = "minor"
    DRBD = "drbd"
    NBD = "nbd"
    PATH = "path"


@dataclass(frozen=True, slots=True)
class DeviceName:
    """The device that carries the volume. `path` is what was written ('' for `minor N` alone);
    `minor` is N of `minor N`, /dev/drbdN or /dev/nbdN, None for another path without `minor`."""

    kind: DeviceKind
    minor: int | None
    path: str = ""


class MetaDiskKind(StrEnum):
    """Where the metadata is: at the end of the disk, alone on a device, in a 128 MiB slot."""

    INTERNAL = "internal"
    FLEXIBLE_EXTERNAL = "flexible-external"
    INDEXED = "indexed"


@dataclass(frozen=True, slots=True)
class MetaDisk:
    """`meta-disk`; `path` is '' for internal, `index` is None unless indexed."""

    kind: MetaDiskKind = MetaDiskKind.INTERNAL
    path: str = ""
    index: int | None = None


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One volume on one host. `disk` is None for `disk none` (a diskless client).

    `implicit`: written without `volume 0 { }` around it."""

    number: int
    device: DeviceName
    disk: str | None
    meta_disk: MetaDisk
    implicit: bool
    disk_options: DiskOptions
    peer_device_options: PeerDeviceOptions
    place: Place = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Host:
    """An `on`, `floating` or `stacked-on-top-of` section. `names` are all names of an `on` (usually one); a
    floating host is named by its address, as drbdadm does. `stacked_on`: the resource whose device is the
    disk; `names` are then all of its hosts."""

    names: tuple[str, ...]
    node_id: int
    addresses: tuple[Address, ...]
    volumes: Mapping[int, Volume]
    floating: bool = False
    stacked_on: str = ""
    place: Place = field(default=NOWHERE, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The name that drbdadm shows: several names are joined by '_'."""
        return "_".join(self.names)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One `host` statement of a connection; the address or port of the host's section if None."""

    host: str
    address: Address | None = None
    port: int | None = None
    place: Place = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Connection:
    """An explicit `connection` section (or a pair of a `connection-mesh`): one or more paths."""

    paths: tuple[tuple[Endpoint, Endpoint], ...]
    net: NetOptions
    peer_device: PeerDeviceOptions
    volumes: Mapping[int, PeerDeviceOptions]
    place: Place = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Sections:
    """The option sections that `common` and every resource can have."""

    net: NetOptions = field(default_factory=NetOptions)
    disk: DiskOptions = field(default_factory=DiskOptions)
    peer_device: PeerDeviceOptions = field(default_factory=PeerDeviceOptions)
    options: ResourceOptions = field(default_factory=ResourceOptions)
    startup: StartupOptions = field(default_factory=StartupOptions)
    handlers: Handlers = field(default_factory=Handlers)


@dataclass(frozen=True, kw_only=True)
class Resource(Sections):
    """A `resource` section. `hosts` is keyed by Host.name, in the order of the file."""

    name: str
    hosts: Mapping[str, Host] = field(default_factory=lambda: MappingProxyType({}))
    connections: tuple[Connection, ...] = ()
    place: Place = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All files together. `file` is the one that was asked for."""

    file: str = field(default="", compare=False)
    global_: GlobalOptions = field(default_factory=GlobalOptions)
    common: Sections = field(default_factory=Sections)
    resources: Mapping[str, Resource] = field(default_factory=lambda: MappingProxyType({}))
