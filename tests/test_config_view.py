"""One node's view: inheritance checked against drbdadm's dry run, refusals, names of arguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from pydrbd.config import (
    TABLE,
    Config,
    OptionGroup,
    OptionSpec,
    ResourceView,
    Volume,
    for_node,
    load,
    loads,
    require_implemented,
    resolve,
    resources_here,
    unimplemented,
)
from pydrbd.config.optionspec import Kind
from pydrbd.errors import ConfigError, NotImplementedOption, UsageError
from tests.support.config_samples import (
    GLOBAL,
    SAMPLES,
    SHARED,
    TWO_HOSTS,
    drbdadm,
    dry_run,
    other_value,
    resource,
)

ALL = SAMPLES | SHARED


def _is_local(family: str, host: str) -> bool:
    return (family, host) == ("ipv4", "127.0.0.1")


def _switches(*groups: OptionGroup) -> set[str]:
    switches = {f"--{name}={group.origins[name].text}" for group in groups for name in group.given}
    # drbdadm looks up the minor of the volume r0/0, which is 1 in all samples.
    return {"--resync-after=1" if switch == "--resync-after=r0/0" else switch for switch in switches}


def _calls(view: ResourceView) -> list[tuple[str, ...]]:
    """The calls that drbdadm makes to bring up what `view` says, those without options first."""
    peer = str(view.peer_node_id)
    local, remote = (f"{a.family}:{a}" for a in (view.local_address, view.peer_address))
    calls = [("new-resource", view.name, str(view.node_id), *sorted(_switches(view.options)))]
    calls.append(("new-path", view.name, peer, local, remote))
    calls.append(("new-peer", view.name, peer, *sorted(_switches(view.net) | {f"--_name={view.peer_name}"})))
    for number, volume in view.volumes.items():
        calls += _volume_calls(view.name, peer, number, volume)
        if volume.disk is not None and view.peer_volumes[number].disk is None:
            calls.append(("peer-device-options", view.name, peer, str(number), "--bitmap=no"))
    return sorted(calls)


def _volume_calls(name: str, peer: str, number: int, volume: Volume) -> list[tuple[str, ...]]:
    minor, meta = str(volume.device.minor), volume.meta_disk
    calls: list[tuple[str, ...]] = [("new-minor", name, minor, str(number))]
    if volume.peer_device_options.given:
        switches = sorted(_switches(volume.peer_device_options))
        calls.append(("peer-device-options", name, peer, str(number), *switches))
    if volume.disk is None:
        calls[0] += ("--diskless",)
        return calls
    path = meta.path or volume.disk
    where = {"internal": "internal", "flexible-external": "flexible"}.get(meta.kind, str(meta.index))
    calls.append(("attach", minor, volume.disk, path, where, *sorted(_switches(volume.disk_options))))
    return calls


#: Calls that say nothing about the configuration.
_OTHER = ("connect", "apply-al")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("node", ["alpha", "beta"])
def test_the_view_is_what_drbdadm_would_configure(name: str, node: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(ALL[name])
    config = load(path)
    expected: list[tuple[str, ...]] = []
    for resource_name in config.resources:
        expected += _calls(for_node(config, resource_name, node, _is_local))
    theirs = [tuple(call[1:]) for call in dry_run(path, node) if not set(_OTHER) & set(call)]
    assert sorted(theirs) == sorted(expected)


def test_resource_options_startup_and_handlers_are_inherited() -> None:
    config = loads(
        "common { options { auto-promote no; quorum 1; } startup { wfc-timeout 3; }"
        " handlers { split-brain x; } }" + resource("options { quorum all; } handlers { fence-peer y; }")
    )
    view = for_node(config, "r0", "alpha")
    assert (view.options.auto_promote, view.options.quorum, view.startup.wfc_timeout) == (False, "all", 3)
    assert (view.handlers.split_brain, view.handlers.fence_peer, view.handlers.pri_lost) == ("x", "y", "")
    assert (view.node_name, view.peer_name, view.node_id, view.peer_node_id) == ("alpha", "beta", 0, 1)


@pytest.mark.parametrize(
    ("text", "node", "words"),
    [
        (resource(""), "gamma", "in resource r0: a host section ('on gamma { ... }') is missing"),
        (SHARED["floating"], "gamma", "a host section ('on gamma"),
        (
            resource(
                "", TWO_HOSTS + TWO_HOSTS.replace("alpha", "c").replace("beta", "d").replace("7789", "1")
            )
            .replace("on alpha {", "on alpha { node-id 0;")
            .replace("on beta {", "on beta { node-id 1;")
            .replace("on c {", "on c { node-id 2;")
            .replace("on d {", "on d { node-id 3;"),
            "c",
            "exactly two hosts, but here are 4 (alpha, beta, c, d)",
        ),
        (
            resource("", TWO_HOSTS.split("on beta")[0]).replace("on alpha {", "on alpha { node-id 0;"),
            "alpha",
            "exactly two hosts, but here are 1 (alpha)",
        ),
        (resource("").replace("address 10.0.0.2:7789;", ""), "alpha", "on beta: 'address' keyword missing"),
        (
            resource("").replace("10.0.0.2", "ipv6 [::1]"),
            "alpha",
            "the address of alpha is ipv4, that of beta ipv6",
        ),
        (
            resource(
                "connection { path { host alpha; host beta; } path { host alpha port 2; host beta port 3; } }"
            )
            .replace("on alpha {", "on alpha { node-id 0;")
            .replace("on beta {", "on beta { node-id 1;"),
            "alpha",
            "one path per connection, but here are 2",
        ),
        (
            resource("", "on alpha { address 10.0.0.1:1; } on beta { address 10.0.0.2:1; }"),
            "alpha",
            "no volume is defined on alpha",
        ),
    ],
)
def test_what_has_no_view(text: str, node: str, words: str) -> None:
    with pytest.raises(ConfigError, match=r"-:\d+:\d+: .*") as caught:
        for_node(loads(text), "r0", node)
    assert words in str(caught.value)


def test_an_unknown_resource() -> None:
    with pytest.raises(
        ConfigError, match=r"'r1' not defined in your config \(for this host\)\. \(one of: r0\)"
    ):
        for_node(loads(resource("")), "r1", "alpha")


def _view(body: str) -> ResourceView:
    return for_node(loads(resource(body)), "r0", "beta")


def _rows(implemented: bool) -> list[OptionSpec]:
    rows = [s for s in TABLE if s.section != "global" and s.kind is not Kind.WORDS]
    return [s for s in rows if (s.works is None) == implemented]


@pytest.mark.parametrize("spec", _rows(implemented=True), ids=lambda s: f"{s.section}/{s.name}")
def test_implemented_options_are_accepted(spec: OptionSpec) -> None:
    needs = "protocol A; " if spec.name == "on-congestion" else ""
    value, other = other_value(spec), ""
    if spec.name == "resync-after":
        value, other = (
            "r9/0",
            resource("").split("\n", 1)[1].replace("r0", "r9").replace("minor 1", "minor 9"),
        )
    text = resource(f"{spec.section} {{ {needs}{spec.name} {value}; }}")
    text += other.replace("7789", "7799").replace("vd", "sd")
    require_implemented(for_node(loads(text), "r0", "beta"))


@pytest.mark.parametrize("protocol", ["", "protocol C;", "protocol B;"])
def test_congestion_policies_need_protocol_a(protocol: str) -> None:
    view = _view(f"net {{ {protocol} on-congestion disconnect; }}")
    with pytest.raises(ConfigError, match=r":2:.*on-congestion policy pull-ahead only with prot A allowed"):
        require_implemented(view)
    require_implemented(_view(f"net {{ {protocol} on-congestion block; }}"))


def test_options_at_odds_are_named_at_the_place_of_the_option() -> None:
    text = resource("net {\n  on-congestion disconnect;\n}")
    with pytest.raises(ConfigError, match=r"^-:3:3: "):
        require_implemented(for_node(loads(text), "r0", "alpha"))


@pytest.mark.parametrize("spec", _rows(implemented=False), ids=lambda s: f"{s.section}/{s.name}")
def test_other_options_are_refused_by_name_unless_default(spec: OptionSpec) -> None:
    if spec.kind is not Kind.SWITCH and spec.default != "":
        text = str(spec.default) if not isinstance(spec.default, bool) else ["no", "yes"][spec.default]
        require_implemented(_view(f"{spec.section} {{ {spec.name} {text}; }}"))
    view = _view(f"{spec.section} {{\n {spec.name} {other_value(spec)};\n }}")
    (name,) = unimplemented(view)
    assert name.split()[0] == f"{spec.section}/{spec.name}"
    with pytest.raises(NotImplementedOption) as caught:
        require_implemented(view)
    assert name in str(caught.value)
    assert (caught.value.file, caught.value.line, caught.value.column) == ("-", 3, 2)


@pytest.mark.parametrize(
    ("text", "hint"),
    [("verify-alg crc32", "did you mean 'crc32c'?"), ('cram-hmac-alg "sha-1"', "did you mean 'sha1'?")],
)
def test_a_digest_that_is_misspelt_is_answered_with_the_nearest(text: str, hint: str) -> None:
    with pytest.raises(NotImplementedOption, match=f"net/{text.partition(' ')[0]}") as refused:
        require_implemented(_view(f"net {{ {text}; }}"))
    assert f"the kernel has too; {hint})" in str(refused.value)


def test_a_digest_that_is_like_none_is_answered_with_the_list() -> None:
    with pytest.raises(NotImplementedOption) as refused:
        require_implemented(_view("net { verify-alg whirlpool; }"))
    assert "; one of: crc32c, md5, sha1, " in str(refused.value)


def test_stonith_needs_acknowledged_writes() -> None:
    for protocol in "BC":
        require_implemented(_view(f"net {{ protocol {protocol}; fencing resource-and-stonith; }}"))
    with pytest.raises(ConfigError, match=r"needs protocol B or C \(154\)") as refused:
        require_implemented(_view("net { protocol A;\n fencing resource-and-stonith; }"))
    assert (refused.value.line, refused.value.column) == (3, 2)


def test_a_quoted_value_cannot_steer_a_terminal() -> None:
    view = _view(f'options {{ cpu-mask "\x7f\u202e{"f" * 20}"; }}')
    with pytest.raises(NotImplementedOption, match="options/cpu-mask") as refused:
        require_implemented(view)
    assert str(refused.value).isprintable()


def test_the_options_that_pydrbd_implements() -> None:
    names = {f"{s.section}/{s.name}" for s in _rows(implemented=True)}
    refused = {f"{s.section}/{s.name}" for s in _rows(implemented=False)}
    assert {"net/protocol", "disk/disk-timeout", "disk/resync-rate", "options/auto-promote"} <= names
    assert {"net/allow-remote-read", "disk/disk-barrier", "handlers/quorum-lost"} <= refused
    assert unimplemented(_view("net { verify-alg crc32c; cram-hmac-alg sha1; }")) == []
    # crc32c is no hash for a secret.
    assert unimplemented(_view("net { cram-hmac-alg crc32c; }")) == ["net/cram-hmac-alg crc32c"]
    assert unimplemented(_view("disk { c-min-rate 10; }")) == []
    assert unimplemented(_view("net { rr-conflict violently; allow-two-primaries; }")) == []
    assert unimplemented(_view("net { rr-conflict retry-connect; }")) == ["net/rr-conflict retry-connect"]


def test_each_unimplemented_option_is_named_once_and_with_its_value() -> None:
    text = SAMPLES["explicit volumes"].replace("resource r0 {", "resource r0 { disk { disk-barrier yes; }")
    text = text.replace("on alpha", "net { rr-conflict auto-discard; verify-alg rot13; } on alpha", 1)
    view = for_node(loads(text), "r0", "alpha")
    assert unimplemented(view) == [
        "net/verify-alg rot13",
        "net/rr-conflict auto-discard",
        "disk/disk-barrier yes",
    ]


@pytest.fixture
def config() -> Config:
    floating = SHARED["floating"].replace(GLOBAL, "").replace("r0", "r2").replace("minor 1", "minor 9")
    other = SAMPLES["two resources"].replace("on beta", "on gamma").replace("/dev/vdb", "/dev/vdc")
    return loads(other + floating.replace("/dev/vd", "/dev/sd"))


def _resolved(config: Config, *arguments: str, node: str = "gamma") -> list[tuple[str, int | None]]:
    return resolve(config, arguments, node, _is_local)


def test_names_of_resources(config: Config) -> None:
    assert resources_here(config, "alpha") == ["r0", "r1"]
    assert resources_here(config, "beta") == []
    assert resources_here(config, "beta", _is_local) == ["r2"]
    assert _resolved(config, "all") == [("r0", None), ("r1", None), ("r2", None)]
    assert _resolved(config, "r1", "r0/0", "r1") == [("r1", None), ("r0", 0)]
    assert _resolved(config, "all", node="beta") == [("r2", None)]
    assert _resolved(config) == []


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("nope", "'nope' not defined in your config (for this host)."),
        ("", "'' not defined in your config (for this host)."),
        ("r0/1", "Resource 'r0' has no volume 1"),
        ("r0/", "'' in 'r0/' is not a volume number"),
        ("r0/x", "'x' in 'r0/x' is not a volume number"),
        ("r0/-1", "'-1' in 'r0/-1' is not a volume number"),
    ],
)
def test_names_that_are_not_there(config: Config, argument: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        _resolved(config, argument)
    assert (str(caught.value), caught.value.exit_code) == (words, 1)


@pytest.mark.parametrize("argument", ["nope", "r0/1"])
def test_drbdadm_says_it_in_the_same_words(argument: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(resource(""))
    with pytest.raises(UsageError) as caught:
        resolve(load(path), [argument], "beta")
    done = drbdadm(path, "-d", "up", argument)
    assert done.returncode == caught.value.exit_code
    assert str(caught.value) in done.stderr.splitlines() + done.stdout.splitlines()


def test_views_cannot_be_changed() -> None:
    view = _view("")
    assert isinstance(view.volumes, Mapping)
    with pytest.raises(TypeError):
        view.volumes[1] = view.volumes[0]  # type: ignore[index]
    with pytest.raises(AttributeError):
        view.net.timeout = 3  # type: ignore[misc]
