"""The kernel's own DRBD 8.4 as the peer of pydrbd, in a virtual machine (scenarios: vm_interop.sh).

What the kernel accepts, sends and writes is the reference that nobody here made: fio verifies
every block on the device, and both backing stores must be equal at the end of each arrangement.
"""

from __future__ import annotations

import pytest

from tests.support.vm import Vm

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

PREPARE = ". $SUPPORT/vm_interop.sh\nkernel_load\n"


@pytest.fixture(scope="module")
def vm() -> Vm:
    return Vm()


def run(vm: Vm, script: str, *expected: str) -> None:
    vm.scenarios(PREPARE + script, *expected)


def test_kernel_is_primary_without_a_secret(vm: Vm) -> None:
    run(
        vm,
        "fresh; initial_sync_from_kernel; kernel_secondary 0; kernel_primary_scenario\n"
        "we_crash_as_secondary; both_down_and_equal\n",
        "initial_sync_from_kernel", "kernel_primary", "we_crash_as_secondary",
    )  # fmt: skip


def test_we_are_primary_without_a_secret(vm: Vm) -> None:
    run(
        vm,
        "fresh; initial_sync_from_us; our_primary_scenario; we_crash_as_primary; both_down_and_equal\n",
        "initial_sync_from_us", "our_primary", "we_crash_as_primary",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("algorithm", "roles"), [("sha1", ()), ("sha256", ("kernel_primary", "our_primary"))]
)
def test_with_a_secret_in_both_roles(vm: Vm, algorithm: str, roles: tuple[str, ...]) -> None:
    """Both prove that they know it whenever they meet; with one algorithm the roles change, too."""
    scenarios = "; ".join(f"{role}_scenario" for role in roles) or ":"
    run(
        vm,
        f"fresh {algorithm}; initial_sync_from_us; {scenarios}; both_down_and_equal; wrong_secret\n",
        "initial_sync_from_us", *roles, "wrong_secret",
    )  # fmt: skip


def test_each_attaches_the_others_disk(vm: Vm) -> None:
    run(
        vm,
        "fresh; initial_sync_from_kernel; fio_verify fill /dev/drbd0 32M; kernel_secondary 0\n"
        "both_down_and_equal\n"
        "swap_disks; our_primary_scenario; kernel_primary_scenario; both_down_and_equal\n"
        "swap_disks; both_down_and_equal\n",
        "swap_disks", "our_primary", "kernel_primary",
    )  # fmt: skip


def test_fencing_in_both_roles(vm: Vm) -> None:
    run(
        vm,
        "fresh_fencing; initial_sync_from_us; fencing_scenario; both_down_and_equal\n",
        "initial_sync_from_us", "fencing_in_order", "fencing_by_handlers",
    )  # fmt: skip


def test_resize_asked_of_either_node_in_either_role(vm: Vm) -> None:
    run(
        vm,
        "fresh; initial_sync_from_us; resize_scenario; both_down_and_equal\n",
        "we_resize_as_primary", "kernel_resizes_beside_us", "kernel_resizes_as_primary",
        "we_resize_beside_the_kernel",
    )  # fmt: skip


def test_both_are_primary_and_write_to_the_same_blocks(vm: Vm) -> None:
    run(
        vm,
        "fresh two-primaries; initial_sync_from_us; two_primaries_scenario; both_down_and_equal\n",
        "initial_sync_from_us", "two_primaries",
    )  # fmt: skip


def test_we_stand_still_when_the_kernel_is_lost(vm: Vm) -> None:
    run(
        vm,
        "fresh_fencing resource-and-stonith; initial_sync_from_us; stonith_scenario; both_down_and_equal\n",
        "initial_sync_from_us", "stonith_met_again", "stonith_fenced",
    )  # fmt: skip


def test_a_resync_waits_for_another_device_of_our_node(vm: Vm) -> None:
    run(
        vm,
        "fresh; initial_sync_from_us; after_scenario; both_down_and_equal\n",
        "after",
    )  # fmt: skip


def test_refusals_outdated_disks_and_paused_resyncs(vm: Vm) -> None:
    run(
        vm,
        "fresh; initial_sync_from_us; marks_scenario; both_down_and_equal\n",
        "refusals", "marks",
    )  # fmt: skip


@pytest.mark.parametrize("protocol", ["A", "B"])
def test_protocol_in_both_roles(vm: Vm, protocol: str) -> None:
    run(
        vm,
        f"PROTOCOL={protocol}; fresh; initial_sync_from_us; kernel_primary_scenario; our_primary_scenario\n"
        "both_down_and_equal\n",
        "kernel_primary", "our_primary",
    )  # fmt: skip


def test_net_options_change_while_both_are_connected(vm: Vm) -> None:
    run(
        vm,
        ". $SUPPORT/vm_protocol.sh; fresh; initial_sync_from_us; protocol_scenario\n"
        "two_primaries_option_scenario; both_down_and_equal\n",
        "protocol_changes_under_us", "protocol_changes_under_the_kernel", "two_primaries_option",
    )  # fmt: skip


def test_each_pulls_ahead_of_the_other(vm: Vm) -> None:
    run(
        vm,
        "fresh_congested; congestion_scenario; both_down_and_equal\n",
        "we_pull_ahead", "kernel_pulls_ahead",
    )  # fmt: skip
