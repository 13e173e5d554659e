/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Changing a packet's addresses, ports and TTL, with right checksums. No map; helpers only for layer 4 checksums.
 *
 * Order matters. A helper that may move the packet ends the validity of every pointer into it, so all direct writes
 * come first and the layer 4 checksum last. That one is the helper's business because a packet from a local socket
 * carries the pseudo-header's sum only (CHECKSUM_PARTIAL), which no program can see: the helper changes such a sum for
 * addresses (BPF_F_PSEUDO_HDR) and leaves it alone for ports, hence two calls.
 *
 * SCTP's checksum is a CRC of the packet behind the IP header: addresses are no part of it, ports are (crc32c.h).
 */
#ifndef PYDATAPATH_REWRITE_H
#define PYDATAPATH_REWRITE_H

#include "crc32c.h"

/* RFC 1624 eqn 3: HC' = ~(~HC + ~m + m'), here the part ~m + m', over words of any size */
static inline __u64 sum_change(__u32 from, __u32 to)
{
	return (__u64)(__u32)~from + to;
}

static inline __u32 sum_fold32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (__u32)((sum & 0xffffffff) + (sum >> 32));
}

static inline __u16 sum_fold16(__u64 sum)
{
	sum = sum_fold32(sum);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)sum;
}

static inline __u64 address_change(const struct address *from, const struct address *to)
{
	__u64 change = 0;

#pragma unroll
	for (int i = 0; i < WORDS; i++)
		change += sum_change(from->words[i], to->words[i]);
	return change;
}

#if FAMILY == 4
static inline __u64 rewrite_addresses(struct iphdr *ip, const struct tuple *from, const struct tuple *to)
{
	__u64 change = address_change(&from->source, &to->source) + address_change(&from->destination, &to->destination);

	ip->saddr = to->source.words[0];
	ip->daddr = to->destination.words[0];
	ip->check = ~sum_fold16((__u16)~ip->check + change);
	return change;
}

/* RFC 1812 5.3.1. The caller has seen that ttl is over 1. */
static inline void rewrite_hops(struct __sk_buff *skb, struct iphdr *ip)
{
	/* TTL is the high byte of its 16-bit word, so one less is 0x0100 less in network byte order */
	ip->check = ~sum_fold16((__u16)~ip->check + (__u16)~bpf_htons(0x0100));
	ip->ttl--;
}
#else
/*
 * IPv6's header has no checksum of its own. Where a NIC has summed up the whole packet (CHECKSUM_COMPLETE), what changes in
 * the header and is not made up for elsewhere must be told to that sum; in other packets this does nothing (N77). bcc's
 * prototype takes 16 bits, and a folded sum is as good.
 */
static inline void sum_tell(struct __sk_buff *skb, __u64 change)
{
	bpf_csum_update(skb, sum_fold16(change));
}

static inline __u64 rewrite_addresses(struct ipv6hdr *ip, const struct tuple *from, const struct tuple *to)
{
#pragma unroll
	for (int i = 0; i < WORDS; i++) {
		ip->saddr.s6_addr32[i] = to->source.words[i];
		ip->daddr.s6_addr32[i] = to->destination.words[i];
	}
	return address_change(&from->source, &to->source) + address_change(&from->destination, &to->destination);
}

static inline void rewrite_hops_to(struct __sk_buff *skb, struct ipv6hdr *ip, __u8 hops)
{
	/* The hop limit is the low byte of its 16-bit word, in network byte order */
	sum_tell(skb, sum_change(bpf_htons(ip->hop_limit), bpf_htons(hops)));
	ip->hop_limit = hops;
}

/* RFC 8200 3. The caller has seen that the hop limit is over 1. */
static inline void rewrite_hops(struct __sk_buff *skb, struct ipv6hdr *ip)
{
	rewrite_hops_to(skb, ip, ip->hop_limit - 1);
}
#endif

/* Of a later fragment: its checksum is in the first one, so nothing makes up for the addresses of an IPv6 header */
static inline void rewrite_fragment(struct __sk_buff *skb, ip_header *ip, const struct tuple *from,
				    const struct tuple *to)
{
	__u64 change = rewrite_addresses(ip, from, to);

#if FAMILY == 6
	sum_tell(skb, change);
#endif
}

/*
 * Whether the addresses' change has turned `before` into `after` as it turns a pseudo-header's sum: added, where a
 * complete checksum has it subtracted. Ports are no part of such a sum. Equal both ways (a change of 0): not told.
 */
static inline bool sum_is_partial(__u16 before, __u16 after, __u32 addresses)
{
	/* 0 and 0xffff are one number in ones' complement */
	return sum_fold16(addresses) % 0xffff != 0 && sum_fold16((__u64)before + addresses) % 0xffff == after % 0xffff;
}

/* The layer 4 checksum as it stands in the packet. packet_parse has seen that it is there; the verifier forgets. */
static inline __u16 checksum_at(const struct __sk_buff *skb, __u32 offset)
{
	__u16 *check = (void *)(long)skb->data + (offset & CHECKSUM_OFFSET_MASK);

	return (void *)(check + 1) <= (void *)(long)skb->data_end ? *check : 0;
}

/* Ends the validity of the packet's pointers. Returns 0, or a negative errno with the checksum unfinished. */
static inline long rewrite_checksum(struct __sk_buff *skb, __u32 offset, __u64 flags, __u64 addresses, __u64 ports)
{
	__u32 change = sum_fold32(addresses);
	__u16 before = checksum_at(skb, offset);

	if (bpf_l4_csum_replace(skb, offset, 0, change, flags | BPF_F_PSEUDO_HDR))
		return -1;
#if FAMILY == 6
	/*
	 * The helper takes the change off a sum of the whole packet: right for IPv4, whose header's checksum makes up for it,
	 * wrong for IPv6 (Linux commit ead7f9b8de65, in v6.16, has a flag for it). So it is put back.
	 */
	sum_tell(skb, change);
#endif
	if (!ports)
		return 0;
	/* A call costs 30 ns, and most packets on a host are from local sockets, for which this one would do nothing */
	if (sum_is_partial(before, checksum_at(skb, offset), change))
		return 0;
	return bpf_l4_csum_replace(skb, offset, 0, sum_fold32(ports), flags);
}

static inline __u32 ports_of(const struct tuple *tuple)
{
	return tuple->source_port | (__u32)tuple->destination_port << 16;
}

/*
 * N82: fills in what the new ports change in an SCTP checksum; before the way is looked for, so that the verifier looks at
 * these loops once. A checksum of 0 is not there yet: the NIC or a later stage of the kernel makes it (CHECKSUM_PARTIAL,
 * which no program can see). False: it cannot be told, since the first of several fragments does not say how long all are.
 */
static inline bool rewrite_prepare_sctp(struct __sk_buff *skb, struct packet *packet, const struct tuple *from,
					const struct tuple *to)
{
	struct sctp_header *sctp = packet->sctp;
	__u32 change = ports_of(from) ^ ports_of(to);

	/* Again for the verifier, which has forgotten by which protocol the bounds were checked */
	if (packet->protocol != IPPROTO_SCTP || change == 0 || (void *)(sctp + 1) > (void *)(long)skb->data_end ||
	    sctp->checksum == 0)
		return true;
	packet->crc_change =
		crc32c_change(change, ip_total_length(packet->ip) - (packet->transport_offset - IP_OFFSET));
	return !packet->is_first;
}

static inline long rewrite_sctp(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to)
{
	struct sctp_header *sctp = packet->sctp;

	if ((void *)(sctp + 1) > (void *)(long)skb->data_end)
		return -1;
	sctp->source = to->source_port;
	sctp->dest = to->destination_port;
	sctp->checksum ^= packet->crc_change;
	return 0;
}

/* Turns the packet's tuple from `from` into `to`. Ends the validity of the packet's pointers. */
static inline long rewrite_tuple(struct __sk_buff *skb, const struct packet *packet, const struct tuple *from,
				 const struct tuple *to)
{
	__u32 offset = packet->transport_offset;
	__u64 addresses, ports = 0, flags = 0;

	addresses = rewrite_addresses(packet->ip, from, to);
	if (packet->protocol == IPPROTO_SCTP)
		return rewrite_sctp(skb, packet, to);
	if (from->source_port != to->source_port || from->destination_port != to->destination_port) {
		ports = sum_change(from->source_port, to->source_port) +
			sum_change(from->destination_port, to->destination_port);
		packet->udp->source = to->source_port;
		packet->udp->dest = to->destination_port;
	}
	if (packet->protocol == IPPROTO_UDP) {
		offset += offsetof(struct udphdr, check);
		flags = BPF_F_MARK_MANGLED_0; /* RFC 768: no checksum stays none, a computed 0 becomes 0xffff */
	} else {
		offset += offsetof(struct tcphdr, check);
	}
	return rewrite_checksum(skb, offset, flags, addresses, ports);
}

#endif
