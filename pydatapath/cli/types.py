"""Words of the command line, made into values at the edge: no command splits a string."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

import click

from pydatapath.editing import PortSpec
from pydatapath.kernel.layout import Family

__all__ = ["ADDRESS", "BACKEND", "FAMILIES", "IP_FAMILY", "PORT", "TARGET_PORT"]

MOST = 65535
# What --ip-family means
FAMILIES: Final = {"ipv4": (Family.IPV4,), "ipv6": (Family.IPV6,), "dual": (Family.IPV4, Family.IPV6)}


class PortType(click.ParamType[PortSpec]):
    """`80`, `53/udp`, `3868/sctp`, `http=80/tcp`."""

    name = "port"
    _form = re.compile(r"(?:([a-z0-9-]*)=)?(\d{1,5})(?:/(tcp|udp|sctp))?", re.IGNORECASE)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> PortSpec:
        """To a PortSpec whose target port is its port."""
        if isinstance(value, PortSpec):
            return value
        match = self._form.fullmatch(value)
        if match is None or not 1 <= int(match[2]) <= MOST:
            forms = "such as 80, 53/udp, 3868/sctp or http=80/tcp"
            self.fail(f"{value!r} is no port: {forms}, from 1 to {MOST}", param, ctx)
        number = int(match[2])
        return PortSpec(match[1] or "", (match[3] or "tcp").upper(), number, number)


class AddressType(click.ParamType[str]):
    """An IP address of either family, in any spelling."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """To its canonical form, which flows and objects have."""
        try:
            return str(ip_address(value))
        except ValueError:
            self.fail(f"{value!r} is no IP address: such as 10.244.1.11 or fd00:10:244:1::11", param, ctx)


class BackendType(click.ParamType[tuple[str, int | None]]):
    """`10.244.1.11:8080` or `[fd00:10:244:1::11]:8080`, or the address alone, IPv6's with brackets or without."""

    name = "backend"
    _bracketed = re.compile(r"\[([^]]*)\](?::(.*))?")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int | None]:
        """To a canonical address and a port (None: the service's target port)."""
        if isinstance(value, tuple):
            return value
        problem, address, port = self._parts(value)
        if not problem and port is not None and not (port.isascii() and port.isdecimal() and 1 <= int(port) <= MOST):
            problem = f"{port!r} is no port from 1 to {MOST}"
        if problem:
            self.fail(f"{value!r} is no backend: {problem}", param, ctx)
        return address, None if port is None else int(port)

    def _parts(self, text: str) -> tuple[str, str, str | None]:
        """What is wrong with it, or ""; its address and its port."""
        match = self._bracketed.fullmatch(text)
        if match:
            address, port = _ipv6(match[1]), match[2]
        elif text.count(":") > 1:
            host, _, last = text.rpartition(":")
            if last.isdecimal() and _ipv6(host):
                return f"write [{host}]:{last}, or [{text}] for an address alone", "", None
            address, port = _ipv6(text), None
        else:
            host, colon, last = text.partition(":")
            address, port = _ipv4(host), last if colon else None
        expected = "IP:PORT is expected, such as 10.244.1.11:8080 or [fd00:10:244:1::11]:8080"
        return "" if address else expected, address, port


def _ipv4(text: str) -> str:
    """The address in its canonical form, "" for what is none."""
    try:
        return str(IPv4Address(text))
    except ValueError:
        return ""


def _ipv6(text: str) -> str:
    try:
        return str(IPv6Address(text))
    except ValueError:
        return ""


PORT = PortType()
ADDRESS = AddressType()
BACKEND = BackendType()
TARGET_PORT = click.IntRange(1, MOST)
IP_FAMILY = click.Choice(list(FAMILIES), case_sensitive=False)
