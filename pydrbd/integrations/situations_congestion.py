"""The situations of a resource whose network is too slow for what its clients write (on-congestion).

Floor: outer. Neighbours: situations.py, whose table has these rows; explain.py.
"""

from __future__ import annotations

from pydrbd.integrations.explain import Answer, Facts


def disconnected(f: Facts) -> Answer:
    """on-congestion disconnect has given the connection up."""
    return Answer(
        f"This node has given the connection to {f.peer} up because the network was too slow for what its"
        " clients write (on-congestion disconnect). It goes on alone.",
        f.origin("connection"),
        "somebody to connect again, when the network has room",
        (f"pydrbd connect {f.name}",),
        f"nothing: {f.out_of_sync} are copied to {f.peer} afterwards",
    )


def ahead(f: Facts) -> Answer:
    """This node has pulled ahead."""
    return Answer(
        f"The network to {f.peer} is too slow for what clients write, so this node has pulled ahead: it sends"
        f" no data for {f.target} and marks the blocks instead; {f.out_of_sync} are out of sync. What"
        f" {f.peer} has is whole, but old. Until it has caught up this is the only good copy.",
        f.origin("replication"),
        f"what was sent before to come to the disk of {f.peer}; then the resync begins by itself",
    )


def behind(f: Facts) -> Answer:
    """The peer has pulled ahead of this node."""
    return Answer(
        f"{f.peer} has pulled ahead: the network is too slow for what its clients write, so it sends no data"
        f" for {f.target}. What is on the disk here is whole, but old; {f.out_of_sync} are known to be out of"
        " sync.",
        f.origin("replication"),
        f"{f.peer} to begin the resync, which it does by itself when the network has room",
    )
