"""`pydrbd demo` over the kernel's nbd client, in a guest, to its end."""

from __future__ import annotations

import pytest

from tests.support.vm import Vm

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

_SCRIPT = """\
export TMPDIR=/tmp
pydrbd demo --mapping nbd --size 96 2>&1
echo "exit code $?"
left=$(ls -d /tmp/pydrbd-demo* /sys/block/nbd*/pid 2> /dev/null
       grep pydrbd-demo /proc/self/mountinfo
       pgrep -x -l nbdkit)
echo "left behind: ${left:-nothing}"
"""


def test_the_demo_over_the_kernels_nbd() -> None:
    output = Vm().run(_SCRIPT, timeout=850).check().output
    assert "the ext4 file system on /dev/nbd" in output, output
    assert "exit code 0\n" in output, output
    assert "the file system is clean" in output, output
    assert "left behind: nothing\n" in output, output
