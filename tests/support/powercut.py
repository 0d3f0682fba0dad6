"""Power cuts of a pair of virtual machines under a client that fsyncs; `python -m tests.support.powercut`.

Neighbours: vm_pair.py (the machines), vm_agent.py and vm_powercut_client.py (what runs in them). A series
keeps its two machines and disks: a cut machine boots again, the other one goes on. At every cut:

- a client in the Primary writes numbered records and reports each that was fsynced; at a random moment the
  QEMU of the Primary, of the Secondary or of both is killed;
- the surviving node is promoted as it is, or both come back first; one node of the two is Primary
  then, and every record that was reported is there;
- when both are in sync again, the disks' data are byte-identical on the host.

At the end both go down in order and are compared once more; then the same without a way back: both are
cut, and only one of them ever returns.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.vm_pair import Guest, VmPair

MIB = 1 << 20
_DISK = 64 * MIB
#: The emulated machines are slow; a dead peer is noticed after some 10 s.
_CONFIG = """
resource r0 {
    net { protocol C; connect-int 2; ping-int 4; ping-timeout 30; timeout 35; }
    disk { c-plan-ahead 0; c-max-rate 4G; resync-rate 4G; }
    on alpha { device minor 10; disk /dev/vdd; meta-disk internal; address 10.99.0.1:7901; }
    on beta { device minor 11; disk /dev/vdd; meta-disk internal; address 10.99.0.2:7901; }
}
"""
_NETWORK = (
    "modprobe virtio_net && modprobe nbd nbds_max=4 max_part=0 && "
    "device=$(ls /sys/bus/virtio/drivers/virtio_net/virtio*/net) && "
    "ip link set $device up && ip address add 10.99.0.{}/24 dev $device"
)
_CLIENT = "python3 /job/support/vm_powercut_client.py"
#: What loses its power, in turn, and the client's way of writing.
_KINDS = ("primary", "both", "primary", "secondary", "both", "primary")
_MODES = ("raw", "ext4")


@dataclass
class Cut:
    """What one cut was, and what came of it, for its line in the report."""

    number: int
    kind: str
    mode: str
    text: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"cut {self.number} ({self.kind}, {self.mode}): {self.text}, {self.seconds:.0f} s"


class Series:
    """A pair under one series of cuts."""

    def __init__(self, folder: Path, seed: int, say: Callable[[str], None]) -> None:
        self.say = say
        self.random = random.Random(seed)
        self.pair = VmPair(folder, _DISK, {"r0.res": _CONFIG.encode()})
        self.primary = self.pair.alpha
        self.mode = ""
        self.size = self.first = 0

    @property
    def synced(self) -> int:
        """The last record that was reported as durable."""
        return max(guest.synced for guest in self.pair.guests)

    def play(self, cuts: int) -> None:
        """The whole series."""
        self.begin()
        for number in range(cuts):
            # Two cuts each way of writing, or one each in a short series.
            mode = _MODES[number // (2 if cuts > 2 else 1) % 2]
            self.cut(number + 1, _KINDS[number % len(_KINDS)], mode)
        self.orderly_end()
        self.never_back()

    # --- steps -----------------------------------------------------------------------------------
    def boot(self, *guests: Guest) -> None:
        for guest in guests:
            guest.boot()
        for guest in guests:
            guest.ready()

    def up(self, *guests: Guest) -> None:
        for guest in guests:
            guest.sh(_NETWORK.format(guest.number))
            guest.pydrbd("up r0", 300)

    def in_sync(self) -> None:
        self.primary.pydrbd("wait-connect -t 60 r0")
        self.primary.pydrbd("wait-sync -t 120 r0", 240)
        states = self.primary.pydrbd("dstate r0")
        assert states == "UpToDate/UpToDate", f"in sync, and the disks are {states}"

    def begin(self) -> None:
        """Both up with fresh metadata, equal."""
        guests = self.pair.guests
        self.boot(*guests)
        for guest in guests:
            guest.pydrbd("create-md r0")
        self.up(*guests)
        self.primary.pydrbd("wait-connect -t 60 r0")
        self.primary.pydrbd("new-current-uuid --clear-bitmap r0/0")
        self.primary.becomes_primary()
        status = json.loads(self.primary.pydrbd("status --json r0"))
        self.size = int(status[0]["devices"][0]["size"]) * 1024

    def load(self, mode: str) -> None:
        """The client begins, and has reported something."""
        node, before = self.primary, self.synced
        if mode == "ext4":
            target = node.pydrbd("map r0/0")
            if mode != self.mode:
                node.sh(f"mkfs.ext4 -q -F {target}")
            node.sh(f"mkdir -p /mnt/fs && mount {target} /mnt/fs")
            target = "/mnt/fs"
        else:
            target = node.pydrbd("nbd-uri r0/0")
        if mode != self.mode:
            # What was there is overwritten, and counts no more.
            self.mode, self.first = mode, before + 1
        node.sh(f"{_CLIENT} {mode} write '{target}' {before + 1} > /dev/ttyS1 2>&1 & echo $! > /tmp/client")
        self.more_reports()

    def more_reports(self) -> None:
        """Wait until the client has reported 20 records more."""
        wanted, deadline = self.synced + 20, time.monotonic() + 60
        while self.synced < wanted:
            self.well()
            assert time.monotonic() < deadline, f"the client reports nothing\n{self.primary.last_words()}"
            time.sleep(0.05)

    def end_load(self) -> None:
        """The client ends with a last sync."""
        self.primary.sh(
            "kill $(cat /tmp/client); while kill -0 $(cat /tmp/client); do sleep 0.1; done 2> /dev/null"
        )
        self.release()

    def release(self) -> None:
        if self.mode == "ext4":
            self.primary.sh("umount /mnt/fs")
            self.primary.pydrbd("unmap r0")

    def check(self) -> None:
        """Every reported record is on the node that is Primary."""
        node, numbers = self.primary, f"{self.first} {self.synced}"
        if self.mode == "raw":
            node.sh(f"{_CLIENT} raw check '{node.pydrbd('nbd-uri r0/0')}' {numbers}")
            return
        device = node.pydrbd("map r0/0")
        node.sh(f"mkdir -p /mnt/fs && mount {device} /mnt/fs && {_CLIENT} ext4 check /mnt/fs {numbers}")
        node.sh(f"umount /mnt/fs && e2fsck -f -n {device}")
        node.pydrbd("unmap r0")

    def well(self) -> None:
        for guest in self.pair.guests:
            assert not guest.problem, f"{guest.name}: {guest.problem}\n{guest.last_words()}"

    # --- one cut ---------------------------------------------------------------------------------
    def cut(self, number: int, kind: str, mode: str) -> Cut:
        cut, begin = Cut(number, kind, mode), time.monotonic()
        before = self.synced
        self.load(mode)
        time.sleep(self.random.uniform(0, 4))
        self.well()
        primary, secondary = self.primary, self.pair.other(self.primary)
        if kind == "secondary":
            cut.text = self._cut_secondary(secondary)
        elif kind == "both":
            cut.text = self._cut_both()
        else:
            cut.text = self._cut_primary(primary, secondary)
        differs = self.pair.differs(self.size)
        assert differs == 0, f"in sync, and the disks differ in {differs} bytes"
        cut.text = f"{self.synced - before} records reported, all there; {cut.text}; disks equal"
        cut.seconds = time.monotonic() - begin
        self.say(str(cut))
        return cut

    def _cut_secondary(self, secondary: Guest) -> str:
        secondary.cut()
        self.more_reports()
        self.boot(secondary)
        self.up(secondary)
        self.end_load()
        self.in_sync()
        self._take_over(self.pair.other(self.primary))
        self.check()
        return "the Primary went on; the other one, brought up to date, checked"

    def _take_over(self, guest: Guest) -> None:
        """Roles swapped in order."""
        self.primary.pydrbd("secondary r0")
        self.primary = guest
        self.primary.becomes_primary()

    def _cut_primary(self, primary: Guest, secondary: Guest) -> str:
        primary.cut()
        if self.random.random() < 0.6:
            self.primary = secondary
            secondary.becomes_primary()
            self.check()
            self.boot(primary)
            self.up(primary)
            self.in_sync()
            return f"{secondary.name} promoted, {primary.name} came back"
        self.boot(primary)
        self.up(primary)
        self.primary = self.random.choice(self.pair.guests)
        self.in_sync()
        self.primary.becomes_primary()
        self.check()
        return f"{primary.name} came back, {self.primary.name} promoted"

    def _cut_both(self) -> str:
        for guest in self.random.sample(self.pair.guests, 2):
            guest.cut()
        # Any of the two may be first, and promoted alone: each has all that was reported.
        first = self.random.choice(self.pair.guests)
        other = self.pair.other(first)
        self.primary = first
        if self.random.random() < 0.5:
            self.boot(first, other)
            self.up(first, other)
            self.in_sync()
            self.primary.becomes_primary()
            self.check()
            return f"both came back, {first.name} promoted"
        self.boot(first)
        self.up(first)
        self.primary.becomes_primary()
        self.check()
        self.boot(other)
        self.up(other)
        self.in_sync()
        return f"{first.name} came back and was promoted alone, then {other.name}"

    # --- the end -----------------------------------------------------------------------------------
    def orderly_end(self) -> None:
        """Both down and powered off; the disks are compared."""
        self.primary.pydrbd("secondary r0")
        for guest in self.pair.guests:
            guest.pydrbd("down r0")
            guest.power_off()
        differs = self.pair.differs(self.size)
        assert differs == 0, f"after an orderly end the disks differ in {differs} bytes"
        self.say("both down in order: disks equal")

    def never_back(self) -> None:
        """Both are cut under load and one never returns: the other has every reported record."""
        self.boot(*self.pair.guests)
        self.up(*self.pair.guests)
        self.in_sync()
        self.primary.becomes_primary()
        before = self.synced
        self.load(self.mode)
        time.sleep(self.random.uniform(0, 3))
        for guest in self.random.sample(self.pair.guests, 2):
            guest.cut()
        self.primary = self.random.choice(self.pair.guests)
        self.boot(self.primary)
        self.up(self.primary)
        self.primary.becomes_primary()
        self.check()
        self.say(f"both cut, {self.primary.name} alone came back: {self.synced - before} records, all there")


def run(cuts: int, seed: int, say: Callable[[str], None] = print) -> None:
    """A series of so many cuts. AssertionError (or VmError) with what is known; its folder is kept then."""
    folder = Path(tempfile.mkdtemp(prefix="cuts-"))
    series = Series(folder, seed, say)
    try:
        with series.pair:
            try:
                series.play(cuts)
            except BaseException:
                words = [guest.post_mortem() for guest in series.pair.guests]
                (folder / "last-words.txt").write_text("\n".join(words))
                raise
    except BaseException:
        say(f"kept in {folder}; again: python -m tests.support.powercut --cuts {cuts} --seed {seed}")
        raise
    shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.powercut", description=__doc__)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    begin = time.monotonic()
    try:
        run(arguments.cuts, arguments.seed, lambda text: print(text, flush=True))
    except AssertionError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - begin
    print(f"{arguments.cuts} cuts and one without a way back: no reported record lost, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
