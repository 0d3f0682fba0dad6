"""Two nodes of pydrbd behind the kernel's nbd client: file systems, fail-over, restart (vm_failover.sh)."""

from __future__ import annotations

import pytest

from tests.support.vm import Vm

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def vm() -> Vm:
    return Vm()


def run(vm: Vm, script: str, *expected: str) -> None:
    result = vm.run(". $SUPPORT/vm_failover.sh\n" + script, timeout=850).check()
    missing = [name for name in expected if f"ok {name}\n" not in result.output]
    assert not missing, f"{missing} did not run:\n{result.output}"


def test_fail_over_under_mounted_file_systems(vm: Vm) -> None:
    run(
        vm,
        "fresh_pair; fail_over ext4; refused_while_mounted; fail_over xfs; pair_down_and_equal\n",
        "fail_over_ext4", "refused_while_mounted", "fail_over_xfs",
    )  # fmt: skip


def test_restart_of_the_process_and_nbd_client_by_hand(vm: Vm) -> None:
    run(
        vm,
        "SIZE=64M; fresh_pair; restart_under_a_mount; nbd_client_by_hand; pair_down_and_equal\n",
        "restart_under_a_mount", "nbd_client_by_hand",
    )  # fmt: skip
