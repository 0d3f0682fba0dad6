"""Block devices of an earlier time as Primary stand in the way: what waits in them is old."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pydrbd.cli.context import App
from pydrbd.cli.resource import LocalResource
from pydrbd.config import ResourceView
from pydrbd.errors import MappingError
from pydrbd.mapping import map as mapping
from pydrbd.mapping.device import MappedDevice
from pydrbd.vocabulary import Role


class Stage(LocalResource):
    """A resource with two volumes, a process that answers `nbd-info`, and devices of given times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *times: str) -> None:
        volume = SimpleNamespace(device=SimpleNamespace(path=""))
        view: Any = SimpleNamespace(
            name="r0", volumes={0: volume, 1: volume}, net=SimpleNamespace(fencing="")
        )
        super().__init__(cast(ResourceView, view), App(config_file=Path("/nowhere"), node="alpha"))
        self.asked: list[str] = []
        devices = {
            n: MappedDevice(f"/dev/nbd{n}", "nbd", 4096, "", "", "", tenure=t) for n, t in enumerate(times)
        }
        monkeypatch.setattr(mapping, "mapped", lambda *names: devices.get(names[3]))
        monkeypatch.setattr(mapping, "remap_volume", lambda *names: devices.get(names[3]))
        monkeypatch.setattr(
            mapping, "map_volume", lambda *_names: MappedDevice("/dev/nbd9", "nbd", 0, "", "", "")
        )

    def call(self, verb: str, **_args: Any) -> Any:
        self.asked.append(verb)
        return {"tenure": "now"}

    def snapshot(self) -> Any:
        return SimpleNamespace(role=Role.SECONDARY)


def test_no_volume_is_mapped_beside_a_device_of_an_earlier_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the next crash the two times could not be told apart, and both would be written."""
    with pytest.raises(MappingError, match="unmap r0/0"):
        Stage(monkeypatch, "earlier").map(1)
    assert Stage(monkeypatch, "now").map(1).path == "/dev/nbd9"
    assert Stage(monkeypatch, "now", "now").map(1).path == "/dev/nbd1"


def test_primary_does_not_go_on_with_devices_of_two_times(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = Stage(monkeypatch, "a", "b")
    with pytest.raises(MappingError, match="unmap --force r0/VOLUME"):
        resource.resume()
    assert resource.asked == []
    assert Stage(monkeypatch, "a", "a").resume()
