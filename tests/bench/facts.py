"""What is known about the machine and the programs, for the head of the tables."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2]
#: The optional compiled part of pydrbd's data path.
_COMPILED = "pydrbd.hotpath._native"


def facts(folder: Path) -> dict[str, str]:
    """In the order in which they are printed; `folder`: where the disks' files are."""
    looks: dict[str, Callable[[], str]] = {
        "machine": lambda: (
            f"{os.cpu_count()} cores, {_model()}, {_memory_gib():.0f} GiB, Linux {platform.release()}"
        ),
        "load": lambda: (
            f"{os.getloadavg()[0]:.2f} in the minute before; the machine should have nothing else to do"
        ),
        "files in": lambda: f"{folder} ({_file_system(folder)}); every file is on this one file system",
        "pydrbd": lambda: f"commit {_commit()}; compiled hot path: {'yes' if compiled() else 'no'}",
        "nbdkit": lambda: _version("nbdkit", "--version"),
        "fio": lambda: _version("fio", "--version"),
        "qemu": lambda: _version("qemu-storage-daemon", "--version"),
        "nbdcopy": lambda: _version("nbdcopy", "--version"),
        "python": platform.python_version,
    }
    found = {}
    for name, look in looks.items():
        try:
            found[name] = look()
        except (OSError, subprocess.SubprocessError) as error:
            found[name] = f"unknown ({error})"
    return found


def compiled() -> bool:
    """Does pydrbd use its compiled module (False too if this version has none)?"""
    try:
        if importlib.util.find_spec(_COMPILED) is None:
            return False
        importlib.import_module(_COMPILED)
    except ImportError:
        return False
    return True


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)


def _model() -> str:
    match = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else platform.machine()


def _file_system(folder: Path) -> str:
    return _output("findmnt", "-n", "-o", "FSTYPE,SOURCE", "-T", str(folder)).replace("  ", " ")


def _commit() -> str:
    commit = _output("git", "-C", str(_PROJECT), "rev-parse", "--short", "HEAD")
    changed = _output("git", "-C", str(_PROJECT), "status", "--porcelain", "--untracked-files=no")
    return commit + (" with changes" if changed else "")


def _version(*command: str) -> str:
    return _output(*command).splitlines()[0]


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()
