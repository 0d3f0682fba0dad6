"""A split brain of two real nodes in network namespaces, looked at and resolved from one of them.

What the loser had written is read back from the overlay, through a mounted file system. Cost: 17 s in all.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pydrbd.control.client import RemoteError
from pydrbd.format.layout import internal_layout
from pydrbd.vocabulary import Conn, Disk, Role
from tests.support.cli import CliNode, CliPair, Result
from tests.support.netns import NetPair, Network
from tests.support.pair import Member, Pair, fio
from tests.support.waiting import wait_until

MIB = 1 << 20
SIZE = internal_layout(16 * MIB).data_bytes
ROOT = Path(__file__).parent.parent


@dataclass
class Scene:
    """Two nodes, their command lines, and a folder for overlays."""

    pair: Pair
    folder: Path
    overlays: Path
    network: Network | None = None

    def cli(self, member: Member) -> CliNode:
        return CliNode(member.name, member.config, member.run_dir, [member.disk])

    def other(self, member: Member) -> Member:
        return self.pair.beta if member is self.pair.alpha else self.pair.alpha

    def via(self, member: Member) -> str:
        """The command that runs pydrbd on the peer of a node."""
        peer = self.other(member)
        words = ["env", f"PYTHONPATH={ROOT}", f"PYDRBD_RUN_DIR={peer.run_dir}", "PYDRBD_NODE={node}"]
        return shlex.join([*words, sys.executable, "-m", "pydrbd.cli.main", "-c", str(peer.config)])

    def ask(self, member: Member, *words: str, via: str = "", before: tuple[str, ...] = ()) -> Result:
        # Without --via, the peer is found on this machine.
        options = ("--via", via) if via else ()
        return self.cli(member)(*before, "split-brain", *words, *options)

    def resolve(
        self, member: Member, keep: Member, *more: str, via: str = "", before: tuple[str, ...] = ()
    ) -> Result:
        words = ("resolve", "r0", "--keep", keep.name, "--overlays", str(self.overlays))
        return self.ask(member, *words, *more, via=via, before=before)

    def mount(self, device: str, *options: str) -> Path:
        place = self.folder / "mnt"
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", *options, device, str(place)], check=True, timeout=60)
        return place

    def umount(self) -> None:
        subprocess.run(["umount", str(self.folder / "mnt")], check=True, timeout=60)

    def files(self, member: Member, files: dict[str, bytes], *, format_it: bool = False) -> None:
        """Write files through the node's mounted device."""
        cli = self.cli(member)
        cli.ok("primary", "r0")
        cli.ok("map", "r0/0")
        device = self.device(member)
        if format_it:
            subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True, timeout=60)
        place = self.mount(device)
        try:
            for name, content in files.items():
                (place / name).write_bytes(content)
        finally:
            self.umount()
        cli.ok("secondary", "r0")

    def device(self, member: Member) -> str:
        return str(json.loads((member.paths.folder / "r0.0.map").read_text())["path"])

    def states(self) -> list[tuple[Role, Role, Conn, Disk, Disk]]:
        return [self.pair.alpha.state(), self.pair.beta.state()]

    def stand_alone(self) -> None:
        wait_until(
            lambda: [state[2] for state in self.states()] == [Conn.STANDALONE] * 2, 30, "both to stand alone"
        )

    def part(self) -> None:
        """The network is cut, and both notice."""
        assert self.network is not None
        self.network.cut("alpha")
        wait_until(lambda: all(state[2] < Conn.CONNECTED for state in self.states()), 30, "both to be alone")

    def meet(self) -> None:
        assert self.network is not None
        self.network.heal()
        self.stand_alone()


@pytest.fixture
def scene(run_dir: Path, tmp_path: Path) -> Iterator[Scene]:
    with Network() as network:
        net = "net { protocol C; connect-int 1; ping-int 1; timeout 9; }"
        pair = NetPair(network, tmp_path, run_dir, size=16 * MIB, sections=net)
        made = Scene(pair, tmp_path, tmp_path / "overlays", network)
        try:
            pair.up_to_date()
            yield made
        finally:
            for member in (pair.alpha, pair.beta):
                made.cli(member)("unmap", "r0")
            pair.close()


SHARED, OF_ALPHA, OF_BETA = b"from before\n" * 4000, b"of alpha\n" * 3000, b"of beta\n" * 5000


def data(member: Member) -> bytes:
    """The volume as the node's disk holds it."""
    return member.disk.read_bytes()[:SIZE]


def split(scene: Scene) -> None:
    """A file system with changes of both, and both stand alone."""
    alpha, beta = scene.pair.alpha, scene.pair.beta
    scene.files(alpha, {"shared": SHARED, "same": b"nobody changes it"}, format_it=True)
    scene.part()
    scene.files(alpha, {"shared": OF_ALPHA, "winner": b"alpha's" * 60_000})
    scene.files(beta, {"shared": OF_BETA, "loser": b"beta's" * 9999})
    scene.meet()


def read_overlay(scene: Scene, member: Member) -> dict[str, bytes]:
    """The files in the overlay of a node, through a mounted device."""
    (file,) = scene.overlays.glob("*.overlay")
    cli = scene.cli(member)
    device = cli.ok("overlay", "attach", str(file)).strip()
    assert cli.ok("overlay", "attach", str(file)).strip() == device
    place = scene.mount(device, "-o", "ro,noload")
    try:
        found = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
        refused = cli("overlay", "detach", str(file))
        assert refused.code
        assert f"mounted on {place}" in refused.err
        listed = json.loads(cli.ok("overlay", "list", "--json", "--overlays", str(scene.overlays)))
        assert [(entry["node"], entry["device"]) for entry in listed] == [(member.name, device)]
    finally:
        scene.umount()
        cli.ok("overlay", "detach", str(file))
    assert "not attached" in cli.ok("overlay", "list", "--overlays", str(scene.overlays))
    assert cli.ok("overlay", "list", "--overlays", "/nowhere") == "no overlay files in /nowhere\n"
    for verb in ("attach", "detach"):
        assert cli("overlay", verb, "/nowhere/it").err.startswith("There is no overlay /nowhere/it. Next: ")
    return found


def device_content(scene: Scene, member: Member, file: Path) -> bytes:
    cli = scene.cli(member)
    device = cli.ok("overlay", "attach", str(file)).strip()
    try:
        with open(device, "rb") as disk:
            return disk.read()
    finally:
        cli.ok("overlay", "detach", str(file))


def test_one_command_resolves_it_and_nothing_is_lost(scene: Scene) -> None:
    alpha, beta = scene.pair.alpha, scene.pair.beta
    split(scene)
    mine = data(beta)

    shown = scene.ask(alpha, "show", "r0")
    assert (shown.code, shown.err) == (0, "")
    assert "r0: split brain: both nodes have changed the data" in shown.out
    of_alpha, _, of_beta = shown.out.partition("\n  beta ")
    assert ("/winner" in of_alpha, "/winner" in of_beta) == (True, False)
    assert ("/loser" in of_alpha, "/loser" in of_beta) == (False, True)
    assert "policies: after-sb-0pri disconnect decides nothing" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80
    values = json.loads(scene.ask(beta, "show", "r0", "--json").out)
    blocks = values["volumes"][0]["blocks"]
    assert [sum(node["volumes"][0]["changed"][1::2]) for node in values["nodes"]] == blocks
    assert [node["node"] for node in values["nodes"]] == ["beta", "alpha"]
    both = values["volumes"][0]["blocks_on_both"]
    assert 0 < both < min(blocks), "each has changed blocks that the other has not"

    dry = scene.resolve(alpha, alpha, before=("--dry-run",), via=scene.via(alpha))
    assert (dry.code, [state[2] for state in scene.states()]) == (0, [Conn.STANDALONE] * 2)
    assert not scene.overlays.exists()

    done = scene.resolve(alpha, alpha, via=scene.via(alpha))
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(dry.out)
    scene.pair.wait_synced()
    assert read_overlay(scene, beta) == {
        "shared": OF_BETA,
        "same": b"nobody changes it",
        "loser": b"beta's" * 9999,
    }
    (file,) = scene.overlays.glob("*.overlay")
    assert str(file) in done.out
    assert file.stat().st_blocks * 512 < MIB
    # Nobody has written since: the view is the loser's device to the byte.
    assert device_content(scene, beta, file) == mine != data(alpha) == data(beta)


def test_refusals_and_failures_change_nothing_and_it_can_be_repeated(scene: Scene) -> None:
    connected = scene.resolve(scene.pair.alpha, scene.pair.alpha)
    assert (connected.code, connected.err.count("the nodes are connected")) == (11, 1)
    split(scene)
    alpha, beta = scene.pair.alpha, scene.pair.beta
    before = [data(alpha), data(beta)]
    refused_by_words(scene, alpha)
    no_room(scene, alpha)
    loser_in_use(scene, alpha, beta)
    scene.stand_alone()
    assert [data(alpha), data(beta)] == before
    broken_on_the_way(scene, alpha, beta)
    assert [data(alpha), data(beta)] == before
    winner_in_use(scene, alpha, beta)


def refused_by_words(scene: Scene, alpha: Member) -> None:
    nobody = scene.ask(alpha, "resolve", "r0", "--keep", "gamma")
    assert (nobody.code, nobody.err.count("the nodes are alpha and beta")) == (11, 1)
    absent = scene.resolve(alpha, alpha, via="/nowhere/ssh {node} pydrbd")
    assert (absent.code, absent.err.count("beta cannot be asked: /nowhere/ssh")) == (10, 1)
    mute = scene.resolve(alpha, alpha, via="sh -c 'exit 7'")
    assert (mute.code, mute.err.count("ended with exit code 7")) == (10, 1)
    itself = scene.resolve(alpha, alpha, via=scene.via(scene.other(alpha)).replace("{node}", "alpha"))
    assert (itself.code, itself.err.count("the command of --via reaches alpha")) == (11, 1)
    half = scene.ask(scene.other(alpha), "show", "r0", via="false")
    assert (half.code, half.out.count("alpha could not be asked"), "/loser" in half.out) == (10, 1, True)


def no_room(scene: Scene, alpha: Member) -> None:
    scene.overlays.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", scene.overlays], check=True, timeout=60)
    try:
        full = scene.resolve(alpha, alpha)
    finally:
        subprocess.run(["umount", scene.overlays], check=True, timeout=60)
    assert (full.code, full.err.count("64 KiB free")) == (11, 1)


def loser_in_use(scene: Scene, alpha: Member, beta: Member) -> None:
    scene.cli(beta).ok("primary", "r0")
    scene.cli(beta).ok("map", "r0/0")
    scene.mount(scene.device(beta), "-o", "ro,noload")
    try:
        in_use = scene.resolve(alpha, alpha)
    finally:
        scene.umount()
    assert (in_use.code, in_use.err.count(f"mounted on {scene.folder / 'mnt'}")) == (11, 1)
    assert beta.state()[0] is Role.PRIMARY


#: Passes requests on, and dies instead of passing on the one that is named.
PROXY = """
import subprocess, sys
word, command = sys.argv[1], sys.argv[2:]
child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
for line in sys.stdin:
    if f'"do": "{word}"' in line:
        break
    child.stdin.write(line)
    child.stdin.flush()
    print(child.stdout.readline(), end="", flush=True)
child.stdin.close()
child.wait()
"""


def broken_on_the_way(scene: Scene, alpha: Member, beta: Member) -> None:
    """beta still is Primary and mapped, but not mounted: it is unmapped and demoted by the first of these."""
    proxy = shlex.join([sys.executable, "-c", PROXY])
    # The loser is the other node, then the winner is.
    for word, keep in (("keep", alpha), ("finish", alpha), ("yield", alpha), ("connect", beta)):
        failed = scene.resolve(alpha, keep, via=f"{proxy} {word} {scene.via(alpha)}")
        assert (failed.code, "beta does not answer" in failed.err) == (11, True), (word, failed)
        scene.stand_alone()
        # A node that cannot be told any more may have an overlay too many, never one too few.
        left = list(scene.overlays.glob("*"))
        assert len(left) == (word == "yield"), (word, left)
        for file in left:
            file.unlink()
    assert beta.state()[0] is Role.SECONDARY


def winner_in_use(scene: Scene, alpha: Member, beta: Member) -> None:
    """The command is given on the loser, and all of it is kept: later writes do not show through."""
    mine = data(beta)
    scene.cli(alpha).ok("primary", "r0")
    scene.cli(alpha).ok("map", "r0/0")
    scene.mount(scene.device(alpha))
    try:
        done = scene.resolve(beta, alpha, "--keep-all")
        assert (done.code, done.err) == (0, "")
        scene.pair.wait_synced()
        (scene.folder / "mnt" / "later").write_bytes(b"later" * 100_000)
    finally:
        scene.umount()
    scene.cli(alpha).ok("secondary", "r0")
    (file,) = scene.overlays.glob("*.overlay")
    assert device_content(scene, beta, file) == mine
    assert file.read_bytes()[:SIZE] == mine, "without pydrbd too"
    assert data(alpha) == data(beta)


def test_without_an_overlay_the_losers_data_are_gone(run_dir: Path, tmp_path: Path) -> None:
    """A process that was Primary since its data were looked at does not give them up."""
    pair = Pair(tmp_path, run_dir, size=16 * MIB, sections="net { protocol C; connect-int 1; }")
    scene = Scene(pair, tmp_path, tmp_path / "overlays")
    try:
        pair.up_to_date()
        for member, pattern in ((pair.alpha, "0xaa"), (pair.beta, "0xbb")):
            member.call("disconnect")
            member.call("primary")
            fio(
                member.uri,
                "--rw=write",
                "--bs=4k",
                "--size=32k",
                f"--buffer_pattern={pattern}",
                "--end_fsync=1",
            )
            member.call("secondary")
        mark = pair.alpha.call("role-mark")
        assert pair.alpha.call("role-mark") == mark
        pair.alpha.call("primary")
        pair.alpha.call("secondary")
        with pytest.raises(RemoteError, match="was Primary since its data were copied"):
            pair.alpha.call("yield-changes", mark=mark)
        assert pair.alpha.state()[2] is Conn.STANDALONE
        done = scene.resolve(pair.alpha, pair.beta, "--no-keep")
        assert (done.code, done.err) == (0, "")
        pair.wait_synced()
        assert data(pair.alpha) == data(pair.beta)
        assert data(pair.alpha)[:4096] == b"\xbb" * 4096
        assert not scene.overlays.exists()
    finally:
        pair.close()


def test_every_volume_has_its_overlay(run_dir: Path, tmp_path: Path) -> None:
    """Both volumes were promoted on both nodes; beta has written to the first one alone."""
    pair = CliPair(tmp_path, run_dir, volumes=2)
    overlays = tmp_path / "overlays"
    try:
        pair.up_to_date()
        for cli, pattern, volumes in ((pair.alpha, "0xaa", (0, 1)), (pair.beta, "0xbb", (0,))):
            cli.ok("disconnect", "r0")
            cli.ok("primary", "r0")
            for number in volumes:
                uri = cli.ok("nbd-uri", f"r0/{number}").strip()
                fio(
                    uri, "--rw=write", "--bs=4k", "--size=16k", f"--buffer_pattern={pattern}", "--end_fsync=1"
                )
            cli.ok("secondary", "r0")
        cli = pair.beta
        done = cli("split-brain", "resolve", "r0", "--keep", "alpha", "--overlays", str(overlays))
        assert (done.code, done.err) == (0, "")
        assert "volume 0: 4 blocks (16 KiB) overwritten, 4 changed on beta" in done.out
        assert "volume 1: 4 blocks (16 KiB) overwritten, 0 changed on beta" in done.out
        cli.ok("wait-sync", "-t", "30", "r0")
        found = [path.read_bytes()[: 5 * 4096] for path in sorted(overlays.iterdir())]
        assert found == [b"\xbb" * 4 * 4096 + bytes(4096), bytes(5 * 4096)]
        assert [disk.read_bytes()[:4096] for disk in pair.beta.disks] == [b"\xaa" * 4096] * 2
    finally:
        pair.end()
