"""A running resource's description as the view that commands work with: no configuration is read for it.

Floor: outer. Neighbours: describe.py (makes descriptions), cli/running.py. What commands on a running
resource do not ask for (handlers, the peer's disks, places in files) is left empty. A description of another
version counts as far as it goes: `down` must work after an upgrade, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from pydrbd.config.model import NOWHERE, Address, DeviceName, MetaDisk, MetaDiskKind, Volume
from pydrbd.config.options import (
    DiskOptions,
    Handlers,
    NetOptions,
    OptionGroup,
    PeerDeviceOptions,
    ResourceOptions,
    StartupOptions,
)
from pydrbd.config.view import ResourceView
from pydrbd.config.volumes import kind_of
from pydrbd.errors import ControlError
from pydrbd.integrations.describe import Description

Group = TypeVar("Group", bound=OptionGroup)


def view_of(found: Description) -> ResourceView:
    """The running resource `found`. ControlError when it is no description."""
    try:
        volumes = {int(volume["number"]): _volume(volume) for volume in found["volumes"]}
        return ResourceView(
            name=str(found["resource"]),
            node_name=str(found["node"]),
            node_id=int(found["node_id"]),
            local_address=Address(*found["this_host"]),
            peer_name=str(found["peer"]),
            peer_node_id=int(found["peer_node_id"]),
            peer_address=Address(*found["remote_host"]),
            volumes=MappingProxyType(volumes),
            peer_volumes=MappingProxyType({}),
            net=_group(NetOptions, found["net"]),
            options=_group(ResourceOptions, found["options"]),
            handlers=Handlers(),
            startup=_group(StartupOptions, found.get("startup", {})),
            stacked_on=str(found.get("stacked_on", "")),
            place=NOWHERE,
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ControlError(
            f"the resource's process described itself in a way that is not understood ({error}); is it "
            "another version of pydrbd? `pydrbd down` works all the same"
        ) from error


def _volume(found: Mapping[str, Any]) -> Volume:
    path, index = str(found["device"]), str(found["meta_index"])
    indexed = index.isdigit()
    return Volume(
        number=int(found["number"]),
        device=DeviceName(kind_of(path)[0], int(found["minor"]), path),
        disk=str(found["disk"]) or None,
        meta_disk=MetaDisk(
            MetaDiskKind.INDEXED if indexed else MetaDiskKind(index),
            str(found["meta_disk"]),
            int(index) if indexed else None,
        ),
        implicit=False,
        disk_options=_group(DiskOptions, found["disk_options"]),
        peer_device_options=_group(PeerDeviceOptions, found["peer_device"]),
    )


def _group(kind: type[Group], values: Mapping[str, Any]) -> Group:
    """Options with these values; what is not the default counts as written."""
    known = {spec: values[spec.name] for spec in kind.specs() if spec.name in values}
    given = frozenset(spec.name for spec, value in known.items() if value != spec.default)
    return kind(given=given, **{spec.attribute: value for spec, value in known.items()})
