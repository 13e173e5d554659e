"""Maglev's table, and what stands in a set's slots: fair shares, few moves, the same on every node."""

from __future__ import annotations

import hashlib
import time
from collections import Counter as Tally
from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydatapath.maglev import SIZES, TABLE_SIZE, maglev_table, table_size
from pydatapath.model import Algorithm
from pydatapath.serving import Address
from pydatapath.slots import slots_of

PODS = [Address(f"10.244.{last // 250}.{last % 250 + 1}", 8080, "TCP") for last in range(1000)]
HUNDRED = dict.fromkeys(PODS[:100], 1)

weights_of_some = st.dictionaries(st.sampled_from(PODS), st.integers(1, 1000), min_size=1, max_size=20)


def share(backends: Iterable[Address], of: Iterable[Address]) -> float:
    tally = Tally(of)
    return sum(tally[one] for one in backends) / tally.total()


def test_S26_of_a_hundred_backends_each_has_an_even_share() -> None:
    """Within 2 % (seen: 0.5 % too few at most, 0.1 % too many)."""
    table = maglev_table(HUNDRED)
    assert len(table) == TABLE_SIZE
    assert all(share([one], table) == pytest.approx(0.01, rel=0.02) for one in HUNDRED)


def test_C11_a_pod_has_the_same_slots_for_each_port_that_shares_its_clients() -> None:
    """Whatever it listens on; it is where a client's pod is looked for."""
    other = {one._replace(port=8443, protocol="UDP"): 1 for one in reversed(HUNDRED)}
    one, two = (maglev_table(backends, by_pod=True) for backends in (HUNDRED, other))
    assert [at.address for at in one] == [at.address for at in two]
    assert slots_of(HUNDRED, "maglev", by_pod=True) == one != maglev_table(HUNDRED)


@pytest.mark.parametrize("gone", range(0, 100, 9))
def test_S26_a_backend_that_goes_leaves_the_others_where_they_are(gone: int) -> None:
    """Of the slots that were not its own at most 2 % move (seen: 1.2 to 1.6 %, 1.4 % in the mean of all hundred)."""
    before, over = maglev_table(HUNDRED), PODS[gone]
    after = maglev_table({one: 1 for one in HUNDRED if one != over})
    others = [(old, new) for old, new in zip(before, after, strict=True) if old != over]
    assert sum(old != new for old, new in others) <= 0.02 * len(others)
    assert over not in after


@pytest.mark.parametrize("algorithm", ["random", "maglev"])
def test_C12_backends_share_by_their_weights(algorithm: Algorithm) -> None:
    """1:2:7 within 2 % of a tenth, two and seven (seen: 0.06 % with Maglev, exactly otherwise)."""
    weights = dict(zip(PODS, (1, 2, 7), strict=False))
    slots = slots_of(weights, algorithm)
    assert all(share([one], slots) == pytest.approx(weight / 10, rel=0.02) for one, weight in weights.items())


@settings(deadline=None, max_examples=25)
@given(weights_of_some, st.randoms(use_true_random=False))
def test_S26_the_order_of_backends_does_not_matter(weights: dict[Address, int], random: Random) -> None:
    """Each node sees the same endpoints, in whatever order: all have one table."""
    shuffled = list(weights.items())
    random.shuffle(shuffled)
    assert maglev_table(dict(shuffled), 251) == maglev_table(weights, 251)


@settings(deadline=None, max_examples=25)
@given(weights_of_some)
def test_C12_a_share_is_right_to_one_slot_and_never_none(weights: dict[Address, int]) -> None:
    """Every backend has a slot at least; more than that only as far as its weight reaches."""
    tally = Tally(maglev_table(weights, 1021))
    assert tally.keys() == weights.keys()
    first = max((tally[one] - 1) / weight for one, weight in weights.items())
    last = min(tally[one] / weight for one, weight in weights.items())
    assert first <= last, "one had a turn before another's was due"


@settings(deadline=None, max_examples=25)
@given(weights_of_some, st.integers(2, 9), st.sampled_from(["random", "maglev"]))
def test_C12_only_the_ratio_of_weights_counts(weights: dict[Address, int], factor: int, algorithm: Algorithm) -> None:
    """2:4 is 1:2, in the fewest slots."""
    scaled = {one: factor * weight for one, weight in weights.items()}
    assert slots_of(scaled, algorithm) == slots_of(weights, algorithm)


def test_C12_without_weights_a_backend_is_one_slot() -> None:
    """Random choice costs as many slots as there are backends, also where all have the same weight."""
    assert slots_of(dict.fromkeys(PODS[:3], 1), "random") == tuple(PODS[:3])
    assert slots_of(dict.fromkeys(PODS[:3], 10), "random") == tuple(PODS[:3])


def test_C12_S73_each_stands_once_before_one_stands_again() -> None:
    """The kernel searches the first 32 slots for a backend that a client has kept and that has moved."""
    first, second, third = PODS[:3]
    assert slots_of({first: 1, second: 3, third: 2}, "random") == (first, second, third, second, third, second)


@pytest.mark.parametrize("algorithm", ["random", "maglev"])
def test_nobody_has_no_slots(algorithm: Algorithm) -> None:
    """An empty set is an empty run."""
    assert slots_of({}, algorithm) == ()


def test_S26_the_table_is_the_same_in_every_version() -> None:
    """Nodes are upgraded one after the other: until all are, a client must find its backend behind each."""
    text = " ".join(map(str, maglev_table(dict.fromkeys(PODS[:10], 1))))
    assert hashlib.blake2b(text.encode(), digest_size=8).hexdigest() == "c6e9dbcb3290a027"


def test_S26_a_port_is_part_of_who_one_is() -> None:
    """Two backends at one address have orders of their own."""
    two = {Address("10.244.1.11", number, "TCP"): 1 for number in (8080, 9090)}
    assert all(share([one], maglev_table(two)) == pytest.approx(0.5, rel=0.02) for one in two)


def test_S26_a_table_is_made_in_a_moment() -> None:
    """A hundred backends in 0.2 s of the processor's time (seen: 0.02)."""
    before = time.process_time()
    maglev_table(HUNDRED)
    assert time.process_time() - before < 0.2


def test_S26_a_table_has_room_for_its_backends() -> None:
    """Ten slots for each; sizes are primes, so that every walk of equal steps comes to every slot."""
    assert [table_size(count) for count in (0, 1, 1638, 1639, 100_000)] == [16_381, 16_381, 16_381, 65_521, 1_048_573]
    assert all(size % divisor for size in SIZES for divisor in range(2, int(size**0.5) + 1))
