"""Which machines may be connected to: by default only those with a public address, whatever their name says.

The check stands where the connection is made: a name is resolved once, all its addresses are checked, and exactly those
are connected to. So neither a redirect nor a name that is resolved differently the next time (DNS rebinding) leads to
a private machine.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from liuyi.core.errors import DataError

Address = IPv4Address | IPv6Address
Lookup = Callable[[str], Awaitable[list[str]]]
"""Gives the addresses of a name."""

_NAT64 = IPv6Network("64:ff9b::/96")


class RefusedAddress(OSError):
    """An address that may not be connected to."""


class Policy:
    """Public addresses may be connected to, and those in the networks that are allowed by name."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        """`allowed` are networks such as `10.0.0.0/8` or single addresses. Raises DataError for what is neither."""
        try:
            self._allowed = [ip_network(one) for one in allowed]
        except ValueError as error:
            raise DataError(f"not a network: {error}", hint="write it as 10.0.0.0/8, or as one address") from None

    def check(self, host: str, address: str) -> None:
        """Raise RefusedAddress unless `address`, to which `host` leads, may be connected to."""
        parsed = ip_address(address.partition("%")[0])
        for inner in (parsed, *_embedded(parsed)):
            if any(inner in network for network in self._allowed if network.version == inner.version):
                continue
            if not inner.is_global or inner.is_multicast:
                raise RefusedAddress(f"{host} leads to {address}, which is not a public address")

    def socket(self, address: tuple[Any, ...]) -> socket.socket:
        """A socket for connecting to this address: the last gate, and the only one for addresses written as numbers."""
        family, kind, protocol, _, target = address
        self.check(str(target[0]), str(target[0]))
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made


class CheckedResolver(AbstractResolver):
    """Resolves a name and refuses it where any of its addresses may not be connected to."""

    def __init__(self, policy: Policy, lookup: Lookup | None = None) -> None:
        self._policy = policy
        self._lookup = lookup or _of_the_system

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = []
        for address in await self._lookup(host):
            self._policy.check(host, address)
            version = socket.AF_INET6 if ":" in address else socket.AF_INET
            if family in (socket.AF_UNSPEC, version):
                found.append(
                    ResolveResult(
                        hostname=host, host=address, port=port, family=version, proto=0, flags=socket.AI_NUMERICHOST
                    )
                )
        if not found:
            raise OSError(f"{host} has no address")
        return found

    async def close(self) -> None:
        """Nothing is held."""


async def _of_the_system(host: str) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _embedded(address: Address) -> list[Address]:
    """The IPv4 addresses inside an IPv6 address, to which a gateway may lead."""
    if isinstance(address, IPv4Address):
        return []
    found: list[Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in found if one is not None]
