/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Flows that wait for their reply: claim its tuple, find a port for it, follow. Maps: flows, half_open; counters.
 *
 * Half-open, a TCP flow is its reply's entry alone, which claims the tuple and counts what the client has sent: a SYN that
 * is sent again is chosen for anew, by the same hash, and finds its claim. That halves what a SYN costs. How it goes on
 * is opening.h's.
 * UDP's and SCTP's are two (FLOW_PAIRED): one-way traffic lives there for long, and keeps its backend while others come
 * and go. So are those of TCP whose port was chosen by chance (nat.h), which a SYN that is sent again must find.
 */
#ifndef PYDATAPATH_CLAIM_H
#define PYDATAPATH_CLAIM_H

/* A first packet that is sent again finds its own claim; its backend may have another number by now */
static inline void flow_claimed_before(struct flow *claim, const struct flow *again)
{
	claim->last_seen = again->last_seen;
	claim->backend = again->backend;
	claim->generation = again->generation;
	/* Answered, it is split as soon as its client is entered (flow_enter), who brings this packet along */
	if (claim->state == FLOW_ANSWERED)
		return;
	__sync_fetch_and_add(&claim->packets, again->packets);
	__sync_fetch_and_add(&claim->bytes, again->bytes);
}

enum claim { TAKEN, CLAIMED, CLAIMED_BEFORE };

/*
 * Takes a half-open tuple whose holder was over when it was `seen`, or is gone. False: another CPU does, or has. An update has
 * no condition: who may do it is told by a ticket, an entry that only one CPU can insert.
 */
static inline bool flow_take_over(const struct tuple *reply_key, struct flow *reply, const struct flow *holder, u64 seen)
{
	struct tuple other_key;

	/* Its other half must not stay: found to be over, it would take our reply with it. A claim alone has none: what stands
	 * under that key is another flow's. */
	if (holder && (holder->flags & FLOW_PAIRED)) {
		other_key = tuple_reverse(&holder->to);
		half_open.delete(&other_key);
	}
	other_key = *reply_key;
	other_key.zero[0] = 1; /* no packet's tuple */
	if (half_open.insert(&other_key, reply))
		return false;
	holder = half_open.lookup((struct tuple *)reply_key);
	if (holder && holder->last_seen != seen) {
		half_open.delete(&other_key);
		return false;
	}
	half_open.update((struct tuple *)reply_key, reply);
	half_open.delete(&other_key);
	return true;
}

/*
 * Claims the reply's tuple. TAKEN: a live flow has it, such as a direct connection with the same ports (N93), or one of
 * another pod had it until lately.
 * half_open is the one gate: whoever has claimed there looks into the main table, so of two CPUs one sees the other.
 */
static inline enum claim flow_claim_reply(struct tuple *reply_key, struct flow *reply, u8 tcp_flags, s64 quarantine)
{
	enum claim claim = CLAIMED;
	struct flow *holder;
	struct tuple holder_key;
	u64 seen;

	if (half_open.insert(reply_key, reply)) {
		holder = half_open.lookup(reply_key);
		/* Before it is looked at: what another CPU puts in its place has another stamp */
		seen = holder ? holder->last_seen : 0;
		if (holder && tuple_equal(&holder->to, &reply->to)) {
			flow_claimed_before(holder, reply);
			claim = CLAIMED_BEFORE;
		} else if (holder && (!flow_is_over(holder, tcp_flags) ||
				      flow_is_kept(holder, &reply->to.destination, quarantine))) {
			return TAKEN;
		} else if (!flow_take_over(reply_key, reply, holder, seen)) {
			return TAKEN;
		}
	}
	holder = flows.lookup(reply_key);
	if (!holder)
		return claim;
	/* Ours already: another CPU has promoted the flow just now, or the LRU has kept this half of it */
	if (tuple_equal(&holder->to, &reply->to))
		return holder->last_seen == RETIRED ? claim : CLAIMED;
	if (flow_is_over(holder, tcp_flags) && !flow_is_kept(holder, &reply->to.destination, quarantine)) {
		holder_key = tuple_reverse(&holder->to);
		flows.delete(reply_key);
		/* Its other half, unless that is another flow's by now */
		holder = flows.lookup(&holder_key);
		if (holder && tuple_answers(&holder->to, reply_key))
			flows.delete(&holder_key);
		return CLAIMED;
	}
	half_open.delete(reply_key);
	return TAKEN;
}

/*
 * A half-open flow's reply is refreshed with it; one that is gone, or another's by now, is claimed anew (N5, N93).
 * False: another has it. `again` is that reply.
 */
static inline bool flow_keep_reply(const struct tuple *key, struct tuple *reply_key, const struct flow *flow,
				   u8 tcp_flags, struct flow *again)
{
	struct flow *reply = half_open.lookup(reply_key);
	struct tuple answered = tuple_reverse(key);

	if (reply && tuple_equal(&reply->to, &answered)) {
		reply->last_seen = flow->last_seen;
		*again = *reply;
		return true;
	}
	flow_opposite(flow, key, again);
	return flow_claim_reply(reply_key, again, tcp_flags, 0) != TAKEN;
}

/*
 * N4: a claim that another CPU just tries: a flow that lives has the tuple, which that CPU is about to see (flow_claim_reply).
 * The answers are that one's meanwhile.
 */
static inline bool flow_is_tried(const struct tuple *key, const struct flow *claim)
{
	struct flow *holder = claim->flags & FLOW_REPLY ? flow_standing(key) : NULL;

	return holder && !tuple_equal(&holder->to, &claim->to);
}

enum followed { NOT_FOUND, FOLLOWED, TOO_LATE };

/* A packet of a flow that has had no reply yet; the reply itself promotes it, but a SYN-ACK: the client's ACK of that does. */
static inline enum followed flow_follow_half_open(struct tuple *key, const struct packet *packet, struct flow *found,
						  struct flow *other)
{
	struct flow *flow = half_open.lookup(key);
	struct tuple other_key;
	bool ended;

	if (!flow || flow_is_tried(key, flow))
		return NOT_FOUND;
	/* What is left over of a flow that has moved, or that another backend has won, must not take its place again */
	ended = flow_begins_anew(flow, packet->tcp_flags) ||
		(flow->state == FLOW_ANSWERED && !(flow->flags & FLOW_REPLY) && flow_standing(key));
	*found = *flow;
	/* Refused, or given up: the next attempt is a new flow, with a new choice */
	if (ended || (packet->tcp_flags & TCP_RST)) {
		/* A claim alone has no other half, and what stands under that key is another flow's: nobody's tuple is
		 * called instead. In `other`: on the stack it would be another way for the verifier. */
		other->to = tuple_reverse(&found->to);
		other->to.zero[1] = ~found->flags & FLOW_PAIRED;
		half_open.delete(&other->to);
		half_open.delete(key);
		return ended ? NOT_FOUND : FOLLOWED;
	}
	other_key = tuple_reverse(&found->to);
	if ((found->flags & FLOW_REPLY) && answers_opening(packet))
		return flow_note_answer(key, flow, packet, other) ? FOLLOWED : TOO_LATE;
	if ((found->flags & FLOW_REPLY) && !flow_is_believed(found, packet))
		return flow_hear(key, flow, packet) ? FOLLOWED : TOO_LATE;
	if (found->flags & FLOW_REPLY)
		return flow_promote(key, found, packet, other) ? FOLLOWED : TOO_LATE;
	flow->last_seen = now();
	flow_count(flow, packet);
	*found = *flow;
	if (flow_keep_reply(key, &other_key, found, packet->tcp_flags, other)) {
		if (flow_is_confirmed(found, packet))
			flow_confirm(key, found, packet->tcp_flags, &other_key, other);
		return FOLLOWED;
	}
	half_open.delete(key); /* its answers would be another's by now: a new flow, from another port */
	return NOT_FOUND;
}

/* Enters a new flow whose reply's tuple is claimed */
static inline void flow_enter(struct tuple *key, struct flow *flow, struct tuple *reply_key, enum claim claim, u8 tcp_flags)
{
	struct flow *winner;

	if (tcp_flags & TCP_RST) {
		half_open.delete(reply_key); /* given up: nothing is left to wait for */
		return;
	}
	if (claim == CLAIMED)
		count(NEW_FLOW);
	/* N5: answered already, it had two entries, and the LRU has dropped this one */
	winner = claim == CLAIMED_BEFORE ? half_open.lookup(reply_key) : NULL;
	if (winner && winner->state == FLOW_ANSWERED) {
		flow->state = FLOW_ANSWERED;
		flow->flags |= FLOW_PAIRED | (winner->flags & FLOW_OPENED);
		flow->awaited = winner->awaited;
		flow->granted = winner->granted;
		if (opening_is_alone(winner))
			opening_split(winner, flow);
	}
	if (!(flow->flags & FLOW_PAIRED))
		return;
	/*
	 * N6: another CPU may have entered the same flow just now, or even have seen it answered. Its choice holds, ours is
	 * taken back. A flow moves from half_open to flows, so looking in that order finds it.
	 */
	winner = half_open.insert(key, flow) ? half_open.lookup(key) : NULL;
	if (!winner)
		winner = flow_standing(key);
	if (winner && !tuple_equal(&winner->to, &flow->to)) {
		half_open.delete(reply_key);
		*flow = *winner;
	}
}

/*
 * Enters a new flow by a port that is free. Where the reply's tuple is taken, another source port is tried, the same ones
 * for the same tuple (RFC 6056 3.3.3), so that a first packet that is sent again finds its own: the peer sees that one, the
 * sender never learns of it. False: none found in so many tries, CLAIM_TRIES at most, of which the first has this number.
 */
static inline bool flow_claim(struct tuple *key, struct flow *flow, u8 tcp_flags, struct flow *reply, u32 first, u32 tries)
{
	struct tuple reply_key;
	enum claim claim;

	for (u32 try = 0; try < CLAIM_TRIES && try < tries; try++) {
		flow_opposite(flow, key, reply);
		if (!(flow->flags & FLOW_PAIRED)) {
			reply->packets = flow->packets;
			reply->bytes = flow->bytes;
		}
		reply_key = tuple_reverse(&flow->to);
		claim = flow_claim_reply(&reply_key, reply, tcp_flags, 0);
		if (claim != TAKEN) {
			flow_enter(key, flow, &reply_key, claim, tcp_flags);
			return true;
		}
		flow->to.source_port = bpf_htons(CLAIM_FIRST_PORT + (tuple_hash(key, first + try) & CLAIM_PORT_MASK));
		flow->flags &= ~FLOW_PLAIN;
	}
	return false;
}

/* Begins a new flow, by its own port if that is free; as flow_claim */
static inline bool flow_begin(struct tuple *key, struct flow *flow, const struct packet *packet, struct flow *reply, u32 tries)
{
	flow->last_seen = now();
	flow->packets = 1;
	flow->bytes = packet->length;
	return flow_claim(key, flow, packet->tcp_flags, reply, 1, tries);
}

#endif
