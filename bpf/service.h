/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * From a service's address to a backend. Maps: services, slots, targets.
 */
#ifndef PYDATAPATH_SERVICE_H
#define PYDATAPATH_SERVICE_H

BPF_TABLE_PINNED("hash", struct transport_address, struct service, services, MAX_SERVICES, MAP_DIRECTORY "/services");
BPF_TABLE_PINNED("array", u32, u32, slots, MAX_SLOTS, MAP_DIRECTORY "/slots");
/* Every address and port where a backend listens, with the number of its backends */
BPF_TABLE_PINNED("hash", struct transport_address, u32, targets, MAX_BACKENDS, MAP_DIRECTORY "/targets");

enum choice { CHOSEN, NO_SERVICE, NO_BACKEND };

static inline struct transport_address called_address(const struct tuple *key)
{
	struct transport_address called = {
		.address = key->destination,
		.port = key->destination_port,
		.protocol = key->protocol,
	};

	return called;
}

/*
 * S26: uniformly over all flows, by a hash of the tuple, so that a SYN that is sent again goes the same way (N103)
 * without an entry of its own. Fills in where the flow goes.
 * A slot or backend that is not there can only be seen while a change is under way: like no backend, try again.
 */
static inline enum choice service_choose(const struct tuple *key, struct flow *flow)
{
	struct transport_address called = called_address(key);
	struct service *service = services.lookup(&called);
	struct backend *backend;
	u32 slot, *number;

	if (!service)
		return NO_SERVICE;
	slot = service->first_slot + (u32)(((u64)tuple_hash(key, 0) * service->slot_count) >> 32);
	number = slots.lookup(&slot);
	if (service->slot_count == 0 || !number || *number == 0)
		return NO_BACKEND;
	backend = backends.lookup(number);
	if (!backend || backend->state == BACKEND_GONE)
		return NO_BACKEND;
	flow->to.destination = backend->address;
	flow->to.destination_port = backend->port;
	flow->backend = *number;
	flow->generation = backend->generation;
	return CHOSEN;
}

static inline bool is_target(const struct tuple *key)
{
	struct transport_address called = called_address(key);

	return targets.lookup(&called) != NULL;
}

#endif
