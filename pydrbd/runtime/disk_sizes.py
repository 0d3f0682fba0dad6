"""How large each disk with internal metadata was when it was in use last: by that its metadata are found when
it has grown meanwhile.

Floor: runtime. Neighbours: disks (carries out NoteSize), engine/relocation.py (what the sizes mean),
metadata_tool.py (new metadata have no past). One small file for each disk, named after its path, in a folder
that outlives a reboot. A file that cannot be read counts as none.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from urllib.parse import quote

#: DRBD has such notes in /var/lib/drbd.
DEFAULT_FOLDER = "/var/lib/pydrbd/sizes"


def folder() -> Path:
    """Where the notes are; the environment variable PYDRBD_SIZES names another folder."""
    return Path(os.environ.get("PYDRBD_SIZES") or DEFAULT_FOLDER)


def _file(disk: str) -> Path:
    return folder() / (quote(os.path.abspath(disk), safe="")[-200:] + ".json")


def noted(disk: str) -> tuple[tuple[int, ...], int]:
    """Sizes in bytes, those that count first, and the device UUID of the metadata; ((), 0) for none."""
    try:
        record = json.loads(_file(disk).read_text())
        sizes = tuple(int(size) for size in record["device_bytes"])
        return sizes, int(record["device_uuid"], 16)
    except (OSError, ValueError, KeyError, TypeError):
        return (), 0


def note(disk: str, device_bytes: tuple[int, ...], device_uuid: int) -> None:
    """Remember durably. OSError."""
    target = _file(disk)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_suffix(f".{os.getpid()}")
    with open(new, "w") as file:
        json.dump({"disk": disk, "device_bytes": device_bytes, "device_uuid": f"{device_uuid:016X}"}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, target)
    place = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def forget(disk: str) -> None:
    """The metadata of this disk are new."""
    with contextlib.suppress(OSError):
        _file(disk).unlink()
