"""Packets captured in a pod, and what their checksums are worth."""

from __future__ import annotations

import contextlib
import re
import select
import struct
import subprocess
import time
from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydatapath.lab import Host

__all__ = ["capturing", "checksums", "complaints"]

START_SECONDS = 10.0
BLOCK_SECONDS = 1.2  # the kernel hands packets over in blocks, a block that is not full after a second
LINK_ETHERNET = 1
CHECKSUM_OFFSETS = {6: 16, 17: 6}  # in the headers of TCP and UDP


@contextlib.contextmanager
def capturing(expression: str, paths: Mapping[Host, Path]) -> Iterator[None]:
    """Have tcpdump write what passes eth0 of each host to its path while the block runs."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(_tcpdump(host, expression, path)) for host, path in paths.items()]
        yield
        time.sleep(BLOCK_SECONDS)
        for tcpdump in running:
            tcpdump.terminate()
            _, said = tcpdump.communicate(timeout=START_SECONDS)
            dropped = re.search(r"(\d+) packets? dropped by kernel", said)
            assert dropped is not None, said
            assert dropped[1] == "0", said


@contextlib.contextmanager
def _tcpdump(host: Host, expression: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A tcpdump that listens; killed, should it still run, at the end of the block."""
    command = [
        *["tcpdump", "-i", "eth0", "-n", "-U", "-B", "16384", "-Z", "root", "-w"],
        str(path),
        *expression.split(),
    ]
    with host.popen(command, stderr=subprocess.PIPE) as tcpdump:
        try:
            assert tcpdump.stderr is not None
            line = ""
            while "listening on" not in line:
                assert select.select([tcpdump.stderr], [], [], START_SECONDS)[0], "tcpdump does not start"
                line = tcpdump.stderr.readline()
                assert line, "tcpdump ended"
            yield tcpdump
        finally:
            tcpdump.kill()


def complaints(path: Path) -> tuple[int, list[str]]:
    """How many checksums tcpdump found right in a capture, and its lines about those that are not."""
    command = ["tcpdump", "-n", "-vv", "-r", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    right = len(re.findall(r"cksum 0x\w+ \(correct\)|\[udp sum ok\]", text))
    wrong = [line.strip() for line in text.splitlines() if re.search(r"incorrect|bad (udp )?cksum", line)]
    return right, wrong


def checksums(path: Path) -> Tally[str]:
    """Each TCP and UDP packet of a capture: `right`, `partial` (the pseudo-header's sum, as for an offload) or `wrong`.

    `wrong address` is a wrong sum of the IP header.
    """
    data = path.read_bytes()
    magic, _, _, _, _, _, link = struct.unpack_from("=IHHiIII", data)
    assert (magic, link) == (0xA1B2C3D4, LINK_ETHERNET)
    found: Tally[str] = Tally()
    place = 24
    while place < len(data):
        length, whole = struct.unpack_from("=8xII", data, place)
        assert length == whole, "a packet was cut off"
        found[_judged(data[place + 16 + 14 : place + 16 + length])] += 1
        place += 16 + length
    return found


def _judged(packet: bytes) -> str:
    header_length = (packet[0] & 0xF) * 4
    transport = packet[header_length : int.from_bytes(packet[2:4])]
    if _sum(packet[:header_length]) != 0xFFFF:
        return "wrong address"
    at = CHECKSUM_OFFSETS[packet[9]]
    pseudo = _sum(packet[12:20] + bytes([0, packet[9]]) + len(transport).to_bytes(2))
    if (
        _sum(transport + pseudo.to_bytes(2) if len(transport) % 2 == 0 else transport + b"\0" + pseudo.to_bytes(2))
        == 0xFFFF
    ):
        return "right"
    return "partial" if int.from_bytes(transport[at : at + 2]) == pseudo else "wrong"


def _sum(data: bytes) -> int:
    """RFC 1071: the ones' complement sum of 16-bit words."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
