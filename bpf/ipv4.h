/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * IPv4's own header and ICMP's, under the names that both families have. Pure: no map, no helper.
 */
#ifndef PYDATAPATH_IPV4_H
#define PYDATAPATH_IPV4_H

#include <linux/icmp.h>
#include <linux/ip.h>

typedef struct iphdr ip_header;
typedef struct icmphdr icmp_header;

/* Where a layer 4 checksum can be at most: 14 + 60 + 16; a mask, for the verifier */
#define CHECKSUM_OFFSET_MASK 0x7f
#define PULL_BYTES 128 /* all headers, and of an ICMP error what it quotes */
#define AF_FAMILY 2 /* AF_INET, from <sys/socket.h>, which the header shim keeps out */
#define ETH_P_FAMILY ETH_P_IP
#define IPPROTO_FAMILY_ICMP IPPROTO_ICMP
#define ICMP_TYPE_ECHO ICMP_ECHO
#define ICMP_TYPE_ECHO_REPLY ICMP_ECHOREPLY
#define CODE_PORT_UNREACHABLE ICMP_PORT_UNREACH
#define CODE_PROHIBITED ICMP_PKT_FILTERED

#define IP_FRAGMENT_OFFSET 0x1fff /* RFC 791 3.1 */
#define IP_MORE_FRAGMENTS 0x2000

/* What IP's own header says */
struct ip_reading {
	__u32 length; /* bytes before the transport header */
	__be32 identification;
	__u8 protocol;
	bool is_first; /* fragment of several */
};

static inline struct address address_of(__be32 word)
{
	struct address address = {.words = {word}};

	return address;
}

static inline struct address ip_source(const ip_header *ip)
{
	return address_of(ip->saddr);
}

static inline struct address ip_destination(const ip_header *ip)
{
	return address_of(ip->daddr);
}

static inline struct address backend_address(const struct backend *backend)
{
	return address_of(backend->address[3]);
}

static inline __u32 ip_total_length(const ip_header *ip)
{
	return bpf_ntohs(ip->tot_len);
}

static inline __u8 ip_hops(const ip_header *ip)
{
	return ip->ttl;
}

static inline enum parsed ip_read(struct __sk_buff *skb, const ip_header *ip, const void *end, enum reading reading,
				  struct ip_reading *read)
{
	read->length = ip->ihl * 4;
	read->protocol = ip->protocol;
	if (ip->version != 4 || read->length < sizeof(*ip))
		return PARSED_MALFORMED;
	read->identification = ip->id;
	if (ip->frag_off & bpf_htons(IP_FRAGMENT_OFFSET))
		return PARSED_FRAGMENT;
	read->is_first = ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS);
	return PARSED;
}

/* What names a datagram's fragments beside addresses and identification */
static inline __u8 fragment_protocol(const ip_header *ip)
{
	return ip->protocol;
}

/* Errors are of types 3 (unreachable), 11 (time exceeded) and 12 (parameter problem). A redirect is not forwarded (N60). */
static inline bool icmp_is_error(__u8 type)
{
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
}

/*
 * The length of the header of a quoted packet, and its protocol. 0: it has no ports to be found by, as a later fragment has
 * not.
 */
static inline __u32 ip_quoted(const ip_header *ip, const void *end, __u8 *protocol)
{
	__u32 length = ip->ihl * 4;

	*protocol = ip->protocol;
	return ip->version != 4 || length < sizeof(*ip) || (ip->frag_off & bpf_htons(IP_FRAGMENT_OFFSET)) ? 0 : length;
}

#endif
