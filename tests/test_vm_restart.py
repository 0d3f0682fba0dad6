"""Crashes and planned restarts of the Primary's process under ext4 and fio, with the kernel's nbd client.

PYDRBD_ROUNDS=n (default 3) crashes and n-1 restarts; `make restart-test` runs 10. Steps: vm_restart.py.
"""

from __future__ import annotations

import os
import re

import pytest

from tests.support.vm import Vm

ROUNDS = int(os.environ.get("PYDRBD_ROUNDS", "3"))
#: Seconds; on a machine with other work to do a round may take a minute.
LONGEST = 600 + 150 * ROUNDS
pytestmark = [pytest.mark.vm, pytest.mark.timeout(LONGEST + 50)]
# An emulated node on a busy machine may need seconds for a ping; that is not what is tested here.
# (Two nodes that dial each other at once wait for ping-timeout, unless the other option says how long.)
NET = "ping-timeout 100; socket-check-timeout 1;"
PREPARE = f". $SUPPORT/vm_failover.sh\n. $SUPPORT/vm_restart.sh\nSIZE=64M\nNET='{NET}'\nfresh_pair\n"


def test_a_mounted_file_system_survives_crashes_and_restarts() -> None:
    script = PREPARE + f"restart_rounds {ROUNDS} {max(2, ROUNDS - 1)}\npair_down_and_equal\n"
    result = Vm().run(script, timeout=LONGEST).check()
    assert "ok restart_rounds\n" in result.output
    figures = re.findall(r"^(?:crash|restart|fio): .*$", result.output, re.MULTILINE)
    assert len(figures) == 3, result.output
    print("\n".join(figures))


def test_a_device_is_not_taken_back_after_a_fail_over() -> None:
    result = Vm().run(PREPARE + "taken_over\npair_down_and_equal\n", timeout=500).check()
    assert "ok taken_over\n" in result.output
