"""Stacked resources in the configuration: what each node makes of them, beside the real drbdadm."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from pydrbd.compat import drbdadm
from pydrbd.config import dump, for_node, load, loads, require_implemented, resolve
from pydrbd.errors import ConfigError
from tests.support.config_samples import drbdadm as real_drbdadm

BELOW = """
resource r0 {
  net { protocol C; }
  on alpha { device /dev/drbd0 minor 0; disk /dev/vda; address 10.0.0.1:7788; node-id 0; }
  on beta { device /dev/drbd0 minor 0; disk /dev/vda; address 10.0.0.2:7788; node-id 1; }
}
"""
TEXT = f"""
global {{ disable-ip-verification; }}
resource r0-U {{
  net {{ protocol A; }}
  stacked-on-top-of r0 {{ device /dev/drbd10 minor 10; address 192.168.42.1:7789; node-id 1; }}
  on gamma {{ device /dev/drbd10 minor 10; disk /dev/vdb; address 192.168.42.2:7789; node-id 0; }}
  connection {{ host alpha_beta; host gamma; }}
}}
{BELOW}
"""
#: Without the section `connection`, which the real one does not take here.
PLAIN = TEXT.replace("  connection { host alpha_beta; host gamma; }\n", "")


def test_the_stacked_host_is_one_node_on_either_host_below() -> None:
    config = loads(TEXT)
    for name in ("alpha", "beta"):
        view = for_node(config, "r0-U", name)
        assert (view.stacked_on, view.node_id, view.peer_name) == ("r0", 1, "gamma")
        assert (view.volumes[0].disk, str(view.local_address)) == ("/dev/drbd0", "192.168.42.1:7789")
        require_implemented(view)
        assert resolve(config, ["all"], name) == [("r0", None)]
        assert resolve(config, ["r0-U", "r0"], name) == [("r0-U", None), ("r0", None)]
    view = for_node(config, "r0-U", "gamma")
    assert (view.stacked_on, view.peer_name, view.volumes[0].disk) == ("", "alpha_beta", "/dev/vdb")
    assert resolve(config, ["all"], "gamma") == [("r0-U", None)]


def test_it_is_dumped_as_it_was_written() -> None:
    text = dump(loads(TEXT))
    assert "stacked-on-top-of r0 {" in text
    stacked = text.partition("stacked-on-top-of r0 {")[2].partition("}")[0]
    assert "disk" not in stacked
    assert "device           /dev/drbd10 minor 10;" in stacked
    assert loads(text) == loads(TEXT)


@pytest.mark.parametrize(
    ("below", "disk"),
    [
        (BELOW.replace("/dev/drbd0 minor", "minor"), "/dev/pydrbd/by-res/r0/0"),
        (BELOW.replace("on beta { device /dev/drbd0 minor 0", "on beta { device /dev/drbd7 minor 7"),
         "/dev/pydrbd/by-res/r0/0"),
        (BELOW.replace("/dev/drbd0 minor 0", "/dev/nbd3"), "/dev/nbd3"),
    ],
    ids=["no name", "two names", "nbd"],
)  # fmt: skip
def test_the_disk_is_the_device_below_by_a_name_that_both_hosts_have(below: str, disk: str) -> None:
    config = loads(TEXT.replace(BELOW, below))
    assert for_node(config, "r0-U", "beta").volumes[0].disk == disk


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("on-top-of r0", "on-top-of r00", "there is no resource 'r00' (did you mean 'r0'?)"),
        ("on-top-of r0", "on-top-of r0-U", "its hosts must be 'on' sections"),
        ("on gamma", "on alpha", "'alpha' is in two host sections"),
        ("host alpha_beta", "host alphabeta", "there is no 'on' section for 'alphabeta'"),
        (
            "{ device /dev/drbd10 minor 10; address 192.168.42.1",
            "{ volume 3 { device minor 10; } address 192.168.42.1",
            "it has no volume 3",
        ),
        (
            "device /dev/drbd10 minor 10; address 192.168.42.1",
            "address 192.168.42.1",
            "is defined on gamma, but not",
        ),
    ],
)
def test_what_cannot_be_stacked_is_an_error_at_its_place(old: str, new: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"^-:\d+:\d+: ") as wrong:
        for_node(loads(TEXT.replace(old, new, 1)), "r0-U", "alpha")
    assert says in str(wrong.value)


@pytest.fixture
def adm(tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    path = tmp_path / "stacked.res"
    path.write_text(PLAIN)
    assert run_dir.is_dir()

    def run(node: str, *words: str) -> int:
        monkeypatch.setenv("PYDRBD_NODE", node)
        return drbdadm.run(["-c", str(path), *words])

    return run


@pytest.mark.parametrize("node", ["alpha", "beta", "gamma"])
@pytest.mark.parametrize(
    "words",
    [
        *("-d up all", "-d up r0-U", "-S -d up all", "-S -d up r0-U", "-d down all", "-S -d create-md all"),
        *("-S -d primary r0-U", "sh-resources", "-S sh-resources", "-S sh-lr-of r0-U", "sh-lr-of r0-U"),
        *("-S sh-ll-dev all", "-S sh-md-idx r0-U", "--stacked sh-dev r0-U"),
    ],
)
def test_drbdadm_does_the_same(
    adm: Callable[..., int], node: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = real_drbdadm(tmp_path / "stacked.res", *words.split(), node=node)
    theirs = [line.rpartition("/sbin/")[2] for line in done.stdout.replace(" v09 ", " v08 ").splitlines()]
    assert adm(node, *words.split()) == done.returncode
    mine = capsys.readouterr().out.splitlines()
    assert [sorted(shlex.split(line)) for line in mine] == [
        sorted(shlex.split(line or other))
        for line, other in zip(theirs, done.stdout.splitlines(), strict=True)
    ]


def test_the_real_drbdadm_reads_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(PLAIN)
    assert real_drbdadm(path, "dump", node="alpha").returncode == 0
    assert set(load(path).resources) == {"r0", "r0-U"}
