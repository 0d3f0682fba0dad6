"""What every contender needs: a file for its disk, and an end of its processes."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path


def make_file(path: Path, size: int) -> None:
    """A sparse file."""
    with path.open("wb") as file:
        file.truncate(size)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a child of ours."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    if process.poll() is None:
        process.kill()
    process.wait()
