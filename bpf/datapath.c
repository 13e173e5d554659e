/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The tc programs: a packet's walk.
 *
 *     parse -> flow lookup -> hit:  rewrite -> forward
 *                          -> miss: classify -> choose -> claim both directions -> rewrite -> forward
 *
 * Each hook has a program that is all that a packet of a known flow meets. Whatever needs more (a new flow, an entry
 * to refresh, something to learn) goes on in `walk`, by a tail call, with a stack of its own: one program for all hooks,
 * which is told by skb->cb where the packet is. Once it has decided, `leave` rewrites and forwards, by another tail call:
 * the verifier then looks at that part once, instead of once for each way through the walk.
 */
#define BPF_LICENSE Dual BSD/GPL

#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include "contract.h"
#include "packet.h"
#include "rewrite.h"
#include "event.h"
#include "flow.h"
#include "service.h"
#include "fragment.h"
#include "nat.h"
#include "icmp.h"
#include "forward.h"
#include "answer.h"
#include "classify.h"

/* What the hook's program has seen of the flow */
enum seen_flow { NO_FLOW, KNOWN_FLOW, SYN };

/*
 * Fresh at every load, filled before any program is exchanged, so that no packet meets halves of two versions. WALK and
 * LEAVE are this family's places in it; IPV6_HOOKS (0: IPv6 is not loaded) is the place of IPv6's first hook program.
 */
BPF_TABLE_PINNED("prog", u32, u32, walks, PROGRAMS, PROGRAM_DIRECTORY "/walks");
/* Tail calls have no arguments but skb->cb, which is too small. Per CPU: a tc program is not interrupted by another. */
BPF_TABLE_PINNED("percpu_array", u32, struct leaving, leaving, ONE, MAP_DIRECTORY "/leaving" FAMILY_NAME);

/* Not ours: to the stack as it came. But what goes to the node's next hop for services finds nobody there. */
static inline int pass(struct __sk_buff *skb, enum hook hook)
{
	const __u16 gateway[] = {SERVICE_GATEWAY_MAC};
	struct ethhdr *ethernet = (void *)(long)skb->data;

	if (hook != TO_BRIDGE || (void *)(ethernet + 1) > (void *)(long)skb->data_end)
		return PASS;
	return mac_equal(ethernet->h_dest, gateway) ? drop(DROP_NO_SERVICE) : PASS;
}

/* The two halves are compiled side by side, each in a process of its own: half the time of a first load */
#if WITH_OTHERS
/* The hooks hold IPv4's programs; an IPv6 packet goes on in its own by a tail call, and is not slower for it */
static inline int pass_to_family(struct __sk_buff *skb, enum hook hook)
{
	struct ethhdr *ethernet = (void *)(long)skb->data;

	if (FAMILY == 4 && IPV6_HOOKS && (void *)(ethernet + 1) <= (void *)(long)skb->data_end &&
	    ethernet->h_proto == bpf_htons(ETH_P_IPV6))
		walks.call(skb, IPV6_HOOKS + hook);
	return pass(skb, hook);
}

/* On the loopback interface only calls of services are ours, the node's own node ports: all else costs two lookups */
static inline bool is_called(const struct packet *packet)
{
	struct tuple key = packet_tuple(packet);
	struct transport_address called = called_address(&key);

	return services.lookup(&called) != NULL;
}

#endif

/*
 * N87: a source that only a packet from this node can have. Before any flow is looked for, which it might pass for. That
 * the node's own addresses are none takes a lookup, for what is no known flow only.
 */
static inline bool is_spoofed(enum hook hook, const struct packet *packet)
{
	struct address source = ip_source(packet->ip), destination = ip_destination(packet->ip);

	return hook == FROM_UPLINK && (COMES_FROM_HERE(source) || address_equal(&source, &destination));
}

#if WITH_OTHERS
static inline int walk_fast(struct __sk_buff *skb, enum hook hook)
{
	struct packet packet;
	struct tuple key, to;
	struct flow *flow = NULL;
	enum seen_flow seen = NO_FLOW;
	enum parsed parsed;

	if (skb->tc_index == WALKED) {
		skb->tc_index = 0;
		if (is_egress(hook))
			return PASS;
	}
	parsed = packet_parse(skb, &packet, PLAIN_HEADERS);
	if (parsed == PARSED_OTHER)
		return pass_to_family(skb, hook);
	/* Nothing to do but at an uplink's egress, where nobody's own address may leave */
	if (parsed == PARSED_PROTOCOL && !(MASQUERADE && hook == TO_UPLINK))
		return pass(skb, hook);
	if (hook == TO_LOOPBACK && parsed != PARSED)
		return PASS;
	if (parsed == PARSED && is_spoofed(hook, &packet))
		return drop(DROP_SPOOFED);
	if (parsed == PARSED && (packet.tcp_flags & TCP_SYN)) {
		/* The walk's business, whatever is known of it */
		seen = SYN;
	} else if (parsed == PARSED) {
		key = packet_tuple(&packet);
		flow = flows.lookup(&key);
		/* SCTP's checksum is too much code for here */
		if (flow && packet.protocol != IPPROTO_SCTP && flow_is_ordinary(flow, &packet)) {
			flow_count(flow, &packet);
			if (packet.tcp_flags & (TCP_FIN | TCP_RST))
				flow_note_closing(flow, packet.tcp_flags);
			if (flow->flags & FLOW_PLAIN)
				return is_egress(hook) ? PASS : pass_walked(skb);
			to = flow->to;
			return forward(skb, hook, &packet, &key, &to, SEGMENT, NULL);
		}
		if (flow)
			seen = KNOWN_FLOW;
	}
	if (hook == TO_LOOPBACK && !flow && (!is_called(&packet) || answers_opening(&packet)))
		return PASS;
	skb->cb[CB_HOOK] = hook;
	skb->cb[CB_FLOW] = seen;
	walks.call(skb, WALK);
	/* Only while an upgrade exchanges the programs is there nothing to call: to the stack as it came */
	return pass(skb, hook);
}

#endif

#if WITH_WALK
/* IPv6's neighbour discovery is ICMP, and tells its sender as any packet does */
static inline void learn(struct __sk_buff *skb, enum parsed parsed, const struct packet *packet)
{
	struct address sender;

	if (parsed == PARSED || parsed == PARSED_FIRST || parsed == PARSED_ICMP)
		sender = ip_source(packet->ip);
	else if (parsed != PARSED_ARP || bpf_skb_load_bytes(skb, ARP_SENDER_OFFSET, &sender, sizeof(sender)))
		return;
	endpoint_learn(skb, packet->ethernet, sender);
}

/* To the stack; but C13, N84: nobody's own address leaves by an uplink, whatever the packet is */
static inline int pass_ip(struct __sk_buff *skb, enum hook hook, const struct packet *packet)
{
#if MASQUERADE
	struct address source = ip_source(packet->ip), destination = ip_destination(packet->ip);

	if (hook == TO_UPLINK && nat_is_due(&source, &destination))
		return drop(DROP_UNTRANSLATED);
#endif
	return pass(skb, hook);
}

/* Its lengths lie, but not who sends it */
static inline int pass_malformed(struct __sk_buff *skb, enum hook hook)
{
	struct packet packet = {.ip = (void *)(long)skb->data + IP_OFFSET};

	if ((void *)(packet.ip + 1) > (void *)(long)skb->data_end)
		return pass(skb, hook);
	return pass_ip(skb, hook, &packet);
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
	default:
		return pass_ip(skb, hook, packet);
	}
}

static inline bool is_from_itself(enum hook hook, const struct packet *packet)
{
	struct address source = ip_source(packet->ip);

	return hook == FROM_UPLINK && is_nodes_own(&source);
}

static inline enum parsed pull_and_parse(struct __sk_buff *skb, struct packet *packet)
{
	enum parsed parsed = packet_parse(skb, packet, ALL_HEADERS);

	/* Of an ICMP error what it quotes must be in reach, too */
	if (parsed != PARSED_SHORT && parsed != PARSED_ICMP)
		return parsed;
	/* Length 0: all of it. A frame whose headers are not in the linear part is rare, and short enough. */
	if (bpf_skb_pull_data(skb, skb->len < PULL_BYTES ? skb->len : PULL_BYTES))
		return PARSED_MALFORMED;
	parsed = packet_parse(skb, packet, ALL_HEADERS);
	return parsed == PARSED_SHORT ? PARSED_MALFORMED : parsed;
}

/* The kind of the service's own address that a packet is for, 0 for none */
static inline u32 called_vip(enum hook hook, const struct packet *packet)
{
	struct address destination = ip_destination(packet->ip);

	return calls_services(hook, ip_source(packet->ip)) ? vip_kind(&destination) : 0;
}

/* What has no ports in sight: the stack's (C2), but for a cluster IP, where it would be lost unnamed. */
static inline int pass_unread(struct __sk_buff *skb, enum hook hook, const struct packet *packet, u32 passed, u32 dropped)
{
	if (called_vip(hook, packet) == VIP_CLUSTER)
		return drop(dropped);
	count(passed);
	return pass_ip(skb, hook, packet);
}

/* C8: whether nobody has a pod's address any more: its interface is gone, or it is this node's and no pod's here */
static inline bool pod_is_gone(const struct address *address)
{
	struct address asked = *address;
	struct endpoint *endpoint = endpoints.lookup(&asked);
	u32 interface;

	if (!endpoint)
		return IN_EXCLUSIVE_NETWORK(asked);
	interface = endpoint->interface;
	return endpoint->kind == ENDPOINT_POD && !interfaces.lookup(&interface);
}

/* On in `nat`, which finds a port. */
static inline int walk_to_nat(struct __sk_buff *skb, const struct packet *packet, struct leaving *of)
{
	of->length = packet->length;
	of->tcp_flags = packet->tcp_flags;
	of->rounds = 0;
	of->flow.last_seen = now();
	of->flow.packets = 1;
	of->flow.bytes = packet->length;
#if MASQUERADE
	walks.call(skb, NAT);
#endif
	return drop(DROP_REWRITE);
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
	if (followed == FOLLOWED)
		mapping_refresh(key, flow);
#endif
	if (followed == NOT_FOUND) {
		kind = classify(skb, hook, packet, key, flow);
		if (kind == KIND_MASQUERADE) {
			*verdict = walk_to_nat(skb, packet, of);
			return false;
		}
		if (kind != KIND_FLOW) {
			*verdict = refuse(skb, hook, kind, packet);
			return false;
		}
		if (!flow_begin(key, flow, packet, &of->other)) {
			*verdict = drop(DROP_PORTS_TAKEN);
			return false;
		}
	}
	if (flow->flags & FLOW_PLAIN) {
		*verdict = is_egress(hook) ? PASS : pass_walked(skb);
		return false;
	}
	of->to = flow->to;
	return true;
}

#if MASQUERADE
/*
 * Of ICMP's queries those have a flow that are masqueraded, and those that must be told apart from them: the node's own with
 * the same ends (N46), and whose answer a pod sends out. As walk_flow.
 */
static inline bool walk_echo(struct __sk_buff *skb, enum hook hook, const struct packet *packet, struct leaving *of,
			     int *verdict)
{
	enum followed followed = flow_follow_half_open(&of->key, packet, &of->flow, &of->other);
	bool asks = of->key.source_port != 0;

	if (followed == NOT_FOUND && flow_follow(&of->key, packet, &of->flow, &of->other))
		followed = FOLLOWED;
	if (followed != FOLLOWED) {
		of->flow = (struct flow){.to = of->key, .state = FLOW_NEW, .flags = FLOW_PAIRED | FLOW_MASQUERADED};
		if (asks && masquerades(skb, hook, packet, &of->flow.to)) {
			*verdict = walk_to_nat(skb, packet, of);
			return false;
		}
		of->flow.flags = FLOW_PAIRED | FLOW_PLAIN;
		if (!asks || !(is_in_the_way(hook, &of->key, 0) || calls_pod_directly(hook, &of->key, 0)) ||
		    !flow_begin(&of->key, &of->flow, packet, &of->other)) {
			*verdict = pass_ip(skb, hook, packet);
			return false;
		}
	}
	if (of->flow.flags & FLOW_PLAIN) {
		*verdict = is_egress(hook) ? PASS : pass_walked(skb);
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
	int verdict;

	if (!of)
		return TC_ACT_SHOT; /* never: it is an array */
	if (has_addresses(parsed) && (is_spoofed(hook, &packet) || is_from_itself(hook, &packet)))
		return drop(DROP_SPOOFED);
	if (hook == FROM_POD && seen != KNOWN_FLOW)
		learn(skb, parsed, &packet);
	switch (parsed) {
	case PARSED_ICMP:
		/* The first of several fragments would be answered by one that no others follow */
		if (icmp_is_echo(skb, &packet) && called_vip(hook, &packet))
			return packet.is_first ? drop(DROP_FRAGMENT) : answer_echo(skb, hook, &packet);
#if MASQUERADE
		if (icmp_echo_tuple(skb, &packet, &of->key)) {
			if (!walk_echo(skb, hook, &packet, of, &verdict))
				return verdict;
			break;
		}
#endif
		if (!icmp_parse_error(skb, &packet, &quoted))
			return pass_ip(skb, hook, &packet);
		switch (icmp_find_way(&quoted.tuple, &of->key, &of->to)) {
		case NO_WAY:
			return pass_ip(skb, hook, &packet);
		case PLAIN_WAY:
			return is_egress(hook) ? PASS : pass_walked(skb);
		case TRANSLATED_WAY:
			break;
		}
		break;
	case PARSED_FRAGMENT:
		if (!fragment_find(&packet, &of->key, &of->to))
			return pass_unread(skb, hook, &packet, PASS_FRAGMENT, DROP_FRAGMENT);
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

#if WITH_OTHERS
#if MASQUERADE
/* A new flow from a pod to the outside: `of->flow` has all of it but a port that is free. */
int nat(struct __sk_buff *skb)
{
	u32 one = 0;
	struct leaving *of = leaving.lookup(&one);

	if (!of)
		return TC_ACT_SHOT; /* never: it is an array */
	switch (nat_begin(skb, of)) {
	case FOUND:
		of->to = of->flow.to;
		walks.call(skb, LEAVE);
		return drop(DROP_REWRITE);
	case NEXT_ROUND:
		of->rounds++;
		walks.call(skb, NAT);
	default:
		return drop(DROP_PORTS_TAKEN);
	}
}
#endif

/* The packet is parsed again: pointers into it do not outlive a tail call. */
int leave(struct __sk_buff *skb)
{
	u32 one = 0;
	struct leaving *decided = leaving.lookup(&one);
	struct packet packet = {};
	struct quoted quoted = {};
	const struct tuple *key, *to;
	enum shape shape;

	if (!decided)
		return TC_ACT_SHOT; /* never: it is an array */
	key = &decided->key;
	to = &decided->to;
	switch (packet_parse(skb, &packet, ALL_HEADERS)) {
	case PARSED:
	case PARSED_FIRST:
		shape = SEGMENT;
		break;
	case PARSED_FRAGMENT:
		shape = FRAGMENT;
		break;
	case PARSED_ICMP:
		if (icmp_parse_error(skb, &packet, &quoted)) {
			shape = ERROR;
			break;
		}
		if (MASQUERADE && key->protocol == IPPROTO_FAMILY_ICMP) {
			shape = ECHO;
			break;
		}
	default:
		return drop(DROP_REWRITE); /* never: `walk` has seen it */
	}
	if (packet.is_first)
		fragment_note(&packet, to);
	if (shape == SEGMENT && !rewrite_prepare_sctp(skb, &packet, key, to))
		return drop(DROP_REWRITE);
	return forward(skb, skb->cb[CB_HOOK], &packet, key, to, shape, &quoted);
}

int from_pod(struct __sk_buff *skb)
{
	return walk_fast(skb, FROM_POD);
}

int from_uplink(struct __sk_buff *skb)
{
	return walk_fast(skb, FROM_UPLINK);
}

int to_bridge(struct __sk_buff *skb)
{
	return walk_fast(skb, TO_BRIDGE);
}

int to_uplink(struct __sk_buff *skb)
{
	return walk_fast(skb, TO_UPLINK);
}

int to_loopback(struct __sk_buff *skb)
{
	return walk_fast(skb, TO_LOOPBACK);
}
#endif
