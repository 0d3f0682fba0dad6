"""A client that writes all the time, while a test does something else."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pydrbd.cli.demo_nbd import NbdClient

BLOCK = 4096


class Writer:
    """`written`: how many blocks so far."""

    def __init__(self) -> None:
        self.written = 0


@contextmanager
def writing(client: NbdClient, blocks: int) -> Iterator[Writer]:
    """Blocks of 4 KiB with random data, one after the other, within the first `blocks` of the device."""
    writer, stop = Writer(), threading.Event()

    def write() -> None:
        while not stop.is_set():
            client.write(writer.written * 7919 % blocks * BLOCK, os.urandom(BLOCK))
            writer.written += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield writer
    finally:
        stop.set()
        thread.join()
