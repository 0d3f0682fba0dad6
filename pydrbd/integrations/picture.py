"""What a status is made of: the resource's snapshot and the names that the configuration gives it.

Floor: outer. Neighbours: control/protocol.py carries a snapshot as a plain map (`plain`);
`snapshot_from` makes the values again; status.py and status_json.py print them. The answer of
a process is not trusted: anything but a whole snapshot of the right types is a ControlError.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pydrbd.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from pydrbd.errors import ControlError
from pydrbd.vocabulary import Conn

T = typing.TypeVar("T")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a path: address family (ipv4, ipv6), address, port."""

    family: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Identity:
    """What the configuration knows about a resource and its process does not; keyed by volume number."""

    node_id: int = 0
    peer_node_id: int = 1
    minors: Mapping[int, int] = field(default_factory=dict)
    disks: Mapping[int, str] = field(default_factory=dict)
    this_host: Endpoint | None = None
    remote_host: Endpoint | None = None
    #: The device (RESOURCE/VOLUME) whose resync comes first: `resync-after`.
    after: Mapping[int, str] = field(default_factory=dict)
    #: How a command for the peer begins, where its name is no machine's: "on a or b, where low is Primary".
    on_peer: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """One resource that is up."""

    snapshot: ResourceSnapshot
    identity: Identity

    @property
    def suspended(self) -> str:
        """'no', or the reasons joined by commas."""
        snap = self.snapshot
        reasons = {
            "user": snap.suspended_user,
            "no-data": snap.suspended_no_data,
            "fencing": snap.suspended_fencing,
        }
        return ",".join(reason for reason, holds in reasons.items() if holds) or "no"

    def minor(self, volume: int) -> int:
        return self.identity.minors.get(volume, volume)


def snapshot_from(value: Any) -> ResourceSnapshot:
    """The snapshot that `plain` turned into a map. ControlError unless every field is there and right."""
    return rebuilt(ResourceSnapshot, value)


def rebuilt(kind: type[T], value: Any) -> T:
    """The value of class `kind` (a dataclass) that `plain` turned into a map. ControlError likewise."""
    try:
        return typing.cast(T, _build(kind, value))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ControlError(
            f"the resource's process answered something that is no status ({error}); is it another "
            "version of pydrbd? Take the resource down and up again to renew it"
        ) from error


def _build(kind: Any, value: Any) -> Any:
    if kind is type(None) or kind is None:
        if value is not None:
            raise TypeError("none expected")
        return None
    origin = typing.get_origin(kind)
    if origin is types.UnionType or origin is typing.Union:
        if value is None:
            return None
        (inner,) = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return _build(inner, value)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError("list expected")
        return tuple(_build(typing.get_args(kind)[0], item) for item in value)
    if origin is Mapping:
        of_key, of_value = typing.get_args(kind)
        return {of_key(key): _build(of_value, item) for key, item in value.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if set(value) != set(hints):
            raise KeyError("/".join(sorted(set(value) ^ set(hints))))
        return kind(**{name: _build(hint, value[name]) for name, hint in hints.items()})
    if issubclass(kind, Enum):
        return kind(value)
    if kind is float and isinstance(value, int | float):
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} expected, got {type(value).__name__}")
    return value


def resync_suspended(volume: VolumeSnapshot) -> str:
    """'no', or who pauses the resync, joined by commas."""
    reasons = {"user": volume.user_isp, "peer": volume.peer_isp, "dependency": volume.aftr_isp}
    return ",".join(reason for reason, holds in reasons.items() if holds) or "no"


def replicates(volume: VolumeSnapshot) -> bool:
    """Whether more than an idle connection is going on (replication state above Established)."""
    return volume.conn > Conn.CONNECTED


def percent_done(volume: VolumeSnapshot) -> float | None:
    """Percent of the running resync that is done; None without one."""
    resync = volume.resync
    if resync is None or resync.total <= 0:
        return None
    return 100.0 * (resync.total - _left(volume)) / resync.total


def _left(volume: VolumeSnapshot) -> int:
    assert volume.resync is not None
    return max(0, min(volume.resync.total, volume.resync.left - volume.resync.failed))


def rate_and_eta(volume: VolumeSnapshot) -> tuple[float, float | None]:
    """Bytes per second since the last mark, and the seconds left at that rate (None: not known)."""
    resync = volume.resync
    if resync is None:
        return 0.0, None
    elapsed, moved = resync.now - resync.mark_time, resync.mark_left - resync.left
    if elapsed <= 0 or moved <= 0:
        return 0.0, None
    return moved / elapsed, _left(volume) * elapsed / moved
