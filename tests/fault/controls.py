"""Faults built in on purpose: for each fault that the tests know, what makes them red."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["CONTROLS", "TESTS_OF_TESTS", "Control"]


class Control(NamedTuple):
    """In `file` the text `was` becomes `broken`, and then a test of `module` whose name has all of `name` must fail.

    `says`: what it must complain of then, a pattern in the line that fails or in its error. `races`: two things must
    meet for that, and it may take another try.
    """

    fault: str
    file: str
    was: str
    broken: str
    module: str
    name: str
    says: str
    races: bool = False


CONTROLS: Final = (
    Control(
        "F5: signals act at once",
        "pydatapath/interrupts.py",
        "if threading.current_thread() is not threading.main_thread():",
        "if True:",
        "fault/test_state_faults.py",
        "F5_a_signal",
        r"before step \d+: ",
        races=True,
    ),
    Control(
        "F9: a lock that many have",
        "pydatapath/instance.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "fault/test_at_once.py",
        "F9_fifty",
        r"exit code \d+: ",
        races=True,
    ),
    Control(
        "F14: datagrams stay with a backend that is gone",
        "bpf/flow.h",
        "return flow->to.protocol == IPPROTO_UDP && backend_is_gone(flow->backend, flow->generation);",
        "return false;",
        "fault/test_interfaces.py",
        "F14",
        "UDP by ",
    ),
    Control(
        "F16: a choice that nobody makes twice",
        "bpf/service.h",
        "keep.position = (u32)(((u64)tuple_hash(key, 0) * run.slot_count) >> 32);",
        "keep.position = bpf_get_prandom_u32() % (run.slot_count ? run.slot_count : 1);",
        "fault/test_flood.py",
        "F16",
        r"seen\.silent_broken == \[\]",
    ),
    Control(
        "F17: whatever a server says is believed",
        "bpf/opening.h",
        "if (!(reply->flags & FLOW_OPENED) ||",
        "if (1 ||",
        "fault/test_flood.py",
        "F17 and another",
        r"seen\.entries_changed == 0",
    ),
    Control(
        "F18: first datagrams stand where answered flows do",
        "bpf/claim.h",
        "winner = half_open.insert(key, flow) ? half_open.lookup(key) : NULL;",
        "winner = flows.insert(key, flow) ? flows.lookup(key) : NULL;",
        "fault/test_flood.py",
        "F18",
        r"seen\.entries_changed == 0",
    ),
    Control(
        "F23: an error ends what it is about",
        "bpf/icmp.h",
        "return flow->flags & FLOW_PLAIN ? PLAIN_WAY : TRANSLATED_WAY;",
        "flows.delete(key); return TRANSLATED_WAY;",
        "fault/test_flood.py",
        "F23",
        r"seen\.(entries_lost == 0|silent_broken == \[\])",
    ),
    Control(
        "F23: a RST ends its flow at once",
        "bpf/flow.h",
        "	if (!opens_connection(tcp_flags) && idle <= TIMEOUT_SHORTEST * HZ)\n",
        "	if (flow->flags & FLOW_RST)\n		return true;\n"
        "	if (!opens_connection(tcp_flags) && idle <= TIMEOUT_SHORTEST * HZ)\n",
        "fault/test_flood.py",
        "F23",
    ),
    Control(
        "F17: what a RST ends stays half open",
        "bpf/claim.h",
        "if (ended || (packet->tcp_flags & TCP_RST)) {",
        "if (ended) {",
        "fault/test_flood.py",
        "ACKs",
        r"seen\.(entries_changed == 0|forgotten == \[\])",
    ),
    Control(
        "F27: a load that fails leaves its programs",
        "pydatapath/loading.py",
        "            move.take_back()\n        bpffs.remove_tree(programs)\n",
        "            move.take_back()\n",
        "fault/test_failed_load.py",
        "F27",
        r"assert changed == \{\}",
    ),
    Control(
        "F30: what packets have changed is not carried",
        "pydatapath/carrying.py",
        '_WRITTEN: Final = ("flows", "half_open", "fragments",',
        '_WRITTEN: Final = ("fragments",',
        "fault/test_carrying.py",
        "what_happens_while",
        r"== 5|asked \+ 2|\bbroken\(",
    ),
    Control(
        "F6: a full disk is taken for damage",
        "pydatapath/record_faults.py",
        "full = code == sqlite3.SQLITE_FULL or not os.statvfs(path.parent).f_bavail",
        "full, code = False, 0",
        "fault/test_state_faults.py",
        "F6_a_full_disk and not unload",
        r"no room\|cannot be written",
    ),
    Control(
        "F7: a pin that is gone is not missed",
        "pydatapath/kernel/maps.py",
        "            if pin is None:\n",
        "            if False:\n",
        "fault/test_state_faults.py",
        "F7_no_file_system",
        "no longer pinned",
    ),
    Control(
        "F8: sums that nobody compares",
        "pydatapath/record_faults.py",
        "WHERE sum <> sum_of(",
        "WHERE 0 AND sum <> sum_of(",
        "unit/test_record_faults.py",
        "F8_any_bit",
        r"the byte \d+",
    ),
    Control(
        "F11: filters that are gone are not missed",
        "pydatapath/drift.py",
        "    result.found += _filters(instance, programs, node)\n",
        "",
        "traffic/test_repair.py",
        "F11_status_names",
        "has no from_pod filter",
    ),
    Control(
        "F12: an interface that has gone ends a load",
        "pydatapath/connecting.py",
        "        if one.hook is not Hook.FROM_POD or _is_there(interface):\n            raise\n",
        "        raise\n",
        "fault/test_interfaces.py",
        "F12",
        r"assert failed == \[\]",
        races=True,
    ),
    Control(
        "F29: when it was loaded is what was written first",
        "pydatapath/loading.py",
        '        "since": datetime.now(UTC).isoformat(timespec="seconds"),\n',
        "",
        "fault/test_state_faults.py",
        "F29",
        r'.2099. is contained here|"2099" not in',
    ),
    Control(
        "F31: a low limit of descriptors is not raised",
        "pydatapath/kernel/bcc_child.py",
        "    allow_descriptors()\n",
        "",
        "fault/test_state_faults.py",
        "F31_a_low",
        "Too many open files",
    ),
    Control(
        "F15: what a namespace leaves behind is not looked for",
        "pydatapath/instance.py",
        'return sorted({*RUN.glob("*/*"), *(bpffs.BPFFS / "pydatapath").glob("*/*")})',
        "return []",
        "fault/test_interfaces.py",
        "F15",
        "is gone with its namespace",
    ),
    Control(
        "F22: later fragments are not led",
        "bpf/fragment.h",
        "if (!first || elapsed(first->first_seen) > TIMEOUT_FRAGMENTS * HZ)",
        "if (1)",
        "fault/test_flood.py",
        "F22",
        r"assert large\[0\] == large\[1\]|timed out",
    ),
    Control(
        "F10: a place of ours is never another's",
        "pydatapath/kernel/attach.py",
        "if at_our_place and one.name != filter_name(instance, hook):",
        "if False:",
        "traffic/test_unload.py",
        "F10_a_place",
        r"already has a filter at priority 7",
    ),
    Control(
        "F13: what the host was at load is not compared",
        "pydatapath/drift.py",
        "        if old != new:\n",
        "        if False:\n",
        "traffic/test_repair.py",
        "F13",
        "the node's first uplink was eth0",
    ),
    Control(
        "F19: where no port is left it goes as it came",
        "bpf/datapath.c",
        "return drop(DROP_PORTS_TAKEN);",
        "return TC_ACT_UNSPEC;",
        "packet/test_rules_services.py",
        "F19",
        r"assert \(outcome\.verdict, outcome\.packet\) == \(DROP",
    ),
    Control(
        "F20: any version is read as IPv4",
        "bpf/ipv4.h",
        "if (ip->version != 4 || read->length < sizeof(*ip))",
        "if (read->length < sizeof(*ip))",
        "packet/test_garbage.py",
        "N108_F20",
        r"PYDATAPATH_SEED=\d+: ",
    ),
    Control(
        "F21: lengths are believed",
        "bpf/packet.h",
        "total < packet->transport_offset - IP_OFFSET + transport || total > skb->len - IP_OFFSET;",
        "false;",
        "packet/test_untouched.py",
        "F21_lengths",
        r"assert \(outcome\.verdict, outcome\.packet\) == \(PASS",
    ),
    Control(
        "F24: no file is too large",
        "pydatapath/manifests.py",
        "> MAX_BYTES:",
        "> MAX_BYTES * MAX_BYTES:",
        "unit/test_manifests_files.py",
        "F24",
        "larger than 100 MB",
    ),
    Control(
        "F25: of two equal keys one is forgotten",
        "pydatapath/documents.py",
        "elif key in result:",
        "elif False:",
        "unit/test_manifests_files.py",
        "F25",
        "stands twice in one map",
    ),
    Control(
        "F26: names are printed as they are",
        "pydatapath/fields.py",
        "return name if name.isprintable() and 0 < len(name) <= 4096 else show(name)",
        "return name",
        "unit/test_manifests_files.py",
        "F26",
        "isprintable",
    ),
    Control(
        "F28: nobody is asked whether he is root",
        "pydatapath/loading.py",
        "if os.geteuid() != 0:",
        "if False:",
        "fault/test_security.py",
        "F28_who_is_not_root and load",
        r'assert "Traceback" not in done\.stderr',
    ),
    Control(
        "F27: what the kernel refused is told as it told it",
        "pydatapath/loading.py",
        "            _name_what_is_lacking(error)\n",
        "            pass\n",
        "fault/test_kernel_lacks.py",
        "F27",
        "this kernel lacks",
    ),
    Control(
        "F32: a descriptor is not closed",
        "pydatapath/kernel/libbpf.py",
        "        yield descriptor\n    finally:\n        os.close(descriptor)\n",
        "        yield descriptor\n    finally:\n        pass\n",
        "fault/test_soak.py",
        "F32",
        "descriptors",
    ),
)

# Those whose fault is built into what runs, beside the tests that must see it
TESTS_OF_TESTS: Final = {
    "F1": ["fault/test_traffic_under_change.py::test_an_exchange_that_leaves_a_gap_is_seen"],
    "F2": ["fault/test_traffic_under_change.py::test_a_change_that_is_not_whole_is_seen"],
    "F3": ["fault/test_killed.py::test_a_change_without_a_note_is_seen"],
    "F4": ["fault/test_killed.py::test_an_exchange_with_a_gap_is_seen"],
}
