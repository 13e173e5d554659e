/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * What becomes of the first packet of a flow: a service's, a backend's own, one to masquerade, or nothing of ours.
 * It is read and decided here; what is entered for it, flow.h and nat.h do.
 */
#ifndef PYDATAPATH_CLASSIFY_H
#define PYDATAPATH_CLASSIFY_H

/* What to do with a packet if it is the first of a flow: `flow` is filled in where it becomes one. */
enum kind {
	KIND_PASS,
	KIND_FLOW,
	KIND_MASQUERADE, /* a flow whose source port `nat` chooses */
	KIND_OWN,	 /* the node's own, whose port `nat` chooses where a masqueraded one has it (N20) */
	KIND_OWN_MAPPED, /* such a one, whose port is a pod's at every server */
	KIND_UNASKED,	 /* from outside to a masqueraded port, but not from whom it has talked to (N10) */
	KIND_NO_BACKEND,
	KIND_NO_PORT,
	KIND_NOT_HERE,
	KIND_NOT_ALLOWED,
	KIND_NO_SERVICE,
	KIND_POD_GONE,
	KIND_LOST, /* from outside to a pod that is gone: dropped, and what it had outside stays its (N25) */
};

static inline bool interface_is_gone(const struct endpoint *endpoint)
{
	u32 interface = endpoint->interface;

	return endpoint->kind == ENDPOINT_POD && !interfaces.lookup(&interface);
}

/* C8: whether nobody has a pod's address any more: its interface is gone, or it is this node's and no pod's here */
static inline bool pod_is_gone(const struct address *address)
{
	struct address asked = *address;
	struct endpoint *endpoint = endpoints.lookup(&asked);

	return endpoint ? interface_is_gone(endpoint) : IN_EXCLUSIVE_NETWORK(asked);
}

/*
 * N108: what comes in for a masqueraded pod would be redirected to an interface that is gone, and lost unnamed. A pod that is
 * not known at all has come after `load`, and the route leads to it.
 */
static inline bool is_lost(enum hook hook, const struct flow *flow)
{
	struct address asked = flow->to.destination;
	struct endpoint *endpoint;

	if (!MASQUERADE || hook != FROM_UPLINK || !(flow->flags & FLOW_MASQUERADED))
		return false;
	endpoint = endpoints.lookup(&asked);
	return endpoint && interface_is_gone(endpoint);
}

/*
 * What the backend sees of who calls: the caller's own address wherever the answer comes back by this node anyway, else
 * the node's (C4). So it is the node's for a pod that is balanced to itself (S29), and for a client from elsewhere that
 * is sent elsewhere. Where the node calls and is the backend, too, no address of its own may come in: the next hop's.
 */
static inline struct address seen_source(enum hook hook, const struct tuple *key, const struct tuple *to)
{
	struct endpoint *backend = endpoints.lookup((struct address *)&to->destination);

	if (!backend && hook == FROM_UPLINK)
		return UPLINK_ADDRESS;
	if (backend && backend->kind == ENDPOINT_NODE && is_egress(hook))
		return SERVICE_GATEWAY;
	if (address_equal(&to->destination, &key->source))
		return NODE_ADDRESS;
	return key->source;
}

/* What leaves by an uplink was met when it came in, unless it is the node's own: for an external or balancer's address */
static inline bool calls_services(enum hook hook, struct address source)
{
	struct endpoint *sender;

	if (hook != TO_UPLINK)
		return true;
	sender = endpoints.lookup(&source);
	return sender && sender->kind == ENDPOINT_NODE;
}

/* Whether a packet of the hook would leave the cluster under a pod's address */
static inline bool is_due(enum hook hook, const struct tuple *key)
{
#if MASQUERADE
	return (hook == FROM_POD || hook == TO_UPLINK) && nat_is_due(&key->source, &key->destination);
#else
	return false;
#endif
}

#if MASQUERADE
/*
 * Whether a new flow is to be masqueraded: then its source is the node's address already. A packet that goes past the
 * stack needs its route for that (a pod's, or the node's own to a service that is served outside); one that the stack has
 * sent here leaves by this uplink.
 */
static inline bool masquerades(struct __sk_buff *skb, enum hook hook, const struct packet *packet, struct tuple *to)
{
	struct address source = to->source;
	struct route route = {};
	u32 uplink = skb->ifindex;

	if (hook == FROM_UPLINK || !nat_is_due(&source, &to->destination) || endpoints.lookup(&to->destination))
		return false;
	if (hook != TO_UPLINK) {
		route_lookup(skb, packet, to, &route);
		if (route.way != WAY_NEIGHBOUR)
			return false;
		uplink = route.interface;
	}
	return nat_address(&source, uplink, &to->source);
}

/*
 * N20: the node's own new connection has the ends of a masqueraded one, and leaves by another port; or its port is a pod's
 * whoever that talks to. Only what begins one is looked at.
 */
static inline bool is_in_the_way(enum hook hook, const struct tuple *key, u8 tcp_flags)
{
	struct tuple answer = tuple_reverse(key);

	if (hook != TO_UPLINK || (key->protocol == IPPROTO_TCP && !opens_connection(tcp_flags)))
		return false;
	return flow_standing(&answer) || half_open.lookup(&answer) || nat_port_is_mapped(key);
}

/*
 * Somebody outside calls a pod by its own address, which a router leads here: its answers must not be masqueraded, so they
 * are entered as a plain flow's. Only what begins one: a stale packet exempts nobody (N96).
 */
static inline bool calls_pod_directly(enum hook hook, const struct tuple *key, u8 tcp_flags)
{
	return hook == FROM_UPLINK && (key->protocol != IPPROTO_TCP || opens_connection(tcp_flags)) &&
	       nat_is_due(&key->destination, &key->source);
}

/*
 * N31: a pod calls another one of this node, or itself, by its end outside, and leaves as it would be seen there (RFC 4787
 * REQ-9a). UDP's mappings alone are there for everybody; a port of TCP, or an identifier, is one server's.
 */
static inline bool hairpins(enum hook hook, const struct tuple *key, struct tuple *to)
{
	struct address source = key->source, called = key->destination;

	if (hook != FROM_POD || !nat_maps(key->protocol) || !IN_POD_NETWORK(key->source) ||
	    is_in_cluster(&key->destination) || !mapping_find_inside(key, to))
		return false;
	/* Where that is one of its own outside addresses, it is known by that one to who calls it by it */
	if (IS_EGRESS_ADDRESS(source, called) || !nat_address(&source, UPLINK_INDEX, &to->source))
		to->source = called;
	return true;
}

/*
 * What comes in by an uplink for a port of UDP that is a pod's, from whom that pod has not talked to (N10, N11); from port 0
 * nobody is let in (N27).
 */
static inline enum kind classify_unasked(enum hook hook, struct flow *flow)
{
	if (hook != FROM_UPLINK || !nat_maps(flow->to.protocol) || !mapping_find_inside(&flow->to, &flow->to))
		return KIND_PASS;
	flow->flags |= FLOW_MASQUERADED;
	if (NAT_TYPE != NAT_FULL_CONE || !flow->to.source_port)
		return KIND_UNASKED;
	return is_lost(hook, flow) ? KIND_LOST : KIND_FLOW;
}
#endif

/*
 * N93: what would be answered by the tuple that answers a flow: a call to where a backend listened, whose service is gone,
 * while its flows last. Only of what begins one, and not at an uplink's egress, where is_in_the_way asks of more. Every
 * datagram to nowhere of ours asks: of those that were answered only, which is one lookup. `answer` is room for a tuple, not on
 * the stack: there it would be another way for the verifier.
 */
static inline bool meets_known_answer(enum hook hook, const struct tuple *key, u8 tcp_flags, struct tuple *answer)
{
	struct flow *flow = NULL;

	if (MASQUERADE && hook == TO_UPLINK)
		return false;
	*answer = tuple_reverse(key);
	if (key->protocol == IPPROTO_TCP) {
		if (!opens_connection(tcp_flags))
			return false;
		flow = half_open.lookup(answer);
	}
	if (!flow)
		flow = flow_standing(answer);
	return flow && (flow->flags & FLOW_REPLY);
}

/* Neither a service nor a backend's port */
static inline enum kind classify_other(struct __sk_buff *skb, enum hook hook, const struct packet *packet,
				       const struct tuple *key, struct flow *flow)
{
#if MASQUERADE
	if (masquerades(skb, hook, packet, &flow->to) || hairpins(hook, key, &flow->to))
		return KIND_MASQUERADE;
	if (is_in_the_way(hook, key, packet->tcp_flags)) {
		/* N88: of a tunnel the source port is a hash, and nothing answers to it */
		if (nat_port_is_mapped(key) && !nat_port_is_tunnels(key->destination_port))
			return KIND_OWN_MAPPED;
		flow->flags |= FLOW_PLAIN;
		return KIND_OWN;
	}
	/* N18: of the node's own SCTP no socket can be asked for, and no port is its own that is not entered */
	if (calls_pod_directly(hook, key, packet->tcp_flags) ||
	    (hook == TO_UPLINK && key->protocol == IPPROTO_SCTP && is_nodes_own(&key->source))) {
		flow->flags |= FLOW_PLAIN;
		return KIND_FLOW;
	}
	return classify_unasked(hook, flow);
#else
	return KIND_PASS;
#endif
}

/* FLOW_OPENED for a SYN without ACK. By arithmetic: a branch here would be two ways through all of `walk` to the verifier */
static inline u8 opened_flag(u8 tcp_flags)
{
	_Static_assert(TCP_ACK >> 3 == TCP_SYN, "ACK moved to SYN's place");
	return (tcp_flags & TCP_SYN & ~(tcp_flags >> 3)) * (FLOW_OPENED / TCP_SYN);
}

static inline enum kind classify(struct __sk_buff *skb, enum hook hook, const struct packet *packet,
				 const struct tuple *key, struct flow *flow, struct tuple *room)
{
	bool calls = calls_services(hook, key->source);

	/* Nothing of an entry that was found and is over */
	*flow = (struct flow){.to = *key, .state = FLOW_NEW};
	if (key->protocol != IPPROTO_TCP)
		flow->flags = FLOW_PAIRED;
	else
		flow->flags = opened_flag(packet->tcp_flags);
	switch (calls && !answers_opening(packet) ? service_choose(key, hook == FROM_UPLINK, flow) : NO_SERVICE) {
	case CHOSEN:
		flow->to.source = seen_source(hook, key, &flow->to);
#if MASQUERADE
		/* A backend that is no pod, such as a database elsewhere */
		if (masquerades(skb, hook, packet, &flow->to))
			return KIND_MASQUERADE;
#endif
		return KIND_FLOW;
	case NO_BACKEND:
		return KIND_NO_BACKEND;
	case NOT_HERE:
		return KIND_NOT_HERE;
	case NOT_ALLOWED:
		return KIND_NOT_ALLOWED;
	case NO_SERVICE:
		break;
	}
	if ((is_target(key) || meets_known_answer(hook, key, packet->tcp_flags, room)) && !(MASQUERADE && is_due(hook, key))) {
		/* A plain connection to a backend is entered too, so that no service flow takes its tuple */
		flow->flags |= FLOW_PLAIN;
		return KIND_FLOW;
	}
	/* C2: a cluster IP has no other ports (S37), the address that no service owns none (S38) */
	if (calls && vip_kind(&key->destination) == VIP_CLUSTER)
		return KIND_NO_PORT;
	if (!is_egress(hook) && IN_SERVICE_NETWORK(key->destination))
		return KIND_NO_SERVICE;
	return classify_other(skb, hook, packet, key, flow);
}

#endif
