/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * IPv6's own headers and ICMPv6's, under the names that both families have. Pure: no map, no helper.
 */
#ifndef PYDATAPATH_IPV6_H
#define PYDATAPATH_IPV6_H

#include <linux/icmpv6.h>
#include <linux/ipv6.h>

typedef struct ipv6hdr ip_header;
typedef struct icmp6hdr icmp_header;

#define EXTENSION_HEADERS 8 /* N75: more of them, or longer ones, are not followed */
#define EXTENSION_BYTES 256

/* Where a layer 4 checksum can be at most: 14 + 40 + EXTENSION_BYTES + 16; a mask, for the verifier */
#define CHECKSUM_OFFSET_MASK 0x1ff
#define PULL_BYTES 384 /* all headers, and of an ICMP error what it quotes */
#define AF_FAMILY 10 /* AF_INET6, from <sys/socket.h>, which the header shim keeps out */
#define ETH_P_FAMILY ETH_P_IPV6
#define IPPROTO_FAMILY_ICMP IPPROTO_ICMPV6
#define ICMP_TYPE_ECHO ICMPV6_ECHO_REQUEST
#define ICMP_TYPE_ECHO_REPLY ICMPV6_ECHO_REPLY
#define CODE_PORT_UNREACHABLE ICMPV6_PORT_UNREACH
#define CODE_PROHIBITED ICMPV6_ADM_PROHIBITED

/* RFC 8200 4.5 */
#define IP_FRAGMENT_OFFSET 0xfff8
#define IP_MORE_FRAGMENTS 0x0001

/* What IP's own headers say */
struct ip_reading {
	__u32 length; /* bytes before the transport header */
	__be32 identification;
	__u8 protocol;
	bool is_first; /* fragment of several */
};

/* Extension headers begin alike (RFC 8200 4); this is the fragment header */
struct extension_header {
	__u8 next;
	__u8 length; /* in 8 bytes, without the first 8; of a fragment header 0 */
	__be16 offset;
	__be32 identification;
};

/* Word by word: a struct's initializer would lie in a section that bcc (0.26) does not load */
static inline struct address address_of(__be32 first, __be32 second, __be32 third, __be32 fourth)
{
	struct address address;

	address.words[0] = first;
	address.words[1] = second;
	address.words[2] = third;
	address.words[3] = fourth;
	return address;
}

static inline struct address address_at(const __be32 *words)
{
	return address_of(words[0], words[1], words[2], words[3]);
}

static inline struct address ip_source(const ip_header *ip)
{
	return address_at(ip->saddr.s6_addr32);
}

static inline struct address ip_destination(const ip_header *ip)
{
	return address_at(ip->daddr.s6_addr32);
}

static inline struct address backend_address(const struct backend *backend)
{
	return address_at(backend->address);
}

static inline __u32 ip_total_length(const ip_header *ip)
{
	__u32 payload = bpf_ntohs(ip->payload_len);

	return payload ? sizeof(*ip) + payload : 0; /* a jumbogram's is 0 (RFC 2675) */
}

static inline __u8 ip_hops(const ip_header *ip)
{
	return ip->hop_limit;
}

static inline bool is_extension(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_FRAGMENT ||
	       protocol == IPPROTO_DSTOPTS;
}

/*
 * Through the context and back: what the verifier knew of the numbers is forgotten, so that it looks at what follows once,
 * and not for each way through the headers; without it `walk` is too large for it.
 */
static inline void ip_forget(struct __sk_buff *skb, struct ip_reading *read)
{
	volatile __u32 *length = &skb->cb[CB_LENGTH], *protocol = &skb->cb[CB_PROTOCOL];
	volatile __u32 *identification = &skb->cb[CB_IDENTIFICATION];

	*length = read->length;
	*protocol = read->protocol | read->is_first << 8;
	*identification = read->identification;
	read->length = *length & 0x1ff;
	read->protocol = *protocol & 0xff;
	read->is_first = *protocol >> 8 & 1;
	read->identification = *identification;
}

/* One extension header further. PARSED: there may be more. */
static inline enum parsed ip_read_extension(const ip_header *ip, const void *end, struct ip_reading *read)
{
	const struct extension_header *extension = (const void *)ip + read->length;

	if ((const void *)(extension + 1) > end)
		return PARSED_SHORT;
	if (read->protocol == IPPROTO_FRAGMENT) {
		read->identification = extension->identification;
		if (extension->offset & bpf_htons(IP_FRAGMENT_OFFSET))
			return PARSED_FRAGMENT;
		/* Neither an offset nor more to come: an atomic fragment is a whole packet (RFC 6946, N68) */
		read->is_first = extension->offset & bpf_htons(IP_MORE_FRAGMENTS);
		read->length += sizeof(*extension);
	} else {
		read->length += (extension->length + 1) * 8;
	}
	read->protocol = extension->next;
	return read->length > sizeof(*ip) + EXTENSION_BYTES ? PARSED_UNREADABLE : PARSED;
}

static inline enum parsed ip_read(struct __sk_buff *skb, const ip_header *ip, const void *end, enum reading reading,
				  struct ip_reading *read)
{
	enum parsed parsed;

	if (ip->version != 6)
		return PARSED_MALFORMED;
	read->length = sizeof(*ip);
	read->protocol = ip->nexthdr;
	if (reading == PLAIN_HEADERS)
		return is_extension(read->protocol) ? PARSED_SHORT : PARSED;
#pragma unroll
	for (int i = 0; i < EXTENSION_HEADERS; i++) {
		if (is_extension(read->protocol)) {
			parsed = ip_read_extension(ip, end, read);
			if (parsed != PARSED)
				return parsed;
		}
		ip_forget(skb, read);
	}
	return is_extension(read->protocol) ? PARSED_UNREADABLE : PARSED;
}

static inline __u8 fragment_protocol(const ip_header *ip)
{
	return 0;
}

/* RFC 4443 2.1: types below 128. Those that say something of the packet: unreachable, too big, time exceeded, parameter
 * problem. */
static inline bool icmp_is_error(__u8 type)
{
	return type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB;
}

/*
 * The length of the headers of a quoted packet, and its protocol. 0: it has no ports to be found by, as a later fragment has
 * not. Of extension headers only that of fragments is looked behind: IPv6's senders fragment, so what is too big is one.
 */
static inline __u32 ip_quoted(const ip_header *ip, const void *end, __u8 *protocol)
{
	const struct extension_header *fragment = (const void *)(ip + 1);

	*protocol = ip->nexthdr;
	if (ip->version != 6)
		return 0;
	if (ip->nexthdr != IPPROTO_FRAGMENT)
		return sizeof(*ip);
	if ((const void *)(fragment + 1) > end || (fragment->offset & bpf_htons(IP_FRAGMENT_OFFSET)))
		return 0;
	*protocol = fragment->next;
	return sizeof(*ip) + sizeof(*fragment);
}

#endif
