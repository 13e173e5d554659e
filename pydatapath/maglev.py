"""Maglev's table: a fixed number of slots, shared so that each backend keeps nearly all of its own when others change.

Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4. The table is a
function of the backends and their weights alone, so that all nodes have the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heapreplace
from typing import Final

from pydatapath.serving import Address

__all__ = ["SIZES", "TABLE_SIZE", "maglev_table", "table_size"]

TABLE_SIZE: Final = 16_381
# Primes just below powers of two: a table has ten slots for each backend, and changes its size seldom
SIZES: Final = (TABLE_SIZE, 65_521, 262_139, 1_048_573, 4_194_301, 16_777_213)


def table_size(backends: int) -> int:
    """How many slots a service with this many backends has: 16,381 for up to 1,638."""
    return next((size for size in SIZES if size >= 10 * backends), SIZES[-1])


def maglev_table(
    weights: Mapping[Address, int], size: int = TABLE_SIZE, *, by_pod: bool = False
) -> tuple[Address, ...]:
    """The backend of each slot; `size` is a prime, the weights are above 0. No backends have no slots.

    Each backend prefers the slots in an order of its own, a walk of equal steps round the table. In turns they take
    the next slot of their order that is free. One of weight w has its turns at the times 0, 1/w, 2/w...: w turns where
    one of weight 1 has one, and each a first one, so that a small share is a slot at least. `by_pod`: a backend's order
    is its address's, whatever its port.
    """
    if not weights:
        return ()
    backends = sorted(weights, key=str)
    walks = [_walk(backend.address if by_pod else str(backend), size) for backend in backends]
    steps = [step for _, step in walks]
    next_places = [start for start, _ in walks]
    owners = [-1] * size
    turns = [(0.0, one, 0) for one in range(len(backends))]
    heapify(turns)
    for _ in range(size):
        _, one, taken = turns[0]
        place, step = next_places[one], steps[one]
        while owners[place] >= 0:
            place += step
            if place >= size:
                place -= size
        owners[place] = one
        next_places[one] = place
        # Equal times are equal floats: a quotient is rounded correctly, whatever fraction it was written as
        heapreplace(turns, ((taken + 1) / weights[backends[one]], one, taken + 1))
    return tuple(backends[one] for one in owners)


def _walk(backend: str, size: int) -> tuple[int, int]:
    """Where a backend's order of slots begins, and its step: the paper's offset and skip."""
    from hashlib import blake2b  # with OpenSSL behind it, which most commands do not need

    digest = blake2b(backend.encode(), digest_size=16).digest()
    offset, skip = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
    return offset % size, skip % (size - 1) + 1
