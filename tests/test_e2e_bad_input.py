"""Bad input through the command line: a clear error that names the resource and what to do, the exit code
that drbdadm would give, and nothing changed on any disk."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pydrbd.format.layout import internal_layout
from pydrbd.runtime import launch
from pydrbd.vocabulary import Conn, Disk, Role
from tests.support.pair import Member, Pair
from tests.support.waiting import wait_until

MIB = 1 << 20
NET = "net { protocol C; connect-int 1; }"


class Cli:
    """The command line of one node."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.environment = dict(os.environ)

    def __call__(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pydrbd.cli.main", "-c", str(self.member.config)]
        done = subprocess.run(
            [*command, "--node", self.member.name, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment,
            check=False,
        )
        assert "Traceback" not in done.stderr + done.stdout, done.stderr
        assert "internal error" not in done.stderr, done.stderr
        return done

    def ok(self, *arguments: str) -> str:
        done = self(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stderr}"
        return done.stdout

    def fails(self, code: int, *arguments: str, says: tuple[str, ...]) -> str:
        """The error text, which contains all of `says`."""
        done = self(*arguments)
        text = done.stderr
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{text}"
        for part in says:
            assert part in text, f"{part!r} is not in:\n{text}"
        return text


@pytest.fixture
def pair(run_dir: Path, tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path, run_dir, size=16 * MIB, sections=NET)
    yield made
    made.close()


@pytest.fixture
def unchanged(pair: Pair) -> Iterator[Callable[[], None]]:
    """Call it when the disks are as the bad input finds them; at the end they must be the same still."""
    before: dict[Path, str] = {}

    def remember() -> None:
        before.update({node.disk: digest(node.disk) for node in (pair.alpha, pair.beta)})

    yield remember
    assert before, "the test has not said which state counts"
    assert {disk: digest(disk) for disk in before} == before, "a disk was changed"


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def nothing_runs(node: Member) -> None:
    assert launch.running(node.run_dir, node.name, node.resource) is None


def edit(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def superblock_at(node: Member) -> int:
    return internal_layout(node.disk.stat().st_size).superblock_offset


# --- metadata ----------------------------------------------------------------------------------------
def test_no_metadata(pair: Pair, unchanged: Callable[[], None]) -> None:
    edit(pair.alpha.disk, superblock_at(pair.alpha), bytes(4096))
    unchanged()
    cli = Cli(pair.alpha)
    cli.fails(10, "up", "r0", says=("r0: Failure: (119)", "create-md"))
    nothing_runs(pair.alpha)
    cli.fails(1, "dump-md", "r0", says=("create-md",))
    cli.fails(1, "get-gi", "r0", says=("create-md",))


@pytest.mark.parametrize(
    ("offset", "data", "says"),
    [
        (0x3C, (0x8374026D + 7).to_bytes(4, "big"), "magic"),
        (0x3C, (0x83740268).to_bytes(4, "big"), ""),
        (0x34 + 0x10, (1).to_bytes(4, "big"), ""),
        (0, b"\xff" * 8, ""),
        (0, b"\xff" * 4096, ""),
    ],
    ids=["other version", "version 07", "a size", "agreed size", "noise"],
)
def test_damaged_metadata(
    pair: Pair, unchanged: Callable[[], None], offset: int, data: bytes, says: str
) -> None:
    edit(pair.alpha.disk, superblock_at(pair.alpha) + offset, data)
    unchanged()
    text = Cli(pair.alpha).fails(10, "up", "r0", says=("r0: Failure: (1", "othing was changed"))
    assert says in text
    nothing_runs(pair.alpha)


def test_a_damaged_activity_log(pair: Pair, unchanged: Callable[[], None]) -> None:
    layout = internal_layout(pair.alpha.disk.stat().st_size)
    # Unclean, of a crashed Primary, and the ring is noise.
    with pair.alpha.disk.open("rb") as file:
        file.seek(layout.superblock_offset)
        block = bytearray(file.read(4096))
    edit(pair.alpha.disk, layout.al_offset, os.urandom(32768))
    flags_at = block.index(b"\x83\x74\x02") - 4
    flags = int.from_bytes(block[flags_at : flags_at + 4], "big")
    edit(
        pair.alpha.disk,
        layout.superblock_offset + flags_at,
        (flags & ~(1 << 7) | 2).to_bytes(4, "big") + (0x8374026C).to_bytes(4, "big"),
    )
    unchanged()
    Cli(pair.alpha).fails(10, "up", "r0", says=("r0: Failure: (119)", "othing was changed"))
    nothing_runs(pair.alpha)


def test_metadata_of_another_size(pair: Pair, unchanged: Callable[[], None]) -> None:
    with pair.alpha.disk.open("r+b") as file:
        file.truncate(12 * MIB)  # the superblock was at the end
    unchanged()
    Cli(pair.alpha).fails(10, "up", "r0", says=("r0: Failure: (119)", "create-md"))
    nothing_runs(pair.alpha)


def test_existing_metadata_and_a_file_system_are_not_overwritten(
    pair: Pair, unchanged: Callable[[], None], tmp_path: Path
) -> None:
    subprocess.run(["mkfs.ext4", "-q", str(pair.beta.disk)], check=True, capture_output=True)
    unchanged()
    Cli(pair.alpha).fails(1, "create-md", "r0", says=("already DRBD metadata", "--force"))
    Cli(pair.beta).fails(40, "create-md", "r0", says=("ext4", "othing was changed"))


# --- disks -------------------------------------------------------------------------------------------
def test_a_missing_disk(pair: Pair, unchanged: Callable[[], None]) -> None:
    unchanged()
    elsewhere = pair.alpha.disk.with_name("away.img")
    pair.alpha.disk.rename(elsewhere)
    says = (str(pair.alpha.disk), "No such file")
    cli = Cli(pair.alpha)
    cli.fails(10, "up", "r0", says=("r0: Failure: (104)", *says))
    nothing_runs(pair.alpha)
    done = cli("create-md", "r0")
    assert done.returncode != 0
    assert str(pair.alpha.disk) in done.stderr
    elsewhere.rename(pair.alpha.disk)


def test_a_disk_that_is_too_small(pair: Pair, unchanged: Callable[[], None]) -> None:
    with pair.alpha.disk.open("r+b") as file:
        file.truncate(30_000)
    unchanged()
    cli = Cli(pair.alpha)
    cli.fails(10, "up", "r0", says=("r0: Failure: (", str(pair.alpha.disk), "too small"))
    nothing_runs(pair.alpha)
    done = cli("create-md", "r0")
    assert done.returncode != 0
    assert str(pair.alpha.disk) in done.stderr
    assert "not enough" in done.stderr


def test_a_read_only_disk(pair: Pair, unchanged: Callable[[], None]) -> None:
    unchanged()
    loop = subprocess.run(
        ["losetup", "--find", "--show", "--read-only", str(pair.alpha.disk)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    try:
        text = pair.config.read_text()
        pair.config.write_text(text.replace(str(pair.alpha.disk), loop))
        cli = Cli(pair.alpha)
        cli.fails(10, "up", "r0", says=("r0: Failure: (104)", loop, "read-only"))
        nothing_runs(pair.alpha)
        done = cli("create-md", "--force", "r0")
        assert done.returncode != 0
        assert "read-only" in done.stderr
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)


def test_a_disk_in_use_by_another_process(pair: Pair, unchanged: Callable[[], None]) -> None:
    unchanged()
    cli = Cli(pair.alpha)
    with pair.alpha.disk.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        cli.fails(10, "up", "r0", says=("r0: Failure: (104)", str(pair.alpha.disk), "in use"))
        nothing_runs(pair.alpha)
        done = cli("create-md", "--force", "r0")
        assert done.returncode != 0
        assert "in use" in done.stderr


def test_metadata_commands_while_the_resource_is_up(pair: Pair) -> None:
    cli = Cli(pair.alpha)
    cli.ok("up", "r0")
    before = digest(pair.alpha.disk)
    for verb in ("create-md", "dump-md", "wipe-md"):
        force = ("--force",) if verb in ("create-md", "wipe-md") else ()
        done = cli(verb, *force, "r0")
        assert done.returncode != 0, verb
        assert "in use" in done.stderr, done.stderr
    assert digest(pair.alpha.disk) == before
    cli.ok("down", "r0")


# --- peers that do not fit ---------------------------------------------------------------------------
def both_up(pair: Pair) -> None:
    for node in (pair.alpha, pair.beta):
        Cli(node).ok("up", "r0")


def stand_alone(pair: Pair, says: str) -> None:
    """Both give up, one of them with this reason in its log, and the disks stay what they were."""

    def given_up() -> bool:
        # One of them may hear only that the other closed; it keeps trying then.
        return Conn.STANDALONE in (pair.alpha.state()[2], pair.beta.state()[2])

    wait_until(given_up, 20, "the nodes to stand alone")
    logs = pair.alpha.log() + pair.beta.log()
    wait_until(lambda: says in pair.alpha.log() + pair.beta.log(), 5, f"{says!r} in the logs")
    assert "Traceback" not in logs


def test_a_wrong_secret(pair: Pair) -> None:
    other = pair.config.with_name("other.res")
    text = pair.config.read_text()
    pair.config.write_text(text.replace(NET, 'net { cram-hmac-alg sha256; shared-secret "one"; }'))
    other.write_text(text.replace(NET, 'net { cram-hmac-alg sha256; shared-secret "two"; }'))
    pair.beta.config = other
    both_up(pair)
    stand_alone(pair, "shared-secret or cram-hmac-alg is not ours")
    assert Disk.UP_TO_DATE not in (pair.alpha.state()[4], pair.beta.state()[4])


def test_only_one_side_has_a_secret(pair: Pair) -> None:
    other = pair.config.with_name("other.res")
    other.write_text(pair.config.read_text().replace(NET, 'net { cram-hmac-alg sha1; shared-secret "x"; }'))
    pair.beta.config = other
    both_up(pair)
    stand_alone(pair, "only one side has a shared secret configured")


def test_different_protocols(pair: Pair) -> None:
    other = pair.config.with_name("other.res")
    other.write_text(pair.config.read_text().replace("protocol C", "protocol A"))
    pair.beta.config = other
    both_up(pair)
    stand_alone(pair, "incompatible protocol settings")


def test_a_peer_whose_disk_is_too_small(pair: Pair) -> None:
    """The device has its size from its life before; a smaller disk cannot be its mirror."""
    pair.alpha.up()
    pair.alpha.call("primary", force=True)
    pair.alpha.call("secondary")
    with pair.beta.disk.open("r+b") as file:
        file.truncate(8 * MIB)
    cli = Cli(pair.beta)
    cli.ok("create-md", "--force", "r0")
    cli.ok("up", "r0")
    stand_alone(pair, "the peer's disk is too small")
    assert pair.alpha.state()[3] is Disk.UP_TO_DATE
    size = pair.alpha.call("status")["volumes"][0]["size"]
    assert size > 15 * MIB


def test_unrelated_data(pair: Pair) -> None:
    marks = {}
    for node in (pair.alpha, pair.beta):
        cli = Cli(node)
        cli.ok("up", "r0")
        cli.ok("disconnect", "r0")
        cli.ok("primary", "--force", "r0")
        subprocess.run(
            [
                *("/usr/bin/python3", "-m", "nbd", "-u", node.uri),
                *("-c", f"h.pwrite(b'{node.name:8s}' * 512, 8192); h.flush()"),
            ],
            check=True,
        )
        cli.ok("secondary", "r0")
        for _ in range(3):  # until nothing of the time before is left in the history
            cli.ok("new-current-uuid", "r0/0")
        with node.disk.open("rb") as file:
            marks[node.name] = hashlib.sha256(file.read(15 * MIB)).hexdigest()
    for node in (pair.alpha, pair.beta):
        Cli(node).ok("connect", "r0")
    stand_alone(pair, "Unrelated data, aborting!")
    for node in (pair.alpha, pair.beta):
        with node.disk.open("rb") as file:
            assert hashlib.sha256(file.read(15 * MIB)).hexdigest() == marks[node.name]


def test_two_nodes_with_the_same_role_forced(pair: Pair) -> None:
    pair.up_to_date()
    pair.alpha.call("primary")
    cli = Cli(pair.beta)
    for force in ((), ("--force",)):
        cli.fails(11, "primary", *force, "r0", says=("r0: State change failed: (-1)", "Multiple primaries"))
    assert pair.beta.state()[0] is Role.SECONDARY
    assert pair.beta.state()[2] is Conn.CONNECTED
    # Apart both may be forced to it, and then they do not go together any more.
    cli.ok("disconnect", "r0")
    cli.ok("primary", "r0")
    Cli(pair.alpha)("connect", "r0")
    cli.ok("connect", "r0")
    stand_alone(pair, "Split-Brain detected")
    assert pair.alpha.state()[0] is Role.PRIMARY
    assert pair.beta.state()[0] is Role.PRIMARY


# --- roles and commands ------------------------------------------------------------------------------
def test_promotion_without_up_to_date_data(pair: Pair, unchanged: Callable[[], None]) -> None:
    cli = Cli(pair.alpha)
    cli.ok("up", "r0")
    says = ("r0: State change failed: (-2) Need access to UpToDate data",)
    cli.fails(17, "primary", "r0", says=says)
    cli.ok("detach", "r0")
    cli.fails(17, "primary", "r0", says=says)
    cli.fails(17, "primary", "--force", "r0", says=says)
    assert pair.alpha.state()[0] is Role.SECONDARY
    cli.ok("down", "r0")
    # Being attached and let go of leaves its marks, once; a further refusal none.
    cli.ok("up", "r0")
    unchanged()
    cli.fails(17, "primary", "r0", says=says)


def test_commands_on_a_resource_that_is_not_up(pair: Pair, unchanged: Callable[[], None]) -> None:
    unchanged()
    cli = Cli(pair.alpha)
    for verb in (
        # invalidate and outdate mark the metadata of what is down, as drbdadm has it.
        *("attach", "detach", "primary", "secondary", "connect", "disconnect", "pause-sync", "resume-sync"),
        *("invalidate-remote", "verify", "new-current-uuid", "role", "cstate", "status"),
        *("wait-connect", "wait-sync"),
    ):
        name = "r0/0" if verb == "new-current-uuid" else "r0"
        cli.fails(10, verb, name, says=("r0", "pydrbd up r0"))
    cli.ok("down", "r0")
    cli.fails(1, "up", "nothing", says=("nothing",))
    cli.fails(1, "up", "r0/7", says=("'r0' has no volume 7",))


def test_commands_on_a_resource_whose_process_was_killed(pair: Pair) -> None:
    cli = Cli(pair.alpha)
    cli.ok("up", "r0")
    pair.alpha.kill()
    cli.fails(10, "primary", "r0", says=("killed or crashed", "pydrbd up r0"))
    done = cli("status")
    assert "killed or crashed" in done.stderr
    cli.ok("up", "r0")
    cli.ok("down", "r0")


# --- configuration -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("protocol C", "protocol Q", ("pair.res:3:", "Q")),
        ("connect-int 1", "conect-int 1", ("pair.res:3:", "conect-int", "connect-int")),
        ("connect-int 1", "connect-int 1000", ("pair.res:3:", "1000")),
        ("on beta", "on alpha", ("pair.res:", "alpha")),
        ("device /dev/drbd0", "devise /dev/drbd0", ("pair.res:4:", "devise", "device")),
        ("resource r0 {", "resource r0 { {", ("pair.res:2:",)),
        ("protocol C", "protocol B; allow-two-primaries yes", ("allow-two-primaries", "protocol C")),
        ("connect-int 1;", "rr-conflict retry-connect;", ("rr-conflict",)),
        ("resource r0", "\0\xff resource r0", ("pair.res:",)),
    ],
)
def test_errors_in_the_configuration(
    pair: Pair, unchanged: Callable[[], None], old: str, new: str, says: tuple[str, ...]
) -> None:
    unchanged()
    pair.config.write_bytes(pair.config.read_text().replace(old, new, 1).encode("latin-1"))
    Cli(pair.alpha).fails(10, "up", "r0", says=says)
    pair.config.unlink()
    Cli(pair.alpha).fails(10, "up", "r0", says=(str(pair.config),))


# --- nbdkit ------------------------------------------------------------------------------------------
def test_nbdkit_or_its_plugin_is_missing_or_another_one(
    pair: Pair, unchanged: Callable[[], None], tmp_path: Path
) -> None:
    unchanged()
    cli = Cli(pair.alpha)
    tools = tmp_path / "tools"
    tools.mkdir()
    cli.environment["PATH"] = str(tools)
    cli.fails(10, "up", "r0", says=("r0", "nbdkit is not installed", "apt install nbdkit"))
    nothing_runs(pair.alpha)
    shell = shutil.which("sh")
    fake = tools / "nbdkit"
    for body, says in (
        ("exit 1", "apt install nbdkit-plugin-python"),
        ('[ "$1" = --dump-plugin ] || exit 1; echo python_version=3.8.1', "/usr/bin/python3 -m venv"),
        ("kill -SEGV $$", "apt install nbdkit-plugin-python"),
        ('[ "$1" = --dump-plugin ] || { echo out of luck >&2; exit 1; }; echo python_version=3.11', "out of"),
    ):
        fake.write_text(f"#!{shell}\n{body}\n")
        fake.chmod(0o755)
        cli.fails(10, "up", "r0", says=("r0", says))
        nothing_runs(pair.alpha)
    fake.chmod(0o644)
    cli.fails(10, "up", "r0", says=("r0", "nbdkit"))
    nothing_runs(pair.alpha)
