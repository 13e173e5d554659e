/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * What C and Python share: the structs in the maps. No map, no helper here.
 *
 * Python's side is pydatapath/kernel/layout.py; whenever the compiler runs its structs are compared, field by field, with
 * the ones that it made of these. Whoever changes a struct raises LAYOUT_VERSION there and here, unless bytes that were
 * zero get a meaning of which 0 says nothing, and who does not know it does no harm: such entries are carried as they are.
 *
 * Numbers that both sides need (states, flags, counters, timeouts, networks) are given by -D from Python, its only
 * place; a missing one is an error here, never a default.
 */
#ifndef PYDATAPATH_CONTRACT_H
#define PYDATAPATH_CONTRACT_H

#if LAYOUT_VERSION != 3
#error "contract.h has layout 3: LAYOUT_VERSION in pydatapath/kernel/layout.py says otherwise"
#endif

/* Everything is compiled once for each family. Maps that hold addresses are each family's own, and end in FAMILY_NAME. */
#if FAMILY == 4
#define WORDS 1
#define FAMILY_NAME ""
#elif FAMILY == 6
#define WORDS 4
#define FAMILY_NAME "6"
#else
#error "FAMILY is 4 or 6"
#endif

/* An IP address as it stands in a packet. */
struct address {
	__be32 words[WORDS];
};

/* A packet's addresses and ports. The key of a flow: the tuple as the packet arrives. No padding but `zero`. */
struct tuple {
	struct address source;
	struct address destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol; /* IPPROTO_TCP, IPPROTO_UDP or IPPROTO_SCTP */
	__u8 zero[3];
};
_Static_assert(sizeof(struct tuple) == (FAMILY == 4 ? 16 : 40), "layout 3");

/* One direction of a flow. Its other direction has the key reverse(to). */
struct flow {
	struct tuple to; /* the tuple as the packet must leave */
	__u64 last_seen; /* jiffies; written when over a second old. 0: retired, see flow.h */
	__u64 packets;
	__u64 bytes;	    /* of layer 3, as the packets arrived */
	__u32 backend;	    /* index into backends; 0: none, a plain flow */
	__u32 generation;   /* of that backend when it was chosen */
	__u8 state;	    /* FLOW_NEW, FLOW_ANSWERED, FLOW_ESTABLISHED; closing is told by both directions' flags */
	__u8 flags;	    /* FLOW_REPLY, FLOW_PLAIN, FLOW_PAIRED, FLOW_MASQUERADED, FLOW_OPENED; FLOW_FIN, FLOW_RST: this direction's */
	__u8 zero[2];
	/* Of a flow that a SYN-ACK has answered: what its client's ACK acknowledges (RFC 9293 3.5), 0 from before this was
	 * here; and what the SYN-ACK itself did */
	__be32 awaited;
	__be32 granted;
	__u32 answer; /* bytes of the SYN-ACK that a claim alone has been answered by; with its key, a flow fills cache lines
		       * of the kernel's table exactly: two, for IPv6 three */
#if FAMILY == 6
	__u8 most_zero[16];
#endif
};
_Static_assert(sizeof(struct flow) == (FAMILY == 4 ? 64 : 104), "layout 3");

/* What a client's tuple became, at a place of many's: a hint, see opening.h */
struct opening {
	struct tuple key;
	struct tuple to;
};
_Static_assert(sizeof(struct opening) == (FAMILY == 4 ? 32 : 80), "layout 3");

/* A fragmented datagram: what its later fragments, which have no ports, are known by (RFC 791 3.2, RFC 8200 4.5). */
struct fragment_key {
	struct address source;
	struct address destination;
	__be32 identification; /* IPv4's 16 bits are the first two bytes */
	__u8 protocol;	       /* 0 for IPv6, where later fragments need not name the first one's */
	__u8 zero[3];
};
_Static_assert(sizeof(struct fragment_key) == (FAMILY == 4 ? 16 : 40), "layout 3");

/* What its first fragment's addresses became. */
struct fragment {
	__u64 first_seen; /* jiffies */
	struct address source;
	struct address destination;
};
_Static_assert(sizeof(struct fragment) == (FAMILY == 4 ? 16 : 40), "layout 3");

/* What a CPU was told by the routing table, in this very jiffy. */
struct routed {
	__u32 at; /* the low half of jiffies */
	struct address source;
	struct address destination;
	struct address next_hop;
	__u32 from;	 /* index of the interface by which the packet came in */
	__u32 traffic;	 /* IPv4's type of service, IPv6's traffic class and flow label */
	__u32 interface; /* by which it leaves */
	__u16 mtu;	 /* what is longer must be asked for itself */
	__u8 protocol;
	__u8 answer; /* BPF_FIB_LKUP_RET_... */
#if FAMILY == 6
	__u8 more_zero[4];
#endif
};
_Static_assert(sizeof(struct routed) == (FAMILY == 4 ? 32 : 72), "layout 3");

/*
 * A packet between `walk`, which has decided what it becomes, and `leave`, which does it; and what is too large for the
 * 512 bytes of `walk`'s stack.
 */
struct leaving {
	struct tuple key;
	struct tuple to;
	struct flow flow;
	struct flow other; /* its other direction */
	__u32 length;	   /* for `nat`, which does not parse the packet: bytes of layer 3 */
	__u16 tcp_flags;
	__u16 rounds; /* of looking for a port */
};
_Static_assert(sizeof(struct leaving) == (FAMILY == 4 ? 168 : 296), "layout 3");

/* RFC 4787 REQ-1: an inside address and port has one outside, whoever is talked to; and the other way round. */
struct mapping_key {
	struct address address;
	__be16 port;
	__u8 protocol;
	/* MAPPING_OUTSIDE; else of an inside end, MAPPING_INSIDE or, behind a further address, another number; MAPPING_BUDGET: no
	 * mapping, but what a pod has begun, of no port; or, of one, the ticket to replace a half of that port */
	__u8 side;
};
_Static_assert(sizeof(struct mapping_key) == (FAMILY == 4 ? 8 : 20), "layout 3");

struct mapping {
	/* jiffies: the last packet outwards, written when over a second old. A budget: 1/NAT_POD_PARTS of them, see nat.h */
	__u64 last_seen;
	struct address address;
	__be16 port;
	__u8 zero[2];
#if FAMILY == 6
	__u8 more_zero[4];
#endif
};
_Static_assert(sizeof(struct mapping) == (FAMILY == 4 ? 16 : 32), "layout 3");

/* How many answers a CPU has made of late (C2). */
struct answered {
	__u64 since; /* jiffies: the beginning of this second */
	__u32 count;
	__u32 zero;
};
_Static_assert(sizeof(struct answered) == 16, "layout 3");

/* Where a service is called, and where a backend listens. */
struct transport_address {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 zero;
};
_Static_assert(sizeof(struct transport_address) == (FAMILY == 4 ? 8 : 20), "layout 3");

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
	__u32 shared; /* the number by which all ports of its Service keep their clients (C11); 0: by its own */
};
_Static_assert(sizeof(struct service) == 32, "layout 3");

/* Who may call a service port that has source ranges: the key of a longest-prefix match (Documentation/bpf/map_lpm_trie). */
struct source_range {
	__u32 prefix_length; /* bits: 32 of the number, and those of the network */
	__u32 service;	     /* the service port's number */
	struct address network;
};
_Static_assert(sizeof(struct source_range) == (FAMILY == 4 ? 12 : 24), "layout 3");

/* A network of the cluster, or one address: the key of a longest-prefix match. */
struct network {
	__u32 prefix_length; /* bits */
	struct address address;
};
_Static_assert(sizeof(struct network) == (FAMILY == 4 ? 8 : 20), "layout 3");

/* A client of a service port with session affinity: the key of what it keeps (S73, S75). */
struct client {
	struct address address;
	__u32 service; /* the service port's number, or that which its Service's ports share */
};
_Static_assert(sizeof(struct client) == (FAMILY == 4 ? 8 : 20), "layout 3");

/* The backend that a client keeps; where ports share, one on the pod that it keeps. */
struct affinity {
	__u64 last_used; /* jiffies: its last new connection (S74) */
	__u32 backend;
	__u32 generation;
	__u32 position; /* in the run of slots when it was chosen: where to look first */
	__u32 zero;
};
_Static_assert(sizeof(struct affinity) == 24, "layout 3");

/* One endpoint of one service port. One array for both families: an IPv4 address is mapped (RFC 4291 2.5.5.2). */
struct backend {
	__be32 address[4];
	__be16 port;
	__u8 protocol;
	__u8 state;	  /* BACKEND_UNUSED, BACKEND_ACTIVE, BACKEND_DRAINING, BACKEND_GONE */
	__u32 generation; /* raised when the number is given to another backend */
	__u32 service;	  /* its service port's number */
	__u32 zero;
};
_Static_assert(sizeof(struct backend) == 32, "layout 3");

/* Who answers to an address on this machine. */
struct endpoint {
	__u32 interface; /* index: the pod's host-side veth, or the bridge for the node's own addresses */
	__u8 mac[6];
	__u8 kind; /* ENDPOINT_POD, ENDPOINT_NODE */
	__u8 zero;
};
_Static_assert(sizeof(struct endpoint) == 12, "layout 3");

/* What a CPU has last found in `endpoints` at a place of many's: good as long as nothing was changed there since. */
struct nearby {
	__u64 changes; /* of `endpoints` by then, and one */
	struct address address;
	struct endpoint endpoint;
#if FAMILY == 6
	__u8 more_zero[4];
#endif
};
_Static_assert(sizeof(struct nearby) == (FAMILY == 4 ? 24 : 40), "layout 3");

#endif
