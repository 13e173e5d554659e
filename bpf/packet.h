/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Reading a packet: Ethernet, IP, then TCP, UDP or SCTP. Pure: no map, no helper. The family's own header is read by
 * ipv4.h or ipv6.h, which give the same names to different things.
 *
 * packet_parse checks every bound once and hands on typed pointers. They are good until a helper that may move the
 * packet is called.
 */
#ifndef PYDATAPATH_PACKET_H
#define PYDATAPATH_PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#define IP_OFFSET sizeof(struct ethhdr)

#define ARP_SENDER_OFFSET (sizeof(struct ethhdr) + 14) /* RFC 826: after five 16-bit fields' worth and one MAC */

/* From <linux/if_packet.h>, which the header shim keeps out */
#define PACKET_HOST 0

#define offsetof(type, field) __builtin_offsetof(type, field)

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* RFC 9260 3.1. The kernel's own struct is not among its UAPI headers. */
struct sctp_header {
	__be16 source;
	__be16 dest;
	__be32 verification_tag;
	__le32 checksum; /* CRC32c (RFC 9260 appendix A) */
};

/* The words of skb->cb: what tells `walk` the hook, and what the hook's program has seen of the flow; room for ipv6.h */
#define CB_HOOK 0
#define CB_FLOW 1
#define CB_LENGTH 2
#define CB_PROTOCOL 3
#define CB_IDENTIFICATION 4

enum parsed {
	PARSED,		   /* TCP, UDP or SCTP, whole headers in reach */
	PARSED_FIRST,	   /* as above, the first fragment of several */
	PARSED_ARP,	   /* of interest only for learning */
	PARSED_ICMP,	   /* the family's ICMP, its header in reach; also the first fragment of one */
	PARSED_OTHER,	   /* not of this family: the stack's */
	PARSED_PROTOCOL,   /* a protocol without ports that we know: the stack's */
	PARSED_FRAGMENT,   /* a later fragment, which has no ports; nothing behind `identification` is set */
	PARSED_SHORT,	   /* the headers may lie outside the linear part, or are many: `walk` tries again */
	PARSED_UNREADABLE, /* more headers than are followed; only `ip` and `length` are set */
	PARSED_MALFORMED,  /* lengths that lie: never rewritten, the stack drops it */
};

/* Whether `ip` is set */
static inline bool has_addresses(enum parsed parsed)
{
	return parsed == PARSED || parsed == PARSED_FIRST || parsed == PARSED_ICMP || parsed == PARSED_FRAGMENT ||
	       parsed == PARSED_UNREADABLE || parsed == PARSED_PROTOCOL;
}

/* How far to read: the programs at the hooks look at packets as nearly all are, `walk` and `leave` at all. */
enum reading { PLAIN_HEADERS, ALL_HEADERS };

#if FAMILY == 4
#include "ipv4.h"
#else
#include "ipv6.h"
#endif

struct packet {
	struct ethhdr *ethernet;
	ip_header *ip;
	__u32 length;	       /* bytes of layer 3 */
	__be32 identification; /* of a fragment */
	union {
		struct tcphdr *tcp;
		struct udphdr *udp;
		struct sctp_header *sctp;
		void *transport;
	};
	__u32 transport_offset; /* from the frame's first byte */
	__u8 protocol;
	__u8 tcp_flags; /* TCP_FIN | ...; TCP_SYN for SCTP's INIT; else 0 */
	bool is_first;	/* fragment of several */
	__le32 crc_change; /* what new ports change in an SCTP checksum */
	__be32 sequence;   /* TCP's numbers */
	__be32 acknowledged;
	__u32 data; /* TCP: bytes behind its header. Of BIG TCP, which has no total length, any number but 0 */
};

/* `transport` is the length that the protocol's own header gives, `least` the shortest there is */
static inline bool packet_length_lies(const struct __sk_buff *skb, const struct packet *packet, __u32 transport,
				      __u32 least)
{
	__u32 total = ip_total_length(packet->ip);

	/* A GSO packet over 64 KiB (BIG TCP) has no total length: Linux commit b1a78b9b9886, in v6.3 */
	if (total == 0)
		return skb->gso_segs == 0;
	return transport < least || total < packet->transport_offset - IP_OFFSET + transport || total > skb->len - IP_OFFSET;
}

/* RFC 9260 3.3.2 and 8.5.1: an INIT is alone in its packet, under a verification tag of 0 */
static inline bool sctp_opens(const struct sctp_header *sctp, const void *end)
{
	const __u8 *chunk_type = (const void *)(sctp + 1);

	return sctp->verification_tag == 0 && (const void *)(chunk_type + 1) <= end && *chunk_type == 1;
}

static inline enum parsed packet_parse(struct __sk_buff *skb, struct packet *packet, enum reading reading)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *ethernet = data;
	ip_header *ip = (void *)(ethernet + 1);
	__u32 transport_length, least;
	struct ip_reading read = {};
	enum parsed parsed;

	if ((void *)(ethernet + 1) > end)
		return PARSED_SHORT;
	packet->ethernet = ethernet;
	if (FAMILY == 4 && ethernet->h_proto == bpf_htons(ETH_P_ARP))
		return PARSED_ARP;
	if (ethernet->h_proto != bpf_htons(ETH_P_FAMILY))
		return PARSED_OTHER;
	if ((void *)(ip + 1) > end)
		return PARSED_SHORT;
	packet->ip = ip;
	packet->length = skb->len - IP_OFFSET;
	packet->tcp_flags = 0;
	parsed = ip_read(skb, ip, end, reading, &read);
	packet->identification = read.identification;
	if (parsed != PARSED)
		return parsed;

	packet->protocol = read.protocol;
	packet->is_first = read.is_first;
	packet->transport = (void *)ip + read.length;
	packet->transport_offset = IP_OFFSET + read.length;
	if (read.protocol == IPPROTO_TCP) {
		if ((void *)(packet->tcp + 1) > end)
			return PARSED_SHORT;
		transport_length = packet->tcp->doff * 4;
		least = sizeof(struct tcphdr);
		packet->tcp_flags = ((__u8 *)packet->tcp)[13];
		packet->sequence = packet->tcp->seq;
		packet->acknowledged = packet->tcp->ack_seq;
		packet->data = ip_total_length(ip) - read.length - transport_length;
	} else if (read.protocol == IPPROTO_UDP) {
		if ((void *)(packet->udp + 1) > end)
			return PARSED_SHORT;
		/* A part is enough: RFC 9868 has options behind it. Of a datagram in fragments it is the whole's. */
		least = sizeof(struct udphdr);
		transport_length = read.is_first ? least : bpf_ntohs(packet->udp->len);
	} else if (read.protocol == IPPROTO_SCTP) {
		if ((void *)(packet->sctp + 1) > end)
			return PARSED_SHORT;
		transport_length = least = sizeof(struct sctp_header);
		packet->tcp_flags = sctp_opens(packet->sctp, end) ? TCP_SYN : 0;
	} else if (read.protocol == IPPROTO_FAMILY_ICMP) {
		return packet->transport + sizeof(icmp_header) > end ? PARSED_SHORT : PARSED_ICMP;
	} else {
		return PARSED_PROTOCOL;
	}
	if (packet_length_lies(skb, packet, transport_length, least))
		return PARSED_MALFORMED;
	return read.is_first ? PARSED_FIRST : PARSED;
}

/* As packet_parse, wherever in the frame the headers are */
static inline enum parsed pull_and_parse(struct __sk_buff *skb, struct packet *packet)
{
	enum parsed parsed = packet_parse(skb, packet, ALL_HEADERS);

	/* Of an ICMP error what it quotes must be in reach, too */
	if (parsed != PARSED_SHORT && parsed != PARSED_ICMP)
		return parsed;
	/* Length 0: all of it. A frame whose headers are not in the linear part is rare, and short enough. */
	if (bpf_skb_pull_data(skb, skb->len < PULL_BYTES ? skb->len : PULL_BYTES))
		return PARSED_MALFORMED;
	parsed = packet_parse(skb, packet, ALL_HEADERS);
	return parsed == PARSED_SHORT ? PARSED_MALFORMED : parsed;
}

/* An answer to a connection that was opened is no call, though it comes to a node port's number (a client's port may be) */
static inline bool answers_opening(const struct packet *packet)
{
	return (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
}

/* By hand: LLVM 14 makes a call of a 6-byte memcmp, which BPF has not. Both are at even addresses. */
static inline bool mac_equal(const void *one, const void *other)
{
	const __u16 *a = one, *b = other;

	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
}

/* TCP, UDP and SCTP begin alike: source port, destination port */
static inline struct tuple packet_tuple(const struct packet *packet)
{
	struct tuple tuple = {
		.source = ip_source(packet->ip),
		.destination = ip_destination(packet->ip),
		.source_port = packet->udp->source,
		.destination_port = packet->udp->dest,
		.protocol = packet->protocol,
	};

	return tuple;
}

/* N27: nobody can answer to port 0, and who is called there is called nowhere */
static inline bool has_both_ports(const struct tuple *tuple)
{
	return tuple->source_port && tuple->destination_port;
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

static inline bool address_equal(const struct address *one, const struct address *other)
{
	u32 differ = 0;

#pragma unroll
	for (int i = 0; i < WORDS; i++)
		differ |= one->words[i] ^ other->words[i];
	return !differ;
}

/* Not 0 where addresses or ports differ. In one piece: each branch is another way for the verifier. */
static inline __u32 tuple_difference(const struct tuple *one, const struct tuple *other)
{
	__u32 differs = one->source_port ^ other->source_port;

	differs |= one->destination_port ^ other->destination_port;
#pragma unroll
	for (int i = 0; i < WORDS; i++) {
		differs |= one->source.words[i] ^ other->source.words[i];
		differs |= one->destination.words[i] ^ other->destination.words[i];
	}
	return differs;
}

/* Not 0 where one is not the other's answer; as tuple_difference */
static inline __u32 tuple_turned_difference(const struct tuple *one, const struct tuple *other)
{
	__u32 differs = one->source_port ^ other->destination_port;

	differs |= one->destination_port ^ other->source_port;
#pragma unroll
	for (int i = 0; i < WORDS; i++) {
		differs |= one->source.words[i] ^ other->destination.words[i];
		differs |= one->destination.words[i] ^ other->source.words[i];
	}
	return differs;
}

/* Whether one is what answers the other */
static inline bool tuple_answers(const struct tuple *one, const struct tuple *other)
{
	return tuple_turned_difference(one, other) == 0;
}

static inline bool tuple_equal(const struct tuple *one, const struct tuple *other)
{
	return tuple_difference(one, other) == 0;
}

/*
 * A number in 32 bits that is the same for the same tuple and salt, and spreads tuples that differ little (a client's
 * ports one after the other) evenly: the finalizer of splitmix64 over both halves.
 */
static inline __u32 tuple_hash(const struct tuple *tuple, __u32 salt)
{
	__u64 mixed = 0;

#pragma unroll
	for (int i = 0; i < WORDS; i++) {
		mixed ^= (__u64)tuple->source.words[i] << 32 | tuple->destination.words[i];
		mixed *= 0x9e3779b97f4a7c15;
		mixed ^= mixed >> 32;
	}
	mixed += (__u64)tuple->source_port << 48 | (__u64)tuple->destination_port << 32 | tuple->protocol << 24 | salt;
	mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
	mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
	return mixed >> 32;
}

#endif
