"""Digests with the kernel's own DRBD 8.4 as the peer: verify-alg, csums-alg, data-integrity-alg.

Neighbours: test_vm_interop.py (the same two nodes), vm_digests.sh (the scenarios). Each algorithm has a
test of its own, so that one which a kernel does not have fails by name. On an emulated machine a test takes a
minute and a half, so only one algorithm of each kind is run as a rule; `make interop` runs them all.
"""

from __future__ import annotations

import os

import pytest

from tests.support.vm import Vm

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

PREPARE = ". $SUPPORT/vm_interop.sh\n. $SUPPORT/vm_digests.sh\nkernel_load\n"
#: `make interop` sets it.
ALL = os.environ.get("PYDRBD_INTEROP", "") == "all"
ALGORITHMS = ["crc32c", "md5", "sha1", "sha256"]


def algorithms(usual: str) -> list[str]:
    return ALGORITHMS if ALL else [usual]


@pytest.fixture(scope="module")
def vm() -> Vm:
    return Vm()


def run(vm: Vm, script: str, *expected: str) -> None:
    vm.scenarios(PREPARE + script, *expected)


@pytest.mark.parametrize("algorithm", algorithms("md5"))  # the quickest on an emulated processor
def test_verify_in_both_roles_and_repair(vm: Vm, algorithm: str) -> None:
    run(
        vm,
        f"fresh_digests verify-alg={algorithm}; we_verify; kernel_verifies; we_repair; both_down_and_equal\n",
        "we_verify", "kernel_verifies", "we_repair",
    )  # fmt: skip


@pytest.mark.parametrize("writer", ["kernel", "ours"] if ALL else ["kernel"])
def test_verify_under_writes_reports_nothing(vm: Vm, writer: str) -> None:
    run(
        vm,
        f"fresh_digests verify-alg=crc32c; verify_under_writes {writer}; both_down_and_equal\n",
        f"verify_under_writes_{writer}",
    )


def test_verify_of_a_part(vm: Vm) -> None:
    run(vm, "fresh_digests verify-alg=sha1; verify_positions; both_down_and_equal\n", "verify_positions")


@pytest.mark.parametrize("algorithm", algorithms("sha1"))
def test_resync_by_checksums_in_both_directions(vm: Vm, algorithm: str) -> None:
    run(
        vm,
        f"fresh_digests csums-alg={algorithm}; checksum_resync; both_down_and_equal\n",
        "checksum_resync",
    )


@pytest.mark.parametrize("algorithm", algorithms("crc32c"))
def test_data_integrity_in_both_roles(vm: Vm, algorithm: str) -> None:
    run(
        vm,
        f"fresh_digests data-integrity-alg={algorithm}; kernel_primary_scenario; our_primary_scenario\n"
        "both_down_and_equal\n",
        "kernel_primary", "our_primary",
    )  # fmt: skip
