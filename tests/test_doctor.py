"""`pydrbd doctor`: every check both ways over made-up facts, and the command over real nodes."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pydrbd.config import DiskOptions, NetOptions
from pydrbd.integrations.doctor import gather_resource, report
from pydrbd.integrations.doctor.facts import (
    HostFacts,
    Level,
    PeerFacts,
    ProcessFacts,
    ResourceFacts,
    VolumeFacts,
)
from pydrbd.integrations.doctor.gather_disk import file_system_of
from pydrbd.integrations.doctor.host import HOST
from pydrbd.integrations.doctor.resource import RESOURCE
from pydrbd.integrations.doctor.volume import VOLUME
from tests.support.cli import CliPair

MIB = 1 << 20
OK, WARN, FAIL, SKIPPED = Level.OK, Level.WARN, Level.FAIL, Level.SKIPPED

GOOD_HOST = HostFacts(
    kernel="6.1.0",
    node="alpha",
    uname="alpha",
    capabilities=frozenset({"CAP_SYS_ADMIN", "CAP_SYS_RESOURCE"}),
    fuse_device=True,
    nbdfuse=True,
    loop_control=True,
    nbdkit="nbdkit 1.32.5",
    plugin_python="3.11.2",
    drbd_utils="drbd-utils 9.22.0",
    nofile=4096,
    memory_total=8192 * MIB,
    memory_available=4096 * MIB,
    run_dir="/run/pydrbd",
    run_dir_fs="tmpfs",
    resources=1,
    hosts=("alpha", "beta"),
)
GOOD_RESOURCE = ResourceFacts(
    name="r0",
    node="alpha",
    local="10.0.0.1:7788",
    peer="10.0.0.2:7788",
    peer_name="beta",
    net=NetOptions(cram_hmac_alg="sha1", shared_secret="x"),
    process=ProcessFacts(pid=7, io_flusher=True, oom_score_adj=-1000, version="1", our_version="1"),
    peer_facts=PeerFacts(
        outcome="connected", seconds=0.001, interface="eth0", interface_mtu=1500, path_mtu=1500
    ),
    memory_total=8192 * MIB,
)
GOOD_VOLUME = VolumeFacts(
    number=0,
    disk="/srv/disk",
    size=64 * MIB,
    allocated=1 * MIB,
    filesystem="ext4",
    filesystem_free=1024 * MIB,
    mount_point="/srv",
    write_cache="write back",
    logical_block=512,
    metadata="v08 internal",
    mapped="/dev/nbd0",
    mapped_kind="nbd",
    io_timeout=1000,
)
DIRECT = DiskOptions(backing_io="direct")


@pytest.mark.parametrize("name", HOST)
def test_a_good_machine_passes(name: str) -> None:
    assert HOST[name](GOOD_HOST).level is OK


@pytest.mark.parametrize("name", RESOURCE)
def test_a_good_resource_passes(name: str) -> None:
    assert RESOURCE[name](GOOD_RESOURCE).level is OK


@pytest.mark.parametrize("name", VOLUME)
def test_a_good_volume_passes(name: str) -> None:
    assert VOLUME[name](GOOD_VOLUME).level is OK


HOST_CASES: list[tuple[str, dict[str, Any], Level, str]] = [
    ("configuration", {"config_problem": "f:1:2: odd"}, FAIL, "f:1:2: odd"),
    ("configuration", {"resources": 0, "node": "gamma"}, FAIL, "alpha, beta"),
    ("node name", {"node": "gamma"}, WARN, "uname -n"),
    ("privileges", {"capabilities": frozenset({"CAP_SYS_ADMIN"})}, WARN, "CAP_SYS_RESOURCE"),
    ("privileges", {"capabilities": frozenset(), "root": False}, WARN, "as root"),
    ("nbd client", {"nbd_problem": "no module", "nbd_module_installed": True}, WARN, "modprobe nbd"),
    ("nbd client", {"nbd_problem": "no module"}, WARN, "FUSE"),
    ("nbd client", {"nbd_problem": "no module", "nbdfuse": False}, FAIL, "no module"),
    ("fuse and loop", {"nbdfuse": False}, SKIPPED, "nbdfuse"),
    ("fuse and loop", {"fuse_device": False, "nbd_problem": "none"}, WARN, "/dev/fuse"),
    ("nbdkit", {"nbdkit": ""}, FAIL, "apt install nbdkit"),
    ("nbdkit", {"plugin_problem": "embeds Python 3.9"}, FAIL, "3.9"),
    ("drbd-utils", {"drbd_utils": ""}, SKIPPED, "not needed"),
    ("drbd-utils", {"kernel_drbd": True}, WARN, "drbdadm down"),
    ("open files", {"nofile": 256}, WARN, "256"),
    ("memory", {"memory_available": 64 * MIB}, WARN, "max-buffers"),
    ("memory", {"memory_available": 300 * MIB, "resources": 3}, WARN, "384 MiB"),
    ("memory", {"memory_total": 0}, SKIPPED, "meminfo"),
    ("run directory", {"run_dir_problem": "not writable"}, FAIL, "not writable"),
    ("run directory", {"run_dir_fs": "ext4"}, WARN, "tmpfs"),
    ("hung tasks", {"hung_task_panic": True, "hung_task_seconds": 120}, WARN, "120 s"),
]
RESOURCE_CASES: list[tuple[str, dict[str, Any], Level, str]] = [
    ("options", {"unimplemented": ("net/verify-alg",)}, FAIL, "net/verify-alg"),
    ("time-outs", {"net": NetOptions(timeout=100)}, WARN, "lower than ping-int"),
    ("time-outs", {"net": NetOptions(connect_int=5)}, WARN, "connect-int (5 s)"),
    ("time-outs", {"net": NetOptions(ping_int=1, timeout=5, ping_timeout=10)}, WARN, "ping-timeout (1 s)"),
    ("time-outs", {"net": NetOptions(timeout=5, ping_timeout=6)}, WARN, "noticed late"),
    ("time-outs", {"net": NetOptions(ko_count=0)}, OK, "a slow one given up never (ko-count 0)"),
    ("buffers", {"net": NetOptions(max_buffers=131072), "memory_total": 1024 * MIB}, WARN, "512 MiB"),
    ("process", {"process": None}, SKIPPED, "pydrbd up r0"),
    ("process", {"process": None, "crashed": True}, WARN, "crashed"),
    ("process", {"process": ProcessFacts(pid=7, answers=False)}, FAIL, "does not answer"),
    ("process", {"process": ProcessFacts(pid=7, version="1", our_version="2")}, WARN, "installed is 2"),
    ("memory protection", {"process": None}, SKIPPED, "not up"),
    ("memory protection", {"process": ProcessFacts(pid=7)}, SKIPPED, "/proc"),
    ("memory protection", {"process": ProcessFacts(pid=7, io_flusher=False)}, WARN, "PR_SET_IO_FLUSHER"),
    (
        "memory protection",
        {"process": ProcessFacts(pid=7, io_flusher=True, oom_score_adj=0)},
        WARN,
        "oom_score_adj is 0",
    ),
    ("own address", {"local_present": False}, FAIL, "10.0.0.1:7788"),
    ("peer", {"peer_facts": PeerFacts(outcome="running")}, OK, "connected"),
    ("peer", {"peer_facts": PeerFacts(outcome="refused")}, WARN, "nothing listens"),
    ("peer", {"peer_facts": PeerFacts(outcome="timeout", seconds=2)}, FAIL, "firewall"),
    ("peer", {"peer_facts": PeerFacts(outcome="unreachable", detail="No route to host")}, FAIL, "No route"),
    ("peer", {"peer_facts": PeerFacts()}, SKIPPED, "not tried"),
    ("round trip", {"peer_facts": PeerFacts(outcome="timeout")}, SKIPPED, "not measured"),
    ("round trip", {"peer_facts": PeerFacts(outcome="connected", seconds=0.2)}, WARN, "ping-timeout"),
    ("MTU", {"peer_facts": PeerFacts()}, SKIPPED, "not known"),
    ("MTU", {"peer_facts": PeerFacts(path_mtu=600)}, WARN, "600"),
    (
        "MTU",
        {"peer_facts": PeerFacts(path_mtu=1400, interface="eth0", interface_mtu=9000)},
        WARN,
        "eth0 has MTU 9000",
    ),
    ("MTU", {"peer_facts": PeerFacts(path_mtu=65535, interface="lo", interface_mtu=65536)}, OK, "loopback"),
    ("authentication", {"net": NetOptions()}, WARN, "cram-hmac-alg"),
    ("authentication", {"net": NetOptions(), "peer": "[::1]:7788"}, SKIPPED, "loopback"),
]
VOLUME_CASES: list[tuple[str, dict[str, Any], Level, str]] = [
    ("disk", {"disk": None}, SKIPPED, "disk none"),
    ("disk", {"problem": "No such file or directory"}, FAIL, "No such file"),
    ("disk", {"read_only": True}, FAIL, "read-only"),
    ("file system", {"block_device": True}, SKIPPED, "not a file"),
    ("file system", {"filesystem": "tmpfs"}, FAIL, "after a reboot"),
    ("file system", {"filesystem": "nfs4"}, WARN, "another machine"),
    ("free space", {"block_device": True}, SKIPPED, "not a file"),
    ("free space", {"allocated": 64 * MIB}, OK, "all of the file"),
    ("free space", {"filesystem_free": 10 * MIB}, WARN, "63 MiB of 64 MiB"),
    ("write cache", {"write_cache": "write through"}, OK, "no volatile"),
    ("write cache", {"write_cache": ""}, SKIPPED, "does not tell"),
    ("write cache", {"problem": "gone"}, SKIPPED, "no disk"),
    ("write cache", {"options": DiskOptions(disk_flushes=False)}, WARN, "disk-flushes"),
    ("block size", {"logical_block": 0}, SKIPPED, "not known"),
    ("block size", {"logical_block": 8192}, FAIL, "8192"),
    ("block size", {"logical_block": 4096}, OK, "4096"),
    ("block size", {"logical_block": 4096, "options": DIRECT}, WARN, "read the block first"),
    ("backing-io", {"disk": None}, SKIPPED, "no disk"),
    ("backing-io", {"options": DIRECT}, OK, "direct"),
    ("backing-io", {"options": DIRECT, "direct_problem": "no direct I/O here"}, FAIL, "no direct I/O"),
    ("metadata", {"metadata_problem": "No DRBD metadata here"}, FAIL, "create-md"),
    ("metadata", {"disk": None}, SKIPPED, "no disk"),
    ("block device", {"mapped": ""}, SKIPPED, "not mapped"),
    ("block device", {"io_timeout": 30000}, WARN, "30000 ms"),
    ("block device", {"mapped": "/dev/loop0", "mapped_kind": "loop"}, WARN, "FUSE"),
]


@pytest.mark.parametrize(("name", "changes", "level", "text"), HOST_CASES)
def test_machines(name: str, changes: dict[str, Any], level: Level, text: str) -> None:
    _judged(HOST[name](replace(GOOD_HOST, **changes)), level, text)


@pytest.mark.parametrize(("name", "changes", "level", "text"), RESOURCE_CASES)
def test_resources(name: str, changes: dict[str, Any], level: Level, text: str) -> None:
    _judged(RESOURCE[name](replace(GOOD_RESOURCE, **changes)), level, text)


@pytest.mark.parametrize(("name", "changes", "level", "text"), VOLUME_CASES)
def test_volumes(name: str, changes: dict[str, Any], level: Level, text: str) -> None:
    _judged(VOLUME[name](replace(GOOD_VOLUME, **changes)), level, text)


def _judged(finding: Any, level: Level, text: str) -> None:
    assert finding.level is level, finding
    assert text in f"{finding.text} {finding.advice}"
    assert bool(finding.advice) == (level in (WARN, FAIL)), "advice where something is to be changed"


def test_every_check_is_tested_with_another_outcome() -> None:
    for table, cases in ((HOST, HOST_CASES), (RESOURCE, RESOURCE_CASES), (VOLUME, VOLUME_CASES)):
        untested = set(table) - {name for name, _, level, _ in cases if level is not OK} - {"kernel"}
        assert not untested, untested


# --- the command -------------------------------------------------------------------------------
@pytest.fixture
def pair(session_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CliPair]:
    monkeypatch.setenv("PYDRBD_RUN_DIR", str(session_folder))
    made = CliPair(tmp_path, session_folder)
    yield made
    made.end()


def checks(text: str) -> dict[tuple[str, str], dict[str, str]]:
    return {(check["subject"], check["check"]): check for check in json.loads(text)["checks"]}


def test_before_and_after_up(pair: CliPair) -> None:
    before = pair.alpha("doctor", "--json", "r0")
    assert before.code == 1, "there is no metadata"
    found = checks(before.out)
    assert found["r0/0", "metadata"]["level"] == "fail"
    assert "create-md" in found["r0/0", "metadata"]["text"]
    assert found["r0", "process"]["level"] == "skipped"
    assert found["r0", "peer"]["level"] == "warn", "nothing listens there yet"
    pair.up()
    after = pair.alpha("doctor", "--json")
    found = checks(after.out)
    assert (after.code, json.loads(after.out)["failed"]) == (0, 0), after.out
    assert found["r0", "peer"]["text"].startswith("connected with beta")
    assert found["r0", "process"]["level"] == "ok"
    assert "in use" in found["r0/0", "metadata"]["text"]
    assert found["r0/0", "disk"]["text"].endswith("a file of 8 MiB")
    text = pair.alpha.ok("doctor", "r0")
    assert "\033" not in text, "colour is for terminals"
    assert len(
        [line for line in text.splitlines() if line.startswith(("  ok", "  warn", "  skipped"))]
    ) == len(found)
    pair.alpha.ok("down", "r0")
    pair.beta.ok("down", "r0")


def test_a_killed_process_and_a_peer_that_waits(pair: CliPair) -> None:
    pair.up()
    pair.alpha.kill()
    found = checks(pair.alpha("doctor", "--json").out)
    assert found["r0", "process"]["level"] == "warn"
    assert "up r0" in found["r0", "process"]["advice"]
    # The peer listens again after it has noticed.
    pair.beta.ok("status")
    found = checks(pair.alpha("doctor", "--json").out)
    assert found["r0", "peer"]["level"] in ("ok", "warn")
    pair.alpha.ok("up", "r0")
    pair.alpha.ok("wait-connect", "-t", "20", "r0")
    pair.alpha.ok("down", "r0")
    pair.beta.ok("down", "r0")


def test_configuration_troubles_are_findings(pair: CliPair, tmp_path: Path) -> None:
    pair.alpha.config.write_text("resource r0 { net { protcol C; } }")
    result = pair.alpha("doctor", "--json")
    assert result.code == 1
    assert "protcol" in checks(result.out)["", "configuration"]["text"]
    pair.alpha.config.write_text("global { usage-count no; }")
    assert pair.alpha("doctor").code == 1
    assert pair.alpha("doctor", "r7").code == 1


def test_a_peer_that_does_not_answer_takes_no_longer_than_its_time_out(
    pair: CliPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener whose queue is full: the kernel drops further connections silently."""
    monkeypatch.setattr(gather_resource, "CONNECT_SECONDS", 0.3)
    port = int(pair.beta.config.read_text().split("address 127.0.0.1:")[2].split(";")[0])
    with socket.socket() as full, socket.socket() as one, socket.socket() as two:
        full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        full.bind(("127.0.0.1", port))
        full.listen(0)
        for client in (one, two):
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        begin = time.monotonic()
        found = checks(pair.alpha("doctor", "--json").out)
    assert found["r0", "peer"]["level"] == "fail", found["r0", "peer"]
    assert time.monotonic() - begin < 10


def test_a_disk_that_hangs_does_not_hang_the_doctor() -> None:

    def hang() -> str:
        time.sleep(3)
        return "done"

    begin = time.monotonic()
    assert gather_resource.within(0.1, hang, "late") == "late"
    assert gather_resource.within(5, lambda: "in time", "late") == "in time"
    assert time.monotonic() - begin < 2


def test_the_file_system_of_a_path() -> None:
    kind, point = file_system_of("/proc/self/status")
    assert (kind, point) == ("proc", "/proc")
    assert os.path.ismount(file_system_of(__file__)[1])


def test_json_and_text_have_the_same_lines() -> None:
    items = list(report.examine(GOOD_HOST, [replace(GOOD_RESOURCE, volumes=(GOOD_VOLUME,))]))
    assert len(items) == len(HOST) + len(RESOURCE) + len(VOLUME)
    assert not report.failed(items)
    assert json.loads(report.as_json(items))["failed"] == 0
    lines = report.text(items).splitlines()
    assert lines[-1] == f"{len(items)} checks: 0 failed, 0 with warnings"
    assert "r0/0" in lines
