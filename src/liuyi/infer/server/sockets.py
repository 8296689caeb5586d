"""Sockets to listen on, with errors that say what to do."""

from __future__ import annotations

import ipaddress
import socket

from liuyi.core.errors import LiuyiError


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 takes a free one.

    Raises LiuyiError if the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns off Nagle's delay only where the protocol is named.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host.strip("[]"), port))
    except OSError as error:
        bound.close()
        reason = error.strerror or str(error)
        raise LiuyiError(f"cannot listen on {host}:{port}: {reason}", hint="choose another --port") from error
    return bound


def is_everywhere(bound: socket.socket) -> bool:
    """Whether a bound socket listens on all addresses of this machine."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_unspecified


def url_of(bound: socket.socket) -> str:
    """The URL at which this machine reaches a bound socket."""
    host, port = bound.getsockname()[:2]
    if is_everywhere(bound):
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
