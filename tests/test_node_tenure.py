"""A time as Primary has one name, whoever asked for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

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
