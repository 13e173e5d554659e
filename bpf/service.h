/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * From a service's address to a backend. Maps: services, slots, targets, affinities, ranges, vips;
 * backends, networks.
 */
#ifndef PYDATAPATH_SERVICE_H
#define PYDATAPATH_SERVICE_H

BPF_TABLE_PINNED("hash", struct transport_address, struct service, services, MAX_SERVICES, MAP_DIRECTORY "/services" FAMILY_NAME);
BPF_TABLE_PINNED("array", u32, u32, slots, MAX_SLOTS, MAP_DIRECTORY "/slots", 1024);
/* Every address and port where a backend listens, with the number of its backends */
BPF_TABLE_PINNED("hash", struct transport_address, u32, targets, MAX_BACKENDS, MAP_DIRECTORY "/targets" FAMILY_NAME);

/* loadBalancerSourceRanges: those that may call; the value says nothing. Flag 1: BPF_F_NO_PREALLOC, a trie's must */
BPF_TABLE_PINNED("lpm_trie", struct source_range, u32, ranges, MAX_RANGES, MAP_DIRECTORY "/ranges" FAMILY_NAME, 1);
/* Every address that is a service's own: VIP_CLUSTER or VIP_EXTERNAL */
BPF_TABLE_PINNED("hash", struct address, u32, vips, MAX_SERVICES, MAP_DIRECTORY "/vips" FAMILY_NAME);

/* S79: one entry for a client, whichever of the service port's addresses it calls; C11: or of its Service's ports */
BPF_TABLE_PINNED("lru_hash", struct client, struct affinity, affinities, MAX_AFFINITIES, MAP_DIRECTORY "/affinities" FAMILY_NAME);

/* Who calls: a pod or the node itself, or anybody else. S50 to S53: they may have different backends. */
enum caller { INSIDE, OUTSIDE };

enum choice {
	CHOSEN,
	NO_SERVICE,
	NO_BACKEND, /* none anywhere: refused (S41) */
	NOT_HERE,   /* none where the traffic policy looks: dropped (S36, S51) */
	NOT_ALLOWED, /* the caller is in none of the source ranges: dropped (S62) */
};

static inline struct transport_address called_address(const struct tuple *key)
{
	struct transport_address called = {
		.address = key->destination,
		.port = key->destination_port,
		.protocol = key->protocol,
	};

	return called;
}

static inline enum choice service_without_backend(const struct service *service, enum caller caller)
{
	return service->flags & (caller == INSIDE ? SERVICE_DROP_INSIDE : SERVICE_DROP_OUTSIDE) ? NOT_HERE : NO_BACKEND;
}

/* S62 to S64: everybody is looked at by his own address, and before it matters who is there to answer (S67) */
static inline bool service_allows(const struct service *service, const struct address *source)
{
	struct source_range asked = {
		.prefix_length = 32 + 32 * WORDS,
		.service = service->number,
		.network = *source,
	};

	return !(service->flags & SERVICE_RANGES) || ranges.lookup(&asked);
}

/* Whether an address is a service's own, and of which kind: VIP_CLUSTER, VIP_EXTERNAL, or 0 */
static inline u32 vip_kind(const struct address *address)
{
	struct address asked = *address;
	u32 *kind = vips.lookup(&asked);

	return kind ? *kind : 0;
}

/* C11: where a Service's ports share their clients any of its backends on the pod will do, whatever port it is for. */
static inline bool backend_is_kept(const u32 *slot, u32 kept, const struct backend *pod)
{
	u32 number = slot ? *slot : 0;
	struct backend *backend;
	__be32 differs = 0;

	if (number == kept || !pod)
		return number == kept;
	backend = backends.lookup(&number);
	if (!backend)
		return false;
#pragma unroll
	for (int i = 4 - WORDS; i < 4; i++)
		differs |= backend->address[i] ^ pod->address[i];
	return !differs;
}

/*
 * S73 to S76: the backend that a client has kept, or 0. Not for longer than the service says, nor one that is over. It
 * is looked for where it was, and noted there. One that has moved is searched for in the first AFFINITY_SEARCH slots; behind
 * them it is not found, and its client is balanced anew.
 */
static inline u32 affinity_find(const struct client *client, const struct service *service, const struct run *run,
				u32 *position)
{
	struct affinity *kept = affinities.lookup((struct client *)client);
	struct backend *pod = NULL;
	u32 slot, *found;

	if (!kept || elapsed(kept->last_used) > (s64)service->affinity * HZ ||
	    backend_is_gone(kept->backend, kept->generation))
		return 0;
	if (service->shared) {
		slot = kept->backend;
		pod = backends.lookup(&slot);
	}
	slot = run->first_slot + kept->position;
	found = slots.lookup(&slot);
	if (kept->position < run->slot_count && found && backend_is_kept(found, kept->backend, pod)) {
		*position = kept->position;
		return *found;
	}
	for (u32 i = 0; i < AFFINITY_SEARCH && i < run->slot_count; i++) {
		slot = run->first_slot + i;
		found = slots.lookup(&slot);
		if (found && backend_is_kept(found, kept->backend, pod)) {
			/* Through the map: a number that the verifier knows would be a state of its own for each slot */
			*(volatile u32 *)&kept->position = i;
			*position = *(volatile u32 *)&kept->position;
			return *found;
		}
	}
	return 0;
}

/*
 * A copy of a service port, which stays what it is. The kernel reuses the element of what is replaced for the next key that
 * is written (extra_elems in kernel/bpf/hashtab.c), while programs read it: what was read holds if it is there still.
 */
static inline bool service_find(const struct transport_address *called, struct service *found)
{
	struct service *service;

#pragma unroll
	for (int try = 0; try < 2; try++) {
		service = services.lookup((struct transport_address *)called);
		if (!service)
			return false;
		*found = *service;
		if (services.lookup((struct transport_address *)called) == service)
			break;
	}
	return true;
}

/*
 * S26: uniformly over all flows, by a hash of the tuple, so that a SYN that is sent again goes the same way (N103)
 * without an entry of its own. Fills in where the flow goes.
 * A slot or backend that is not there can only be seen while a change is under way: like no backend, try again.
 */
static inline enum choice service_choose(const struct tuple *key, bool by_uplink, struct flow *flow)
{
	struct transport_address called = called_address(key);
	struct client client = {.address = key->source};
	struct service copy, *service = &copy;
	struct affinity keep = {.last_used = now()};
	struct backend *backend;
	enum caller caller;
	struct run run;
	u32 slot, number, *found;

	if (!service_find(&called, &copy))
		return NO_SERVICE;
	if (!service_allows(service, &key->source))
		return NOT_ALLOWED;
	client.service = service->shared ? service->shared : service->number;
	caller = by_uplink && !is_in_cluster(&key->source) ? OUTSIDE : INSIDE;
	run = caller == INSIDE ? service->inside : service->outside;
	keep.position = (u32)(((u64)tuple_hash(key, 0) * run.slot_count) >> 32);
	slot = run.first_slot + keep.position;
	found = slots.lookup(&slot);
	if (run.slot_count == 0 || !found || *found == 0)
		return service_without_backend(service, caller);
	number = *found;
	if (service->affinity) {
		keep.backend = affinity_find(&client, service, &run, &keep.position);
		if (keep.backend)
			number = keep.backend;
	}
	backend = backends.lookup(&number);
	if (!backend || backend->state == BACKEND_GONE)
		return NO_BACKEND;
	flow->to.destination = backend_address(backend);
	flow->to.destination_port = backend->port;
	flow->backend = number;
	flow->generation = backend->generation;
	if (service->affinity) {
		keep.backend = number;
		keep.generation = backend->generation;
		affinities.update(&client, &keep);
	}
	return CHOSEN;
}

static inline bool is_target(const struct tuple *key)
{
	struct transport_address called = called_address(key);

	return targets.lookup(&called) != NULL;
}

#endif
