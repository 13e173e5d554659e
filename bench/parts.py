"""What the single things cost that a packet's walk is made of, in ns: helpers, maps, tail calls.

Run as root: `.venv/bin/python -m bench parts`. Each has a program of its own, which does it eight times by
BPF_PROG_TEST_RUN, beside one that does nothing; all is warm, so these are the least that a packet pays. No interface,
no namespace, no pin is made.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from typing import Any, Final

from bench.packets import packet
from bench.processes import BenchError
from bench.programs import compiled, loaded
from pydatapath.kernel import libbpf

TIMES, REPEAT, ROUNDS = 8, 200_000, 9
FRAME: Final = packet("192.0.2.1", "192.0.2.2", "TCP", 80)

TEXT: Final = """
#define KBUILD_MODNAME "parts"
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
struct key { u32 words[4]; };
struct value { u64 words[8]; };
BPF_TABLE("lru_hash", struct key, struct value, lru, 262144);
BPF_TABLE("hash", u32, struct value, plain, 16384);
BPF_TABLE("array", u32, struct value, array, 16384);
BPF_TABLE("percpu_array", u32, u64, counters, 16);
BPF_TABLE("prog", u32, u32, next, 1);
#define CHECK 50 /* TCP's checksum behind Ethernet's and IPv4's header */
int nothing(struct __sk_buff *skb) { return TC_ACT_OK; }
"""

# name in C, what it is called, and what is done
PARTS: Final = (
    ("lru_found", "LRU hash of 16-byte keys: found", "struct key k = {{1}}; sum += !!lru.lookup(&k)"),
    ("lru_missed", "LRU hash of 16-byte keys: not there", "struct key k = {{2}}; sum += !!lru.lookup(&k)"),
    (
        "lru_made",
        "LRU hash: an entry of 64 bytes made, and deleted",
        "struct key k = {{3}}; struct value v = {}; lru.insert(&k, &v); lru.delete(&k)",
    ),
    ("lru_replaced", "LRU hash: an entry replaced", "struct key k = {{1}}; struct value v = {}; lru.update(&k, &v)"),
    ("hash_found", "hash of 4-byte keys: found", "u32 k = 1; sum += !!plain.lookup(&k)"),
    ("array_found", "array: an entry read", "u32 k = 1; struct value *v = array.lookup(&k); if (v) sum += v->words[0]"),
    ("counted", "per-CPU array: one added", "u32 k = 1; u64 *v = counters.lookup(&k); if (v) (*v)++"),
    ("jiffies", "the time in jiffies", "sum += bpf_jiffies64()"),
    ("clock", "the time in ns (ktime_get_ns)", "sum += bpf_ktime_get_ns()"),
    (
        "checksum",
        "checksum of layer 4 changed (l4_csum_replace)",
        "bpf_l4_csum_replace(skb, CHECK, 0, 1, 0)",
    ),
    ("type_changed", "packet type changed (change_type)", "bpf_skb_change_type(skb, 0)"),
    ("redirect", "redirect", "sum += bpf_redirect(1, 0)"),
    ("redirect_peer", "redirect_peer", "sum += bpf_redirect_peer(1, 0)"),
    ("hashed", "hash of the packet (get_hash_recalc)", "sum += bpf_get_hash_recalc(skb)"),
)


def text() -> str:
    """All programs as C."""
    body = "int {}(struct __sk_buff *skb) {{ u64 sum = 0; {} return sum == 1; }}\n"
    programs = "".join(body.format(name, f"{{ {what}; }} " * TIMES) for name, _, what in PARTS)
    return f"{TEXT}{programs}int jump(struct __sk_buff *skb) {{ next.call(skb, 0); return TC_ACT_OK; }}\n"


def cost(descriptor: int) -> float:
    """ns for one run of a program: the least of some rounds' medians."""
    return statistics.median(libbpf.run(descriptor, FRAME, repeat=REPEAT).nanoseconds for _ in range(ROUNDS))


def fill(module: Mapping[str, Any]) -> None:
    """What is looked up is there."""
    for name, key in (("lru", bytes([1, *bytes(15)])), ("plain", bytes([1, 0, 0, 0]))):
        libbpf.update(module[name].map_fd, key, bytes(64))


def main() -> None:
    """A row for each part."""
    argparse.ArgumentParser(prog="python -m bench parts", description=(__doc__ or "").split("\n")[0]).parse_args()
    try:
        module = compiled(text())
    except BenchError as error:
        raise SystemExit(f"Error: {error}") from None
    fill(module)
    programs = {name: loaded(module, name) for name in ("nothing", "jump", *(one[0] for one in PARTS))}
    libbpf.update(module["next"].map_fd, bytes(4), programs["nothing"].to_bytes(4, "little"))
    nothing = cost(programs["nothing"])
    print(f"{'ns, by BPF_PROG_TEST_RUN, warm':56}{'each':>8}")
    print(f"{'a program that does nothing':56}{nothing:8.1f}")
    for name, title, _ in PARTS:
        print(f"{title:56}{(cost(programs[name]) - nothing) / TIMES:8.1f}")
    print(f"{'tail call':56}{cost(programs['jump']) - nothing:8.1f}")


if __name__ == "__main__":
    main()
