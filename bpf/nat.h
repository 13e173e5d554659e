/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Masquerading: who leaves the cluster does so behind the node's address (RFC 4787, 5382, 5508). Maps: mappings; flows,
 * half_open, services.
 *
 * A masqueraded flow is a flow as others: two entries, each the whole tuple as it must leave. What is special is its source
 * port: kept where it is free, else one by chance (RFC 6056), never one that the node's own sockets or services use. UDP's
 * is the same whoever is talked to (RFC 4787 REQ-1), which `mappings` knows, in both directions.
 */
#ifndef PYDATAPATH_NAT_H
#define PYDATAPATH_NAT_H

#if MASQUERADE

/* NAT_TYPE */
#define NAT_ENDPOINT_INDEPENDENT 0 /* mapping endpoint-independent, filtering address and port-dependent */
#define NAT_SYMMETRIC 1		   /* both address and port-dependent */
#define NAT_FULL_CONE 2		   /* both endpoint-independent */

BPF_TABLE_PINNED("lru_hash", struct mapping_key, struct mapping, mappings, MAX_MAPPING_ENTRIES,
		 MAP_DIRECTORY "/mappings" FAMILY_NAME);

/*
 * Whether a packet from `source` to `destination` that leaves by an uplink must not show its source. Decided by what is
 * configured, never by what is entered (Cilium 47425: a stale entry let pods' own addresses out).
 */
static inline bool nat_is_due(const struct address *source, const struct address *destination)
{
	struct address from = *source, to = *destination;

	return IN_POD_NETWORK(from) && !IN_UNMASQUERADED_NETWORK(to);
}

/* The address behind which a pod leaves by an uplink. False: that is none, or has no address of this family. */
static inline bool nat_address(const struct address *source, u32 uplink, struct address *outside)
{
	struct address from = *source;

	EGRESS_ADDRESSES(from, uplink, outside)
	return false;
}

/* Ports that answer for something else at the node: node ports, tunnels' (N19), and services at its address */
static inline bool nat_port_is_reserved(const struct tuple *to)
{
	struct transport_address own = {.address = to->source, .port = to->source_port, .protocol = to->protocol};
	u16 port = bpf_ntohs(to->source_port);

	if (to->protocol == IPPROTO_FAMILY_ICMP)
		return false;
	return (port >= NODE_PORT_FIRST && port <= NODE_PORT_LAST) || port == 0 || port == 4789 || port == 8472 ||
	       port == 6081 || port == 51820 || services.lookup(&own);
}

static inline void nat_ask_socket(struct bpf_sock_tuple *asked, const struct tuple *to)
{
#if FAMILY == 4
	asked->ipv4.saddr = to->destination.words[0];
	asked->ipv4.daddr = to->source.words[0];
	asked->ipv4.sport = to->destination_port;
	asked->ipv4.dport = to->source_port;
#else
#pragma unroll
	for (int i = 0; i < WORDS; i++) {
		asked->ipv6.saddr[i] = to->destination.words[i];
		asked->ipv6.daddr[i] = to->source.words[i];
	}
	asked->ipv6.sport = to->destination_port;
	asked->ipv6.dport = to->source_port;
#endif
}

/* N18: whether the answer would be a packet of the node's own socket. Linux's own NAT does not look (Cilium 45492). */
static inline bool nat_port_has_socket(struct __sk_buff *skb, const struct tuple *to)
{
	const u32 size = FAMILY == 4 ? sizeof(((struct bpf_sock_tuple *)0)->ipv4) : sizeof(((struct bpf_sock_tuple *)0)->ipv6);
	struct bpf_sock_tuple asked = {};
	struct bpf_sock *found = NULL;

	nat_ask_socket(&asked, to);
	if (to->protocol == IPPROTO_TCP)
		found = bpf_skc_lookup_tcp(skb, &asked, size, BPF_F_CURRENT_NETNS, 0);
	else if (to->protocol == IPPROTO_UDP)
		found = bpf_sk_lookup_udp(skb, &asked, size, BPF_F_CURRENT_NETNS, 0);
	if (!found)
		return false;
	bpf_sk_release(found);
	return true;
}

/* By chance, and of the parity of the one that is kept where it can be (RFC 4787 REQ-4) */
static inline __be16 nat_random_port(__be16 kept)
{
	u32 port = NAT_PORT_FIRST + (u32)(((u64)bpf_get_prandom_u32() * (NAT_PORT_LAST - NAT_PORT_FIRST + 1)) >> 32);

	port = (port & ~1u) | (bpf_ntohs(kept) & 1);
	if (port < NAT_PORT_FIRST)
		port += 2;
	return bpf_htons(port > NAT_PORT_LAST ? port - 2 : port);
}

static inline bool nat_maps(u8 protocol)
{
	return protocol == IPPROTO_UDP && NAT_TYPE != NAT_SYMMETRIC;
}

static inline bool mapping_is_alive(const struct mapping *mapping)
{
	return now() - mapping->last_seen <= TIMEOUT_UDP_ESTABLISHED * HZ;
}

static inline struct mapping_key mapping_key_of(const struct address *address, __be16 port, u8 protocol, u8 side)
{
	struct mapping_key key = {.address = *address, .port = port, .protocol = protocol, .side = side};

	return key;
}

/* N1, N35: the mapping of an inside end, refreshed in both directions. False: it has none, or half of one. */
static inline bool mapping_follow(const struct tuple *key, struct address *address, __be16 *port)
{
	struct mapping_key inside = mapping_key_of(&key->source, key->source_port, key->protocol, MAPPING_INSIDE), outside;
	struct mapping *to = mappings.lookup(&inside), *back;

	if (!to || !mapping_is_alive(to))
		return false;
	outside = mapping_key_of(&to->address, to->port, key->protocol, MAPPING_OUTSIDE);
	back = mappings.lookup(&outside);
	if (!back || back->port != key->source_port || !address_equal(&back->address, &key->source))
		return false;
	if (now() - to->last_seen >= HZ)
		to->last_seen = back->last_seen = now();
	*address = outside.address;
	*port = outside.port;
	return true;
}

/*
 * N12, N35: a mapping lives by what its inside end sends and by the answers to that, as its flows do, looked at once a
 * second. Who was let in by a full cone does not keep the door open for himself (RFC 4787 REQ-6).
 */
static inline void mapping_refresh(const struct tuple *key, const struct flow *flow)
{
	struct tuple inside = *key;
	struct address address;
	__be16 port;

	if (!(flow->flags & FLOW_MASQUERADED) || !nat_maps(key->protocol))
		return;
	if (!IN_POD_NETWORK(inside.source)) {
		if (!(flow->flags & FLOW_REPLY))
			return;
		inside = tuple_reverse(&flow->to);
	}
	mapping_follow(&inside, &address, &port);
}

/* Who is behind an outside end: for what comes in without a flow. False: nobody. */
static inline bool mapping_find_inside(const struct tuple *key, struct tuple *to)
{
	struct mapping_key outside =
		mapping_key_of(&key->destination, key->destination_port, key->protocol, MAPPING_OUTSIDE);
	struct mapping *back = mappings.lookup(&outside);

	if (!back || !mapping_is_alive(back))
		return false;
	to->destination = back->address;
	to->destination_port = back->port;
	return true;
}

/* Takes an outside end for the flow's inside one: its own alone (N3). False: another's. */
static inline bool mapping_claim(const struct tuple *key, const struct tuple *to)
{
	struct mapping_key outside = mapping_key_of(&to->source, to->source_port, to->protocol, MAPPING_OUTSIDE);
	struct mapping_key inside = mapping_key_of(&key->source, key->source_port, key->protocol, MAPPING_INSIDE);
	struct mapping back = {.last_seen = now(), .address = key->source, .port = key->source_port}, *holder;
	struct mapping there = {.last_seen = now(), .address = to->source, .port = to->source_port};

	if (mappings.insert(&outside, &back)) {
		holder = mappings.lookup(&outside);
		if (holder && mapping_is_alive(holder) &&
		    (holder->port != back.port || !address_equal(&holder->address, &back.address)))
			return false;
		mappings.update(&outside, &back);
	}
	mappings.update(&inside, &there);
	return true;
}

/* Gives back what was claimed for a flow whose tuple is another's after all */
static inline void mapping_release(const struct tuple *key, const struct tuple *to)
{
	struct mapping_key outside = mapping_key_of(&to->source, to->source_port, to->protocol, MAPPING_OUTSIDE);
	struct mapping_key inside = mapping_key_of(&key->source, key->source_port, key->protocol, MAPPING_INSIDE);

	mappings.delete(&inside);
	mappings.delete(&outside);
}

enum found { FOUND, NEXT_ROUND, NONE_FREE };

/*
 * Looks for a port for a new flow, some tries long, and enters it. N22: in all rounds together so many that of 10,000 flows
 * one finds none where nine ports of ten are taken. What comes in the middle of a connection is taken up by its own port or
 * not at all (N104), what has a mapping by that one.
 */
static inline enum found nat_begin(struct __sk_buff *skb, struct leaving *of)
{
	struct tuple *key = &of->key, *to = &of->flow.to, reply_key;
	bool maps = nat_maps(key->protocol), known = maps && mapping_follow(key, &to->source, &to->source_port);
	bool begins = key->protocol != IPPROTO_TCP || (of->tcp_flags & TCP_SYN);
	enum claim claim;

	for (u32 try = 0; try < NAT_TRIES; try++) {
		if (try > 0 || of->rounds > 0)
			to->source_port = nat_random_port(key->source_port);
		if ((known || !(nat_port_is_reserved(to) || nat_port_has_socket(skb, to))) &&
		    (known || !maps || mapping_claim(key, to))) {
			flow_opposite(&of->flow, key, &of->other);
			reply_key = tuple_reverse(to);
			claim = flow_claim_reply(&reply_key, &of->other, of->tcp_flags);
			if (claim != TAKEN) {
				flow_enter(key, &of->flow, &reply_key, claim, of->tcp_flags);
				return FOUND;
			}
			if (maps && !known)
				mapping_release(key, to);
		}
		if (known || !begins)
			return NONE_FREE;
	}
	return of->rounds < NAT_ROUNDS ? NEXT_ROUND : NONE_FREE;
}

#endif
#endif
