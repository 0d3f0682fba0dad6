"""The two addresses of a connection, and the sockets made on them.

Floor: runtime. Addresses are literals; nothing here looks up names.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import Any

from pydrbd.errors import CommandFailed
from pydrbd.vocabulary import Failure

SocketAddress = tuple[Any, ...]
#: The peer's connections that may wait to be accepted.
_BACKLOG = 8


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """The network options of a connection: times in seconds, sizes in bytes (0: the system's default)."""

    resource: str
    local: tuple[str, int]
    peer: tuple[str, int]
    connect_int: float = 10.0
    ping_timeout: float = 0.5
    #: sock-check-timeo; 0: the ping time-out.
    sock_check_timeout: float = 0.0
    #: A peer that takes no data for so long is given up (timeout times ko-count; 0: never).
    send_timeout: float = 42.0
    #: The same for what is sent over the meta socket, which every peer reads at once.
    ack_timeout: float = 42.0
    sndbuf_size: int = 0
    rcvbuf_size: int = 0


def resolve(address: tuple[str, int]) -> tuple[socket.AddressFamily, SocketAddress]:
    """Family and socket address of a literal address. OSError when it is not one."""
    host, port = address
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV | socket.AI_PASSIVE
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return found[0][0], found[0][4]


def ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address without its scope, IPv4 ones out of their IPv6 form: comparable."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def show(address: tuple[str, int]) -> str:
    """An address for people: 10.1.2.3:7789, [fe80::1]:7789."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _socket(family: socket.AddressFamily, options: LinkOptions) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Before connect and listen: the window scale is chosen with the first packet.
    set_buffers(sock, options)
    return sock


def set_buffers(sock: socket.socket, options: LinkOptions) -> None:
    """The sizes of its buffers, if they are given; a socket that has had a size never gets back to the
    system's own choice."""
    if options.sndbuf_size:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.sndbuf_size)
    if options.rcvbuf_size:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.rcvbuf_size)


def listening_socket(options: LinkOptions) -> socket.socket:
    """A socket that listens on the local address. OSError."""
    family, address = resolve(options.local)
    sock = _socket(family, options)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def dialing_socket(options: LinkOptions) -> tuple[socket.socket, SocketAddress]:
    """A socket bound to the local address, any port, and the peer's address to connect it to. OSError."""
    family, target = resolve(options.peer)
    _, source = resolve((options.local[0], 0))
    sock = _socket(family, options)
    try:
        sock.bind(source)
    except BaseException:
        sock.close()
        raise
    return sock, target


def alive(sock: socket.socket) -> bool:
    """False when the other end closed the connection or it failed."""
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def listen_failure(options: LinkOptions, error: OSError) -> CommandFailed:
    """What `connect` says when the local address cannot be listened on."""
    where = show(options.local)
    if error.errno == errno.EADDRINUSE:
        return CommandFailed(
            options.resource,
            Failure.LOCAL_ADDRESS_IN_USE,
            f"Another process or resource listens on {where}; see `ss -tlnp`.",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        hint = "no interface of this host has that address"
    else:
        hint = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    return CommandFailed(options.resource, Failure.INVALID_REQUEST, f"Cannot listen on {where}: {hint}.")


def is_local(family: str, host: str) -> bool:
    """Is `host` (family 'ipv4' or 'ipv6') an address of this machine, one that can be bound to?"""
    kind = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
    try:
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True
