"""The end of the control socket in a resource's process: one thread per client, bounded.

Floor: control. Neighbours: `protocol` (framing), node.py, which owns a server and answers
`command(verb, args)`. Invariants:
- No bytes from a client end the process, hold a thread longer than IDLE seconds without a whole
  request, or reach `command` unless they are a well-formed request.
- The socket has mode 0600 from the moment it exists.
- After stop() no thread of the server calls `command` again.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Protocol

from pydrbd.control.address import address_of
from pydrbd.control.protocol import MAX_FRAME, FrameError, error_reply, parse_request, receive, send
from pydrbd.errors import ControlError, PydrbdError

#: Clients served at the same time; one more is told so and closed.
MAX_CLIENTS = 32
#: Seconds a client may take for a whole request, or to take a reply.
IDLE = 30.0
#: Seconds in which a process that is just ending may still answer: its lock is released before all else is.
ENDING = 3.0
#: Seconds that one client too many may take of the acceptor's time, which others wait for.
REFUSAL = 0.05


class Stream:
    """A result that comes in parts, each of them sent at once; behind the last one the reply is None.

    Iterating may raise a PydrbdError: that is the reply then. `close` is called when nobody reads any more.
    """

    def __init__(self, parts: Iterator[Any], close: Callable[[], None] = lambda: None) -> None:
        self.parts, self.close = parts, close


class Commands(Protocol):
    """What a server serves. A result is the reply, a Stream, or an iterator of progress values.

    An iterator's last item counts as the reply.
    """

    def command(self, verb: str, args: dict[str, Any]) -> Any: ...


class ControlServer:
    """Listens on `path` and passes requests to `node.command`."""

    def __init__(
        self,
        node: Commands,
        path: Path | str,
        *,
        idle: float = IDLE,
        max_clients: int = MAX_CLIENTS,
        log: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """`log` is told of unexpected exceptions, one line each."""
        self._node, self._path = node, Path(path)
        self._idle, self._max_clients, self._log = idle, max_clients, log
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._clients: dict[socket.socket, threading.Thread] = {}
        self._stopping = False
        self._acceptor: threading.Thread | None = None

    def start(self) -> None:
        """Listen. ControlError when another process already answers on the socket or it cannot be made."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._remove_stale()
            # Before bind: Linux gives the file the mode of the unbound socket, so it is never wider.
            os.fchmod(listener.fileno(), 0o600)
            with address_of(self._path) as address:
                listener.bind(address)
            self._path.chmod(0o600)
            listener.listen(self._max_clients)
        except OSError as error:
            listener.close()
            raise ControlError(
                f"cannot make the control socket {self._path}: {error.strerror or error}"
            ) from error
        except ControlError:
            listener.close()
            raise
        self._listener = listener
        self._acceptor = threading.Thread(target=self._accept, name="control", daemon=True)
        self._acceptor.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Close the socket and every client; wait up to `timeout` seconds for running commands."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            clients = dict(self._clients)
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for sock in clients:
            # Reading only: a command that is answering right now (down) may still send its reply.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RD)
        for thread in [*clients.values(), self._acceptor]:
            if thread is not None and thread is not threading.current_thread():
                thread.join(timeout / (len(clients) + 1))

    def _remove_stale(self) -> None:
        """Take away the file that an ended process has left. ControlError: another one answers on it."""
        deadline = time.monotonic() + ENDING
        while self._path.is_socket():
            if not self._answers():
                self._path.unlink(missing_ok=True)
                return
            if time.monotonic() > deadline:
                raise ControlError(f"another process already answers on the control socket {self._path}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, address_of(self._path) as address:
            probe.settimeout(2.0)
            try:
                probe.connect(address)
            except (ConnectionRefusedError, FileNotFoundError):
                return False
        return True

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                if self._stopping:
                    return
                # Out of descriptors, most likely: wait a little instead of spinning.
                threading.Event().wait(0.1)
                continue
            with self._lock:
                if self._stopping:
                    client.close()
                    return
                full = len(self._clients) >= self._max_clients
                if not full:
                    thread = threading.Thread(
                        target=self._serve, args=(client,), name="control-client", daemon=True
                    )
                    # Under the lock, so that stop() never joins a thread that was not started.
                    full = not self._begin(thread)
                    if not full:
                        self._clients[client] = thread
            if full:
                self._refuse(client)

    def _begin(self, thread: threading.Thread) -> bool:
        """False: the system has no thread left for it. Who accepts must not end by that."""
        try:
            thread.start()
        except RuntimeError as error:
            self._log(f"no thread for a control connection: {error}")
            return False
        return True

    def _refuse(self, client: socket.socket) -> None:
        text = f"more than {self._max_clients} control connections are open; try again when some have ended"
        with contextlib.suppress(OSError, FrameError):
            _say_and_drain(client, error_reply(ControlError(text)), REFUSAL)
        client.close()

    def _serve(self, client: socket.socket) -> None:
        try:
            while not self._stopping and self._one(client):
                pass
        except (OSError, FrameError):
            pass
        finally:
            with self._lock:
                self._clients.pop(client, None)
            client.close()

    def _one(self, client: socket.socket) -> bool:
        """Serve one request; False when the connection is to be closed."""
        try:
            message = receive(client, self._idle)
            if message is None or self._stopping:
                return False
            verb, args = parse_request(message)
        except FrameError as error:
            _say_and_drain(client, error_reply(error), min(self._idle, 2.0))
            return False
        with contextlib.closing(self._answer(verb, args)) as replies:
            for reply in replies:
                try:
                    send(client, reply, self._idle)
                except FrameError as error:
                    send(client, error_reply(error), self._idle)
        return True

    def _answer(self, verb: str, args: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        try:
            result = self._node.command(verb, args)
            if isinstance(result, Stream):
                try:
                    for part in result.parts:
                        yield {"progress": part}
                finally:
                    result.close()
                yield {"ok": None}
                return
            if not isinstance(result, Iterator):
                yield {"ok": result}
                return
            last: Any = None
            for number, item in enumerate(result):
                if number:
                    yield {"progress": last}
                last = item
            yield {"ok": last}
        except PydrbdError as error:
            yield error_reply(error)
        except Exception as error:  # the boundary: a bug in one command must not end the resource
            self._log(f"internal error in command {verb[:40]!r}: {type(error).__name__}: {error}")
            text = (
                f"internal error in command {verb[:40]!r}: {type(error).__name__}: {error}; please report it"
            )
            yield {"error": "InternalError", "text": text, "exit_code": 20}


def _say_and_drain(client: socket.socket, reply: dict[str, Any], timeout: float) -> None:
    """Send a last reply, then read on a little: closing with unread input would reset the connection."""
    send(client, reply, timeout)
    client.shutdown(socket.SHUT_WR)
    deadline = time.monotonic() + timeout
    for _ in range(2 * MAX_FRAME // 65536):
        client.settimeout(max(0.001, deadline - time.monotonic()))
        if not client.recv(65536):
            return
