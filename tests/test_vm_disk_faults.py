"""Disks that fail in a real kernel (dm-error, dm-flakey) on either node, under fio (vm_disk_faults.sh).

Cost: one boot and about two minutes of emulation.
"""

from __future__ import annotations

import pytest

from tests.support.vm import Vm

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

_SCRIPT = """\
. $SUPPORT/vm_disk_faults.sh
fresh_pair
fails alpha Diskless/UpToDate error
replaced alpha 2
fails beta UpToDate/Diskless flakey ${LOOP[beta]} 0 0 3600 1 error_writes
replaced beta 2
down_and_equal
"""


def test_disks_that_fail_under_load_are_replaced_without_an_error() -> None:
    output = Vm().run(_SCRIPT, timeout=850).check().output
    print(output)
    for step in ("alpha fails: error", "alpha replaced", "beta fails: flakey", "beta replaced", "equal"):
        assert f"ok {step}" in output, output
