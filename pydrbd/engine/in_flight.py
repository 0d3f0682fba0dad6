"""How much the target of a resync has asked for and not got yet: c-fill-target, c-delay-target, c-plan-ahead.

Floor: engine. Neighbours: resync (asks, and says what came), pacing (c-max-rate, the upper limit of the
rate). Whatever is on the way to the target delays what comes behind it, a client's write for one; and when
too little is on the way, the link stands idle. The target wants in flight

- c-fill-target bytes, or what arrives in TURN seconds if that is more: what comes back so soon waits
  nowhere, and a link of short ways is used to the full whatever the target is;
- with c-fill-target 0: what arrives in c-delay-target seconds, so that an answer takes that long.

What arrives is measured, as a mean that follows a change within c-plan-ahead. Where the way there and back
takes longer than TURN (or c-delay-target), no more is wanted than c-fill-target (or LEAST).

Invariants: what is in flight was wanted when it was asked for, rounded to whole requests (up by half a one at
the most, except where one is alone). Something may always be asked for, so a resync never stands still for
it. With c-plan-ahead 0 there is no limit here. No clock of its own: who calls says the time, in any steps.

DRBD 8.4 has the options and the aims; it counts what is still in flight every tenth of a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine.pacing import REQUEST_BYTES, SMALLEST_REQUEST
from pydrbd.units import BIT_BYTES

if TYPE_CHECKING:
    from pydrbd.engine.options import VolumeOptions

#: As long as one of DRBD's turns: what is answered within it, DRBD never sees in flight.
TURN = 0.1
#: Wanted in flight at the least under c-delay-target, in bytes.
LEAST = SMALLEST_REQUEST
#: So many requests arrive in a turn, unless they were smaller than SMALLEST_REQUEST then. More of them would
#: hold a slow processor up, whose work is by the request.
_REQUESTS = 4
#: Steps of the clock shorter than this are put together (seconds).
_SHORTEST_STEP = 0.01
#: The mean has followed a change by all but e**-4 after c-plan-ahead.
_LAGS = 4.0


class InFlight:
    """Of the resync of one volume, on its target. Bytes and seconds."""

    def __init__(self, options: VolumeOptions) -> None:
        #: Bytes that arrive in a second, about.
        self.arriving = 0.0
        self._came = 0
        self._began = self._at = 0.0
        self.take(options)

    def take(self, options: VolumeOptions) -> None:
        """Other options from now on; what was measured still counts."""
        #: There is a limit (c-plan-ahead is not 0).
        self.limited = options.c_plan_ahead > 0
        self._fill, self._span = options.c_fill_target, TURN
        if not self._fill:
            self._fill, self._span = LEAST, options.c_delay_target
        self._lag = options.c_plan_ahead / 10 / _LAGS
        self._first = options.resync_rate

    def begin(self, now: float) -> None:
        """A resync begins, as if resync-rate were arriving."""
        self.arriving, self._came = float(self._first), 0
        self._began = self._at = now

    def came(self, length: int) -> None:
        """So much of what was asked for has come and is written here, or will not come."""
        self._came += length

    def look(self, now: float) -> None:
        """Judge what has come since the last time."""
        step = now - self._at
        if not self.limited or not self._came or step < _SHORTEST_STEP:
            # On a slow link long steps without anything are between two answers.
            return
        # At the beginning: the mean of all that there was.
        lag = min(self._lag, now - self._began)
        self.arriving += (self._came / step - self.arriving) * min(1.0, step / lag)
        self._came, self._at = 0, now

    @property
    def wanted(self) -> int:
        """Bytes in flight."""
        return max(self._fill, int(self.arriving * self._span))

    def most(self, length: int) -> int:
        """Bytes of one request, of `length` without a limit; whole blocks, if `length` is."""
        if not self.limited:
            return length
        share = max(int(self.arriving * TURN / _REQUESTS), min(self.wanted, SMALLEST_REQUEST))
        return min(length, max(BIT_BYTES, share // BIT_BYTES * BIT_BYTES))

    def may_ask(self, in_flight: int) -> bool:
        """May one request more be made beside what is in flight?"""
        return not (self.limited and in_flight) or in_flight + self.most(REQUEST_BYTES) // 2 <= self.wanted
