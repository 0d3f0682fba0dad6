"""A storm of dirty pages on a mounted device, in a guest with less memory than is written (vm_memory.sh)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.vm import Vm

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

#: MiB: the guest's memory, and what is written. (More of either costs minutes: the guest is emulated.)
MEMORY, AMOUNT = 320, 330
#: Seconds in which no write completes; 2.5 were seen on a machine that was overloaded many times.
LONGEST_GAP = 20.0
#: `storm direct` does the same past the page cache.
SCRIPT = f"""
. $SUPPORT/vm_memory.sh
storm buffered {AMOUNT}
kernel_is_content
"""


def test_a_storm_of_dirty_pages_finishes(tmp_path: Path) -> None:
    disks = [tmp_path / "alpha", tmp_path / "beta"]
    for disk in disks:
        with disk.open("wb") as file:
            file.truncate((AMOUNT + 200) << 20)
    result = Vm().run(SCRIPT, disks=disks, timeout=850, memory=MEMORY).check()
    for name in ("protected", "storm_buffered", "kernel_is_content"):
        assert f"ok {name}\n" in result.output, result.output
    told = re.search(r"^storm .*longest gap ([0-9.]+) s.*$", result.output, re.MULTILINE)
    assert told, result.output
    print(told[0])
    assert float(told[1]) < LONGEST_GAP
    for disk in disks:
        disk.unlink()
