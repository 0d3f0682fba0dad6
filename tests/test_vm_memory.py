"""A storm of dirty pages on a mounted device, in a guest that has far less memory (vm_memory.sh)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.vm import Vm

pytestmark = [pytest.mark.vm, pytest.mark.timeout(400)]

#: MiB: the guest's memory, and what is written.
MEMORY, AMOUNT = 384, 600
#: Seconds in which no write completes. The guest is emulated and its two CPUs are shared.
LONGEST_GAP = 15.0
SCRIPT = f"""
. $SUPPORT/vm_memory.sh
grep MemTotal /proc/meminfo
storm buffered {AMOUNT}
storm direct {AMOUNT}
kernel_is_content
"""


def test_a_storm_of_dirty_pages_finishes(tmp_path: Path) -> None:
    disks = [tmp_path / "alpha", tmp_path / "beta"]
    for disk in disks:
        with disk.open("wb") as file:
            file.truncate((AMOUNT + 200) << 20)
    result = Vm().run(SCRIPT, disks=disks, timeout=350, memory=MEMORY).check()
    for name in ("protected", "storm_buffered", "storm_direct", "kernel_is_content"):
        assert f"ok {name}\n" in result.output, result.output
    lines = re.findall(r"^storm .*longest gap ([0-9.]+) s.*$", result.output, re.MULTILINE)
    print(*re.findall(r"^storm .*$", result.output, re.MULTILINE), sep="\n")
    assert len(lines) == 2
    assert max(map(float, lines)) < LONGEST_GAP
    for disk in disks:
        disk.unlink()
