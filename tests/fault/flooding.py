"""Floods: frames by the hundred in one system call, from one namespace of a lab to another. Bounded by their count."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Self

from pydatapath.lab import Host

__all__ = ["Flood", "by_destination_port", "by_identification", "by_source", "ip", "mac_of", "quoting", "tcp", "udp"]

ICMPV6 = 58
AT_ONCE = 256  # frames in a call
PACKET_QDISC_BYPASS, SOL_PACKET = 20, 263  # include/uapi/linux/if_packet.h
# Where the fields of a frame are: Ethernet is 14 bytes, IPv4 without options 20, IPv6 40
IPV6_MORE, IPV6_SOURCE = 20, 34  # bytes; of its source the last four
IDENTIFICATION, IP_CHECK, SOURCE, DESTINATION, SOURCE_PORT, DESTINATION_PORT = 18, 24, 26, 30, 34, 36
U16, U32 = struct.Struct("!H"), struct.Struct("!I")
Vary = Callable[[bytearray, int, int], None]


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr (recvmmsg(2))."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iov_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint32),
    )


_libc = ctypes.CDLL(None, use_errno=True)


def sum_of(data: bytes) -> int:
    """Of all its 16-bit words."""
    return sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1])) + (data[-1] << 8 if len(data) & 1 else 0)


def check(total: int) -> int:
    """The Internet checksum of what has this sum (RFC 1071)."""
    return -total % 0xFFFF


def mac_of(host: Host, device: str = "eth0") -> str:
    """The address of an interface."""
    told = json.loads(host.exec(["ip", "-j", "link", "show", device], check=True).stdout)
    return str(told[0]["address"])


def ip(
    macs: tuple[str, str],
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    fragment: int = 0,
    identification: int = 1,
) -> bytes:
    """An Ethernet frame (`macs`: from, to) with IP of the addresses' family. `fragment`: IPv4's word of flags and
    offset.
    """
    ends = ip_address(source).packed + ip_address(destination).packed
    ethernet = bytes.fromhex((macs[1] + macs[0]).replace(":", ""))
    if ":" in source:
        return ethernet + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + ends + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), identification, fragment, 64, protocol, 0) + ends
    head = head[:10] + U16.pack(check(sum_of(head))) + head[12:]
    return ethernet + b"\x08\x00" + head + payload


def _summed(source: str, destination: str, protocol: int, segment: bytes, place: int) -> bytes:
    ends = ip_address(source).packed + ip_address(destination).packed
    total = sum_of(ends) + protocol + len(segment) + sum_of(segment)
    return segment[:place] + U16.pack(check(total)) + segment[place + 2 :]


def tcp(
    macs: tuple[str, str], source: tuple[str, int], destination: tuple[str, int], flags: int, sequence: int = 1
) -> bytes:
    """A TCP segment without data."""
    head = struct.pack("!HHIIBBHHH", source[1], destination[1], sequence, 1, 5 << 4, flags, 65_535, 0, 0)
    return ip(macs, source[0], destination[0], 6, _summed(source[0], destination[0], 6, head, 16))


def udp(
    macs: tuple[str, str], source: tuple[str, int], destination: tuple[str, int], data: bytes = b"flood", **more: Any
) -> bytes:
    """A UDP datagram; `more` as of `ip`, where it is a fragment without checksum."""
    head = struct.pack("!HHHH", source[1], destination[1], 8 + len(data) + (1480 if more else 0), 0) + data
    segment = head if more else _summed(source[0], destination[0], 17, head, 6)
    return ip(macs, source[0], destination[0], 17, segment, **more)


def quoting(macs: tuple[str, str], source: str, destination: str, kind: tuple[int, int], frame: bytes) -> bytes:
    """An ICMP error of this type and code about a frame, of its family."""
    if _is_ipv6(frame):
        error = struct.pack("!BBHI", *kind, 0, 0) + frame[14 : 14 + 48]
        return ip(macs, source, destination, ICMPV6, _summed(source, destination, ICMPV6, error, 2))
    error = struct.pack("!BBHI", *kind, 0, 0) + frame[14 : 14 + 28]
    return ip(macs, source, destination, 1, error[:2] + U16.pack(check(sum_of(error))) + error[4:])


def _is_ipv6(frame: bytes) -> bool:
    return frame[12:14] == b"\x86\xdd"


def by_source(frame: bytes, transport_check: int, first: str, count: int) -> Vary:
    """Changes source address and port from frame to frame: `count` addresses from `first`. `transport_check`: where the
    checksum of TCP (50) or UDP (40) is in the frame, in IPv6 IPV6_MORE behind that.
    """
    six = _is_ipv6(frame)
    source, source_port = (IPV6_SOURCE, SOURCE_PORT + IPV6_MORE) if six else (SOURCE, SOURCE_PORT)
    start = int(ip_address(first)) & 0xFFFFFFFF
    was = sum_of(frame[source : source + 4])
    ip_rest = (~U16.unpack_from(frame, IP_CHECK)[0] & 0xFFFF) - was
    rest = (~U16.unpack_from(frame, transport_check)[0] & 0xFFFF) - was - U16.unpack_from(frame, source_port)[0]

    def vary(buffer: bytearray, place: int, number: int) -> None:
        address = start + number % count
        port = 1024 + (number * 7919) % 60_000
        words = (address >> 16) + (address & 0xFFFF)
        U32.pack_into(buffer, place + source, address)
        U16.pack_into(buffer, place + source_port, port)
        if not six:
            U16.pack_into(buffer, place + IP_CHECK, -(ip_rest + words) % 0xFFFF)
        U16.pack_into(buffer, place + transport_check, -(rest + words + port) % 0xFFFF)

    return vary


def by_destination_port(frame: bytes) -> Vary:
    """Changes the destination port of UDP, from 1 on; in IPv4 without a checksum."""
    six = _is_ipv6(frame)
    place_of_port, place_of_check = (DESTINATION_PORT + IPV6_MORE, 40 + IPV6_MORE) if six else (DESTINATION_PORT, 40)
    rest = (~U16.unpack_from(frame, place_of_check)[0] & 0xFFFF) - U16.unpack_from(frame, place_of_port)[0]
    assert U16.unpack_from(frame, place_of_check)[0]

    def vary(buffer: bytearray, place: int, number: int) -> None:
        port = 1 + number % 65_000
        U16.pack_into(buffer, place + place_of_port, port)
        U16.pack_into(buffer, place + place_of_check, (-(rest + port) % 0xFFFF or 0xFFFF) if six else 0)

    return vary


def by_identification(frame: bytes) -> Vary:
    """Changes the identification of a datagram, for fragments, and with every round of them the source."""
    start = int.from_bytes(frame[SOURCE : SOURCE + 4], "big")
    was = sum_of(frame[SOURCE : SOURCE + 4]) + U16.unpack_from(frame, IDENTIFICATION)[0]
    rest = (~U16.unpack_from(frame, IP_CHECK)[0] & 0xFFFF) - was

    def vary(buffer: bytearray, place: int, number: int) -> None:
        address, identification = start + number // 65_536, number & 0xFFFF
        U32.pack_into(buffer, place + SOURCE, address)
        U16.pack_into(buffer, place + IDENTIFICATION, identification)
        total = rest + (address >> 16) + (address & 0xFFFF) + identification
        U16.pack_into(buffer, place + IP_CHECK, -total % 0xFFFF)

    return vary


class Flood:
    """A packet socket at a device of a host. A context manager."""

    def __init__(self, host: Host, device: str = "eth0") -> None:
        self._socket = host.socket(socket.AF_PACKET, socket.SOCK_RAW)  # type: ignore[arg-type]
        self._socket.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        with host.entered():
            self._socket.bind((device, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, frame: bytes, count: int, vary: Vary, *, pause: float = 0.0) -> float:
        """Sends so many frames, each varied by its number, with a pause (s) between calls. Returns the seconds."""
        size, began = len(frame), time.monotonic()
        buffer = bytearray(frame * AT_ONCE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        vectors = (_Iovec * AT_ONCE)(*[_Iovec(base + place * size, size) for place in range(AT_ONCE)])
        messages = (_Message * AT_ONCE)()
        for message, vector in zip(messages, vectors, strict=True):
            message.iov, message.iov_count = ctypes.pointer(vector), 1
        for start in range(0, count, AT_ONCE):
            many = min(AT_ONCE, count - start)
            for place in range(many):
                vary(buffer, place * size, start + place)
            self._send(messages, many)
            if pause:
                time.sleep(pause)
        return time.monotonic() - began

    def _send(self, messages: Any, many: int) -> None:
        done = 0
        while done < many:
            first = ctypes.byref(messages, done * ctypes.sizeof(_Message))
            sent = _libc.sendmmsg(self._socket.fileno(), first, many - done, 0)
            if sent < 0:
                code = ctypes.get_errno()
                if code not in (105, 11):  # ENOBUFS, EAGAIN: the device is full for now
                    raise OSError(code, os.strerror(code))
                time.sleep(0.0005)
                continue
            done += sent

    def frames(self, frames: list[bytes]) -> None:
        """Sends these, each once."""
        for one in frames:
            self._socket.send(one)
