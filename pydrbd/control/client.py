"""The end of the control socket in a command.

Floor: control. Neighbours: `protocol`; used by cli/. Imports neither the engine nor uvloop.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydrbd.control.address import address_of
from pydrbd.control.protocol import FrameCutError, FrameTimeoutError, receive, send
from pydrbd.errors import ControlError, PydrbdError

#: Seconds to wait for the connection to be taken, and for a reply unless the caller says otherwise.
CONNECT_TIMEOUT = 10.0
REPLY_TIMEOUT = 120.0
#: For a promotion with fencing: fence-peer may take 300 s, and wait for another handler that does.
FENCING_TIMEOUT = 2 * 300.0 + REPLY_TIMEOUT


def promotion_timeout(fencing: str) -> float:
    """Seconds to wait for the reply to a promotion, with this option `fencing`."""
    return REPLY_TIMEOUT if fencing == "dont-care" else FENCING_TIMEOUT


class NotUpError(ControlError):
    """Nobody answers on the control socket: the resource is not up, or its process died."""


class RemoteError(PydrbdError):
    """An error that the resource's process answered; `kind` is its class, `exit_code` its exit code."""

    def __init__(self, kind: str, text: str, exit_code: int) -> None:
        self.kind, self.exit_code = kind, exit_code
        super().__init__(text)


class Client:
    """Sends commands to the process that listens on `path`; one connection per command."""

    def __init__(self, path: Path | str, *, name: str = "") -> None:
        """`name` is the resource, for error texts."""
        self._path = Path(path)
        self._name = name or self._path.stem

    def call(self, verb: str, *, timeout: float | None = REPLY_TIMEOUT, **args: Any) -> Any:
        """The command's result. NotUpError, RemoteError, or ControlError when the answer is no answer.

        `timeout` counts from one message to the next; None waits for ever.
        """
        last: Any = None
        for final, value in self._exchange(verb, args, timeout):
            if final:
                last = value
        return last

    def stream(self, verb: str, *, timeout: float | None = REPLY_TIMEOUT, **args: Any) -> Iterator[Any]:
        """The command's progress values as they come, and the result as the last one."""
        for _, value in self._exchange(verb, args, timeout):
            yield value

    def _exchange(self, verb: str, args: dict[str, Any], timeout: float | None) -> Iterator[tuple[bool, Any]]:
        with self._connect() as sock:
            try:
                # A server that is full answers without reading: its reply is there though sending fails.
                with contextlib.suppress(BrokenPipeError):
                    send(sock, {"verb": verb, "args": args}, CONNECT_TIMEOUT)
                while True:
                    message = receive(sock, timeout)
                    if message is None:
                        raise self._died(verb)
                    if "progress" in message:
                        yield False, message["progress"]
                        continue
                    yield True, self._result(message)
                    return
            except FrameTimeoutError as error:
                raise ControlError(
                    f"{self._name}: its process did not answer '{verb}' within {timeout:.0f} seconds; "
                    f"see its log, and `pydrbd status {self._name}`"
                ) from error
            except (FrameCutError, OSError) as error:
                raise self._died(verb) from error

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(CONNECT_TIMEOUT)
        end = time.monotonic() + CONNECT_TIMEOUT
        try:
            with address_of(self._path) as address:
                while True:
                    try:
                        sock.connect(address)
                        break
                    except BlockingIOError:
                        # Many are connecting at this moment; a unix socket does not wait by itself.
                        if time.monotonic() > end:
                            raise
                        time.sleep(0.02)
        except OSError as error:
            sock.close()
            raise self._not_up(error) from error
        return sock

    def _not_up(self, error: OSError) -> ControlError:
        if isinstance(error, FileNotFoundError):
            return NotUpError(
                f"{self._name}: not up: it has no process on this node; `pydrbd up {self._name}` starts it"
            )
        if isinstance(error, ConnectionRefusedError):
            return NotUpError(
                f"{self._name}: not up: its process is gone and left the socket {self._path}; "
                f"`pydrbd up {self._name}` starts it again"
            )
        if isinstance(error, PermissionError):
            return ControlError(f"{self._name}: no permission to use {self._path}; run the command as root")
        return ControlError(
            f"{self._name}: cannot reach its process at {self._path}: {error.strerror or error}"
        )

    def _died(self, verb: str) -> ControlError:
        return ControlError(
            f"{self._name}: its process ended while it worked on '{verb}'; "
            f"whether that took effect is not known. `pydrbd up {self._name}` starts it again"
        )

    @staticmethod
    def _result(message: dict[str, Any]) -> Any:
        if "ok" in message:
            return message["ok"]
        kind, text, code = message.get("error"), message.get("text"), message.get("exit_code")
        if isinstance(kind, str) and isinstance(text, str) and type(code) is int and 0 < code < 256:
            raise RemoteError(kind, text, code)
        raise ControlError("the answer on the control socket is neither a result nor an error")
