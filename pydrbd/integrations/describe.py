"""What a resource runs with, as plain values: names, numbers, addresses, disks, options.

Floor: outer. Neighbours: node.py answers it on the control socket (verb `describe`), so that commands
need no configuration file (described.py makes a view of it again); `adjust` compares it with the edited
configuration. All values are what msgpack can carry; a description of another version that lacks a key is
a ControlError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydrbd.errors import ControlError
from pydrbd.integrations.picture import Endpoint, Identity

if TYPE_CHECKING:
    from pydrbd.config.model import Address, Volume
    from pydrbd.config.options import OptionGroup
    from pydrbd.config.view import ResourceView

#: A resource's description, as `describe` makes it.
Description = Mapping[str, Any]


def describe(view: ResourceView, config_file: str = "") -> dict[str, Any]:
    """The description of a resource on its node; `config_file`: what it was read from ('': the default)."""
    return {
        "resource": view.name,
        "config": config_file,
        "node": view.node_name,
        "node_id": view.node_id,
        "peer": view.peer_name,
        "peer_node_id": view.peer_node_id,
        "this_host": _address(view.local_address),
        "remote_host": _address(view.peer_address),
        "options": _options(view.options),
        "net": _options(view.net),
        "startup": _options(view.startup),
        "stacked_on": view.stacked_on,
        "volumes": [_volume(volume) for _, volume in sorted(view.volumes.items())],
    }


def structure(found: Description) -> dict[str, str]:
    """What of a description is no option: addresses, node ids, volumes and their disks."""
    options = ("options", "net", "startup", "config", "volumes")
    plain = {key: str(value) for key, value in found.items() if key not in options}
    plain["volumes"] = " ".join(str(volume["number"]) for volume in found["volumes"])
    for volume in found["volumes"]:
        for key in ("disk", "meta_disk", "meta_index"):
            plain[f"volume {volume['number']} {key}"] = str(volume[key])
    return plain


def _volume(volume: Volume) -> dict[str, Any]:
    minor = volume.device.minor
    meta = volume.meta_disk
    return {
        "number": volume.number,
        "minor": volume.number if minor is None else minor,
        "device": volume.device.path,
        "disk": volume.disk or "",
        "meta_disk": meta.path,
        "meta_index": meta.kind.value if meta.index is None else str(meta.index),
        "disk_options": _options(volume.disk_options),
        "peer_device": _options(volume.peer_device_options),
    }


def _address(address: Address) -> list[str | int]:
    return [address.family, address.host, address.port]


def _options(group: OptionGroup) -> dict[str, Any]:
    """Every option's value; the secret too, as only root reaches the control socket."""
    return {spec.name: group.value(spec.name) for spec in group.specs()}


def identity_of(found: Description) -> Identity:
    """The names that a status prints. ControlError when `found` is not a description."""
    try:
        here, there = (Endpoint(*found[key]) for key in ("this_host", "remote_host"))
        return Identity(
            node_id=int(found["node_id"]),
            peer_node_id=int(found["peer_node_id"]),
            minors={int(volume["number"]): int(volume["minor"]) for volume in found["volumes"]},
            disks={int(v["number"]): str(v["disk"]) for v in found["volumes"] if v["disk"]},
            this_host=here,
            remote_host=there,
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ControlError(
            f"the resource's process described itself in a way that is not understood ({error}); is it "
            "another version of pydrbd? Take the resource down and up again to renew it"
        ) from error
