"""Discards and refused changes of state between the kernel's own DRBD 8.4 and pydrbd (scenarios: vm_wire.sh).

Neighbour: test_vm_interop.py, whose two nodes these are. A discard counts only if both stores give their
blocks back; a refusal only if the exit code is DRBD's and nothing has changed.
"""

from __future__ import annotations

import pytest

from tests.support.vm import Vm

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

PREPARE = ". $SUPPORT/vm_interop.sh\n. $SUPPORT/vm_wire.sh\nkernel_load\n"


@pytest.fixture(scope="module")
def vm() -> Vm:
    return Vm()


def run(vm: Vm, script: str, *expected: str) -> None:
    vm.scenarios(PREPARE + script, *expected)


def test_discards_in_both_roles(vm: Vm) -> None:
    run(
        vm,
        "fresh; initial_sync_from_us; discards_by_kernel; discards_by_us; both_down_and_equal\n",
        "discards_by_kernel", "discards_by_us",
    )  # fmt: skip


def test_the_last_good_disk_is_kept_by_both(vm: Vm) -> None:
    run(vm, "fresh; initial_sync_from_us; last_good_disk; both_down_and_equal\n", "last_good_disk")


def test_both_refuse_the_same(vm: Vm) -> None:
    run(
        vm,
        "fresh; initial_sync_from_us; refused_alike; kernel_invalidates; both_down_and_equal\n",
        "refused_alike", "kernel_invalidates",
    )  # fmt: skip
