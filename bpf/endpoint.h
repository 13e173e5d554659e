/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Who answers to an address on this machine: found, and learned. Maps: endpoints, nearby, changes, interfaces.
 */
#ifndef PYDATAPATH_ENDPOINT_H
#define PYDATAPATH_ENDPOINT_H

/* No LRU: a pod that makes up sources may fill it, but pushes nobody out */
BPF_TABLE_PINNED("hash", struct address, struct endpoint, endpoints, MAX_ENDPOINTS,
		 MAP_DIRECTORY "/endpoints" FAMILY_NAME);

/*
 * What each CPU has found in `endpoints`, so that nearly every packet spares a lookup: good until something changes there.
 * `changes`: how often that was, taught by packets (in programs) and told by Python (pydatapath/kernel/maps.py).
 */
BPF_TABLE_PINNED("percpu_array", u32, struct nearby, nearby, MAX_NEARBY, MAP_DIRECTORY "/nearby" FAMILY_NAME);
BPF_TABLE_PINNED("array", u32, u64, changes, CHANGES, MAP_DIRECTORY "/changes" FAMILY_NAME);

/*
 * The pods' interfaces, by index: the kernel takes an entry away with its interface. It is a device map (pydatapath makes
 * it before; bcc 0.26 has no name for BPF_MAP_TYPE_DEVMAP_HASH), and is looked into only.
 */
BPF_TABLE_PINNED("hash", u32, u32, interfaces, MAX_ENDPOINTS, MAP_DIRECTORY "/interfaces");

/* Not 0, which places that nobody has filled yet hold */
static inline u64 endpoint_changes(void)
{
	u32 taught = CHANGES_TAUGHT, told = CHANGES_TOLD;
	u64 *one = changes.lookup(&taught), *other = changes.lookup(&told);

	return one && other ? *one + *other + 1 : 0;
}

static inline struct nearby *endpoint_place(const struct address *address)
{
	u32 mixed = 0, place;

#pragma unroll
	for (int i = 0; i < WORDS; i++)
		mixed ^= address->words[i];
	mixed ^= mixed >> 16;
	place = (mixed ^ mixed >> 8) & (MAX_NEARBY - 1); /* pods of one /24 have places of their own */
	return nearby.lookup(&place);
}

/*
 * Who answers to an address on this machine, NULL: nobody; good until the next one is looked for. A copy: the kernel reuses the
 * element of what is replaced for the next key that is written (extra_elems in kernel/bpf/hashtab.c), while programs read it:
 * what was read holds if it is there still. Nobody is not kept nearby: addresses elsewhere, of which there are many, would push
 * out pods.
 */
static inline struct endpoint *endpoint_find(const struct address *address)
{
	struct nearby *near = endpoint_place(address);
	u64 at = endpoint_changes();
	struct endpoint *found;

	if (!near)
		return NULL; /* never: the place is in bounds */
	if (near->changes == at && address_equal(&near->address, address))
		return &near->endpoint;
	found = endpoints.lookup((struct address *)address);
	if (!found)
		return NULL;
	near->changes = 0;
	near->address = *address;
	near->endpoint = *found;
	if (endpoints.lookup((struct address *)address) != found)
		return endpoints.lookup((struct address *)address);
	near->changes = at;
	return &near->endpoint;
}

/* In that order: what another CPU has found in between it looks up again. (Where CPUs order writes as x86 does.) */
static inline void endpoint_teach(struct address *address, struct endpoint *endpoint)
{
	u32 taught = CHANGES_TAUGHT;
	u64 *times;

	if (endpoints.update(address, endpoint))
		return; /* full: nothing has changed */
	times = changes.lookup(&taught);
	if (times)
		__sync_fetch_and_add(times, 1);
}

static inline bool is_nodes_own(const struct address *address)
{
	struct address asked = *address;
	struct endpoint *known = endpoints.lookup(&asked);

	return known && known->kind == ENDPOINT_NODE;
}

/* As a bridge learns: whoever sends from a pod's interface is to be found there. */
static inline void endpoint_learn(struct __sk_buff *skb, const struct ethhdr *ethernet, struct address address)
{
	struct endpoint *known = endpoints.lookup(&address);
	struct endpoint seen = {.interface = skb->ifindex, .kind = ENDPOINT_POD};

	if (!IN_POD_NETWORK(address) || (known && known->kind == ENDPOINT_NODE))
		return;
	__builtin_memcpy(seen.mac, ethernet->h_source, ETH_ALEN);
	if (!known || known->interface != seen.interface || !mac_equal(known->mac, seen.mac))
		endpoint_teach(&address, &seen);
}

#endif
