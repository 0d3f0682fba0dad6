"""A resource that is up, and its configuration broken, gone, or without it: drbdsetup, `down`, --running."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pydrbd.cli.demo_nbd import NbdClient
from pydrbd.config import for_node, loads
from pydrbd.errors import ControlError
from pydrbd.integrations.describe import describe
from pydrbd.integrations.described import view_of
from pydrbd.mapping.map import recorded_volumes
from pydrbd.runtime import launch
from pydrbd.supervisor.remote import Remote
from tests.support.cli import CliPair
from tests.support.waiting import wait_equal
from tests.test_compat import CONFIG, Side


def _broken(config: Path) -> None:
    config.write_text(config.read_text() + "resource x {\n")


def _without_it(config: Path) -> None:
    config.write_text(config.read_text().replace("resource r0", "resource r7"))


SPOILT: dict[str, Callable[[Path], object]] = {"broken": _broken, "gone": Path.unlink, "without": _without_it}


@pytest.fixture
def pair(run_dir: Path, tmp_path: Path) -> Iterator[CliPair]:
    made = CliPair(tmp_path, run_dir, net="verify-alg sha1;")
    yield made
    for node in (made.alpha, made.beta):
        Remote(run_dir, node.name, "r0").stop()
    made.end()


@pytest.fixture
def sides(pair: CliPair, monkeypatch: pytest.MonkeyPatch) -> tuple[Side, Side]:
    config = pair.alpha.config
    return Side(config, "alpha", monkeypatch), Side(config, "beta", monkeypatch)


@pytest.mark.parametrize("how", SPOILT)
def test_drbdsetup_needs_no_configuration(pair: CliPair, sides: tuple[Side, Side], how: str) -> None:
    pair.up_to_date()
    alpha, beta = sides
    SPOILT[how](alpha.config)
    for line in (
        "wait-connect-resource r0 --wfc-timeout=20",
        "primary r0",
        "primary r0 --force",
        "suspend-io 0",
        "resume-io 0",
        "pause-sync r0 1 0",
        "resume-sync r0 1 0",
        "verify r0 1 0",
        "wait-sync-volume r0 1 0 --wfc-timeout=20",
        "resize 0",
        "disconnect r0 1",
        "new-current-uuid 0",
        "connect r0 1",
        "wait-connect-connection r0 1 --wfc-timeout=20",
        "wait-sync-resource r0 --wfc-timeout=20",
        "invalidate-remote r0 1 0",
        "wait-sync-resource r0 --wfc-timeout=20",
        "secondary r0",
        "detach 0",
    ):
        alpha.ok("setup", *line.split())
    disk = str(pair.alpha.disks[0])
    alpha.ok("setup", "attach", "0", disk, disk, "internal")
    wait_equal(lambda: alpha.ok("setup", "dstate", "0"), "UpToDate/UpToDate\n", 20, "the disks")
    beta.ok("setup", "invalidate", "10")
    wait_equal(lambda: beta.ok("setup", "dstate", "10"), "UpToDate/UpToDate\n", 20, "the disks")
    alpha.ok("setup", "down", "r0")
    beta.ok("setup", "down", "all")
    assert (pair.alpha.pid, pair.beta.pid) == (None, None)
    alpha.ok("setup", "down", "r0")


@pytest.mark.parametrize("how", SPOILT)
def test_down_stops_what_is_up_without_a_configuration(pair: CliPair, how: str) -> None:
    alpha, beta = pair.alpha, pair.beta
    pair.up()
    SPOILT[how](alpha.config)
    # What is wrong is said, with a way; and `all` is not more than the configuration says.
    refused = alpha("secondary", "r0")
    assert refused.code == (1 if how == "without" else 10)
    assert "Without the configuration: `pydrbd --running secondary r0`." in refused.err
    if how != "without":
        everything = alpha("down", "all")
        assert everything.code == 10
        assert "`pydrbd --running down all`" in everything.err
        assert "`pydrbd --running status all`" in alpha("status").err
    assert "Secondary" in alpha.ok("--running", "status")
    alpha.ok("--running", "primary", "--force", "r0")
    assert alpha.ok("--running", "role", "r0") == "Primary\n"
    assert alpha("--running", "detach", "r0/1").code == 1
    assert alpha.ok("-d", "down", "r0") == "down r0\n"
    stopped = alpha("down", "r0")
    assert (stopped.code, stopped.out) == (0, "")
    assert stopped.err.endswith("r0 is stopped as it runs.\n")
    assert alpha.pid is None
    assert "--running" not in alpha("adjust", "r0").err
    # Nothing is up by that name any more: the error alone.
    assert alpha("down", "r0").code == refused.code
    assert alpha("--running", "role", "r0").code == 10
    beta.ok("--running", "down", "all")
    assert beta.pid is None
    beta.ok("--running", "down", "r0")


def test_drbdadm_stops_what_it_does_not_know_any_more(pair: CliPair, sides: tuple[Side, Side]) -> None:
    pair.up()
    alpha, _ = sides
    text = alpha.config.read_text()
    _broken(alpha.config)
    refused = alpha.adm("down", "r0")
    assert refused.code == 10
    assert refused.err.endswith("r0 is up; drbdsetup needs no configuration: `drbdsetup down r0`.\n")
    assert alpha.adm("secondary", "r0").err.endswith("`drbdsetup secondary r0`.\n")
    assert "drbdsetup" not in alpha.adm("adjust", "r0").err
    alpha.config.write_text(text.replace("resource r0", "resource r7"))
    assert alpha.adm("secondary", "r0").code == 1
    assert alpha.adm("down", "r8").code == 1
    assert alpha.ok("adm", "-d", "down", "r0") == "drbdsetup down r0\n"
    assert alpha.adm("down", "r0", "r8").code == 1
    assert pair.alpha.pid is not None
    alpha.ok("adm", "down", "r0")
    assert pair.alpha.pid is None


def test_a_name_that_is_mistyped_is_no_matter_of_the_configuration(pair: CliPair) -> None:
    alpha = pair.alpha
    alpha.ok("create-md", "r0")
    alpha.ok("up", "r0")
    for words in (["secondary", "r0", "r9"], ["detach", "r0/7"], ["down", "r0/7"], ["down", "r0", "r9"]):
        wrong = alpha(*words)
        assert (wrong.code, "running" in wrong.err) == (1, False), wrong
    assert alpha.pid is not None
    assert alpha("--running", "detach", "r0/7").code == 1
    assert alpha("--running", "detach", "r0/x").code == 1
    assert alpha("--running", "detach", "../x").code == 10
    assert alpha("--running", "down", "r0/7").code == 1
    assert alpha.pid is not None
    # As with the configuration: of a resource, whichever of its volumes is named.
    alpha.ok("--running", "down", "r0/0")
    assert alpha.pid is None


def test_what_a_crash_has_left_is_stopped_too(pair: CliPair) -> None:
    alpha = pair.alpha
    pair.up()
    alpha.config.unlink()
    alpha.kill()
    assert launch.paths(alpha.run_dir, "alpha", "r0").pid_file.exists()
    alpha.ok("down", "r0")
    assert not launch.paths(alpha.run_dir, "alpha", "r0").pid_file.exists()
    assert alpha("down", "r0").code == 10


def test_a_refused_down_leaves_the_supervisor_also_of_a_broken_configuration(
    pair: CliPair, sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = pair.alpha
    alpha.ok("create-md", "r0")
    monkeypatch.setenv("PYDRBD_SUPERVISOR", "yes")
    alpha.ok("up", "r0")
    alpha.ok("primary", "--force", "r0")
    remote = Remote(alpha.run_dir, "alpha", "r0")
    assert remote.alive
    _broken(alpha.config)
    client = NbdClient(launch.paths(alpha.run_dir, "alpha", "r0").nbd_socket, "0")
    held = sides[0].setup("down", "r0")
    assert held.code == 11, held
    assert remote.alive
    assert (remote.state() or {})["word"] == "watching"
    client.close()
    sides[0].ok("setup", "down", "r0")
    assert not remote.alive


def test_a_description_is_a_view_again() -> None:
    for name in ("r0", "r1"):
        view = for_node(loads(CONFIG), name, "alpha")
        again = view_of(describe(view))
        assert describe(again) == describe(view)
        assert {n: v.device for n, v in again.volumes.items()} == {
            n: v.device for n, v in view.volumes.items()
        }
        assert {n: v.meta_disk for n, v in again.volumes.items()} == {
            n: v.meta_disk for n, v in view.volumes.items()
        }
        assert replace(again.startup, given=frozenset()) == replace(view.startup, given=frozenset())


def test_a_description_of_an_earlier_version_lacks_what_has_come_since() -> None:
    older = describe(for_node(loads(CONFIG), "r0", "alpha"))
    del older["startup"], older["stacked_on"], older["net"]["timeout"]
    assert view_of(older).net.timeout == 60
    with pytest.raises(ControlError, match="not understood"):
        view_of({"resource": "r0"})


def test_devices_of_volumes_that_are_not_configured_any_more_are_known(tmp_path: Path) -> None:
    folder = tmp_path / "alpha"
    folder.mkdir()
    for name in ("r0.0.map", "r0.7.map", "r0.7.map.lock", "r0.1.2.map", "r0.x.map", "r00.3.map", "r0.map"):
        (folder / name).touch()
    assert recorded_volumes(tmp_path, "alpha", "r0") == {0, 7}
    assert recorded_volumes(tmp_path, "alpha", "r0.1") == {2}
    assert recorded_volumes(tmp_path, "beta", "r0") == set()
