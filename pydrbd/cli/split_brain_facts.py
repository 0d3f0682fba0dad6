"""One node's facts of a split brain, gathered from its process, its history, its disk and its devices.

Floor: outer. Neighbours: integrations/split_facts.py (what they mean), touched.py (files),
split_brain_part.py.
"""

from __future__ import annotations

import os
import stat
from itertools import chain
from pathlib import Path
from typing import Any

from pydrbd.cli.resource import LocalResource
from pydrbd.control.client import Client
from pydrbd.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from pydrbd.integrations.changed import changed_blocks, runs_of
from pydrbd.integrations.history import History, history_from, sentence
from pydrbd.integrations.overlay import free_bytes
from pydrbd.integrations.split_facts import NodeFacts, Policies, Turn, VolumeFacts
from pydrbd.integrations.touched import touched
from pydrbd.units import SECTOR
from pydrbd.vocabulary import AfterSb, Role

_CONNECTED = "Connected"


def facts(resource: LocalResource, *, folder: str, paths: bool) -> NodeFacts:
    """The facts of this node. `folder`: where it would keep overlays, '' if that is not asked for;
    `paths`: look for the files too.

    NotUp; ControlError; OverlayError when the folder's file system cannot be asked.
    """
    snapshot = resource.snapshot()
    described = resource.call("describe")
    history = history_from(resource.call("history", timeout=30.0))
    disks = {volume["number"]: str(volume["disk"]) for volume in described["volumes"]}
    return NodeFacts(
        resource=resource.name,
        node=snapshot.node,
        peer=snapshot.peer,
        role=snapshot.role,
        connection=snapshot.connection,
        last_disconnect=snapshot.last_disconnect,
        policies=_policies(described["net"]),
        roles=tuple(_turns(history, "role")),
        parted=next((t for t in reversed(_turns(history, "connection")) if t.old == _CONNECTED), None),
        folder=folder,
        free=free_bytes(Path(folder)) if folder else 0,
        users=tuple(_users(resource, snapshot)),
        volumes=tuple(
            _volume(resource, volume, disks.get(volume.number, ""), paths) for volume in snapshot.volumes
        ),
    )


def _policies(net: dict[str, Any]) -> Policies:
    return Policies(
        AfterSb(net["after-sb-0pri"]),
        AfterSb(net["after-sb-1pri"]),
        AfterSb(net["after-sb-2pri"]),
        bool(net["always-asbp"]),
    )


def _turns(history: History, field: str) -> list[Turn]:
    found = ((entry, entry.change(field)) for entry in history.entries)
    return [
        Turn(entry.when, change.old, change.new, sentence(entry.cause)) for entry, change in found if change
    ]


def _volume(resource: LocalResource, volume: VolumeSnapshot, disk: str, paths: bool) -> VolumeFacts:
    client = Client(resource.paths.control_socket, name=resource.name)
    changed = list(runs_of(changed_blocks(client, volume.number, volume.size)))
    kind, files, note = touched(disk, changed) if paths and disk else ("", (), "")
    return VolumeFacts(
        number=volume.number,
        size=volume.size,
        disk=volume.disk,
        generation=volume.generation,
        open_count=volume.open_count,
        allocated=_allocated(disk, volume.size),
        changed=tuple(chain.from_iterable(changed)),
        file_system=kind,
        paths=files,
        note=note,
    )


def _allocated(disk: str, size: int) -> int:
    try:
        found = os.stat(disk)
    except OSError:
        return size
    return found.st_blocks * SECTOR if stat.S_ISREG(found.st_mode) else size


def _users(resource: LocalResource, snapshot: ResourceSnapshot) -> list[str]:
    """Who uses the devices of a Primary: mounts and processes, and NBD clients that are no mapping of
    ours."""
    from pydrbd.cli.nbd_clients import clients_of
    from pydrbd.mapping.holders import holders
    from pydrbd.mapping.map import mapped

    if snapshot.role is not Role.PRIMARY:
        return []
    found: list[str] = []
    mappings = []
    for volume in snapshot.volumes:
        device = mapped(resource.run_dir, resource.app.node, resource.name, volume.number)
        if device is not None:
            mappings.append(f"process {device.fuse_pid} ")
            found += [f"{device.path} {holder}" for holder in holders(device.path)]
    clients = clients_of(resource.paths.nbd_socket)
    found += [client for client in clients if not client.startswith(tuple(mappings))]
    if not found and not mappings and any(volume.open_count for volume in snapshot.volumes):
        found.append("an NBD client that is not a process there")
    return found
