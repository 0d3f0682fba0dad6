"""A device of the kernel's nbd client grows when it gets a new connection; the kernel is played here.

Neighbours: test_vm_nbd.py (a real kernel), test_mapping_fuse.py.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pydrbd.mapping import kernel_nbd, netlink
from pydrbd.mapping import map as mapping
from pydrbd.mapping.device import MappedDevice
from pydrbd.mapping.nbd_handshake import Export

MIB = 1 << 20


@pytest.mark.parametrize(("size", "asked"), [(8 * MIB, []), (20 * MIB + 100, [20 * MIB])])
def test_the_size_follows_the_new_connection(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, size: int, asked: list[int]
) -> None:
    calls: list[tuple[str, int]] = []
    device = MappedDevice("/dev/nbd77", "nbd", 8 * MIB, "id", "socket", "0")
    record = mapping._record(run_dir, "alpha", "r0", 0)
    record.parent.mkdir(parents=True)
    mapping._write(record, device)
    monkeypatch.setattr(kernel_nbd, "alive", lambda _device: True)
    monkeypatch.setattr(kernel_nbd, "answers", lambda _path: True)
    monkeypatch.setattr(kernel_nbd, "open_export", lambda *_names: Export(socket.socket(), size, 0))
    monkeypatch.setattr(netlink, "reconfigure", lambda index, _fd, _id: calls.append(("connect", index)))
    monkeypatch.setattr(netlink, "resize", lambda _index, wanted, _id: calls.append(("size", wanted)))
    again = mapping.remap_volume(run_dir, "alpha", "r0", 0)
    assert calls == [("connect", 77), *(("size", wanted) for wanted in asked)]
    found = mapping.mapped(run_dir, "alpha", "r0", 0)
    assert again == found
    assert found is not None
    assert found.size == (asked or [8 * MIB])[0]
