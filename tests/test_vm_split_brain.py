"""Split-brain policies with the kernel's own DRBD 8.4 as the peer (scenarios: vm_split_brain.sh).

No packet tells a verdict: that both nodes come to opposite ones shows in a resync that ends with the winner's
data on both stores; where nobody is to lose, both stand alone and hold what they wrote.
"""

from __future__ import annotations

import pytest

from tests.support.vm import Vm

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

PREPARE = ". $SUPPORT/vm_split_brain.sh\nkernel_load\n"


@pytest.fixture(scope="module")
def vm() -> Vm:
    return Vm()


def run(vm: Vm, *scenarios: str) -> None:
    vm.scenarios(PREPARE + "\n".join(scenarios) + "\n", *scenarios)


def test_without_primaries(vm: Vm) -> None:
    run(vm, "least_changes", "younger_primary", "zero_changes", "we_are_local")


def test_with_one_primary(vm: Vm) -> None:
    run(vm, "secondary_loses", "kernel_calls_its_handler", "we_give_up_our_role", "consensus_is_missing")


def test_policies_that_disagree_are_refused(vm: Vm) -> None:
    run(vm, "policies_disagree")
