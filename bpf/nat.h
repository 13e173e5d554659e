/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Masquerading: who leaves the cluster does so behind the node's address (RFC 4787, 5382, 5508). Maps: mappings; flows,
 * half_open, services, networks.
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
 * configured and by Node objects, never by what is entered (Cilium 47425: a stale entry let pods' own addresses out).
 */
static inline bool nat_is_due(const struct address *source, const struct address *destination)
{
	struct address from = *source, to = *destination;

	return IN_POD_NETWORK(from) && !IN_UNMASQUERADED_NETWORK(to) && !member_kind(&to);
}

/* The address behind which a pod leaves by an uplink. False: that is none, or has no address of this family. */
static inline bool nat_address(const struct address *source, u32 uplink, struct address *outside)
{
	struct address from = *source;

	EGRESS_ADDRESSES(from, uplink, outside)
	return false;
}

/* VXLAN's two, Geneve's, WireGuard's */
static inline bool nat_port_is_tunnels(__be16 port)
{
	return port == bpf_htons(4789) || port == bpf_htons(8472) || port == bpf_htons(6081) || port == bpf_htons(51820);
}

/* A service whose one backend, for who calls from outside, is a pod's own end: a forward to it, as a rule */
static inline bool nat_leads_to(const struct service *service, const struct tuple *key)
{
	u32 slot = service->outside.first_slot, *number = slots.lookup(&slot);
	struct backend *backend = number ? backends.lookup(number) : NULL;
	__be32 differs = 0;

	if (service->outside.slot_count != 1 || !backend || backend->port != key->source_port)
		return false;
#pragma unroll
	for (int i = 0; i < WORDS; i++)
		differs |= backend->address[4 - WORDS + i] ^ key->source.words[i];
	return !differs;
}

/*
 * Ports that answer for something else at the node: node ports, tunnels' (N19), and services at its address, but for one that
 * leads to who asks; and DHCP's, whose clients hear without a socket of that port
 */
static inline bool nat_port_is_reserved(const struct tuple *key, const struct tuple *to)
{
	struct transport_address own = {.address = to->source, .port = to->source_port, .protocol = to->protocol};
	struct service *service;
	u16 port = bpf_ntohs(to->source_port);

	/* By the identifier 0 a query of the peer's would have the tuple of its answer */
	if (to->protocol == IPPROTO_FAMILY_ICMP)
		return port == 0;
	if ((port >= NODE_PORT_FIRST && port <= NODE_PORT_LAST) || port == 0 || port == 68 || port == 546 ||
	    nat_port_is_tunnels(to->source_port))
		return true;
	service = services.lookup(&own);
	return service && !nat_leads_to(service, key);
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

/*
 * By chance, and of the parity of the one that is kept where it can be (RFC 4787 REQ-4). N16: where no range was asked for, a
 * low port stays low, in Linux's classes: a server may let in nobody else, such as NFS's. An identifier has none.
 */
static inline __be16 nat_random_port(const struct tuple *key)
{
	u32 first = NAT_PORT_FIRST, last = NAT_PORT_LAST, kept = bpf_ntohs(key->source_port), port;

	if (NAT_PORT_CLASSES && kept < 1024 && key->protocol != IPPROTO_FAMILY_ICMP) {
		first = kept < 512 ? 1 : 600;
		last = kept < 512 ? 511 : 1023;
	}
	port = first + (u32)(((u64)bpf_get_prandom_u32() * (last - first + 1)) >> 32);
	port = (port & ~1u) | (kept & 1);
	if (port < first)
		port += 2;
	return bpf_htons(port > last ? port - 2 : port);
}

static inline bool nat_maps(u8 protocol)
{
	return protocol == IPPROTO_UDP && NAT_TYPE != NAT_SYMMETRIC;
}

static inline bool mapping_is_alive(const struct mapping *mapping)
{
	return elapsed(mapping->last_seen) <= TIMEOUT_UDP_ESTABLISHED * HZ;
}

static inline struct mapping_key mapping_key_of(const struct address *address, __be16 port, u8 protocol, u8 side)
{
	struct mapping_key key = {.address = *address, .port = port, .protocol = protocol, .side = side};

	return key;
}

/*
 * An inside end has one outside end for each of the node's addresses behind which it leaves: by several uplinks, several.
 */
static inline struct mapping_key mapping_key_inside(const struct tuple *key, const struct address *outside)
{
	struct address at = *outside;
	u8 number = EGRESS_NUMBER(at), side = number ? MAPPING_BUDGET + number : MAPPING_INSIDE;

	return mapping_key_of(&key->source, key->source_port, key->protocol, side);
}

/* The entry by which a mapping's outside end leads to the flow's inside one */
static inline struct mapping mapping_back(const struct tuple *key, u64 last_seen)
{
	struct mapping back = {.last_seen = last_seen, .address = key->source, .port = key->source_port};

	return back;
}

static inline bool mapping_leads_to(const struct mapping *back, const struct tuple *key)
{
	return back->port == key->source_port && address_equal(&back->address, &key->source);
}

/*
 * N1, N35: the port of an inside end behind an outside address, refreshed in both directions. An outside half that the LRU
 * has dropped is made anew (N5). False: it has none, or another inside end has its port by now.
 */
static inline bool mapping_follow(const struct tuple *key, const struct address *address, __be16 *port)
{
	struct mapping_key inside = mapping_key_inside(key, address), outside;
	struct mapping *to = mappings.lookup(&inside), *back, anew;

	/* Numbers of addresses may have changed with a load */
	if (!to || !mapping_is_alive(to) || !address_equal(&to->address, address))
		return false;
	outside = mapping_key_of(address, to->port, key->protocol, MAPPING_OUTSIDE);
	*port = to->port;
	back = mappings.lookup(&outside);
	if (!back) {
		anew = mapping_back(key, to->last_seen);
		mappings.insert(&outside, &anew);
		back = mappings.lookup(&outside);
	}
	if (!back || !mapping_leads_to(back, key))
		return false;
	if (elapsed(back->last_seen) >= HZ)
		to->last_seen = back->last_seen = now();
	return true;
}

/* When an inside end's half was written last, whatever it is worth; 0: there is none */
static inline u64 mapping_stamp(const struct tuple *key, const struct address *address)
{
	struct mapping_key inside = mapping_key_inside(key, address);
	struct mapping *to = mappings.lookup(&inside);

	return to ? to->last_seen : 0;
}

/* As mapping_follow; where the inside half is lost a flow of it knows the port, and makes it anew (N5). */
static inline void mapping_keep(const struct tuple *key, const struct address *address, __be16 port)
{
	struct mapping_key inside = mapping_key_inside(key, address);
	struct mapping there = {.last_seen = now(), .address = *address, .port = port};
	bool made = !mappings.lookup(&inside) && !mappings.insert(&inside, &there);

	if (!mapping_follow(key, address, &port) && made)
		mappings.delete(&inside);
}

/*
 * N12, N35: a mapping lives by what its inside end sends and by the answers to that, as its flows do, looked at once a
 * second. Who was let in by a full cone does not keep the door open for himself (RFC 4787 REQ-6).
 */
static inline void mapping_refresh(const struct tuple *key, const struct flow *flow)
{
	struct tuple inside = *key;
	struct address outside = flow->to.source;
	__be16 port = flow->to.source_port;

	if (!(flow->flags & FLOW_MASQUERADED) || !nat_maps(key->protocol))
		return;
	if (!IN_POD_NETWORK(inside.source)) {
		inside = tuple_reverse(&flow->to);
		if (!(flow->flags & FLOW_REPLY) || !IN_POD_NETWORK(inside.source))
			return;
		outside = key->destination;
		port = key->destination_port;
	}
	mapping_keep(&inside, &outside, port);
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

/* N20: UDP's port that is a pod's whoever it talks to */
static inline bool nat_port_is_mapped(const struct tuple *to)
{
	struct tuple answer = tuple_reverse(to);

	return nat_maps(to->protocol) && mapping_find_inside(&answer, &answer);
}

/*
 * N10, N31: a pod that calls another by its end outside is let in once that has sent to its own, but for a full cone. What
 * it has sent so far is entered: so the other one is let in.
 */
static inline bool nat_hairpin_waits(const struct tuple *key, const struct flow *flow)
{
	return NAT_TYPE != NAT_FULL_CONE && (flow->flags & FLOW_MASQUERADED) && !(flow->flags & FLOW_REPLY) &&
	       flow->state == FLOW_NEW && IN_POD_NETWORK(key->source) && IN_POD_NETWORK(flow->to.destination);
}

/* As flow_take_over, for a mapping's half: only one CPU may replace what it was `seen` to be over. */
static inline bool mapping_take_over(const struct mapping_key *half, struct mapping *by, u64 seen)
{
	struct mapping_key ticket = mapping_key_of(&half->address, half->port, half->protocol, MAPPING_BUDGET);
	struct mapping *holder;
	bool taken = false;

	if (mappings.insert(&ticket, by))
		return false;
	holder = mappings.lookup((struct mapping_key *)half);
	if (holder && holder->last_seen == seen) {
		mappings.update((struct mapping_key *)half, by);
		taken = true;
	}
	mappings.delete(&ticket);
	return taken;
}

/*
 * Takes an outside end's half for the flow's inside one: its own alone (N3). False: another's, or another pod's until lately
 * (N25; `quarantine`: seconds).
 */
static inline bool mapping_claim_outside(struct mapping_key *outside, const struct tuple *key, s64 quarantine)
{
	struct mapping back = mapping_back(key, now()), *holder;
	u64 seen;

	if (!mappings.insert(outside, &back))
		return true;
	holder = mappings.lookup(outside);
	if (!holder)
		return false;
	seen = holder->last_seen;
	if (mapping_leads_to(holder, key)) {
		holder->last_seen = back.last_seen;
		return true;
	}
	if (address_equal(&holder->address, &key->source))
		quarantine = 0;
	return elapsed(seen) > (TIMEOUT_UDP_ESTABLISHED + quarantine) * HZ && mapping_take_over(outside, &back, seen);
}

/*
 * A mapping for the flow's inside end, by the port with which it would leave. False: that is another's, or another CPU has
 * mapped this inside end just now (N6): then the next run follows it. `seen`: the stamp of what the inside end had before.
 */
static inline bool mapping_claim(const struct tuple *key, const struct tuple *to, s64 quarantine, u64 seen)
{
	struct mapping_key outside = mapping_key_of(&to->source, to->source_port, to->protocol, MAPPING_OUTSIDE);
	struct mapping_key inside = mapping_key_inside(key, &to->source);
	struct mapping there = {.last_seen = now(), .address = to->source, .port = to->source_port}, *by_now;

	if (!mapping_claim_outside(&outside, key, quarantine))
		return false;
	if (!mappings.insert(&inside, &there) || mapping_take_over(&inside, &there, seen))
		return true;
	by_now = mappings.lookup(&inside);
	if (by_now && by_now->port == there.port && address_equal(&by_now->address, &there.address))
		return true;
	mappings.delete(&outside);
	return false;
}

/* Gives back what was claimed for a flow whose tuple is another's after all */
static inline void mapping_release(const struct tuple *key, const struct tuple *to)
{
	struct mapping_key outside = mapping_key_of(&to->source, to->source_port, to->protocol, MAPPING_OUTSIDE);
	struct mapping_key inside = mapping_key_inside(key, &to->source);

	mappings.delete(&inside);
	mappings.delete(&outside);
}

static inline bool nat_begins(const struct leaving *of)
{
	return of->key.protocol != IPPROTO_TCP || (of->tcp_flags & TCP_SYN);
}

#if NAT_POD_FLOWS
#define FLOW_COST (NAT_POD_SPAN / NAT_POD_FLOWS)

/*
 * N24: whether a pod may begin one more flow, by one stamp for each: until when all that it has begun is paid for (the
 * generic cell rate algorithm, ITU-T I.371). Flows that it has cannot be counted: they end by themselves, or the LRU's way.
 * In parts of a jiffy, NAT_POD_PARTS of them, for one flow may cost less. Of two CPUs one may be given for nothing.
 */
static inline bool nat_may_begin(const struct address *pod)
{
	struct mapping_key key = mapping_key_of(pod, 0, 0, MAPPING_BUDGET);
	struct mapping first = {}, *budget = mappings.lookup(&key);
	u64 at = now() * NAT_POD_PARTS, paid = budget && budget->last_seen > at ? budget->last_seen : at;

	/* Half a flow less than the span: where the last one is paid to the day, it counts */
	if (paid - at > NAT_POD_SPAN - FLOW_COST / 2)
		return false;
	if (budget) {
		budget->last_seen = paid + FLOW_COST;
	} else {
		first.last_seen = paid + FLOW_COST;
		mappings.update(&key, &first);
	}
	return true;
}
#endif

/* Enters a new flow by the port that it has, if its answers would be nobody else's */
static inline bool nat_enter(struct leaving *of, s64 quarantine)
{
	struct tuple reply_key = tuple_reverse(&of->flow.to);
	enum claim claim;

	flow_opposite(&of->flow, &of->key, &of->other);
	claim = flow_claim_reply(&reply_key, &of->other, of->tcp_flags, quarantine);
	if (claim == TAKEN)
		return false;
	flow_enter(&of->key, &of->flow, &reply_key, claim, of->tcp_flags);
	return true;
}

enum found { FOUND, NEXT_ROUND, NONE_FREE };

/*
 * Looks for a port for a new flow, some tries long, and enters it. N22: in all rounds together so many that of 10,000 flows
 * one finds none where nine ports of ten are taken; not counting the first rounds, which look for one that was no other
 * pod's lately (N25). What comes in the middle of a connection is taken up by its own port or not at all (N104). What has a
 * mapping goes by that; where somebody else has that port towards this one server, such as the node, by another one there,
 * which is no mapping's: less than N1 asks, but more than no answer.
 */
static inline enum found nat_begin(struct __sk_buff *skb, struct leaving *of)
{
	struct tuple *key = &of->key, *to = &of->flow.to;
	/* The node's own have none (N20), nor have a service's clients */
	bool maps = nat_maps(key->protocol) && (of->flow.flags & FLOW_MASQUERADED) && IN_POD_NETWORK(key->source);
	s64 quarantine = of->rounds >= NAT_CHOOSY_ROUNDS ? 0 : TIMEOUT_QUARANTINE;
	u64 seen = 0;

	/* Its own port was tried by who has sent it here */
	if (of->rounds > 0 && !nat_begins(of))
		return NONE_FREE;
	if (maps) {
		seen = mapping_stamp(key, &to->source);
		if (mapping_follow(key, &to->source, &to->source_port)) {
			if (nat_enter(of, 0))
				return FOUND;
			if (of->rounds == 0)
				return NEXT_ROUND;
			maps = false;
		}
	}
	for (u32 try = 0; try < NAT_TRIES; try++) {
		if (try > 0 || of->rounds > 0)
			to->source_port = nat_random_port(key);
		if (!nat_port_is_reserved(key, to) && !nat_port_has_socket(skb, to) &&
		    (maps ? mapping_claim(key, to, quarantine, seen) : !nat_port_is_mapped(to))) {
			if (nat_enter(of, quarantine))
				return FOUND;
			if (maps)
				mapping_release(key, to);
		}
		if (!nat_begins(of))
			return NONE_FREE;
	}
	return of->rounds < NAT_ROUNDS ? NEXT_ROUND : NONE_FREE;
}

#endif
#endif
