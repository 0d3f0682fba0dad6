"""The option table against drbdsetup's own (`xml-help`), and the reading of values at their limits."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pydrbd.config import (
    TABLE,
    DiskOptions,
    NetOptions,
    OptionGroup,
    OptionSpec,
    PeerDeviceOptions,
    ResourceOptions,
    dump,
    loads,
)
from pydrbd.config.optionspec import Kind, parse_value
from pydrbd.errors import ConfigError
from tests.support.config_samples import drbdadm, other_value, resource

_COMMANDS: list[tuple[str, type[OptionGroup]]] = [
    ("new-peer", NetOptions),
    ("attach", DiskOptions),
    ("peer-device-options", PeerDeviceOptions),
    ("resource-options", ResourceOptions),
]


#: What the connection's options belong to in 8.4.
_COMMANDS_84 = {"new-peer": "connect", "peer-device-options": "disk-options"}


def _xml_options(program: str, command: str) -> dict[str, ElementTree.Element]:
    text = subprocess.run([program, "xml-help", command], capture_output=True, text=True, check=True).stdout
    options = {option.get("name", ""): option for option in ElementTree.fromstring(text).iter("option")}
    return {name: o for name, o in options.items() if not name.startswith("_") and name != "set-defaults"}


@pytest.mark.parametrize(("command", "group"), _COMMANDS)
def test_the_table_is_drbdsetups(command: str, group: type[OptionGroup]) -> None:
    theirs = _xml_options("drbdsetup", command) | {
        name: option
        for name, option in _xml_options("/lib/drbd/drbdsetup-84", _COMMANDS_84.get(command, command)).items()
        if name in ("unplug-watermark", "max-bio-bvecs")
    }
    ours = {spec.name: spec for spec in group.specs() if not spec.ours}
    assert ours.keys() == theirs.keys()
    for name, option in theirs.items():
        spec = ours[name]
        match option.get("type"):
            case "numeric" if name != "resync-after":
                scale = {"1": 1, "k": 1024, "s": 512}[option.findtext("unit_prefix", "1")]
                assert (spec.kind, spec.scale) == (Kind.NUMBER, scale), name
                for tag, value in (("min", spec.minimum), ("max", spec.maximum), ("default", spec.default)):
                    assert int(option.findtext(tag, "")) == value, (name, tag)
            case "handler":
                assert {h.text for h in option.iter("handler")} == set(spec.words), name
            case "boolean":
                assert (spec.kind, spec.default) == (Kind.FLAG, option.findtext("default") == "yes"), name
            case "numeric-or-symbol":
                assert {s.text for s in option.iter("symbol")} == set(spec.words), name
                assert (spec.minimum, spec.maximum) == (1, 32), name
            case _:
                assert spec.kind is Kind.TEXT, name


def test_instances_start_with_the_defaults() -> None:
    net = NetOptions()
    assert (net.protocol, net.timeout, net.use_rle, net.wire_protocol.number) == ("C", 60, True, 3)
    assert not net.given


def _limits() -> Iterator[tuple[OptionSpec, str]]:
    for spec in TABLE:
        if spec.kind is Kind.NUMBER and spec.section != "global" and not (spec.clamped or spec.old):
            for number in (spec.minimum, spec.maximum, spec.maximum + 1):
                yield spec, str(number)
            if spec.minimum:
                yield spec, str(spec.minimum - 1)
            for suffix, size in (("k", 1024), ("s", 512), ("M", 1 << 20)):
                top = spec.maximum * spec.scale // size
                yield spec, f"{top}{suffix}"
                yield spec, f"{top + 1}{suffix}"


@pytest.mark.parametrize(("spec", "text"), list(_limits()), ids=lambda v: v if isinstance(v, str) else v.name)
def test_numbers_are_in_range_when_drbdadm_says_so(spec: OptionSpec, text: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(resource(f"{spec.section} {{ {spec.name} {text}; }}"))
    allowed = drbdadm(path, "dump").returncode == 0
    try:
        loads(path.read_text())
    except ConfigError:
        assert not allowed
    else:
        assert allowed


@pytest.mark.parametrize("text", ["0x10", "-1", "1.5", "", "1kk", "k", "\u0661", "1 k", "+1", "9" * 30, "1T"])
def test_what_is_no_number(text: str) -> None:
    spec = next(s for s in TABLE if s.name == "timeout")
    with pytest.raises(ValueError, match="must be a number"):
        parse_value(spec, (text,))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("resync-rate", "250", 250),
        ("resync-rate", "30M", 30720),
        ("resync-rate", "1s", 1),
        ("c-fill-target", "1M", 2048),
        ("size", "1g", 2097152),
        ("size", "7s", 7),
        ("sndbuf-size", "512K", 524288),
        ("al-extents", "10", 67),
        ("al-extents", "70000", 65534),
        ("quorum", "2", 2),
        ("quorum", "off", "off"),
        ("protocol", "a", "A"),
        ("timeout", "040", 40),
    ],
)
def test_values(name: str, text: str, value: int | str) -> None:
    spec = next(s for s in TABLE if s.name == name)
    assert parse_value(spec, (text,)) == value


@pytest.mark.parametrize("spec", TABLE, ids=lambda s: f"{s.section}/{s.name}")
def test_every_option_is_read_dumped_and_read_again(spec: OptionSpec) -> None:
    text = f"{spec.section} {{ {spec.name} {other_value(spec)}; }}"
    config = loads(text if spec.section == "global" else f"common {{ {text} }}")
    groups = [
        config.global_,
        *(
            getattr(config.common, n)
            for n in ("net", "disk", "peer_device", "options", "startup", "handlers")
        ),
    ]
    group = next(g for g in groups if type(g).__name__ == spec.group)
    assert group.given == {spec.name}
    assert group.value(spec.name) != spec.default
    assert loads(dump(config)) == config


def test_a_specific_section_wins_over_a_general_one_option_by_option() -> None:
    general = loads("common { net { timeout 30; ping-int 3; } }").common.net
    specific = loads("common { net { timeout 60; ko-count 2; } }").common.net
    merged = specific.laid_over(general)
    assert (merged.timeout, merged.ping_int, merged.ko_count, merged.connect_int) == (60, 3, 2, 10)
    assert merged.given == {"timeout", "ping-int", "ko-count"}
    assert merged.origins["timeout"].text == "60"
