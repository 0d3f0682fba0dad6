"""Waiting for a state with a deadline, the tests' only way of waiting.

Neighbours: every test that starts something. A test that sleeps a fixed time is either slow
or flaky; this polls often at first and less often later, and says at the end what was seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: First and longest pause between two looks, in seconds.
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.25


class DeadlineError(AssertionError):
    """The deadline passed; the text says what was awaited and what was last seen."""


def wait_until(predicate: Callable[[], T | None], timeout: float, what: str) -> T:
    """Calls `predicate` until its result is true and returns that result.

    `timeout` is in seconds, measured on the monotonic clock; the predicate is called at least
    once, and once more after the deadline. Raises DeadlineError, naming `what` and the last
    result. An exception of the predicate goes through: a look that may fail for a while
    catches its own errors and returns something false (say, the error's text in a tuple).
    """
    deadline = time.monotonic() + timeout
    pause = FIRST_PAUSE
    while True:
        late = time.monotonic() >= deadline
        result = predicate()
        if result:
            return result
        if late:
            raise DeadlineError(f"waited {timeout:g} s for {what}; last seen: {result!r}")
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(pause * 1.5, LONGEST_PAUSE)


def wait_equal(look: Callable[[], T], wanted: T, timeout: float, what: str) -> T:
    """Calls `look` until it returns `wanted`; the failure shows what it returned instead."""
    last: list[T] = []

    def matches() -> bool:
        last[:] = [look()]
        return last[0] == wanted

    try:
        wait_until(matches, timeout, what)
    except DeadlineError:
        raise DeadlineError(
            f"waited {timeout:g} s for {what} to be {wanted!r}; last seen: {last[0]!r}"
        ) from None
    return last[0]
