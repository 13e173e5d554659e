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
#include "opening.h"
#include "claim.h"
#include "cluster.h"
#include "service.h"
#include "fragment.h"
#include "nat.h"
#include "icmp.h"
#include "endpoint.h"
#include "forward.h"
#include "answer.h"
#include "classify.h"

/*
 * What the hook's program has seen of the flow; NOT_LOOKED: a SYN, or what takes more to read (a fragment, headers); UNWALKED:
 * none, and nothing else to walk for.
 */
enum seen_flow { NO_FLOW, KNOWN_FLOW, NOT_LOOKED, UNWALKED };

/*
 * Fresh at every load, filled before any program is exchanged, so that no packet meets halves of two versions. WALK and
 * LEAVE are this family's places in it; IPV6_HOOKS (0: IPv6 is not loaded) is the place of IPv6's first hook program. RECALL
 * is empty, and costs next to nothing (x86's JIT leaves such a call out), but while flows move to a table of another size.
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

/* As pass, for what has addresses */
static inline int pass_untouched(struct __sk_buff *skb, enum hook hook, const struct packet *packet)
{
	int verdict = leave_untouched(skb, hook, packet);

	return verdict == PASS ? pass(skb, hook) : verdict;
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

/*
 * On the loopback interface only calls of services are ours, the node's own node ports, and what has begun so: all else costs
 * some lookups
 */
static inline bool is_called(const struct packet *packet)
{
	struct tuple key = packet_tuple(packet);
	struct transport_address called = called_address(&key);
	struct tuple reply_key;

	return services.lookup(&called) || half_open.lookup(&key) || opening_find(&key, &reply_key);
}

#if POD_FAST_PATH
/*
 * A pod's packet of no flow, to another pod of this node, that the walk would let pass: it asks for nothing to be learned,
 * belongs to nothing that is half open, and begins nothing where it is called. PASS: that is the walk's to say.
 */
static inline int leave_unwalked(struct __sk_buff *skb, const struct packet *packet, struct tuple *key)
{
	u32 interface = pod_beside(skb, packet);
	struct tuple reply_key, answer;

	if (!interface || !is_sender_known(skb, packet) || half_open.lookup(key) ||
	    opening_find(key, &reply_key) || is_target(key) || vip_kind(&key->destination) ||
	    meets_known_answer(FROM_POD, key, packet->tcp_flags, &answer))
		return PASS;
	skb->cb[CB_HOOK] = FROM_POD;
	skb->cb[CB_FLOW] = UNWALKED;
	walks.call(skb, RECALL);
	return leave_to_pod(skb, FROM_POD, interface);
}
#endif

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
/* An answer is no call, though it goes to a node port's number: at the loopback interface it is the stack's */
static inline bool opens_at(enum hook hook, const struct packet *packet)
{
	return packet->protocol == IPPROTO_TCP && (packet->tcp_flags & (TCP_ACK | TCP_FIN | TCP_RST)) == TCP_ACK &&
	       !(hook == TO_LOOPBACK && (packet->tcp_flags & TCP_SYN));
}

/*
 * A TCP connection that opens as nearly all do goes on without a walk: by its SYN-ACK, and by the client's ACK of that, where
 * `retired` may stand in the main table. True: `to` and `flags` are its flow's.
 */
static inline bool follow_opening(struct __sk_buff *skb, enum hook hook, const struct packet *packet, struct tuple *key,
				  struct flow *retired, struct tuple *to, u8 *flags)
{
	struct leaving *of;
	struct flow *reply;
	u32 one = 0;

	if (packet->tcp_flags & TCP_SYN) {
		reply = half_open.lookup(key);
		if (!reply || is_from_itself(hook, packet) || is_lost(hook, reply) || !opening_answer(key, reply, packet))
			return false;
		*to = reply->to;
		*flags = reply->flags;
		/* The first that is heard of an address that only ever answers */
		if (hook == FROM_POD)
			endpoint_learn(skb, packet->ethernet, key->source);
		return true;
	}
	of = leaving.lookup(&one);
	if (!of || is_from_itself(hook, packet) || !opening_confirm(key, packet, retired, &of->flow, &of->other))
		return false;
	*to = of->flow.to;
	*flags = of->flow.flags;
	return true;
}

static inline int walk_fast(struct __sk_buff *skb, enum hook hook)
{
	struct packet packet;
	struct tuple key, to;
	struct flow *flow = NULL, *retired = NULL;
	enum seen_flow seen = NOT_LOOKED;
	enum parsed parsed;
	bool known = false;
	u8 flags;

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
		return pass_untouched(skb, hook, &packet);
	if (hook == TO_LOOPBACK && parsed != PARSED)
		return PASS;
	if (parsed == PARSED && is_spoofed(hook, &packet))
		return drop(DROP_SPOOFED);
	if (parsed == PARSED) {
		key = packet_tuple(&packet);
		/* A SYN is the walk's business, whatever is known of it */
		if (!(packet.tcp_flags & TCP_SYN)) {
			flow = flows.lookup(&key);
			seen = flow ? KNOWN_FLOW : NO_FLOW;
		}
		/* SCTP's checksum is too much code for here */
		if (flow && packet.protocol != IPPROTO_SCTP && flow_is_ordinary(flow, &packet)) {
			flow_count(flow, &packet);
			if (packet.tcp_flags & (TCP_FIN | TCP_RST))
				flow_note_closing(flow, packet.tcp_flags);
			to = flow->to;
			flags = flow->flags;
			known = true;
		} else if (flow && flow->last_seen == RETIRED) {
			retired = flow;
			flow = NULL;
			seen = NO_FLOW;
		}
		if (!flow && opens_at(hook, &packet))
			known = follow_opening(skb, hook, &packet, &key, retired, &to, &flags);
		if (known && (flags & FLOW_PLAIN))
			return leave_plain(skb, hook, &packet);
		if (known)
			return forward(skb, hook, &packet, &key, &to, SEGMENT, NULL);
#if POD_FAST_PATH
		if (hook == FROM_POD && seen == NO_FLOW) {
			int verdict = leave_unwalked(skb, &packet, &key);

			if (verdict != PASS)
				return verdict;
		}
#endif
	}
	if (hook == TO_LOOPBACK && !flow && (!is_called(&packet) || answers_opening(&packet)))
		return PASS;
	skb->cb[CB_HOOK] = hook;
	skb->cb[CB_FLOW] = seen;
	if (parsed == PARSED_SHORT || (parsed == PARSED_ICMP && icmp_is_error(*(u8 *)packet.transport)) ||
	    (parsed == PARSED_FIRST && packet.protocol == IPPROTO_TCP) ||
	    (parsed == PARSED && packet.protocol == IPPROTO_TCP && opening_is_unsettled(&key)))
		walks.call(skb, SETTLE);
	walks.call(skb, RECALL);
	walks.call(skb, WALK);
	/* Only while an upgrade exchanges the programs is there nothing to call: to the stack as it came */
	return pass(skb, hook);
}

#endif

#if WITH_WALK
#include "walk.h"
#endif

#if WITH_RECALL
#include "recall.h"
#endif

#if WITH_OTHERS
#if MASQUERADE
/* A new flow that may not be is told to who begins it; what comes in the middle of a connection is none */
static inline int nat_refuse(struct __sk_buff *skb, const struct leaving *of, u32 reason)
{
	return nat_begins(of) ? answer_prohibited(skb, skb->cb[CB_HOOK], reason) : drop(reason);
}

/* A new flow from a pod to the outside: `of->flow` has all of it but a port that is free. */
int nat(struct __sk_buff *skb)
{
	u32 one = 0;
	struct leaving *of = leaving.lookup(&one);

	if (!of)
		return TC_ACT_SHOT; /* never: it is an array */
#if NAT_POD_FLOWS
	if (of->rounds == 0 && IN_POD_NETWORK(of->key.source) && !nat_may_begin(&of->key.source))
		return nat_refuse(skb, of, DROP_POD_LIMIT);
#endif
	switch (nat_begin(skb, of)) {
	case FOUND:
		if (nat_hairpin_waits(&of->key, &of->flow))
			return drop(DROP_UNASKED);
		of->to = of->flow.to;
		walks.call(skb, LEAVE);
		return drop(DROP_REWRITE);
	case NEXT_ROUND:
		of->rounds++;
		walks.call(skb, NAT);
		return drop(DROP_REWRITE);
	default:
		return nat_refuse(skb, of, DROP_PORTS_TAKEN);
	}
}
#endif

/* Before `walk`, where a connection does not open as nearly all do, or it takes more to read whether it does */
int settle(struct __sk_buff *skb)
{
	u32 one = 0;
	struct leaving *of = leaving.lookup(&one);
	struct packet packet = {};
	struct quoted quoted = {};
	enum parsed parsed = pull_and_parse(skb, &packet);
	struct tuple key;

	if (!of)
		return TC_ACT_SHOT; /* never: it is an array */
	if (parsed == PARSED || parsed == PARSED_FIRST) {
		key = packet_tuple(&packet);
		opening_settle(&key, &of->other);
	} else if (parsed == PARSED_ICMP && icmp_parse_error(skb, &packet, &quoted)) {
		key = tuple_reverse(&quoted.tuple);
		opening_settle(&key, &of->other);
	}
	walks.call(skb, RECALL);
	walks.call(skb, WALK);
	return drop(DROP_REWRITE);
}

/*
 * N22: a new flow whose first ports were taken, such as, where nothing is masqueraded, one of many clients outside that go to
 * one backend elsewhere by this node's address. So many ports are tried that of 10,000 flows one finds none where nine of ten
 * are taken.
 */
int search(struct __sk_buff *skb)
{
	u32 one = 0;
	struct leaving *of = leaving.lookup(&one);

	if (!of)
		return TC_ACT_SHOT; /* never: it is an array */
	if (flow_claim(&of->key, &of->flow, of->tcp_flags, &of->other, of->rounds * CLAIM_TRIES + 1, CLAIM_TRIES)) {
		of->to = of->flow.to;
		walks.call(skb, LEAVE);
		return drop(DROP_REWRITE);
	}
	of->rounds++;
	if (of->rounds < CLAIM_ROUNDS)
		walks.call(skb, SEARCH);
	return drop(DROP_PORTS_TAKEN);
}

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
