/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The program `recall`: only while a load moves flows to a table of another size. Map: former; flows.
 *
 * What the programs before have entered since `load` looked there last is in their table alone (kernel/recalling.py). A packet
 * that finds no flow looks there, too, and takes what it finds along; whatever runs now writes to the new table only.
 */
#ifndef PYDATAPATH_RECALL_H
#define PYDATAPATH_RECALL_H

BPF_TABLE_PINNED("lru_hash", struct tuple, struct flow, former, MAX_FORMER_ENTRIES, FORMER_DIRECTORY "/flows" FAMILY_NAME);

/*
 * Both directions, the answers' first: as in flow_confirm a tuple is never without who has claimed it. Nothing comes back that
 * is over here or there, or whose answers are another flow's by now. False: nothing was taken along. `flow`: room for an entry.
 */
static inline bool recall_flow(struct tuple *key, struct flow *flow)
{
	struct flow *known = former.lookup(key), *other;
	struct tuple other_key;

	if (!known || known->last_seen == RETIRED || flow_has_ended(known, 0))
		return false;
	other_key = tuple_reverse(&known->to);
	other = flows.lookup(&other_key);
	if (other ? other->last_seen == RETIRED || !tuple_answers(&other->to, key) : half_open.lookup(&other_key) != NULL)
		return false;
	other = other ? NULL : former.lookup(&other_key);
	if (other && tuple_answers(&other->to, key)) {
		*flow = *other;
		flows.insert(&other_key, flow);
	}
	*flow = *known;
	flows.insert(key, flow);
	return true;
}

/* Whose flow a packet is of. False: none that could be known. */
static inline bool recall_tuple(struct __sk_buff *skb, struct tuple *key)
{
	struct packet packet = {};
	struct quoted quoted = {};
	enum parsed parsed = pull_and_parse(skb, &packet);

	if (parsed == PARSED || parsed == PARSED_FIRST) {
		*key = packet_tuple(&packet);
		return true;
	}
	if (parsed != PARSED_ICMP)
		return false;
#if MASQUERADE
	if (icmp_echo_tuple(skb, &packet, key) != NO_ECHO)
		return true;
#endif
	if (!icmp_parse_error(skb, &packet, &quoted))
		return false;
	*key = tuple_reverse(&quoted.tuple);
	return true;
}

int recall(struct __sk_buff *skb)
{
	u32 one = 0;
	struct leaving *of = leaving.lookup(&one);
	struct tuple key;

	if (!of)
		return TC_ACT_SHOT; /* never: it is an array */
	/* What stands, or waits for its answer, is newer. half_open is the same table for the programs before. */
	if (recall_tuple(skb, &key) && !flows.lookup(&key) && !half_open.lookup(&key) && recall_flow(&key, &of->flow))
		skb->cb[CB_FLOW] = KNOWN_FLOW;
	else if (skb->cb[CB_FLOW] != KNOWN_FLOW)
		skb->cb[CB_FLOW] = NOT_LOOKED; /* `walk` looks again: another CPU may just have taken it along */
	walks.call(skb, WALK);
	return drop(DROP_REWRITE);
}

#endif
