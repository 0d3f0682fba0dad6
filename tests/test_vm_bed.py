"""The virtual machine itself: it boots, has the modules, returns exit codes and files, and names hangs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.vm import Vm, VmError

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

FACTS = """\
set -e
modprobe nbd nbds_max=0 max_part=0
modprobe drbd usermode_helper=/bin/true
uname -r
head -1 /proc/drbd
nbdkit --version
fio --version
python3 -c 'import msgpack, uvloop, crc32c, lark, click, rich; print("packages imported")'
python3 -c 'import pydrbd.units; print("pydrbd imported")'
test "$(cat hello)" = "from the host"
echo written > /dev/vdd
printf 'back' > $RESULT/answer
ls /dev/nbd* 2>&1 | head -1
exit 7
"""

TWO_KERNEL_NODES = r"""
set -eE
trap 'cat /proc/drbd' ERR
. $SUPPORT/vm_drbd.sh
kernel_load
mkdir -p /stores
A=$(kernel_disk /stores/a 64M) B=$(kernel_disk /stores/b 64M)
kernel_create_md 0 $A; kernel_create_md 1 $B
kernel_up left 0 $A 7801 7802 --cram-hmac-alg=sha256 --shared-secret=geheim
kernel_up right 1 $B 7802 7801 --cram-hmac-alg=sha256 --shared-secret=geheim
kernel_wait 0 30 cs:Connected ro:Secondary/Secondary ds:Inconsistent/Inconsistent
kernel_primary 0 --force
kernel_wait 1 120 cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate
fio_verify first /dev/drbd0 16M
kernel_disconnect 7801 7802
kernel_wait 0 10 cs:StandAlone
fio_verify alone /dev/drbd0 8M
test $(kernel_oos 0) -gt 0
kernel_connect left 7801 7802 --cram-hmac-alg=sha256 --shared-secret=geheim
kernel_wait 1 60 cs:Connected ds:UpToDate/UpToDate oos:0
SIZE=$(kernel_data_bytes 0)
kernel_secondary 0
kernel_down left; kernel_down right
same_data $A $B $SIZE
kernel_up left 0 $A 7801 7802; kernel_wait 0 10 ds:UpToDate
kernel_down left
"""


@pytest.fixture(scope="module")
def vm() -> Vm:
    return Vm()


def test_boot_facts_exit_code_and_files(vm: Vm, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    result = vm.run(FACTS, {"hello": b"from the host\n"}, [disk], timeout=240)
    assert result.exit_code == 7, result.output
    assert "version: 8.4." in result.output
    assert "packages imported" in result.output
    assert "pydrbd imported" in result.output
    assert "cannot access '/dev/nbd*'" in result.output, "nbds_max=0 leaves no idle nodes"
    assert result.files == {"answer": b"back"}
    assert disk.read_bytes().startswith(b"written\n")


def test_a_panic_and_a_hang_are_named(vm: Vm) -> None:
    with pytest.raises(VmError, match="panicked"):
        vm.run("echo c > /proc/sysrq-trigger; sleep 60", timeout=200)
    with pytest.raises(VmError, match="did not end within") as hang:
        vm.run("echo I hang here; sleep 1000", timeout=30)
    assert "I hang here" in str(hang.value)


def test_two_kernel_drbd_nodes_over_loopback(vm: Vm) -> None:
    """The recipe of vm_drbd.sh: initial sync, verify, bitmap resync, equal disks, re-attach."""
    result = vm.run(TWO_KERNEL_NODES, timeout=300).check()
    assert "fio first: verified" in result.output
    assert "fio alone: verified" in result.output
    assert "same data: 67067904 bytes" in result.output
