"""A packet of a flow that was not answered yet, and the answer: by that it is a live one, TCP by the client's to it."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

from pydatapath.reference.claims import Claim, claim
from pydatapath.reference.entry import Dropped, Entry, Moment
from pydatapath.reference.flows import FRESH, Flows, remove_both
from pydatapath.reference.packet import FlowTuple, Packet
from pydatapath.reference.timers import State

__all__ = ["follow_half_open", "opens_as_usual"]


def follow_half_open(flows: Flows, moment: Moment) -> Entry | None:
    """The half-open flow of a packet; None: there is none, or none that still holds (N42).

    A RST ends it: refused or given up, the next attempt is a new flow. Raises Dropped where the answer is a late one.
    """
    key = moment.packet.tuple
    entry = flows.half_open.get(key)
    if entry is None:
        return None
    # What is left over of a flow that has moved, or that another backend has won, must not take its place again
    left_over = entry.state is State.ANSWERED and not entry.reply and key in flows.main
    if left_over or flows.begins_anew(entry, moment):
        remove_both(flows.half_open, key, entry)
        return None
    if "R" in moment.packet.flags:
        remove_both(flows.half_open, key, entry)
        return entry
    if entry.reply and moment.packet.answers_opening:
        return _note_answer(flows, key, entry, moment)
    if entry.reply and not _believes(moment.packet, entry):
        return _hear(flows, key, entry, moment)
    if entry.reply:
        return _promote(flows, key, entry, moment)
    entry = replace(entry, last_seen=moment.now).counting(moment.packet)
    flows.half_open[key] = entry
    if _keep_the_answer(flows, key, entry, moment):
        return _confirm(flows, key, entry, moment) if _confirms(moment.packet, entry) else entry
    flows.half_open.pop(key, None)  # its answers would be another's by now: a new flow, from another port
    return None


def opens_as_usual(flows: Flows, moment: Moment) -> bool:
    """Whether a TCP connection opens as nearly all do: by its first SYN-ACK, or its client's ACK of that, each within a
    second, where nobody else has the client's tuple. The hooks' own programs do what is to be done for that.
    """
    packet = moment.packet
    if not packet.is_plain or packet.extended or packet.protocol != "TCP" or set("FR") & set(packet.flags):
        return False
    reply_key = packet.tuple
    caller = None
    if not packet.answers_opening:
        caller = flows.half_open.get(packet.tuple)
        if caller is None or caller.reply or not caller.awaited or not _confirms(packet, caller):
            return False
        reply_key = caller.to.reverse
    reply = flows.half_open.get(reply_key)
    if reply is None or not reply.reply or moment.now - reply.last_seen >= FRESH or reply.to.reverse in flows.main:
        return False
    if caller is not None:
        return reply.to == packet.tuple.reverse and not caller.is_forsaken(moment.world)
    caller = flows.half_open.get(reply.to.reverse)
    if reply.is_paired:
        return reply.state is State.NEW and caller is not None and caller.to == packet.tuple.reverse
    # Of who calls a pod itself both tuples must be seen to be taken: any may be another's answer (N93)
    return caller is None and not reply.plain


def _confirms(packet: Packet, entry: Entry) -> bool:
    """Whether it answers the SYN-ACK, which only who got that can: who makes up clients sends ACKs of any number."""
    awaited = entry.awaited or packet.acknowledged  # 0: from before it was noted
    return entry.state is State.ANSWERED and not packet.is_syn and packet.acknowledges(awaited)


def _believes(packet: Packet, reply: Entry) -> bool:
    """Whether a server's packet, which is no SYN-ACK, says that it has a connection.

    To segments that are out of place one that still waits for its client's ACK says no more than it has said, by an ACK
    alone (RFC 9293 3.10.7.4); and who was called by a SYN says nothing new before its SYN-ACK.
    """
    if not reply.opened or packet.has_data or "F" in packet.flags or packet.is_syn:
        return True
    return reply.state is State.ANSWERED and packet.acknowledged != reply.granted


def _hear(flows: Flows, key: FlowTuple, entry: Entry, moment: Moment) -> Entry:
    """What a server says that has no connection yet; a claim alone counts what its caller sends."""
    caller_key = entry.to.reverse
    _must_be_in_time(flows, key, caller_key, entry.opposite(key, moment.now), moment)
    if caller_key in flows.half_open:
        flows.half_open[caller_key] = replace(flows.half_open[caller_key], last_seen=moment.now)
    entry = replace(entry, last_seen=moment.now)
    flows.half_open[key] = entry.counting(moment.packet) if entry.is_paired else entry
    return entry


def _keep_the_answer(flows: Flows, key: FlowTuple, entry: Entry, moment: Moment) -> bool:
    """N5: what is sent again keeps both halves, or claims the one that was lost. False: another flow has its tuple."""
    reply = flows.half_open.get(entry.to.reverse)
    if reply is not None and reply.to == key.reverse:
        flows.half_open[entry.to.reverse] = replace(reply, last_seen=moment.now)
        return True
    return claim(flows, entry.to.reverse, entry.opposite(key, moment.now), moment) is not Claim.TAKEN


def _promote(flows: Flows, key: FlowTuple, claimed: Entry, moment: Moment) -> Entry:
    """The answer has come: both directions move to the main table, established, each with its own packets."""
    caller_key = claimed.to.reverse
    caller, answer = _counted(flows, key, claimed, moment)
    caller = replace(caller, state=State.ESTABLISHED)
    answer = replace(answer, state=State.ESTABLISHED).noting_its_end(moment.packet)  # N39: it may end it at once
    _must_be_in_time(flows, key, caller_key, caller, moment)
    flows.main[caller_key] = caller
    flows.main[key] = answer
    flows.half_open.pop(key, None)
    if claimed.is_paired:
        flows.half_open.pop(caller_key, None)
    return answer


def _note_answer(flows: Flows, key: FlowTuple, claimed: Entry, moment: Moment) -> Entry:
    """A SYN-ACK: who floods gets one, too, and cannot answer it. Both directions wait until the client does."""
    caller_key = claimed.to.reverse
    numbers = (moment.packet.sequence + 1) % 2**32, moment.packet.acknowledged
    claimed = replace(claimed, awaited=numbers[0], granted=numbers[1])
    caller, answer = _counted(flows, key, claimed, moment)
    _must_be_in_time(flows, key, caller_key, caller, moment)
    caller = replace(flows.half_open.get(caller_key, caller), last_seen=moment.now)
    caller = replace(caller, awaited=answer.awaited, granted=answer.granted)
    flows.half_open[caller_key] = replace(caller, state=State.ANSWERED)
    flows.half_open[key] = replace(answer, state=State.ANSWERED)
    return flows.half_open[key]


def _confirm(flows: Flows, key: FlowTuple, caller: Entry, moment: Moment) -> Entry:
    """The client has answered the SYN-ACK: both directions move to the main table."""
    answer_key = caller.to.reverse
    flows.main[key] = replace(caller, state=State.ESTABLISHED).noting_its_end(moment.packet)
    flows.main[answer_key] = replace(flows.half_open[answer_key], state=State.ESTABLISHED)
    remove_both(flows.half_open, key, caller)
    return flows.main[key]


def _counted(flows: Flows, key: FlowTuple, claimed: Entry, moment: Moment) -> tuple[Entry, Entry]:
    """Both directions, the answering one with this packet more. A claim alone had counted the caller's."""
    caller, answer = claimed.opposite(key, moment.now), replace(claimed, last_seen=moment.now)
    if claimed.is_paired:
        first = flows.half_open.get(claimed.to.reverse, caller)
    else:
        first, answer = claimed, replace(answer, packets=0, octets=0)
    return replace(caller, packets=first.packets, octets=first.octets), answer.counting(moment.packet)


def _must_be_in_time(flows: Flows, key: FlowTuple, caller_key: FlowTuple, caller: Entry, moment: Moment) -> None:
    """Where the backends changed between two SYNs, two have one connection; who answers first has it."""
    waiting = flows.half_open.get(caller_key)
    if waiting is not None and waiting.to != caller.to:
        _is_late(flows, key)
    first = flows.main.get(caller_key)
    if first is not None and first.to != caller.to:
        if not flows.is_over(first, moment.world, moment.now, opens=True):
            _is_late(flows, key)
        remove_both(flows.main, caller_key, first)


def _is_late(flows: Flows, key: FlowTuple) -> NoReturn:
    """The other one's answer must not reach the client."""
    del flows.half_open[key]
    raise Dropped("drop_late_answer")
