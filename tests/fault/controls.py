"""Faults built in on purpose: for each fault that the tests here know, what makes them red."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["CONTROLS", "Control"]


class Control(NamedTuple):
    """In `file` the text `was` becomes `broken`, and then a test of `module` whose name has all of `name` must fail."""

    fault: str
    file: str
    was: str
    broken: str
    module: str
    name: str


CONTROLS: Final = (
    Control(
        "F5: signals act at once",
        "pydatapath/interrupts.py",
        "if threading.current_thread() is not threading.main_thread():",
        "if True:",
        "fault/test_state_faults.py",
        "F5_a_signal",
    ),
    Control(
        "F9: a lock that many have",
        "pydatapath/instance.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "fault/test_at_once.py",
        "F9_fifty",
    ),
    Control(
        "F14: a backend's number without its generation",
        "bpf/flow.h",
        "return !backend || backend->generation != generation || backend->state == BACKEND_GONE;",
        "return !backend || backend->state == BACKEND_GONE;",
        "fault/test_interfaces.py",
        "F14",
    ),
    Control(
        "F16: a choice that nobody makes twice",
        "bpf/service.h",
        "keep.position = (u32)(((u64)tuple_hash(key, 0) * run.slot_count) >> 32);",
        "keep.position = bpf_get_prandom_u32() % (run.slot_count ? run.slot_count : 1);",
        "fault/test_flood.py",
        "F16",
    ),
    Control(
        "F17: whatever a server says is believed",
        "bpf/flow.h",
        "if (!(reply->flags & FLOW_OPENED) ||",
        "if (1 ||",
        "fault/test_flood.py",
        "F17 and another",
    ),
    Control(
        "F18: first datagrams stand where answered flows do",
        "bpf/claim.h",
        "winner = half_open.insert(key, flow) ? half_open.lookup(key) : NULL;",
        "winner = flows.insert(key, flow) ? flows.lookup(key) : NULL;",
        "fault/test_flood.py",
        "F18",
    ),
    Control(
        "F23: an error ends what it is about",
        "bpf/icmp.h",
        "return TRANSLATED_WAY;",
        "{ flows.delete(key); return TRANSLATED_WAY; }",
        "fault/test_flood.py",
        "F23",
    ),
    Control(
        "F30: what packets have changed is not carried",
        "pydatapath/carrying.py",
        '_WRITTEN: Final = ("flows", "half_open", "fragments",',
        '_WRITTEN: Final = ("fragments",',
        "fault/test_carrying.py",
        "what_happens_while",
    ),
)
