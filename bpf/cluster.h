/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Who belongs to the cluster. Maps: networks.
 *
 * This node's pods, and all networks that `load` was told of, are compiled in. What Node objects tell comes and goes with
 * them, and is looked up: for the first packet of a flow, and for what has no flow, but never for a known one's.
 */
#ifndef PYDATAPATH_CLUSTER_H
#define PYDATAPATH_CLUSTER_H

/* Of each network and address its kind (MemberKind in layout.py). Flag 1: BPF_F_NO_PREALLOC, a trie's must */
BPF_TABLE_PINNED("lpm_trie", struct network, u32, networks, MAX_NETWORKS, MAP_DIRECTORY "/networks" FAMILY_NAME, 1);

/* What Node objects say of an address: MEMBER_PODS, another kind where it is a node's own, or 0 */
static inline u32 member_kind(const struct address *address)
{
	struct network asked = {.prefix_length = 32 * WORDS, .address = *address};
	u32 *kind = networks.lookup(&asked);

	return kind ? *kind : 0;
}

/* Whether a pod of any node may have it: such callers are inside (S28, S52, S54). Another node's own address is outside. */
static inline bool is_in_cluster(const struct address *address)
{
	struct address asked = *address;

	return IN_CLUSTER_NETWORK(asked) || member_kind(&asked) == MEMBER_PODS;
}

#endif
