/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * What happened to packets, counted by name. Map: counters.
 *
 * The names stand in pydatapath/kernel/layout.py (Counter), in the order of the map.
 */
#ifndef PYDATAPATH_EVENT_H
#define PYDATAPATH_EVENT_H

/* Per CPU, and a tc program is not interrupted by another: no atomics needed */
BPF_TABLE_PINNED("percpu_array", u32, u64, counters, COUNTERS, MAP_DIRECTORY "/counters");

/* Left to the stack: "unspecified" also lets other filters of the hook have their turn, which TC_ACT_OK would not */
#define PASS TC_ACT_UNSPEC

static inline void count(u32 what)
{
	u64 *counter = counters.lookup(&what);

	if (counter)
		*counter += 1;
}

static inline int drop(u32 reason)
{
	count(reason);
	return TC_ACT_SHOT;
}

#endif
