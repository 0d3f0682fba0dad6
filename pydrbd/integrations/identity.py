"""What the configuration says about a resource and its process's engine does not know.

Floor: outer. Neighbours: config/view.py (the source), picture.py (the values), node.py and cli/resource.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.integrations.picture import Endpoint, Identity

if TYPE_CHECKING:
    from pydrbd.config import Address, ResourceView


def identity_of(view: ResourceView) -> Identity:
    """The identity of the resource `view` on this node."""
    volumes = view.volumes.values()
    return Identity(
        node_id=view.node_id,
        peer_node_id=view.peer_node_id,
        minors={v.number: v.device.minor for v in volumes if v.device.minor is not None},
        disks={v.number: v.disk for v in volumes if v.disk is not None},
        after={number: str(device) for number, device in view.resync_after.items()},
        this_host=_endpoint(view.local_address),
        remote_host=_endpoint(view.peer_address),
        on_peer=_on_peer(view),
    )


def _on_peer(view: ResourceView) -> str:
    """Where commands for the peer are given, if its name is put together from several."""
    if len(view.peer_hosts) < 2:
        return ""
    where = f", where {view.peer_stacked_on} is Primary" if view.peer_stacked_on else ""
    return f"on {' or '.join(view.peer_hosts)}{where}"


def _endpoint(address: Address) -> Endpoint:
    return Endpoint(address.family, address.host, address.port)
