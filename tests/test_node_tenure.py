"""A time as Primary has one name, whoever asked for it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pydrbd.errors import MappingError, TakenOver
from pydrbd.mapping import map as mapping
from pydrbd.mapping.device import MappedDevice
from pydrbd.node import Node
from pydrbd.vocabulary import Role


def test_two_promotions_that_wait_at_once_begin_one_time_as_primary() -> None:
    """Both wait for fence-peer; devices that were mapped after the first keep their name."""
    names: list[str] = []

    def run(_script: object) -> None:
        if not names:
            names.append("")
            Node.promote(cast(Node, node))
            names.append(node.tenure)

    node: Any = SimpleNamespace(
        tenure="",
        engine=SimpleNamespace(promote=lambda **_how: None),
        driver=SimpleNamespace(run=run),
        snapshot=lambda: SimpleNamespace(role=Role.SECONDARY),
    )
    Node.promote(cast(Node, node))
    assert node.tenure == names[1] != ""


def test_who_resumes_does_not_rename_a_time_that_has_begun_meanwhile() -> None:
    """What waits in its devices is older than what was written in that time."""
    began: list[str] = []

    def run(script: object) -> None:
        if script == "resume":
            Node.promote(cast(Node, node))
            began.append(node.tenure)

    node: Any = SimpleNamespace(
        tenure="",
        view=SimpleNamespace(name="r0", node_name="alpha"),
        engine=SimpleNamespace(promote=lambda **_how: "promote", resume=lambda _alone, _seconds: "resume"),
        driver=SimpleNamespace(run=run),
        snapshot=lambda: SimpleNamespace(role=Role.SECONDARY),
    )
    with pytest.raises(TakenOver):
        Node.resume(cast(Node, node), "old", False, 1.0)
    assert node.tenure == began[0]


@pytest.mark.parametrize(("auto", "kind"), [(True, "nbd"), (True, "loop"), (False, "nbd")])
def test_no_time_begins_by_itself_beside_a_device_that_waits(
    monkeypatch: pytest.MonkeyPatch, auto: bool, kind: str
) -> None:
    """Who opens the device cannot know of it; after one more crash the two times could not be told apart."""
    device = MappedDevice("/dev/nbd3", kind, 4096, "", "", "", tenure="earlier")
    monkeypatch.setattr(mapping, "mapped", lambda *_names: device)
    node: Any = SimpleNamespace(
        tenure="",
        run_dir=Path("/nowhere"),
        view=SimpleNamespace(name="r0", node_name="alpha", volumes={0: None}),
        engine=SimpleNamespace(promote=lambda **_how: None),
        driver=SimpleNamespace(run=lambda _script: None),
        snapshot=lambda: SimpleNamespace(role=Role.SECONDARY),
    )
    if auto and kind == "nbd":
        with pytest.raises(MappingError, match=r"/dev/nbd3 waits .* stays Secondary"):
            Node.promote(cast(Node, node), auto=auto)
    else:
        Node.promote(cast(Node, node), auto=auto)
    assert (node.tenure == "") is (auto and kind == "nbd")
