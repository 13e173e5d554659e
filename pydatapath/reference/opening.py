"""A packet of a flow that was not answered yet, and the answer, which makes it a live one."""

from __future__ import annotations

from dataclasses import replace

from pydatapath.reference.claims import Claim, claim
from pydatapath.reference.entry import Dropped, Entry, Moment
from pydatapath.reference.flows import Flows, remove_both
from pydatapath.reference.packet import FlowTuple
from pydatapath.reference.timers import State

__all__ = ["follow_half_open"]


def follow_half_open(flows: Flows, moment: Moment) -> Entry | None:
    """The half-open flow of a packet; None: there is none, or none that still holds (N42).

    A RST ends it: refused or given up, the next attempt is a new flow. Raises Dropped where the answer is a late one.
    """
    key = moment.packet.tuple
    entry = flows.half_open.get(key)
    if entry is None:
        return None
    if flows.begins_anew(entry, moment):
        remove_both(flows.half_open, key, entry)
        return None
    if "R" in moment.packet.flags:
        remove_both(flows.half_open, key, entry)
        return entry
    if entry.reply:
        return _promote(flows, key, entry, moment)
    entry = replace(entry, last_seen=moment.now).counting(moment.packet)
    flows.half_open[key] = entry
    if _keep_the_answer(flows, key, entry, moment):
        return entry
    flows.half_open.pop(key, None)  # its answers would be another's by now: a new flow, from another port
    return None


def _keep_the_answer(flows: Flows, key: FlowTuple, entry: Entry, moment: Moment) -> bool:
    """N5: what is sent again keeps both halves, or claims the one that was lost. False: another flow has its tuple."""
    reply = flows.half_open.get(entry.to.reverse)
    if reply is not None and reply.to == key.reverse:
        flows.half_open[entry.to.reverse] = replace(reply, last_seen=moment.now)
        return True
    return claim(flows, entry.to.reverse, entry.opposite(key, moment.now), moment) is not Claim.TAKEN


def _promote(flows: Flows, key: FlowTuple, claimed: Entry, moment: Moment) -> Entry:
    """The answer has come: both directions move to the main table, established, each with its own packets.

    Where the backends changed between two SYNs, two have one connection; who answers first has it. The other one's
    answer must not reach the client: drop_late_answer.
    """
    caller_key = claimed.to.reverse
    counted = flows.half_open.get(caller_key, claimed) if claimed.is_paired else claimed
    caller = replace(
        claimed.opposite(key, moment.now),
        state=State.ESTABLISHED,
        packets=counted.packets,
        octets=counted.octets,
    )
    answer = replace(claimed, state=State.ESTABLISHED, last_seen=moment.now, packets=1, octets=moment.packet.length)
    answer = answer.noting_its_end(moment.packet)  # N39: it may end its direction at once
    first = flows.main.get(caller_key)
    if first is not None and first.to != caller.to:
        if not flows.is_over(first, moment.world, moment.now, opens=True):
            del flows.half_open[key]
            raise Dropped("drop_late_answer")
        remove_both(flows.main, caller_key, first)
    flows.main[caller_key] = caller
    flows.main[key] = answer
    flows.half_open.pop(key, None)
    if claimed.is_paired:
        flows.half_open.pop(caller_key, None)
    return answer
