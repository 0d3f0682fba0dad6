"""The compiled module. Offsets and lengths are in bytes, times in seconds of the monotonic clock."""

from typing import Literal

Buffer = bytes | bytearray | memoryview

def write_all(fd: int, data: Buffer, offset: int, /) -> None:
    """Write all of `data`, in parts as the page cache likes them best. OSError."""

class Mutex:
    """A lock that compiled threads can take as well."""

    def acquire(self) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> Mutex: ...
    def __exit__(self, *args: object) -> None: ...

class Flusher:
    """Makes a disk durable, for all who ask at the same time at once. After a failure it only fails."""

    def flush(self, fd: int, /) -> None:
        """Every write that was completed before is durable. `fd`: of the disk's one open file. OSError."""

class Outlet:
    """Where the packets of one socket leave.

    Its lock orders those who send: PeerSocket and the threads of the lane. `backlog` counts the packets that
    Python has queued; while there are any, the lane sends no write.
    """

    #: Python has sent a part of a packet (set with the lock).
    half: bool

    def __init__(self, fd: int) -> None: ...
    @property
    def backlog(self) -> int: ...
    @property
    def failed(self) -> int:
        """The errno of a send of the lane that failed, or 0."""

    @property
    def taken(self) -> int:
        """Bytes of such that the kernel has taken from the lane itself."""

    @property
    def spilled(self) -> bool:
        """Are there bytes of the lane that have to be sent before the queue?"""

    def add(self, count: int, /) -> None:
        """So many packets were queued (under the mutex), or were sent (negative; with the lock)."""

    def acquire(self) -> None: ...
    def release(self) -> None: ...
    def take_spill(self) -> bytes | None:
        """With the lock: the spilled bytes; they count as one packet."""

    def close(self) -> None:
        """With the lock: nothing is sent any more."""

class Lane:
    """The lane's book (engine.lane.Table says what those methods do), with what its threads do.

    Everything is called under the mutex, except write, read, flush, receive, histogram and nanoseconds.
    """

    def __init__(self, mutex: Mutex, volume: int, /) -> None: ...
    @property
    def mode(self) -> int: ...
    @property
    def logged(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def bytes_in_flight(self) -> int: ...
    @property
    def current_count(self) -> int: ...
    @property
    def opened(self) -> float: ...
    def open_client(
        self,
        size: int,
        hot: list[int],
        max_epoch: int,
        max_logged: int,
        epoch: int,
        bits: bytearray | None,
        /,
    ) -> bool: ...
    def open_peer(self, size: int, bits: bytearray | None, /) -> bool: ...
    @property
    def syncing(self) -> bool: ...
    def close(self) -> None: ...
    def serve_reads(self, on: bool, size: int, /) -> None: ...
    def busy(self) -> list[int]: ...
    def ident(self, slot: int, /) -> int: ...
    def take(self, slot: int, /) -> tuple[int, int, int, int, float, int, int]: ...
    def release(self, slot: int, /) -> None: ...
    def members(self) -> list[tuple[int, int, int, int]]: ...
    def cut(self, number: int, /) -> int: ...
    @property
    def epoch(self) -> int: ...
    def adopt(self) -> list[tuple[int, float]]: ...
    def set_epoch(self, number: int, /) -> None: ...
    def let_flush(self, on: bool, /) -> None: ...
    def oldest(self) -> tuple[int, int, int] | None: ...
    def confirmed(self) -> None: ...
    def heat(self, extent: int, hot: bool, /) -> None: ...
    def referenced(self, extent: int, /) -> bool: ...
    def block(self, start: int, end: int, on: bool, /) -> None: ...
    def overlapping(self, start: int, end: int, /) -> int: ...
    def next_sequence(self) -> int: ...
    def set_sequence(self, sequence: int, /) -> None: ...
    def oldest_sent(self) -> float | None: ...
    def peer_take(self) -> tuple[int, int, int] | None: ...
    def peer_over(self) -> None: ...
    def peer_count(self) -> int: ...
    def peer_overlaps(self, start: int, end: int, /) -> bool: ...
    def cleared(self) -> tuple[int, list[int]] | None: ...
    def let_answer(self, on: bool, /) -> None: ...
    def answers(self) -> list[tuple[int, int, bool]]: ...
    def answer_begin(self, offset: int, length: int, /) -> bool:
        """A request of the resync: True: it is being answered."""

    def answer_end(self, ok: bool, full: bool, /) -> bool:
        """Its blocks were read. False: the engine has to answer it."""

    def sums(self) -> tuple[int, int, int, int]: ...
    @property
    def attached(self) -> bool:
        """Does it have the sockets of a session?"""

    @property
    def has_disk(self) -> bool: ...
    @property
    def serves_reads(self) -> bool: ...
    def attach(self, data: Outlet, meta: Outlet, wake_fd: int, /) -> bool:
        """Use these sockets; `wake_fd` is an eventfd that calls the loop's thread. MemoryError.

        False: not now, a thread of the session before is still at a write.
        """

    def detach(self) -> None:
        """Forget the sockets, and what was read from them and not handed on."""

    def set_disk(self, fd: int, flusher: Flusher | None = None, /) -> None:
        """Use (a duplicate of) this descriptor, which `flusher` makes durable; -1: none. OSError."""

    def call_data(self) -> None:
        """Call the data thread out of `receive`."""

    def heard(self, channel: int, /) -> bool:
        """Has anything come on the data (0) or meta (1) socket since this was asked last?"""

    def begin(self, offset: int, length: int, now: float, /) -> int:
        """A write of a client: its slot, or -1 if it is none for the lane."""

    def is_taken(self, slot: int, /) -> bool: ...
    def acked(self, ident: int, offset: int, length: int, in_sync: bool = False, /) -> int:
        """WRITE_ACK, or RS_WRITE_ACK (`in_sync`): the slot of its write, or -1."""

    def local_done(self, slot: int, ok: bool, /) -> bool:
        """True: the write is complete and its slot is free."""

    def cut_own(self) -> int | None:
        """End the epoch because of a flush of the lane; its number if it has writes."""

    def barrier_acked(self, number: int, count: int, /) -> bool:
        """BARRIER_ACK: is it of an epoch that a flush of the lane has ended? Then that is confirmed now."""

    def peer_begin(self, offset: int, length: int, ident: int, /) -> bool: ...
    def peer_done(self, ok: bool, /) -> bool:
        """False: Python has taken the peer's write over, or has to."""

    def histogram(self, stage: int, /) -> list[int]:
        """How many times took how long: see runtime/latency.py."""

    def nanoseconds(self, stage: int, /) -> int:
        """The sum of those times."""

    def write(
        self, data: bytes | bytearray | memoryview, offset: int, /
    ) -> Literal[False] | tuple[int, int] | None:
        """A client's whole write. None: done; False: it is none for the lane, nothing has happened;
        else the slot and the errno of the disk (0: none): the engine goes on with it (Lane.ended)."""

    def read(self, into: bytearray | memoryview, offset: int, /) -> bool:
        """A client's whole read. False: not for the lane."""

    def flush(self) -> bool:
        """A client's whole flush. False: the engine has to do it."""

    def serve(self) -> None:
        """Serve the requests that come by way of nbdkit's filter, until the process ends."""

    def receive(
        self, channel: int, linger_ms: int, most: float, /
    ) -> bytes | tuple[int, int] | tuple[None, int] | None:
        """Read the data (0) or meta (1) socket; stay while the lane has work, up to `most` seconds; on the
        data socket also while there is nothing, up to `linger_ms` at a time.

        None: nothing for Python. bytes: whole packets for Python. (0, errno): the socket has ended (0) or
        failed. (None, errno): a write of the peer is carried out (0) or has failed, and the engine goes on
        with it (Lane.peer_ended).
        """
