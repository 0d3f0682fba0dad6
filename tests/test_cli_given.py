"""net-options and its like with options: they win over the configuration until it is read again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.compat import drbdadm, drbdsetup
from pydrbd.config import for_node, loads
from pydrbd.errors import UsageError
from pydrbd.integrations.given import CLASSES, laid_over
from tests.support.cli import CliPair
from tests.support.config_samples import other_value
from tests.test_cli_adjust import drops, edit, running

TEXT = """
resource r0 {
  net { timeout 50; }
  volume 0 { device minor 0; disk /nowhere/a; disk { al-extents 67; } }
  volume 1 { device minor 1; disk /nowhere/b; }
  on alpha { address 10.0.0.1:7789; }
  on beta { address 10.0.0.2:7789; }
}
"""


@pytest.fixture
def pair(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CliPair]:
    monkeypatch.setenv("PYDRBD_NODE", "alpha")
    made = CliPair(tmp_path, run_dir)
    yield made
    made.end()


@pytest.mark.parametrize("group", CLASSES)
def test_every_option_of_a_group_can_be_given_as_in_the_file(group: str) -> None:
    view = for_node(loads(TEXT), "r0", "alpha")
    for spec in CLASSES[group].specs():
        text = other_value(spec).strip('"')
        given = laid_over(view, group, {spec.name: text})
        groups = {
            "net": given.net,
            "disk": given.volumes[1].disk_options,
            "peer-device": given.volumes[1].peer_device_options,
            "resource": given.options,
        }
        assert groups[group].value(spec.name) != spec.default, spec.name
        assert spec.name in groups[group].given


def test_of_one_volume_and_over_the_defaults() -> None:
    view = for_node(loads(TEXT), "r0", "alpha")
    one = laid_over(view, "disk", {"on-io-error": "pass_on"}, [1])
    assert [one.volumes[n].disk_options.on_io_error for n in (0, 1)] == ["detach", "pass_on"]
    assert laid_over(view, "net", {"ping-int": "3"}).net.timeout == 50
    plain = laid_over(view, "net", {"ping-int": "3"}, from_defaults=True).net
    assert (plain.timeout, plain.ping_int, plain.given) == (60, 3, frozenset({"ping-int"}))


@pytest.mark.parametrize(
    ("group", "name", "text", "says"),
    [
        ("net", "timeout", "601", "--timeout is too large: '601', allowed is 1-600 1/10 s"),
        ("net", "timeout", "soon", "--timeout must be a number"),
        ("net", "use-rle", "perhaps", "--use-rle must be 'yes' or 'no'"),
        ("disk", "timeout", "3", "disk-options has no option --timeout"),
        ("wrong", "timeout", "3", "no group of options 'wrong'"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(group: str, name: str, text: str, says: str) -> None:
    with pytest.raises(UsageError, match="r0: ") as refused:
        laid_over(for_node(loads(TEXT), "r0", "alpha"), group, {name: text})
    assert says in str(refused.value)


def test_options_are_given_to_a_running_pair_and_taken_back_by_adjust(
    pair: CliPair, capsys: pytest.CaptureFixture[str]
) -> None:
    alpha = pair.alpha
    pair.up_to_date()
    config, before = str(alpha.config), drops(alpha)
    assert drbdadm.run(["-c", config, "peer-device-options", "--c-max-rate=30M", "r0"]) == 0
    assert drbdadm.run(["-c", config, "net-options", "--use-rle=no", "--timeout", "30", "r0"]) == 0
    now = running(capsys)
    assert (now["c-max-rate"], now["use-rle"], now["timeout"], now["connect-int"]) == (30720, False, 30, 1)
    # drbdsetup leaves what else was given; drbdadm lays what it is given over the configuration.
    assert drbdsetup.run(["net-options", "r0", "1", "--ping-int=3"]) == 0
    assert drbdsetup.run(["disk-options", "0", "--on-io-error", "pass_on"]) == 0
    now = running(capsys)
    assert (now["use-rle"], now["ping-int"], now["on-io-error"]) == (False, 3, "pass_on")
    assert "net-options r0 timeout 30 -> 60" in alpha.ok("-d", "adjust", "r0").splitlines()
    alpha.ok("net-options", "--ping-int", "4", "r0")
    now = running(capsys)
    assert ("use-rle" in now, "timeout" in now, now["ping-int"]) == (False, False, 4)
    assert drbdsetup.run(["net-options", "r0", "1", "--set-defaults", "--_name=beta", "--use-rle"]) == 0
    now = running(capsys)
    assert not now.keys() & {"connect-int", "ping-int"}
    alpha.ok("adjust", "r0")
    now = running(capsys)
    assert (now["connect-int"], "c-max-rate" in now, "on-io-error" in now) == (1, False, False)
    assert drops(alpha) == before, "clients and peer noticed nothing"


def test_what_cannot_be_given_changes_nothing(pair: CliPair, capsys: pytest.CaptureFixture[str]) -> None:
    alpha = pair.alpha
    pair.up_to_date()
    before = running(capsys)
    late = alpha("disk-options", "--al-extents", "67", "r0")
    assert (late.code, "--al-extents takes effect when the disk is attached" in late.err) == (10, True)
    wrong = alpha("net-options", "--timeout", "9999", "r0")
    assert (wrong.code, "--timeout is too large: '9999', allowed is 1-600 1/10 s" in wrong.err) == (1, True)
    missing = alpha("net-options", "--transport", "rdma", "r0")
    assert (missing.code, "pydrbd does not implement: net/transport rdma" in missing.err) == (10, True)
    capsys.readouterr()
    for words in (
        ("disk-options", "0", "--disk-flushes=no", "disk/disk-flushes no ("),
        ("net-options", "r0", "1", "--transport=rdma", "net/transport rdma ("),
        ("resource-options", "r0", "--quorum=majority", "options/quorum majority ("),
        ("net-options", "r0", "1", "--fencing=resource-and-stonith", "--protocol=A", "(154)"),
        ("net-options", "r0", "1", "--on-congestion=pull-ahead", "pull-ahead only with prot A allowed"),
        ("disk-options", "0", "--al-extents=500", "`pydrbd detach r0/0`, then this again"),
        ("disk-options", "0", "--disk-timeout=10", "--disk-timeout takes effect when"),
        ("disk-options", "0", "--al-updates=no", "--al-updates takes effect when"),
        ("disk-options", "0", "--size=4096s", "--size takes effect with a new process only"),
    ):
        assert drbdsetup.run([*words[:-1]]) == 10, words
        said = capsys.readouterr().err
        assert words[-1] in said
        assert str(alpha.config) not in said, "no file is to blame for what a command gave"
    at_odds = alpha("net-options", "--on-congestion", "pull-ahead", "r0")
    assert (at_odds.code, "pull-ahead only with prot A allowed" in at_odds.err) == (10, True)
    assert drbdsetup.run(["net-options", "r0", "1", "--timeout=0"]) == 20
    assert drbdsetup.run(["net-options", "r0", "2", "--timeout=7"]) == 10
    assert "No such connection" in capsys.readouterr().err
    assert running(capsys) == before
    # What the configuration says for another process than this one is not taken over by the way.
    edit(pair, ("connect-int 1;", "connect-int 3;"), ("meta-disk internal", "meta-disk /dev/null"))
    alpha.ok("net-options", "--ping-int", "4", "r0")
    assert (running(capsys)["connect-int"], running(capsys)["ping-int"]) == (1, 4)
    assert alpha("net-options", "r0").code == 10
    assert running(capsys)["connect-int"] == 3
