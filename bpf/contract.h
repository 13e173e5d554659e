/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * What C and Python share: the structs in the maps. No map, no helper here.
 *
 * Python's side is pydatapath/kernel/layout.py; whenever the compiler runs its structs are compared, field by field, with
 * the ones that it made of these. Whoever changes a struct raises LAYOUT_VERSION there and here.
 *
 * Numbers that both sides need (states, flags, counters, timeouts, networks) are given by -D from Python, its only
 * place; a missing one is an error here, never a default.
 */
#ifndef PYDATAPATH_CONTRACT_H
#define PYDATAPATH_CONTRACT_H

#if LAYOUT_VERSION != 2
#error "contract.h has layout 2: LAYOUT_VERSION in pydatapath/kernel/layout.py says otherwise"
#endif

/* A packet's addresses and ports. The key of a flow: the tuple as the packet arrives. 16 bytes, no padding. */
struct tuple {
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol; /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 zero[3];
};
_Static_assert(sizeof(struct tuple) == 16, "layout 2");

/* One direction of a flow. Its other direction has the key reverse(to). */
struct flow {
	struct tuple to; /* the tuple as the packet must leave */
	__u64 last_seen; /* jiffies; written when over a second old */
	__u64 packets;
	__u64 bytes;	    /* of layer 3, as the packets arrived */
	__u32 backend;	    /* index into backends; 0: none, a plain flow */
	__u32 generation;   /* of that backend when it was chosen */
	__u8 state;	    /* FLOW_NEW, FLOW_ESTABLISHED; closing is told by both directions' flags */
	__u8 flags;	    /* FLOW_REPLY, FLOW_PLAIN; FLOW_FIN, FLOW_RST: this direction has sent one */
	__u8 zero[14];	    /* with its key, a flow fills two cache lines of the kernel's table exactly */
};
_Static_assert(sizeof(struct flow) == 64, "layout 2");

/* A fragmented datagram: what its later fragments, which have no ports, are known by (RFC 791 3.2). 12 bytes. */
struct fragment_key {
	__be32 source;
	__be32 destination;
	__be16 identification;
	__u8 protocol;
	__u8 zero;
};
_Static_assert(sizeof(struct fragment_key) == 12, "layout 2");

/* What its first fragment's addresses became. */
struct fragment {
	__u64 first_seen; /* jiffies */
	__be32 source;
	__be32 destination;
};
_Static_assert(sizeof(struct fragment) == 16, "layout 2");

/* A packet between `walk`, which has decided what it becomes, and `leave`, which does it. */
struct leaving {
	struct tuple key;
	struct tuple to;
};
_Static_assert(sizeof(struct leaving) == 32, "layout 2");

/* How many answers a CPU has made of late (C2). */
struct answered {
	__u64 since; /* jiffies: the beginning of this second */
	__u32 count;
	__u32 zero;
};
_Static_assert(sizeof(struct answered) == 16, "layout 2");

/* Where a service is called, and where a backend listens. */
struct transport_address {
	__be32 address;
	__be16 port;
	__u8 protocol;
	__u8 zero;
};
_Static_assert(sizeof(struct transport_address) == 8, "layout 2");

/* Slots one after the other, each the number of a backend. */
struct run {
	__u32 first_slot;
	__u32 slot_count; /* 0: no backend */
};

/*
 * A service port at one address where it is called. Replaced whole, so no packet sees half a change. Callers inside the
 * cluster (pods, the node itself) and outside may have different backends: externalTrafficPolicy, S50 to S55.
 */
struct service {
	struct run inside;
	struct run outside;
	__u32 number;	/* names the service port in the control plane's records */
	__u32 affinity; /* seconds that a client keeps its backend (S73); 0: no session affinity */
	/* SERVICE_DROP_INSIDE, SERVICE_DROP_OUTSIDE: with no backend, drop instead of refusing (S36, S51). SERVICE_RANGES:
	 * only sources in its ranges may call (S62) */
	__u32 flags;
	__u32 zero;
};
_Static_assert(sizeof(struct service) == 32, "layout 2");

/* Who may call a service port that has source ranges: the key of a longest-prefix match (Documentation/bpf/map_lpm_trie). */
struct source_range {
	__u32 prefix_length; /* bits: 32 of the number, and those of the network */
	__u32 service;	     /* the service port's number */
	__be32 network;
};
_Static_assert(sizeof(struct source_range) == 12, "layout 2");

/* A client of a service port with session affinity: the key of what it keeps (S73, S75). */
struct client {
	__be32 address;
	__u32 service; /* the service port's number */
};
_Static_assert(sizeof(struct client) == 8, "layout 2");

/* The backend that a client keeps. */
struct affinity {
	__u64 last_used; /* jiffies: its last new connection (S74) */
	__u32 backend;
	__u32 generation;
	__u32 position; /* in the run of slots when it was chosen: where to look first */
	__u32 zero;
};
_Static_assert(sizeof(struct affinity) == 24, "layout 2");

/* One endpoint of one service port. */
struct backend {
	__be32 address;
	__be16 port;
	__u8 protocol;
	__u8 state;	  /* BACKEND_UNUSED, BACKEND_ACTIVE, BACKEND_DRAINING, BACKEND_GONE */
	__u32 generation; /* raised when the number is given to another backend */
	__u32 service;	  /* its service port's number */
};
_Static_assert(sizeof(struct backend) == 16, "layout 2");

/* Who answers to an address on this machine. */
struct endpoint {
	__u32 interface; /* index: the pod's host-side veth, or the bridge for the node's own addresses */
	__u8 mac[6];
	__u8 kind; /* ENDPOINT_POD, ENDPOINT_NODE */
	__u8 zero;
};
_Static_assert(sizeof(struct endpoint) == 12, "layout 2");

#endif
