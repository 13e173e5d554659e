"""Writing many entries at once to real maps."""

from __future__ import annotations

import struct

import pytest
from packetbed import Bed

from pydatapath.kernel import maps

NUMBER = struct.Struct("=I")


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 21])
def test_many_entries_are_written_by_batches(bed: Bed, count: int, monkeypatch: pytest.MonkeyPatch):
    """Each to its place, with a batch that is full and one that is not."""
    monkeypatch.setattr(maps, "BATCH", 7)
    slots = bed.maps["slots"]
    before = slots.words(0, 40)
    slots.update_packed(
        struct.pack(f"={count}I", *range(5, 5 + count)), struct.pack(f"={count}I", *range(1, 1 + count))
    )
    assert slots.words(0, 40) == (*before[:5], *range(1, 1 + count), *before[5 + count :])
    slots.update_many({NUMBER.pack(place): NUMBER.pack(before[place]) for place in range(40)})
    assert slots.words(0, 40) == before


def test_values_that_are_not_as_many_as_the_keys_are_refused(bed: Bed):
    """The kernel would read on behind them."""
    with pytest.raises(ValueError, match="'slots' cannot be written: 2 keys"):
        bed.maps["slots"].update_packed(bytes(8), bytes(4))
