"""Words of the command line, made into values at the edge: no command splits a string."""

from __future__ import annotations

import re
from typing import Any

import click

from pydatapath.editing import PortSpec, is_address

__all__ = ["BACKEND", "PORT", "TARGET_PORT"]

MOST = 65535


class PortType(click.ParamType[PortSpec]):
    """`80`, `53/udp`, `http=80/tcp`."""

    name = "port"
    _form = re.compile(r"(?:([a-z0-9-]*)=)?(\d{1,5})(?:/(tcp|udp))?", re.IGNORECASE)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> PortSpec:
        """To a PortSpec whose target port is its port."""
        if isinstance(value, PortSpec):
            return value
        match = self._form.fullmatch(value)
        if match is None or not 1 <= int(match[2]) <= MOST:
            self.fail(f"{value!r} is no port: such as 80, 53/udp or http=80/tcp, from 1 to {MOST}", param, ctx)
        number = int(match[2])
        return PortSpec(match[1] or "", (match[3] or "tcp").upper(), number, number)


class BackendType(click.ParamType[tuple[str, int | None]]):
    """`10.244.1.11:8080`, or the address alone."""

    name = "backend"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int | None]:
        """To an address and a port (None: the service's target port)."""
        if isinstance(value, tuple):
            return value
        address, colon, port = value.partition(":")
        if not is_address(address):
            self.fail(f"{value!r} is no backend: IP:PORT is expected, such as 10.244.1.11:8080", param, ctx)
        if not colon:
            return address, None
        if not (port.isascii() and port.isdecimal() and 1 <= int(port) <= MOST):
            self.fail(f"{value!r} is no backend: {port!r} is no port from 1 to {MOST}", param, ctx)
        return address, int(port)


PORT = PortType()
BACKEND = BackendType()
TARGET_PORT = click.IntRange(1, MOST)
