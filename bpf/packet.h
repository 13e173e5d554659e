/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Reading a packet: Ethernet, IPv4, TCP, UDP. Pure: no map, no helper.
 *
 * packet_parse checks every bound once and hands on typed pointers. They are good until a helper that may move the
 * packet is called.
 */
#ifndef PYDATAPATH_PACKET_H
#define PYDATAPATH_PACKET_H

#include <linux/icmp.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#define IP_OFFSET sizeof(struct ethhdr)
#define IP_FRAGMENT_OFFSET 0x1fff /* RFC 791 3.1 */
#define IP_MORE_FRAGMENTS 0x2000

#define ARP_SENDER_OFFSET (sizeof(struct ethhdr) + 14) /* RFC 826: after five 16-bit fields' worth and one MAC */

/* From <sys/socket.h> and <linux/if_packet.h>, which the header shim keeps out */
#define AF_INET 2
#define PACKET_HOST 0

#define offsetof(type, field) __builtin_offsetof(type, field)

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

enum parsed {
	PARSED,		  /* TCP or UDP over IPv4, whole headers in reach */
	PARSED_FIRST,	  /* as above, the first fragment of several */
	PARSED_ARP,	  /* of interest only for learning */
	PARSED_ICMP,	  /* over IPv4, its header in reach */
	PARSED_OTHER,	  /* a protocol that is not ours: the stack's */
	PARSED_FRAGMENT,  /* a later fragment, which has no ports; only `ip` and `length` are set */
	PARSED_SHORT,	  /* the headers may lie outside the linear part: pull and try again */
	PARSED_MALFORMED, /* lengths that lie: never rewritten, the stack drops it */
};

struct packet {
	struct ethhdr *ethernet;
	struct iphdr *ip;
	union {
		struct tcphdr *tcp;
		struct udphdr *udp;
		void *transport;
	};
	__u32 transport_offset; /* from the frame's first byte */
	__u32 length;		/* bytes of layer 3 */
	__u8 tcp_flags;		/* TCP_FIN | ...; 0 for UDP */
};

/* `transport` is the length that TCP's or UDP's own header gives, `least` the shortest there is */
static inline bool packet_length_lies(const struct __sk_buff *skb, const struct iphdr *ip, __u32 ip_length,
				      __u32 transport, __u32 least)
{
	__u32 total = bpf_ntohs(ip->tot_len);

	/* A GSO packet over 64 KiB (BIG TCP) has no total length: Linux commit b1a78b9b9886, in v6.3 */
	if (total == 0)
		return skb->gso_segs == 0;
	return transport < least || total < ip_length + transport || total > skb->len - IP_OFFSET;
}

static inline enum parsed packet_parse_icmp(struct packet *packet, void *end)
{
	return packet->transport + sizeof(struct icmphdr) > end ? PARSED_SHORT : PARSED_ICMP;
}

static inline enum parsed packet_parse(struct __sk_buff *skb, struct packet *packet)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *ethernet = data;
	struct iphdr *ip = (void *)(ethernet + 1);
	__u32 ip_length, transport_length, least;
	bool first;

	if ((void *)(ethernet + 1) > end)
		return PARSED_SHORT;
	packet->ethernet = ethernet;
	if (ethernet->h_proto == bpf_htons(ETH_P_ARP))
		return PARSED_ARP;
	if (ethernet->h_proto != bpf_htons(ETH_P_IP))
		return PARSED_OTHER;
	if ((void *)(ip + 1) > end)
		return PARSED_SHORT;
	ip_length = ip->ihl * 4;
	if (ip->version != 4 || ip_length < sizeof(*ip))
		return PARSED_MALFORMED;
	packet->ip = ip;
	packet->length = skb->len - IP_OFFSET;
	packet->tcp_flags = 0;
	if (ip->frag_off & bpf_htons(IP_FRAGMENT_OFFSET))
		return PARSED_FRAGMENT;

	first = ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS);
	packet->transport = (void *)ip + ip_length;
	packet->transport_offset = IP_OFFSET + ip_length;
	if (ip->protocol == IPPROTO_TCP) {
		if ((void *)(packet->tcp + 1) > end)
			return PARSED_SHORT;
		transport_length = packet->tcp->doff * 4;
		least = sizeof(struct tcphdr);
		packet->tcp_flags = ((__u8 *)packet->tcp)[13];
	} else if (ip->protocol == IPPROTO_UDP) {
		if ((void *)(packet->udp + 1) > end)
			return PARSED_SHORT;
		/* A part is enough: RFC 9868 has options behind it. Of a datagram in fragments it is the whole's. */
		least = sizeof(struct udphdr);
		transport_length = first ? least : bpf_ntohs(packet->udp->len);
	} else {
		return ip->protocol == IPPROTO_ICMP && !first ? packet_parse_icmp(packet, end) : PARSED_OTHER;
	}
	if (packet_length_lies(skb, ip, ip_length, transport_length, least))
		return PARSED_MALFORMED;
	return first ? PARSED_FIRST : PARSED;
}

/* By hand: LLVM 14 makes a call of a 6-byte memcmp, which BPF has not. Both are at even addresses. */
static inline bool mac_equal(const void *one, const void *other)
{
	const __u16 *a = one, *b = other;

	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
}

/* TCP and UDP begin alike: source port, destination port */
static inline struct tuple packet_tuple(const struct packet *packet)
{
	struct tuple tuple = {
		.source = packet->ip->saddr,
		.destination = packet->ip->daddr,
		.source_port = packet->udp->source,
		.destination_port = packet->udp->dest,
		.protocol = packet->ip->protocol,
	};

	return tuple;
}

static inline struct tuple tuple_reverse(const struct tuple *tuple)
{
	struct tuple reversed = {
		.source = tuple->destination,
		.destination = tuple->source,
		.source_port = tuple->destination_port,
		.destination_port = tuple->source_port,
		.protocol = tuple->protocol,
	};

	return reversed;
}

static inline bool tuple_equal(const struct tuple *one, const struct tuple *other)
{
	return one->source == other->source && one->destination == other->destination &&
	       one->source_port == other->source_port && one->destination_port == other->destination_port;
}

/*
 * A number in 32 bits that is the same for the same tuple and salt, and spreads tuples that differ little (a client's
 * ports one after the other) evenly: the finalizer of splitmix64 over both halves.
 */
static inline __u32 tuple_hash(const struct tuple *tuple, __u32 salt)
{
	__u64 mixed = ((__u64)tuple->source << 32 | tuple->destination) * 0x9e3779b97f4a7c15;

	mixed ^= mixed >> 32;
	mixed += (__u64)tuple->source_port << 48 | (__u64)tuple->destination_port << 32 | tuple->protocol << 24 | salt;
	mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
	mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
	return mixed >> 32;
}

#endif
