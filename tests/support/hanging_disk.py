"""A disk whose requests can be made to hang and to end late: a file that nbdkit serves through FUSE.

Neighbours: tests with disk-timeout. Stopping nbdkit (SIGSTOP) leaves requests with the kernel: who waits for
one is in state D and cannot even be killed; when it goes on (SIGCONT) it carries them all out.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.support.waiting import wait_until


class HangingDisk:
    """`path`: the file to use as a disk; `image`: what is below it."""

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir(parents=True)
        self.image, self.path = folder / "image", folder / "disk"
        with self.image.open("wb") as file:
            file.truncate(size)
        self.path.touch()
        socket = folder / "sock"
        nbdkit = ["nbdkit", "--foreground", "--unix", str(socket), "file", str(self.image)]
        self._server = subprocess.Popen(nbdkit, stdout=subprocess.DEVNULL)
        wait_until(socket.exists, 10, "nbdkit to serve the disk")
        self._fuse = subprocess.Popen(["nbdfuse", str(self.path), f"nbd+unix:///?socket={socket}"])
        wait_until(lambda: self.path.stat().st_size == size, 10, "nbdfuse to show the disk")

    def hang(self) -> None:
        """No request ends from now on."""
        os.kill(self._server.pid, signal.SIGSTOP)

    def wake(self) -> None:
        """What hangs is carried out, and all that follows."""
        os.kill(self._server.pid, signal.SIGCONT)

    def close(self) -> None:
        """Also while it hangs."""
        self.wake()
        subprocess.run([shutil.which("fusermount3") or "fusermount", "-u", "-z", str(self.path)], check=False)
        self._fuse.terminate()
        self._fuse.wait(10)
        self._server.terminate()
        self._server.wait(10)
