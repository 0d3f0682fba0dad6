"""resync-after: which device is meant, and what is refused, in drbdadm's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from pydrbd.config import ResourceView, for_node, loads, require_implemented
from pydrbd.config.after import Device
from pydrbd.errors import ConfigError
from tests.support.config_samples import drbdadm


def text(after: dict[str, str], volumes: int = 1, beta: dict[str, str] | None = None) -> str:
    """Resources with what they come after ('': nothing); `beta`: what they come after on that node."""
    found = "global { usage-count no; }\n"
    for number, (name, first) in enumerate(after.items()):
        disk = f"disk {{ resync-after {first}; }}" if first else ""
        found += f"resource {name} {{ {disk}\n"
        for node, host in enumerate(("alpha", "beta")):
            own = (beta or {}).get(name, "") if host == "beta" else ""
            inner = f"disk {{ resync-after {own}; }}" if own else ""
            found += f" on {host} {{ address 10.0.0.{node + 1}:{7800 + number};\n"
            for volume in range(volumes):
                minor = number * 10 + volume
                found += (
                    f"  volume {volume} {{ device minor {minor}; disk /dev/vd{number}{volume}; "
                    f"meta-disk internal; {inner} }}\n"
                )
            found += " }\n"
        found += "}\n"
    return found


def view(config: str, name: str) -> ResourceView:
    return for_node(loads(config), name, "alpha")


def refused(config: str, name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        require_implemented(view(config, name))
    assert (caught.value.exit_code, caught.value.line > 0, caught.value.column > 0) == (10, True, True)
    return caught.value.message


@pytest.mark.parametrize("word", ["r0", "r0/0", "r0/00"])
def test_a_device_is_named_with_or_without_the_volume(word: str) -> None:
    found = view(text({"r0": "", "r1": word}), "r1")
    require_implemented(found)
    assert found.resync_after == {0: Device("r0", 0)}
    assert str(found.resync_after[0]) == "r0/0"
    assert view(text({"r0": "", "r1": word}), "r0").resync_after == {}


def test_the_other_volume_of_the_same_resource_may_come_first() -> None:
    config = text({"r0": ""}, volumes=2).replace(
        "meta-disk internal;  }\n }", "meta-disk internal; disk { resync-after r0/0; } }\n }"
    )
    found = view(config, "r0")
    require_implemented(found)
    assert found.resync_after == {1: Device("r0", 0)}


def test_what_is_not_there_is_refused_in_drbdadms_words(tmp_path: Path) -> None:
    config = text({"r0": "", "r1": "r9/0"})
    known = "resource 'r9/0' mentioned in 'resync-after' option is not known."
    assert refused(config, "r1").startswith(f"in resource r1: {known}")
    path = tmp_path / "file"
    path.write_text(config)
    said = drbdadm(path, "-d", "up", "r1").stderr
    assert known in said
    config = text({"r0": "", "r1": "r0"}, volumes=2)
    why = "resync-after contains 'r0', which is ambiguous, since it contains 2 volumes"
    assert refused(config, "r1") == f"in resource r1: {why}"
    path.write_text(config)
    assert why in drbdadm(path, "-d", "up", "r1").stderr
    assert refused(text({"r0": "", "r1": "r0/7"}), "r1").endswith("Resource 'r0' has no volume 7")


def test_a_cycle_is_refused_by_name_and_only_where_it_is() -> None:
    config = text({"r0": "r2/0", "r1": "r0/0", "r2": "r1/0", "r3": "r1/0", "r4": ""})
    why = "'resync-after' would make a cycle: "
    assert refused(config, "r0") == (
        f"in resource r0: {why}r0/0 after r2/0 after r1/0 after r0/0. "
        "This would cause a resync-after dependency cycle (133)"
    )
    assert why in refused(config, "r1")
    assert why in refused(config, "r2")
    for name in ("r3", "r4"):
        require_implemented(view(config, name))
    assert f"{why}r0/0 after r0/0" in refused(text({"r0": "r0/0"}), "r0")


def test_a_cycle_over_both_nodes_is_one_too() -> None:
    """A pause on one node is one on the other: each would wait for the other for ever."""
    config = text({"r0": "", "r1": "r0/0"}, beta={"r0": "r1/0", "r1": "r0/0"})
    assert "cycle" in refused(config, "r1")
    with pytest.raises(ConfigError, match="cycle"):
        require_implemented(for_node(loads(config), "r0", "beta"))


def test_a_resource_with_a_mistake_can_still_be_looked_at() -> None:
    assert view(text({"r0": "", "r1": "r9/0"}), "r1").resync_after == {}
