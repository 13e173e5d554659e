/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The program `walk`: what needs more than a hook's program does. It decides, and goes on in `leave`, `nat` or `search`.
 * Maps: walks, leaving; counters.
 */
#ifndef PYDATAPATH_WALK_H
#define PYDATAPATH_WALK_H

/*
 * A pod tells where it is by ARP, IPv6's neighbour discovery and all other ICMP, and by what has ports: what it answers first
 * included, for one of its addresses may never call. (An opening's SYN-ACK is follow_opening's.) But for a live flow's: of a
 * pod that ends it may come late, when another has the address.
 */
static inline void learn(struct __sk_buff *skb, enum parsed parsed, enum seen_flow seen, const struct packet *packet)
{
	struct address sender;

	if (parsed == PARSED_FIRST || parsed == PARSED_ICMP || (parsed == PARSED && seen != KNOWN_FLOW))
		sender = ip_source(packet->ip);
	else if (parsed != PARSED_ARP || bpf_skb_load_bytes(skb, ARP_SENDER_OFFSET, &sender, sizeof(sender)))
		return;
	endpoint_learn(skb, packet->ethernet, sender);
}

/* C13, N84: nobody's own address leaves by an uplink, whatever the packet is */
static inline bool shows_pod(enum hook hook, const struct packet *packet)
{
#if MASQUERADE
	struct address source = ip_source(packet->ip), destination = ip_destination(packet->ip);

	return hook == TO_UPLINK && nat_is_due(&source, &destination);
#else
	return false;
#endif
}

/* As it came, if that may be */
static inline int pass_ip(struct __sk_buff *skb, enum hook hook, const struct packet *packet)
{
	return shows_pod(hook, packet) ? drop(DROP_UNTRANSLATED) : pass_untouched(skb, hook, packet);
}

/* Its lengths lie, but not who sends it: the stack's, whatever pod it is for */
static inline int pass_malformed(struct __sk_buff *skb, enum hook hook)
{
	struct packet packet = {.ip = (void *)(long)skb->data + IP_OFFSET};

	if ((void *)(packet.ip + 1) > (void *)(long)skb->data_end)
		return pass(skb, hook);
	return shows_pod(hook, &packet) ? drop(DROP_UNTRANSLATED) : pass(skb, hook);
}

static inline int refuse(struct __sk_buff *skb, enum hook hook, enum kind kind, struct packet *packet)
{
	switch (kind) {
	case KIND_NO_BACKEND:
		return answer_refuse(skb, hook, packet, DROP_NO_BACKEND);
	case KIND_NO_PORT:
		return answer_refuse(skb, hook, packet, DROP_NO_SERVICE);
	case KIND_POD_GONE:
		return answer_refuse(skb, hook, packet, DROP_POD_GONE);
	case KIND_NOT_HERE:
		return drop(DROP_POLICY);
	case KIND_NOT_ALLOWED:
		return drop(DROP_SOURCE_RANGE);
	case KIND_NO_SERVICE:
		return drop(DROP_NO_SERVICE);
	case KIND_UNASKED:
		return drop(DROP_UNASKED);
	case KIND_LOST:
		return drop(DROP_POD_GONE);
	default:
		return pass_ip(skb, hook, packet);
	}
}

/* The kind of the service's own address that a packet is for, 0 for none */
static inline u32 called_vip(enum hook hook, const struct packet *packet)
{
	struct address destination = ip_destination(packet->ip);

	return calls_services(hook, ip_source(packet->ip)) ? vip_kind(&destination) : 0;
}

/* What has no ports in sight: passes (C2), but for a cluster IP, where it would be lost unnamed. */
static inline int pass_unread(struct __sk_buff *skb, enum hook hook, const struct packet *packet, u32 passed, u32 dropped)
{
	int verdict;

	if (called_vip(hook, packet) == VIP_CLUSTER)
		return drop(dropped);
	verdict = pass_ip(skb, hook, packet);
	if (verdict != TC_ACT_SHOT)
		count(passed);
	return verdict;
}

/* On in `nat`, which finds a port; after `rounds` of looking for one, that is: where its own is not to be tried. */
static inline int walk_to_nat(struct __sk_buff *skb, const struct packet *packet, struct leaving *of, u32 rounds, u8 flags)
{
	of->length = packet->length;
	of->tcp_flags = packet->tcp_flags;
	of->rounds = rounds;
	of->flow.flags |= FLOW_PAIRED | flags;
	of->flow.last_seen = now();
	of->flow.packets = 1;
	of->flow.bytes = packet->length;
#if MASQUERADE
	walks.call(skb, NAT);
#endif
	return drop(DROP_REWRITE);
}

/* On in `search`, which goes on where CLAIM_TRIES ports were taken */
static inline int walk_to_search(struct __sk_buff *skb, const struct packet *packet, struct leaving *of)
{
	of->tcp_flags = packet->tcp_flags;
	of->rounds = 1;
	walks.call(skb, SEARCH);
	return drop(DROP_PORTS_TAKEN);
}

/* N9: not ours to change. Where pods are hidden its later fragments must be known as its own, which are not. */
static inline int walk_plain(struct __sk_buff *skb, enum hook hook, const struct packet *packet, const struct tuple *key)
{
	if (MASQUERADE && packet->is_first)
		fragment_note(packet, key);
	return leave_plain(skb, hook, packet);
}

/* C4, N97: a client from outside that is sent elsewhere, and is seen there as the node */
static inline bool hides_caller(enum hook hook, const struct tuple *key, const struct flow *flow)
{
	return MASQUERADE && hook == FROM_UPLINK && !address_equal(&flow->to.source, &key->source);
}

/* A packet of a flow, or the first of one. True: it is translated, `of->to` what it becomes; else `verdict` is the end. */
static inline bool walk_flow(struct __sk_buff *skb, enum hook hook, enum seen_flow seen, struct packet *packet,
			     struct leaving *of, int *verdict)
{
	struct tuple *key = &of->key;
	struct flow *flow = &of->flow;
	/* In the order in which a flow moves, so that it is never missed; and most that come here open a connection */
	enum followed followed = flow_follow_half_open(key, packet, flow, &of->other);
	enum kind kind;
	bool is_nodes;

	if (followed == NOT_FOUND && seen != NO_FLOW && flow_follow(key, packet, flow, &of->other))
		followed = FOLLOWED;
	if (followed == TOO_LATE) {
		*verdict = drop(DROP_LATE_ANSWER);
		return false;
	}
	/* C8: a backend that is in no slice any more and has lost its interface, too, will not answer */
	if (followed == FOLLOWED && flow_is_forsaken(flow) && pod_is_gone(&flow->to.destination)) {
		flow_end(key, flow);
		*verdict = refuse(skb, hook, KIND_POD_GONE, packet);
		return false;
	}
#if MASQUERADE
	if (followed == FOLLOWED) {
		if (is_lost(hook, flow)) {
			*verdict = drop(DROP_POD_GONE);
			return false;
		}
		mapping_refresh(key, flow);
		if (nat_hairpin_waits(key, flow)) {
			*verdict = drop(DROP_UNASKED);
			return false;
		}
	}
#endif
	if (followed == NOT_FOUND) {
		/* `learn` took the flow for a live one, and it is over */
		if (hook == FROM_POD && seen == KNOWN_FLOW)
			endpoint_learn(skb, packet->ethernet, ip_source(packet->ip));
		kind = classify(skb, hook, packet, key, flow, &of->other.to);
		if (kind == KIND_MASQUERADE && !has_both_ports(key)) {
			*verdict = drop(DROP_UNTRANSLATED);
			return false;
		}
		if (kind == KIND_MASQUERADE || kind == KIND_OWN_MAPPED) {
			*verdict = walk_to_nat(skb, packet, of, kind == KIND_OWN_MAPPED, FLOW_MASQUERADED);
			return false;
		}
		if (kind != KIND_FLOW && kind != KIND_OWN) {
			*verdict = refuse(skb, hook, kind, packet);
			return false;
		}
		is_nodes = kind == KIND_OWN || hides_caller(hook, key, flow);
		if (!flow_begin(key, flow, packet, &of->other, is_nodes ? 1 : CLAIM_TRIES)) {
			/* A port of the node's own sockets is none for what leaves under its address either (N18) */
			if (is_nodes)
				*verdict = walk_to_nat(skb, packet, of, 1, kind == KIND_OWN ? FLOW_MASQUERADED : 0);
			else
				*verdict = walk_to_search(skb, packet, of);
			return false;
		}
	}
	if (flow->flags & FLOW_PLAIN) {
		*verdict = walk_plain(skb, hook, packet, key);
		return false;
	}
	of->to = flow->to;
	return true;
}

#if MASQUERADE
/*
 * N46: the node's own query is entered before a pod may ask by its identifier: no socket can be asked for. By 0 its answer
 * would have the tuple of a query of the peer's.
 */
static inline bool is_nodes_query(enum hook hook, const struct tuple *key)
{
	return hook == TO_UPLINK && key->source_port && is_nodes_own(&key->source);
}

/*
 * Of ICMP's queries those have a flow that are masqueraded, and those that must be told apart from them: the node's own (N46),
 * and whose answer a pod sends out. As walk_flow.
 */
static inline bool walk_echo(struct __sk_buff *skb, enum hook hook, const struct packet *packet, enum echo echo,
			     struct leaving *of, int *verdict)
{
	enum followed followed = flow_follow_half_open(&of->key, packet, &of->flow, &of->other);
	bool asks = echo == ECHO_REQUEST;

	if (followed == NOT_FOUND && flow_follow(&of->key, packet, &of->flow, &of->other))
		followed = FOLLOWED;
	if (followed == TOO_LATE) {
		*verdict = drop(DROP_LATE_ANSWER);
		return false;
	}
	/* By the identifier 0 a pod's query has the tuple of its answer to a query of the same peer: not to be told apart */
	if (followed == FOLLOWED && asks == !!(of->flow.flags & FLOW_REPLY)) {
		*verdict = drop(DROP_UNTRANSLATED);
		return false;
	}
	if (followed == FOLLOWED && is_lost(hook, &of->flow)) {
		*verdict = drop(DROP_POD_GONE);
		return false;
	}
	if (followed != FOLLOWED) {
		of->flow = (struct flow){.to = of->key, .state = FLOW_NEW, .flags = FLOW_PAIRED};
		if (asks && masquerades(skb, hook, packet, &of->flow.to)) {
			*verdict = walk_to_nat(skb, packet, of, 0, FLOW_MASQUERADED);
			return false;
		}
		of->flow.flags = FLOW_PAIRED | FLOW_PLAIN;
		if (!asks || !(is_nodes_query(hook, &of->key) || is_in_the_way(hook, &of->key, 0) ||
			       calls_pod_directly(hook, &of->key, 0))) {
			*verdict = pass_ip(skb, hook, packet);
			return false;
		}
		if (!flow_begin(&of->key, &of->flow, packet, &of->other, 1)) {
			/* From outside none is taken: a pod's own queries have their identifier at the other end */
			if (hook == TO_UPLINK)
				*verdict = walk_to_nat(skb, packet, of, 1, FLOW_MASQUERADED);
			else
				*verdict = pass_ip(skb, hook, packet);
			return false;
		}
	}
	if (of->flow.flags & FLOW_PLAIN) {
		*verdict = walk_plain(skb, hook, packet, &of->key);
		return false;
	}
	of->to = of->flow.to;
	return true;
}
#endif

int walk(struct __sk_buff *skb)
{
	enum hook hook = skb->cb[CB_HOOK];
	/* Set, though unread where parsing fails: LLVM 14 may spill what is not, and the verifier refuses ("!read_ok") */
	struct packet packet = {};
	struct quoted quoted = {};
	enum seen_flow seen = skb->cb[CB_FLOW];
	enum parsed parsed = pull_and_parse(skb, &packet);
	u32 one = 0;
	struct leaving *of = leaving.lookup(&one);
#if MASQUERADE
	enum echo echo;
#endif
	int verdict;

	if (!of)
		return TC_ACT_SHOT; /* never: it is an array */
	if (has_addresses(parsed) && (is_spoofed(hook, &packet) || is_from_itself(hook, &packet)))
		return drop(DROP_SPOOFED);
	if (hook == FROM_POD)
		learn(skb, parsed, seen, &packet);
	switch (parsed) {
	case PARSED_ICMP:
		/* The first of several fragments would be answered by one that no others follow */
		if (icmp_is_echo(skb, &packet) && called_vip(hook, &packet))
			return packet.is_first ? drop(DROP_FRAGMENT) : answer_echo(skb, hook, &packet);
#if MASQUERADE
		echo = icmp_echo_tuple(skb, &packet, &of->key);
		if (echo != NO_ECHO) {
			if (!walk_echo(skb, hook, &packet, echo, of, &verdict))
				return verdict;
			break;
		}
#endif
		if (!icmp_parse_error(skb, &packet, &quoted))
			return pass_ip(skb, hook, &packet);
		switch (icmp_find_way(&quoted, &of->key, &of->to)) {
		case NO_WAY:
			return pass_ip(skb, hook, &packet);
		case PLAIN_WAY:
			return leave_plain(skb, hook, &packet);
		case TRANSLATED_WAY:
			break;
		}
		break;
	case PARSED_FRAGMENT:
		if (!fragment_find(&packet, &of->key, &of->to))
			return pass_unread(skb, hook, &packet, PASS_FRAGMENT, DROP_FRAGMENT);
		if (tuple_equal(&of->key, &of->to))
			return walk_plain(skb, hook, &packet, &of->key);
		break;
	case PARSED:
	case PARSED_FIRST:
		of->key = packet_tuple(&packet);
		if (!walk_flow(skb, hook, seen, &packet, of, &verdict))
			return verdict;
		break;
	case PARSED_UNREADABLE:
		return pass_unread(skb, hook, &packet, PASS_HEADERS, DROP_HEADERS);
	case PARSED_PROTOCOL:
		return pass_ip(skb, hook, &packet);
	case PARSED_MALFORMED:
		count(PASS_MALFORMED);
		return pass_malformed(skb, hook);
	default:
		return pass(skb, hook);
	}
	walks.call(skb, LEAVE);
	return drop(DROP_REWRITE);
}

#endif
