"""A client's reads and writes: by the lane where it takes them, or else by the engine.

Floor: runtime. Neighbours: the plugin (calls from nbdkit's threads), lane, driver, latency.
"""

from __future__ import annotations

import os

from pydrbd.engine.orders import IoFailed, NoGoodDisk, Script
from pydrbd.runtime.driver import Driver
from pydrbd.runtime.latency import FLUSH, READ, WRITE, Trace, clock


def read(driver: Driver, volume: int, into: bytearray, offset: int) -> IoFailed | None:
    """Fill `into`."""
    if driver.lane is not None and driver.lane.read(into, offset):
        return None
    begun = clock()
    data = driver.run(driver.engine.read(volume, offset, len(into)))
    driver.latency.add(READ, begun, [])
    if isinstance(data, IoFailed):
        return data
    into[:] = data
    return None


def write(driver: Driver, volume: int, data: memoryview, offset: int, fua: bool) -> IoFailed | None:
    """Write `data`, which may be used again after the return: the engine copies it, piece by piece."""
    lane, engine = driver.lane, driver.engine
    done = lane.write(data, offset) if lane is not None else False
    if lane is None or done is False:
        if (failed := _traced(driver, WRITE, engine.write(volume, offset, data))) is not None:
            return failed
    elif done is not None:
        slot, code = done
        failure = IoFailed(code, os.strerror(code)) if code else None
        failed = driver.run(lane.book.ended(slot, failure))
        if isinstance(failed, NoGoodDisk):
            # The engine's own would not be failed for that where I/O is to be suspended.
            failed = _traced(driver, WRITE, engine.write(volume, offset, data))
        if failed is not None:
            return failed
    return flush(driver, volume) if fua else None


def zero(
    driver: Driver, volume: int, offset: int, length: int, *, trim: bool, unmap: bool, fua: bool
) -> IoFailed | None:
    """Make a range read as zeros. `trim`: its content is not wanted any more."""
    engine = driver.engine
    script = engine.trim(volume, offset, length) if trim else engine.zero(volume, offset, length, unmap)
    if (failed := _traced(driver, WRITE, script)) is not None:
        return failed
    return flush(driver, volume) if fua else None


def flush(driver: Driver, volume: int) -> IoFailed | None:
    """Make every completed write durable, here and on the connected peer."""
    if driver.lane is not None and driver.lane.flush():
        return None
    return _traced(driver, FLUSH, driver.engine.flush(volume))


def _traced(driver: Driver, kind: str, script: Script[IoFailed | None]) -> IoFailed | None:
    trace: Trace = []
    begun = clock()
    failed = driver.run(script, trace)
    driver.latency.add(kind, begun, trace)
    return failed
