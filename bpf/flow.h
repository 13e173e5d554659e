/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The flow table: find, promote, refresh, expire. Maps: flows, half_open, backends; counters.
 *
 * A flow is two entries, one for each direction: key = the tuple as a packet arrives, value = the whole tuple as it
 * must leave. A new flow lives in half_open until its reply is seen, TCP's until its client has acknowledged that, then moves
 * to flows: a flood of first packets can push out other half-open flows, never live ones.
 */
#ifndef PYDATAPATH_FLOW_H
#define PYDATAPATH_FLOW_H

BPF_TABLE_PINNED("lru_hash", struct tuple, struct flow, flows, MAX_FLOW_ENTRIES, MAP_DIRECTORY "/flows" FAMILY_NAME);
BPF_TABLE_PINNED("lru_hash", struct tuple, struct flow, half_open, MAX_HALF_OPEN_ENTRIES, MAP_DIRECTORY "/half_open" FAMILY_NAME);
BPF_TABLE_PINNED("array", u32, struct backend, backends, MAX_BACKENDS, MAP_DIRECTORY "/backends", 1024);

/* jiffies: 0.7 ns to read, where the cheapest clock in ns costs 21 */
static inline u64 now(void)
{
	return bpf_jiffies64();
}

/* Jiffies since a stamp; less than none where another CPU has written it a tick ahead of this one */
static inline s64 elapsed(u64 stamp)
{
	return now() - stamp;
}

/* A stamp: over since long before the machine was started. See flow_retire. */
#define RETIRED 0

/* The entry that a tuple has in the main table, if that is not retired */
static inline struct flow *flow_standing(const struct tuple *key)
{
	struct flow *flow = flows.lookup((struct tuple *)key);

	if (flow && flow->last_seen == RETIRED)
		return NULL;
	return flow;
}

/* The backend was taken from its service, or its number has passed to another. Number 0, no backend, never is. */
static inline bool backend_is_gone(u32 number, u32 generation)
{
	struct backend *backend = backends.lookup(&number);

	return !backend || backend->generation != generation || backend->state == BACKEND_GONE;
}

/* One that drains keeps its flows and gets no new ones. Number 0, a plain flow's, is as good as any. */
static inline bool backend_takes_new_flows(u32 number, u32 generation)
{
	struct backend *backend = backends.lookup(&number);

	return number == 0 || (backend && backend->generation == generation && backend->state == BACKEND_ACTIVE);
}

/* C9: a UDP flow whose backend no longer serves it is chosen again at once. C8: a TCP connection goes on. */
static inline bool flow_lost_backend(const struct flow *flow)
{
	return flow->to.protocol == IPPROTO_UDP && backend_is_gone(flow->backend, flow->generation);
}

/* It is the client's next packet that chooses; an answer that comes late is still the service's */
static inline bool flow_chooses_again(const struct flow *flow)
{
	return !(flow->flags & FLOW_REPLY) && flow_lost_backend(flow);
}

/* C8: a client's packet to a backend that is gone from its service, of any protocol: is its pod gone, too? */
static inline bool flow_is_forsaken(const struct flow *flow)
{
	return !(flow->flags & FLOW_REPLY) && backend_is_gone(flow->backend, flow->generation);
}

/*
 * FIN from both sides, or RST from one, and the connection is closing: its entries live on for TIME_WAIT's sake. Each
 * direction's entry notes its own packets only, so that closing costs the hot path one write.
 */
static inline bool flow_is_closing(const struct flow *flow, const struct flow *other)
{
	u8 both = flow->flags & other->flags, either = flow->flags | other->flags;

	return (both & FLOW_FIN) || (either & FLOW_RST);
}

static inline s64 flow_timeout(const struct flow *flow, bool closing)
{
	if (flow->to.protocol == IPPROTO_UDP)
		return flow->state == FLOW_NEW ? TIMEOUT_UDP_NEW : TIMEOUT_UDP_ESTABLISHED;
	if (flow->to.protocol == IPPROTO_FAMILY_ICMP)
		return flow->state == FLOW_NEW ? TIMEOUT_ICMP_NEW : TIMEOUT_ICMP_ESTABLISHED;
	if (flow->to.protocol == IPPROTO_SCTP)
		return flow->state == FLOW_NEW ? TIMEOUT_SCTP_NEW : TIMEOUT_SCTP_ESTABLISHED;
	if (flow->state != FLOW_ESTABLISHED)
		return TIMEOUT_TCP_NEW;
	return closing ? TIMEOUT_TCP_CLOSING : TIMEOUT_TCP_ESTABLISHED;
}

static inline bool opens_connection(u8 tcp_flags)
{
	return (tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Silent for too long, or closed where a new connection opens (N95) */
static inline bool flow_has_ended(const struct flow *flow, u8 tcp_flags)
{
	s64 idle = elapsed(flow->last_seen);
	struct tuple other_key;
	struct flow *other;
	bool closing;

	if (!opens_connection(tcp_flags) && idle <= TIMEOUT_SHORTEST * HZ)
		return false;
	other_key = tuple_reverse(&flow->to);
	other = flow_standing(&other_key);
	closing = other ? flow_is_closing(flow, other) : flow_is_closing(flow, flow);
	return (closing && opens_connection(tcp_flags)) || idle > flow_timeout(flow, closing) * HZ;
}

/* An entry whose tuple may be given to a new flow */
static inline bool flow_is_over(const struct flow *flow, u8 tcp_flags)
{
	return flow_lost_backend(flow) || flow_has_ended(flow, tcp_flags);
}

/*
 * N25, RFC 6888 REQ-8: for a while after its end what a pod was called by at a peer is that pod's still. What comes late is
 * no other pod's, and nobody else's SYN meets the peer's TIME_WAIT. `quarantine`: seconds, 0: nobody asks.
 */
static inline bool flow_is_kept(const struct flow *flow, const struct address *inside, s64 quarantine)
{
	struct tuple other_key;
	struct flow *other;
	bool closing;

	if (!quarantine || !(flow->flags & FLOW_MASQUERADED) || address_equal(&flow->to.destination, inside))
		return false;
	other_key = tuple_reverse(&flow->to);
	other = flow_standing(&other_key);
	closing = other ? flow_is_closing(flow, other) : flow_is_closing(flow, flow);
	return elapsed(flow->last_seen) <= ((closing ? 0 : flow_timeout(flow, false)) + quarantine) * HZ;
}

/* Its own packet begins it anew: also where that opens a connection, and the backend is gone or drains (N102). C8 keeps
 * others'. */
static inline bool flow_begins_anew(const struct flow *flow, u8 tcp_flags)
{
	return flow_chooses_again(flow) || flow_has_ended(flow, tcp_flags) ||
	       (opens_connection(tcp_flags) && !backend_takes_new_flows(flow->backend, flow->generation));
}

static inline void flow_count(struct flow *flow, const struct packet *packet)
{
	/* Packets of one direction may be seen on two CPUs at once */
	__sync_fetch_and_add(&flow->packets, 1);
	__sync_fetch_and_add(&flow->bytes, packet->length);
}

/*
 * The hot path's question: does this packet ask for no more than being counted, rewritten and sent? Where its stamp is ahead
 * it is the slow path that says so.
 */
static inline bool flow_is_ordinary(const struct flow *flow, const struct packet *packet)
{
	return now() - flow->last_seen < HZ && !flow_is_forsaken(flow);
}

static inline void flow_note_closing(struct flow *flow, u8 tcp_flags)
{
	if (tcp_flags & TCP_FIN)
		flow->flags |= FLOW_FIN;
	if (tcp_flags & TCP_RST)
		flow->flags |= FLOW_RST;
}

/*
 * N38, N101: whoever goes on sending for over a second after a RST has not sent it: it was forged, or had a number that
 * nobody believed (there is no window tracking here, C10). The connection has its long life back.
 */
static inline void flow_forget_reset(struct flow *flow, u8 tcp_flags)
{
	if (!(tcp_flags & (TCP_RST | TCP_SYN)) && elapsed(flow->last_seen) >= HZ)
		flow->flags &= ~FLOW_RST;
}

/* Flags that both directions have, but FLOW_REPLY, which one of them has */
#define FLOW_OF_BOTH (FLOW_REPLY | FLOW_PLAIN | FLOW_PAIRED | FLOW_MASQUERADED | FLOW_OPENED)

/*
 * Over by now, whatever its state: where a closed connection's client opens the next one by the same port nearly always the
 * same two tuples come again, and entries that stand are given to them (flow_stand) for a fourth of what it costs to delete
 * two and make two. Else they go the way of all that is over.
 */
static inline void flow_retire(struct flow *flow)
{
	if (flow)
		flow->last_seen = RETIRED;
}

/*
 * Takes away what is retired of a client's tuple (`client`, or NULL) and leads elsewhere: another flow that finds it over would
 * take ours along
 */
static inline void flow_forget(struct tuple *client_key, const struct flow *client, const struct tuple *to)
{
	struct tuple reply_key;
	struct flow *reply;

	if (!client || tuple_equal(&client->to, to))
		return;
	reply_key = tuple_reverse(&client->to);
	reply = flows.lookup(&reply_key);
	if (reply && reply->last_seen == RETIRED)
		flows.delete(&reply_key);
	flows.delete(client_key);
}

/* Whether a retired entry may be a flow's as it stands: but for what it counts, and who has ended it */
static inline bool flow_fits(const struct flow *retired, const struct flow *flow)
{
	return retired->last_seen == RETIRED && retired->backend == flow->backend &&
	       retired->generation == flow->generation && !((retired->flags ^ flow->flags) & ~(FLOW_FIN | FLOW_RST)) &&
	       tuple_equal(&retired->to, &flow->to);
}

/* Enters one direction of a flow into the main table, where `retired` stands, or NULL */
static inline void flow_stand(struct tuple *key, struct flow *flow, struct flow *retired)
{
	if (!retired || !flow_fits(retired, flow)) {
		flows.update(key, flow);
		return;
	}
	retired->packets = flow->packets;
	retired->bytes = flow->bytes;
	retired->awaited = flow->awaited;
	retired->granted = flow->granted;
	retired->state = flow->state;
	retired->flags &= ~(FLOW_FIN | FLOW_RST);
	*(volatile u64 *)&retired->last_seen = flow->last_seen;
}

/* Fills in the entry that a flow's other direction must have */
static inline void flow_opposite(const struct flow *flow, const struct tuple *key, struct flow *opposite)
{
	__builtin_memset(opposite, 0, sizeof(*opposite));
	opposite->to = tuple_reverse(key);
	opposite->last_seen = now();
	opposite->backend = flow->backend;
	opposite->generation = flow->generation;
	opposite->state = flow->state;
	opposite->awaited = flow->awaited;
	opposite->granted = flow->granted;
	opposite->flags = (flow->flags ^ FLOW_REPLY) & FLOW_OF_BOTH;
}

/*
 * A packet of a flow in the main table. False: there is none, or none that still holds.
 * Both directions are refreshed by either, so that one-way traffic keeps both and the LRU sees them equally recent, but
 * one that has sent a RST by itself only; a direction that is gone is made anew (N5). `opposite` is room for it.
 */
static inline bool flow_follow(const struct tuple *key, const struct packet *packet, struct flow *found,
			       struct flow *opposite)
{
	struct flow *flow = flow_standing(key), *other;
	struct tuple other_key, answered = tuple_reverse(key);

	if (!flow)
		return false;
	other_key = tuple_reverse(&flow->to);
	other = flow_standing(&other_key);
	/* The LRU had dropped that half, and another flow has its tuple since: this one must take another */
	if (other ? !tuple_equal(&other->to, &answered) : half_open.lookup(&other_key) != NULL) {
		flows.delete((struct tuple *)key);
		return false;
	}
	if (flow_begins_anew(flow, packet->tcp_flags)) {
		flow_retire(flow);
		flow_retire(other);
		return false;
	}
	flow_forget_reset(flow, packet->tcp_flags);
	flow->last_seen = now();
	flow_count(flow, packet);
	flow_note_closing(flow, packet->tcp_flags);
	*found = *flow;
	if (other) {
		/* What the sender of a RST says next must be seen to come late, also where it is an answer */
		if (!(other->flags & FLOW_RST))
			other->last_seen = found->last_seen;
	} else {
		flow_opposite(found, key, opposite);
		flows.update(&other_key, opposite);
	}
	return true;
}

/* Whether a live flow has the client's tuple, to another end. One that is over makes room. */
static inline bool flow_is_taken(struct tuple *client_key, const struct tuple *to)
{
	struct flow *first = flows.lookup(client_key);
	struct tuple over;

	if (!first || tuple_equal(&first->to, to))
		return false;
	if (!flow_is_over(first, TCP_SYN))
		return true;
	/* Its other half must not stay: found to be over by another flow, it would take ours with it */
	over = tuple_reverse(&first->to);
	flows.delete(&over);
	flows.delete(client_key);
	return false;
}

/*
 * The reply has come: both directions move to the main table. In that order, so that the tuple is never unclaimed.
 * False: a live flow has the sender's tuple by now. The set of backends has changed between two SYNs, and the other
 * backend was quicker: this answer must not reach the client.
 */
static inline bool flow_promote(struct tuple *key, struct flow *flow, const struct packet *packet, struct flow *other)
{
	struct tuple other_key = tuple_reverse(&flow->to);
	bool paired = flow->flags & FLOW_PAIRED;
	struct flow *first;

	flow_opposite(flow, key, other);
	first = half_open.lookup(&other_key);
	if (first && !tuple_equal(&first->to, &other->to)) {
		half_open.delete(key);
		return false;
	}
	if (!paired) {
		other->packets = flow->packets;
		other->bytes = flow->bytes;
		flow->packets = 0;
		flow->bytes = 0;
	} else if (first) {
		other->packets = first->packets;
		other->bytes = first->bytes;
	}
	other->state = FLOW_ESTABLISHED;
	other->flags |= FLOW_PAIRED;
	flow->state = FLOW_ESTABLISHED;
	flow->flags |= FLOW_PAIRED;
	flow->last_seen = other->last_seen;
	flow->packets++;
	flow->bytes += packet->length;
	flow_note_closing(flow, packet->tcp_flags);
	if (flows.insert(&other_key, other)) {
		if (flow_is_taken(&other_key, &other->to)) {
			half_open.delete(key);
			return false;
		}
		flows.update(&other_key, other);
	}
	flows.update(key, flow);
	half_open.delete(key);
	if (paired)
		half_open.delete(&other_key);
	return true;
}

/* Both directions, wherever they stand */
static inline void flow_end(struct tuple *key, const struct flow *flow)
{
	struct tuple other_key = tuple_reverse(&flow->to);

	flows.delete(&other_key);
	flows.delete(key);
	half_open.delete(&other_key);
	half_open.delete(key);
}

#endif
