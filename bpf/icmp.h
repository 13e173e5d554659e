/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * ICMP errors about translated packets: path MTU discovery and traceroute work through a service's address. Maps: flows,
 * half_open.
 *
 * An error quotes the packet that it is about, and travels against it: it belongs to the other direction of that
 * packet's flow. So it is found by the reverse of the quoted tuple, goes where that direction goes, and quotes then what
 * its receiver has sent. It neither refreshes a flow nor ends one (RFC 5508 REQ-6, N41, N58).
 */
#ifndef PYDATAPATH_ICMP_H
#define PYDATAPATH_ICMP_H

/* The quoted packet, as far as RFC 792 promises it: an IP header and 8 bytes (N51) */
struct quoted {
	ip_header *ip;
	__be16 *ports; /* source, destination */
	struct tuple tuple;
	struct address sender; /* who the error is seen to be from */
};

static inline bool icmp_is_echo(const struct __sk_buff *skb, const struct packet *packet)
{
	icmp_header *icmp = packet->transport;

	return (void *)(icmp + 1) <= (void *)(long)skb->data_end && ((__u8 *)icmp)[0] == ICMP_TYPE_ECHO &&
	       ((__u8 *)icmp)[1] == 0;
}

static inline bool has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

#if MASQUERADE
enum echo { NO_ECHO, ECHO_REQUEST, ECHO_REPLY };

/*
 * Of a query or its answer: the tuple of its flow (RFC 5508 REQ-1). Its identifier, which may be 0, is the port of who asks,
 * and who is asked has none. So by 0 a query and its answer have equal tuples, but for their ends: nat.h takes it for nobody.
 */
static inline enum echo icmp_echo_tuple(const struct __sk_buff *skb, const struct packet *packet, struct tuple *tuple)
{
	const __u8 *icmp = packet->transport;
	__be16 identifier;

	if ((const void *)icmp + sizeof(icmp_header) > (const void *)(long)skb->data_end)
		return NO_ECHO;
	identifier = *(const __be16 *)(icmp + 4);
	if (icmp[0] != ICMP_TYPE_ECHO && icmp[0] != ICMP_TYPE_ECHO_REPLY)
		return NO_ECHO;
	*tuple = (struct tuple){
		.source = ip_source(packet->ip),
		.destination = ip_destination(packet->ip),
		.protocol = IPPROTO_FAMILY_ICMP,
	};
	if (icmp[0] == ICMP_TYPE_ECHO_REPLY) {
		tuple->destination_port = identifier;
		return ECHO_REPLY;
	}
	tuple->source_port = identifier;
	return ECHO_REQUEST;
}

/* The identifier and the addresses. Only ICMPv6's checksum covers the latter. */
static inline void icmp_rewrite_echo(struct packet *packet, const struct tuple *key, const struct tuple *to)
{
	__u16 *identifier = packet->transport + 4;
	__sum16 *check = packet->transport + 2;
	__be16 from = key->source_port | key->destination_port, now_is = to->source_port | to->destination_port;
	__u64 change = sum_change(from, now_is) + rewrite_addresses(packet->ip, key, to) * (FAMILY == 6);

	*check = ~sum_fold16((__u16)~*check + change);
	*identifier = now_is;
}
#endif

#if MASQUERADE
/* Of a quoted query: its identifier is its port, the third half-word of its header */
static inline bool icmp_quotes_echo(const __be16 *icmp, struct tuple *tuple)
{
	__u8 type = *(const __u8 *)icmp;

	if (type == ICMP_TYPE_ECHO)
		tuple->source_port = icmp[2];
	else
		tuple->destination_port = icmp[2];
	return type == ICMP_TYPE_ECHO || type == ICMP_TYPE_ECHO_REPLY;
}
#endif

/* Fills in `quoted`. False: no error, or none about TCP, UDP, SCTP or a query. */
static inline bool icmp_parse_error(struct __sk_buff *skb, const struct packet *packet, struct quoted *quoted)
{
	void *end = (void *)(long)skb->data_end;
	icmp_header *icmp = packet->transport;
	ip_header *ip = (void *)(icmp + 1);
	__u32 length;
	__u8 protocol;

	if ((void *)(ip + 1) > end || !icmp_is_error(((__u8 *)icmp)[0]))
		return false;
	length = ip_quoted(ip, end, &protocol);
	if (length == 0 || !(has_ports(protocol) || (MASQUERADE && protocol == IPPROTO_FAMILY_ICMP)))
		return false;
	quoted->ip = ip;
	quoted->ports = (void *)ip + length;
	if ((void *)quoted->ports + 8 > end)
		return false;
	quoted->tuple = (struct tuple){
		.source = ip_source(ip),
		.destination = ip_destination(ip),
		.source_port = quoted->ports[0],
		.destination_port = quoted->ports[1],
		.protocol = protocol,
	};
#if MASQUERADE
	if (protocol == IPPROTO_FAMILY_ICMP) {
		quoted->tuple.source_port = 0;
		quoted->tuple.destination_port = 0;
		return icmp_quotes_echo(quoted->ports, &quoted->tuple);
	}
#endif
	return true;
}

enum found_way { NO_WAY, PLAIN_WAY, TRANSLATED_WAY };

/* Where the direction that answers the quoted packet goes. NO_WAY: no flow that lives; PLAIN_WAY: one that is not translated. */
static inline enum found_way icmp_find_way(const struct quoted *quoted, struct tuple *key, struct tuple *to)
{
	struct flow *flow;

	*key = tuple_reverse(&quoted->tuple);
	flow = flow_standing(key);
	if (!flow)
		flow = half_open.lookup(key);
	if (!flow || flow_has_ended(flow, 0))
		return NO_WAY;
#if MASQUERADE
	/* By the identifier 0 a query has the tuple of the answer to another: the flow found is not its own */
	if (key->protocol == IPPROTO_FAMILY_ICMP &&
	    (*(const __u8 *)quoted->ports == ICMP_TYPE_ECHO) != !!(flow->flags & FLOW_REPLY))
		return NO_WAY;
#endif
	*to = flow->to;
	return flow->flags & FLOW_PLAIN ? PLAIN_WAY : TRANSLATED_WAY;
}

/*
 * The quoted packet becomes what the error's receiver has sent. Returns what that changes in the ICMP checksum. IPv4's
 * header makes up for its addresses by its own checksum, IPv6's does not. For UDP, the checksum that stands in the 8 bytes
 * makes up for ports and addresses, which it covers; TCP's is quoted by few, and read by nobody (RFC 5508 REQ-3).
 */
static inline __u64 icmp_rewrite_quoted(struct quoted *quoted, const struct tuple *sent)
{
	const struct tuple *was = &quoted->tuple;
	__u64 addresses = rewrite_addresses(quoted->ip, was, sent);
	__u64 ports = sum_change(was->source_port, sent->source_port) +
		      sum_change(was->destination_port, sent->destination_port);
	__be16 *check = quoted->ports + 3;
	__u16 before = *check;

	if (MASQUERADE && was->protocol == IPPROTO_FAMILY_ICMP) {
		/* One of the two is the identifier; its own checksum makes up for it, and for IPv6's addresses */
		quoted->ports[2] = sent->source_port | sent->destination_port;
		quoted->ports[1] = ~sum_fold16((__u16)~quoted->ports[1] + ports + addresses * (FAMILY == 6));
		return 0;
	}
	quoted->ports[0] = sent->source_port;
	quoted->ports[1] = sent->destination_port;
	if (was->protocol == IPPROTO_UDP && before) {
		*check = ~sum_fold16((__u16)~before + addresses + ports);
		if (*check == 0)
			*check = 0xffff; /* RFC 768 */
		ports += sum_change(before, *check);
	}
	return FAMILY == 4 ? ports : ports + addresses;
}

/*
 * Its sender stays who it is, such as a router on the way (N50), unless it is the peer itself, who is known by another
 * address (N55), or a pod that must not be seen where the error goes (N84).
 */
static inline struct address icmp_sender(const struct packet *packet, const struct tuple *key, const struct tuple *to, bool leaves)
{
	struct address sender = ip_source(packet->ip);
	bool renamed = address_equal(&sender, &key->source);

#if MASQUERADE
	renamed = renamed || (leaves && nat_is_due(&sender, &to->destination));
#endif
	if (renamed)
		sender = to->source;
	return sender;
}

/* Translates an error. `key` and `to`: the tuple against which it travels and what that becomes. */
static inline void icmp_rewrite(struct packet *packet, struct quoted *quoted, const struct tuple *to)
{
	__sum16 *check = packet->transport + 2; /* of both families' ICMP */
	struct tuple sent = tuple_reverse(to);
	struct tuple from = {.source = ip_source(packet->ip), .destination = ip_destination(packet->ip)};
	struct tuple outer = {.source = quoted->sender, .destination = to->destination};
	__u64 change;

	change = icmp_rewrite_quoted(quoted, &sent);
	/* ICMPv6's checksum covers the addresses of its own packet, too (RFC 4443 2.3) */
	change += rewrite_addresses(packet->ip, &from, &outer) * (FAMILY == 6);
	*check = ~sum_fold16((__u16)~*check + change);
}

#endif
