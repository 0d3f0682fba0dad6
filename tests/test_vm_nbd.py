"""The mapping package over the kernel's real nbd client, in a virtual machine (steps: vm_nbd_netlink.py)."""

from __future__ import annotations

import pytest

from tests.support.vm import Vm

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


def test_mapping_over_the_kernels_nbd_client() -> None:
    script = "set -e\nmodprobe fuse\nmodprobe loop\npython3 $SUPPORT/vm_nbd_netlink.py\n"
    result = Vm().run(script, timeout=500).check()
    assert result.output.rstrip().endswith("all steps done")
    for step in ("basics", "file_systems", "server_killed_under_load", "races"):
        assert f"{step}: ok" in result.output
