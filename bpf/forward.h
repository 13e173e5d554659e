/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Where a translated packet goes: a pod's interface, the node itself, another machine, or the stack. Maps: routes, interfaces.
 */
#ifndef PYDATAPATH_FORWARD_H
#define PYDATAPATH_FORWARD_H

/*
 * The routing table's answers. Asking it costs more than all else that is done to a masqueraded packet, and packets of a
 * connection come in bunches: an answer is good for its jiffy, so that no change waits for longer than that.
 */
BPF_TABLE_PINNED("percpu_array", u32, struct routed, routes, MAX_ROUTES, MAP_DIRECTORY "/routes" FAMILY_NAME);

/* Every namespace's loopback interface has this index */
#define LOOPBACK_INDEX 1

/* bcc 0.26's own prototype lacks the parameters for the next hop */
static long (*redirect_neigh)(u32, struct bpf_redir_neigh *, int, u64) = (void *)BPF_FUNC_redirect_neigh;

/* The hook that a program sits at. A constant in the programs of the hooks, so that each holds its own walk only. */
enum hook {
	FROM_POD,    /* tc ingress of a pod's host-side veth */
	FROM_UPLINK, /* tc ingress of an uplink */
	TO_BRIDGE,   /* tc egress of the bridge: what the node itself sends to pods and services */
	TO_UPLINK,   /* tc egress of an uplink: what the node itself sends to other machines */
	TO_LOOPBACK, /* tc egress of the loopback interface: what the node sends to its own node ports */
};

static inline bool is_egress(enum hook hook)
{
	return hook == TO_BRIDGE || hook == TO_UPLINK || hook == TO_LOOPBACK;
}

/*
 * Marks a packet that one of our programs has walked and left to the stack or to a neighbour, so that the walk is not
 * walked again where it leaves. tc_index outlives routing; it is scrubbed neither there nor by a veth, so every program
 * clears it first.
 */
#define WALKED 0xda7a

static inline int pass_walked(struct __sk_buff *skb)
{
	skb->tc_index = WALKED;
	return PASS;
}

/* Where a packet leaves this program to. */
enum way {
	WAY_POD,       /* a pod's interface on this node */
	WAY_NODE,      /* the node's own stack */
	WAY_NEIGHBOUR, /* another machine, past the stack */
	WAY_STACK,     /* no way known: translated, and the stack may know more */
	WAY_STRAIGHT,  /* it is on its way already */
};

struct route {
	enum way way;
	u32 interface;
	bool known_neighbour; /* its MAC is known now */
	bool too_long;	      /* the packet, for the link: why the way is the stack's */
	struct address next_hop;
};

#if FAMILY == 4
static inline u32 route_traffic(const ip_header *ip)
{
	return ip->tos;
}

static inline void route_ask(struct bpf_fib_lookup *asked, const ip_header *ip, const struct tuple *to)
{
	asked->tos = route_traffic(ip);
	asked->ipv4_src = to->source.words[0];
	asked->ipv4_dst = to->destination.words[0];
}

static inline struct address route_next_hop(const struct bpf_fib_lookup *asked)
{
	return address_of(asked->ipv4_dst);
}

static inline void neighbour_set(struct bpf_redir_neigh *neighbour, const struct address *address)
{
	neighbour->ipv4_nh = address->words[0];
}
#else
static inline u32 route_traffic(const ip_header *ip)
{
	return *(const __be32 *)ip & bpf_htonl(0x0fffffff);
}

static inline void route_ask(struct bpf_fib_lookup *asked, const ip_header *ip, const struct tuple *to)
{
	asked->flowinfo = route_traffic(ip);
#pragma unroll
	for (int i = 0; i < WORDS; i++) {
		asked->ipv6_src[i] = to->source.words[i];
		asked->ipv6_dst[i] = to->destination.words[i];
	}
}

static inline struct address route_next_hop(const struct bpf_fib_lookup *asked)
{
	return address_at(asked->ipv6_dst);
}

static inline void neighbour_set(struct bpf_redir_neigh *neighbour, const struct address *address)
{
#pragma unroll
	for (int i = 0; i < WORDS; i++)
		neighbour->ipv6_nh[i] = address->words[i];
}
#endif

static inline struct routed *route_place(const struct tuple *to)
{
	u64 mixed = (u64)to->source.words[WORDS - 1] << 32 | to->destination.words[WORDS - 1];
	u32 place = (u32)(mixed * 0x9e3779b97f4a7c15 >> 32) & (MAX_ROUTES - 1);

	return routes.lookup(&place);
}

/*
 * Bytes of layer 3 of each packet that comes of one that is to be cut into segments (GSO). How long TCP's headers are what
 * is behind them tells.
 */
static inline u32 segment_length(const struct __sk_buff *skb, const struct packet *packet)
{
	u32 headers = packet->transport_offset - IP_OFFSET + sizeof(struct udphdr);

	if (packet->protocol == IPPROTO_TCP && packet->data < packet->length)
		headers = packet->length - packet->data;
	return headers + skb->gso_size;
}

/* A packet that is longer than the link is the stack's (N71) */
static inline bool route_is_known(const struct __sk_buff *skb, const struct packet *packet, const struct tuple *to,
				  const struct routed *routed, u32 length)
{
	return routed && routed->at == (u32)now() && routed->from == skb->ifindex && length <= routed->mtu &&
	       routed->traffic == route_traffic(packet->ip) && routed->protocol == to->protocol &&
	       address_equal(&routed->source, &to->source) && address_equal(&routed->destination, &to->destination);
}

static inline void route_note(const struct __sk_buff *skb, const struct packet *packet, const struct tuple *to,
			      const struct bpf_fib_lookup *asked, long answer, struct routed *routed)
{
	/*
	 * Since Linux 5.12; before, the length that was asked for stays: segments', or 0, and then each packet is asked for. Where
	 * the neighbour is not known nobody looks.
	 */
	u32 mtu = answer == BPF_FIB_LKUP_RET_SUCCESS ? asked->mtu_result : 0xffff;

	routed->at = now();
	routed->source = to->source;
	routed->destination = to->destination;
	routed->next_hop = route_next_hop(asked);
	routed->from = skb->ifindex;
	routed->traffic = route_traffic(packet->ip);
	routed->interface = asked->ifindex;
	routed->mtu = mtu < 0xffff ? mtu : 0xffff;
	routed->protocol = to->protocol;
	routed->answer = answer;
}

static inline void route_take(struct route *route, long answer, u32 interface, struct address next_hop)
{
	route->known_neighbour = answer == BPF_FIB_LKUP_RET_SUCCESS;
	route->way = route->known_neighbour || answer == BPF_FIB_LKUP_RET_NO_NEIGH ? WAY_NEIGHBOUR : WAY_STACK;
	route->interface = interface;
	route->next_hop = next_hop;
}

/* To another machine: as the routing table says. */
static inline void route_lookup(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to,
				struct route *route)
{
	struct bpf_fib_lookup asked = {
		.family = AF_FAMILY,
		.l4_protocol = to->protocol,
		.ifindex = skb->ifindex,
	};
	struct routed *routed = route_place(to);
	u32 length = packet->length;
	long answer;

	if (skb->gso_size) {
		length = segment_length(skb, packet);
		asked.tot_len = length; /* else the kernel lets it pass, however long its segments are */
	}
	if (route_is_known(skb, packet, to, routed, length)) {
		route_take(route, routed->answer, routed->interface, routed->next_hop);
		return;
	}
	route_ask(&asked, packet->ip, to);
	answer = bpf_fib_lookup(skb, &asked, sizeof(asked), 0);
	route_take(route, answer, asked.ifindex, route_next_hop(&asked));
	route->too_long = answer == BPF_FIB_LKUP_RET_FRAG_NEEDED;
	/* That this one is too long is no answer for others */
	if (routed && answer >= 0 && answer != BPF_FIB_LKUP_RET_FRAG_NEEDED)
		route_note(skb, packet, to, &asked, answer, routed);
}

/* Same-subnet traffic keeps its TTL, routed traffic loses one (RFC 1812 5.3.1); what the node sends is not routed. */
static inline bool is_routed(enum hook hook, enum way way)
{
	if (way == WAY_POD)
		return hook == FROM_UPLINK;
	return (way == WAY_NEIGHBOUR || way == WAY_STACK) && (hook == FROM_UPLINK || hook == FROM_POD);
}

static inline int leave_to_pod(struct __sk_buff *skb, enum hook hook, u32 interface)
{
	/* redirect_peer works at ingress only */
	if (is_egress(hook))
		return bpf_redirect(interface, 0);
	/* The frame was for the gateway's MAC, hence "other host" at the veth. redirect_peer mends that since Linux
	 * commit c4327229948879 ("bpf: Scrub packet on bpf_redirect_peer", in v6.15), not before. */
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	return bpf_redirect_peer(interface, 0);
}

#if POD_FAST_PATH
/*
 * The interface of the pod of this node that a frame from another one's is for; 0: the bridge knows more. By its MAC, too:
 * what is for the gateway's, or a pod's that routes, is no pod's yet. A bridge sends nothing back to where it came in, and
 * looks at VLANs. An interface that is gone may have left its address, and the very MAC, to another.
 */
static inline u32 pod_beside(const struct __sk_buff *skb, const struct packet *packet)
{
	struct address destination = ip_destination(packet->ip);
	struct endpoint *pod = endpoint_find(&destination);
	u32 interface;

	if (!pod || pod->kind != ENDPOINT_POD || pod->interface == skb->ifindex || skb->vlan_present)
		return 0;
	if (!mac_equal(pod->mac, packet->ethernet->h_dest))
		return 0;
	interface = pod->interface;
	return interfaces.lookup(&interface) ? interface : 0;
}

/* The sender is known as it would be learned of this packet */
static inline bool is_sender_known(const struct __sk_buff *skb, const struct packet *packet)
{
	struct address source = ip_source(packet->ip);
	struct endpoint *sender = endpoint_find(&source);

	return sender && sender->interface == skb->ifindex && mac_equal(sender->mac, packet->ethernet->h_source);
}
#endif

/* As it came, to the stack; but from pod to pod of this node past the bridge between them, where `load` was asked for that */
static inline int leave_untouched(struct __sk_buff *skb, enum hook hook, const struct packet *packet)
{
#if POD_FAST_PATH
	u32 interface = hook == FROM_POD ? pod_beside(skb, packet) : 0;

	if (interface)
		return leave_to_pod(skb, FROM_POD, interface);
#endif
	return PASS;
}

/* A plain flow's packet: walked, and nothing to rewrite (N9) */
static inline int leave_plain(struct __sk_buff *skb, enum hook hook, const struct packet *packet)
{
	int verdict = leave_untouched(skb, hook, packet);

	return verdict == PASS && !is_egress(hook) ? pass_walked(skb) : verdict;
}

/* N87: as is_spoofed, of what no known flow vouches for */
static inline bool is_from_itself(enum hook hook, const struct packet *packet)
{
	struct address source = ip_source(packet->ip);

	return hook == FROM_UPLINK && is_nodes_own(&source);
}

/*
 * Where a packet for the node's own socket must come in: by the interface where the route to its new source leads, or a
 * reverse path filter would drop it. To a service network (and the next hop there) that is the bridge, to the node's own
 * address the loopback interface, to an external or balancer's address the uplink. 0: where it is already, as what comes
 * from the peer itself.
 */
static inline u32 arrival(enum hook hook, const struct address *was, const struct address *source, u32 bridge)
{
	struct address gateway = SERVICE_GATEWAY, from = *source;
	bool by_bridge = IN_SERVICE_NETWORK(from) || address_equal(source, &gateway);

	if (!by_bridge && is_nodes_own(source))
		return LOOPBACK_INDEX;
	if (address_equal(was, source) || (hook == FROM_POD && by_bridge) ||
	    (hook == FROM_UPLINK && !by_bridge))
		return 0;
	return by_bridge ? bridge : UPLINK_INDEX;
}

/* Word by word: LLVM 14 would copy from one of two places, and the verifier refuses a pointer that may be either */
static inline void write_uplink_mac(struct ethhdr *ethernet)
{
	const __u16 mac[] = {UPLINK_MAC};
	volatile __u16 *to = (void *)ethernet->h_dest;

	to[0] = mac[0];
	to[1] = mac[1];
	to[2] = mac[2];
}

static inline void write_loopback_mac(struct ethhdr *ethernet)
{
	volatile __u16 *to = (void *)ethernet->h_dest;

	to[0] = 0;
	to[1] = 0;
	to[2] = 0;
}

static inline int leave_to_node(struct __sk_buff *skb, u32 interface)
{
	return interface ? bpf_redirect(interface, BPF_F_INGRESS) : pass_walked(skb);
}

static inline int leave_to_neighbour(struct __sk_buff *skb, enum hook hook, const struct route *route)
{
	struct bpf_redir_neigh next_hop = {.nh_family = AF_FAMILY};

	/* It may leave by a bridge: a pod of this node that has not been heard of yet */
	skb->tc_index = WALKED;
	/* What the node itself sends brings its own route along. By that one the kernel would send it when the neighbour has
	 * answered (__neigh_update in net/core/neighbour.c): to the services' gateway. Hence one that fits, by the helper. */
	if (is_egress(hook) && !route->known_neighbour)
		return redirect_neigh(route->interface, NULL, 0, 0);
	neighbour_set(&next_hop, &route->next_hop);
	return redirect_neigh(route->interface, &next_hop, sizeof(next_hop), 0);
}

/* What of a packet is rewritten. */
enum shape {
	SEGMENT,  /* addresses and ports: a segment or datagram, or the first fragment of one */
	FRAGMENT, /* addresses: a later fragment */
	ERROR,	  /* an ICMP error, with what it quotes */
	ECHO,	  /* an ICMP query, or its answer */
};

/*
 * N71: what is too long, and under another source, is the stack's as it came: it cuts that up, or tells who sent it, and what it
 * sends is translated at the uplink. So is what has no way we know, if it would be under the node's own address: Linux takes
 * that for forged, and drops it unnamed (fib_validate_source; IPv6 has no such check). But for a cluster IP, which it expects
 * where it comes in. For another destination that is no way.
 */
static inline bool goes_up_as_it_came(const struct route *route, const struct tuple *key, const struct tuple *to)
{
	struct address source = to->source;

	return route->way == WAY_STACK && !address_equal(&key->source, &source) && !IN_SERVICE_NETWORK(source) &&
	       (route->too_long || (FAMILY == 4 && is_nodes_own(&source)));
}

/*
 * Finds the way, rewrites the packet (in one place: it is the largest part of every program), lets it go. `quoted` is
 * looked at for an ERROR only.
 */
static inline int forward(struct __sk_buff *skb, enum hook hook, struct packet *packet, const struct tuple *key,
			  const struct tuple *to, enum shape shape, struct quoted *quoted)
{
	struct route route = {.way = WAY_STRAIGHT};
	struct endpoint *endpoint = NULL;

	/* The node's own direct connection, under another port, is on its way already */
	if (hook != TO_UPLINK || !address_equal(&key->destination, &to->destination)) {
		endpoint = endpoint_find(&to->destination);
		if (endpoint) {
			route.way = endpoint->kind == ENDPOINT_NODE ? WAY_NODE : WAY_POD;
			route.interface = endpoint->interface;
		} else {
			route_lookup(skb, packet, to, &route);
		}
	}
	if (shape == ERROR)
		quoted->sender = icmp_sender(packet, key, to, !endpoint);
	if (is_routed(hook, route.way)) {
		/* The stack answers time exceeded; but at the node's own address it would take the packet for its own */
		if (ip_hops(packet->ip) <= 1)
			return is_nodes_own(&key->destination) ? drop(DROP_HOPS) : PASS;
		if (route.way != WAY_STACK)
			rewrite_hops(skb, packet->ip);
	}
	if (shape != ERROR && !is_egress(hook) && goes_up_as_it_came(&route, key, to))
		return address_equal(&key->destination, &to->destination) ? PASS : drop(DROP_NO_ROUTE);
	if (endpoint)
		__builtin_memcpy(packet->ethernet->h_dest, endpoint->mac, ETH_ALEN);
	if (route.way == WAY_NODE) {
		struct address was = ip_source(packet->ip), source = to->source;

		if (shape == ERROR)
			source = quoted->sender;
		route.interface = arrival(hook, &was, &source, route.interface);
		if (route.interface == LOOPBACK_INDEX)
			write_loopback_mac(packet->ethernet);
		else if (route.interface && route.interface == UPLINK_INDEX)
			write_uplink_mac(packet->ethernet);
	}
	if (shape == ERROR)
		icmp_rewrite(packet, quoted, to);
#if MASQUERADE
	else if (shape == ECHO)
		icmp_rewrite_echo(packet, key, to);
#endif
	else if (shape == FRAGMENT)
		rewrite_fragment(skb, packet->ip, key, to);
	else if (rewrite_tuple(skb, packet, key, to))
		return drop(DROP_REWRITE);
	switch (route.way) {
	case WAY_POD:
		return leave_to_pod(skb, hook, route.interface);
	case WAY_NODE:
		return leave_to_node(skb, route.interface);
	case WAY_NEIGHBOUR:
		return leave_to_neighbour(skb, hook, &route);
	case WAY_STACK:
		return is_egress(hook) ? drop(DROP_NO_ROUTE) : pass_walked(skb);
	default:
		return PASS;
	}
}

#endif
