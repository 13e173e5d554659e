/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * How a TCP connection opens, from its SYN-ACK on: what its server says, and what its client answers. Maps: openings; flows,
 * half_open.
 *
 * Nearly all open as RFC 9293 3.5 draws it, and have to be quick: the SYN-ACK is noted in the claim that waits for it, and
 * the client's ACK of just that moves both directions to flows, at the hook. Whatever else is said in between is `walk`'s,
 * which makes the claim two entries first, one for each direction, for all that may come (opening_pair).
 */
#ifndef PYDATAPATH_OPENING_H
#define PYDATAPATH_OPENING_H

/*
 * By a client's tuple, what it became: the way from its ACK to the claim that has been answered. A place is for one, without a
 * lock, and what it says counts where there is such a claim only; who finds his place taken by one that is alone opens the
 * long way.
 */
BPF_TABLE_PINNED("array", u32, struct opening, openings, MAX_OPENINGS, MAP_DIRECTORY "/openings" FAMILY_NAME);

static inline struct opening *opening_at(const struct tuple *key)
{
	u32 place = tuple_hash(key, 0) & (MAX_OPENINGS - 1);

	return openings.lookup(&place);
}

/* The claim that a place leads to for a client's tuple, and its key; NULL: none that has been answered, and waits for it */
static inline struct flow *opening_claim(const struct opening *opening, const struct tuple *key, struct tuple *reply_key)
{
	struct flow *reply;

	*reply_key = tuple_reverse(&opening->to);
	/* A socket that calls itself is both */
	if (tuple_equal(reply_key, key))
		return NULL;
	reply = half_open.lookup(reply_key);
	if (!reply || reply->state != FLOW_ANSWERED || !(reply->flags & FLOW_REPLY) ||
	    !tuple_answers(&reply->to, key))
		return NULL;
	return reply;
}

/* The same for a client's tuple */
static inline struct flow *opening_find(const struct tuple *key, struct tuple *reply_key)
{
	struct opening *opening = opening_at(key);

	if (!opening || opening->key.protocol != key->protocol || !tuple_equal(&opening->key, key))
		return NULL;
	return opening_claim(opening, key, reply_key);
}

static inline bool opening_is_alone(const struct flow *reply)
{
	return reply->state == FLOW_ANSWERED && !(reply->flags & FLOW_PAIRED);
}

/* An answered claim that is alone has counted for its client; from here on each direction counts its own */
static inline void opening_split(struct flow *reply, struct flow *client)
{
	client->flags |= FLOW_PAIRED;
	client->packets += reply->packets;
	client->bytes += reply->bytes;
	reply->flags |= FLOW_PAIRED;
	reply->packets = 1;
	reply->bytes = reply->answer;
	reply->answer = 0;
}

/* The place by which a client's claim was found is others' */
static inline void opening_leave(const struct tuple *key)
{
	struct opening *opening = opening_at(key);

	if (opening && tuple_equal(&opening->key, key))
		opening->key.protocol = 0;
}

/* Takes the place of a client's tuple. False: another has it, whose client may still come. */
static inline bool opening_take(const struct tuple *key, const struct tuple *to)
{
	struct opening *opening = opening_at(key);
	struct tuple holder, reply_key;
	struct flow *reply;

	if (!opening)
		return false; /* never: the place is in bounds */
	if (opening->key.protocol) {
		holder = opening->key;
		reply = opening_claim(opening, &holder, &reply_key);
		if (reply && opening_is_alone(reply) && elapsed(reply->last_seen) <= TIMEOUT_TCP_NEW * HZ)
			return false;
	}
	opening->key = *key;
	opening->to = *to;
	return true;
}

/* Makes an answered claim that is alone two entries */
static inline void opening_pair(const struct tuple *reply_key, struct flow *reply, struct flow *client)
{
	struct tuple client_key = tuple_reverse(&reply->to);

	flow_opposite(reply, reply_key, client);
	opening_split(reply, client);
	client->last_seen = reply->last_seen;
	half_open.insert(&client_key, client);
}

/* As opening_pair, of a client's tuple, if such a claim is known */
static inline void opening_pair_of(const struct tuple *key, struct flow *client)
{
	struct tuple reply_key;
	struct flow *reply = opening_find(key, &reply_key);

	if (reply && opening_is_alone(reply))
		opening_pair(&reply_key, reply, client);
}

/*
 * For a packet that is out of the ordinary: of its flow, and of what another backend has answered the same client, nothing is
 * alone any more. `client`: room for an entry.
 */
static inline void opening_settle(const struct tuple *key, struct flow *client)
{
	struct flow *reply = half_open.lookup((struct tuple *)key);
	struct tuple client_key;

	opening_pair_of(key, client);
	if (!reply || !(reply->flags & FLOW_REPLY))
		return;
	client_key = tuple_reverse(&reply->to);
	if (opening_is_alone(reply))
		opening_pair(key, reply, client);
	else
		opening_pair_of(&client_key, client);
}

/* Whether there is something to be settled before a packet is walked */
static inline bool opening_is_unsettled(const struct tuple *key)
{
	struct flow *half = half_open.lookup((struct tuple *)key), *reply;
	struct tuple client_key = *key, reply_key;

	if (half && opening_is_alone(half))
		return true;
	if (half && (half->flags & FLOW_REPLY))
		client_key = tuple_reverse(&half->to);
	reply = opening_find(&client_key, &reply_key);
	return reply && opening_is_alone(reply);
}

/*
 * A SYN-ACK promotes nothing yet: of a flood of SYNs that are answered, by cookies all of them, it would push live flows
 * out of the main table. The flow goes on waiting in half_open, as two entries from here on, for the client to speak again:
 * by its SYN's way alone that would be chosen for anew, and the backends may have changed since. False: as flow_promote.
 */
static inline bool flow_note_answer(struct tuple *key, struct flow *flow, const struct packet *packet, struct flow *other)
{
	struct tuple other_key = tuple_reverse(&flow->to);
	bool paired = flow->flags & FLOW_PAIRED;
	struct flow *first;

	flow->awaited = bpf_htonl(bpf_ntohl(packet->sequence) + 1);
	flow->granted = packet->acknowledged;
	flow_opposite(flow, key, other);
	other->state = FLOW_ANSWERED;
	other->flags |= FLOW_PAIRED;
	if (!paired) {
		other->packets = flow->packets;
		other->bytes = flow->bytes;
		flow->packets = 0;
		flow->bytes = 0;
	}
	if (flow_is_taken(&other_key, &other->to)) {
		half_open.delete(key);
		return false;
	}
	if (half_open.insert(&other_key, other)) {
		first = half_open.lookup(&other_key);
		if (first && !tuple_equal(&first->to, &other->to)) {
			half_open.delete(key);
			return false;
		}
		if (first) {
			first->last_seen = other->last_seen;
			first->state = FLOW_ANSWERED;
			first->awaited = other->awaited;
			first->granted = other->granted;
		}
	}
	flow->last_seen = other->last_seen;
	flow->state = FLOW_ANSWERED;
	flow->flags |= FLOW_PAIRED;
	flow_count(flow, packet);
	opening_take(&other_key, &other->to);
	return true;
}

/*
 * Whether a client's packet answers the SYN-ACK, which only who got that can: who makes up clients sends ACKs of any number.
 * An entry from before that was noted believes each.
 */
static inline bool flow_is_confirmed(const struct flow *flow, const struct packet *packet)
{
	if (flow->state != FLOW_ANSWERED || (packet->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_ACK)
		return false;
	return !flow->awaited || packet->acknowledged == flow->awaited;
}

/*
 * Whether a server's packet, which is no SYN-ACK, says that it has a connection. To segments that are out of place one that
 * still waits for its client's ACK says no more than it has said, by an ACK alone (RFC 9293 3.10.7.4); and who was called
 * by a SYN says nothing new before its SYN-ACK. What was found in the middle has a connection whatever is said.
 */
static inline bool flow_is_believed(const struct flow *reply, const struct packet *packet)
{
	if (!(reply->flags & FLOW_OPENED) || packet->data || (packet->tcp_flags & (TCP_FIN | TCP_SYN)))
		return true;
	return reply->state == FLOW_ANSWERED && packet->acknowledged != reply->granted;
}

/* What a server says that has no connection yet. False: as flow_promote. */
static inline bool flow_hear(struct tuple *key, struct flow *flow, const struct packet *packet)
{
	struct tuple client_key = tuple_reverse(&flow->to), client_to = tuple_reverse(key);
	struct flow *client = half_open.lookup(&client_key);

	if ((client && !tuple_equal(&client->to, &client_to)) || flow_is_taken(&client_key, &client_to)) {
		half_open.delete(key);
		return false;
	}
	flow->last_seen = now();
	if (client)
		client->last_seen = flow->last_seen;
	/* A claim alone counts what its client sends */
	if (flow->flags & FLOW_PAIRED)
		flow_count(flow, packet);
	return true;
}

/* The client has answered the SYN-ACK: both directions, as they stand in half_open, move to the main table */
static inline void flow_confirm(struct tuple *key, struct flow *flow, u8 tcp_flags, struct tuple *reply_key,
				struct flow *reply)
{
	flow->state = FLOW_ESTABLISHED;
	reply->state = FLOW_ESTABLISHED;
	flow_note_closing(flow, tcp_flags);
	flows.update(key, flow);
	flows.update(reply_key, reply);
	half_open.delete(reply_key);
	half_open.delete(key);
}

/*
 * At the hook: a SYN-ACK, where `reply` is a claim that waits for one, and no other flow has the client's tuple. False: it is
 * `walk`'s to say.
 */
static inline bool opening_answer(const struct tuple *key, struct flow *reply, const struct packet *packet)
{
	struct tuple client_key, other_key, answered;
	struct flow *client, *before;

	if (reply->state != FLOW_NEW || !(reply->flags & FLOW_REPLY) || elapsed(reply->last_seen) >= HZ)
		return false;
	/* Of who calls a pod itself both tuples must be seen to be taken: any may be another's answer (N93) */
	if ((reply->flags & (FLOW_PLAIN | FLOW_PAIRED)) == FLOW_PLAIN)
		return false;
	client_key = tuple_reverse(&reply->to);
	/* A socket that calls itself is both. In the order in which a flow moves, so that it is never missed. */
	if (tuple_equal(&client_key, key) || opening_find(&client_key, &other_key))
		return false;
	before = flows.lookup(&client_key);
	if (before && before->last_seen != RETIRED)
		return false;
	answered = tuple_reverse(key);
	flow_forget(&client_key, before, &answered);
	client = half_open.lookup(&client_key);
	if (!client != !(reply->flags & FLOW_PAIRED) || (client && !tuple_equal(&client->to, &answered)))
		return false;
	if (!opening_take(&client_key, &answered))
		return false;
	reply->awaited = bpf_htonl(bpf_ntohl(packet->sequence) + 1);
	reply->granted = packet->acknowledged;
	reply->last_seen = now();
	if (client) {
		flow_count(reply, packet);
		client->last_seen = reply->last_seen;
		client->awaited = reply->awaited;
		client->granted = reply->granted;
		client->state = FLOW_ANSWERED;
	} else {
		reply->answer = packet->length;
	}
	reply->state = FLOW_ANSWERED;
	return true;
}

/*
 * At the hook: the client's ACK of a SYN-ACK that came by there. Both directions move to the main table, where there is none
 * of this tuple, but `retired`, or NULL. False: it is `walk`'s to say. `client`, `reply`: room for them.
 */
static inline bool opening_confirm(struct tuple *key, const struct packet *packet, struct flow *retired, struct flow *client,
				   struct flow *reply)
{
	struct tuple reply_key;
	struct flow *waiting = opening_find(key, &reply_key), *first;
	bool paired;

	if (!waiting)
		return false;
	*reply = *waiting; /* and then looked at: an LRU gives entries to others while they are read */
	if (!tuple_answers(&reply->to, key) || !reply->awaited || reply->awaited != packet->acknowledged ||
	    elapsed(reply->last_seen) >= HZ || backend_is_gone(reply->backend, reply->generation))
		return false;
	flow_opposite(reply, &reply_key, client);
	paired = reply->flags & FLOW_PAIRED;
	if (paired) {
		first = half_open.lookup(key);
		if (!first || !tuple_equal(&first->to, &client->to))
			return false;
		client->packets = first->packets;
		client->bytes = first->bytes;
	} else {
		opening_split(reply, client);
	}
	client->last_seen = reply->last_seen = now();
	client->packets++;
	client->bytes += packet->length;
	client->state = reply->state = FLOW_ESTABLISHED;
	flow_stand(key, client, retired);
	flow_stand(&reply_key, reply, flows.lookup(&reply_key));
	half_open.delete(&reply_key);
	if (paired)
		half_open.delete(key);
	opening_leave(key);
	return true;
}

#endif
