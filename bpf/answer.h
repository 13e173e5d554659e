/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Refusing: packets that are made in the kernel and go back to where the refused one came from (C2). Maps: answers;
 * counters.
 *
 * TCP is answered by a RST, so that the caller knows at once even where ICMP is filtered (S41); all else by ICMP port
 * unreachable, from the address that was called. No answer ever answers an error or a RST, and none is larger than its packet and 48
 * bytes: nobody's packets are multiplied. No caller has a limit of its own (S45); all together have a generous one, so that
 * forged sources gain little.
 */
#ifndef PYDATAPATH_ANSWER_H
#define PYDATAPATH_ANSWER_H

#define ANSWER_TTL 64
#define ICMP_QUOTE 8 /* bytes of layer 4 that an error quotes: RFC 792 */

/* As it stands in a packet: the fields of the TCP header that a RST changes, in words */
struct tcp_words {
	__be32 ports;
	__be32 seq;
	__be32 ack;
	__be32 flags; /* data offset, flags, window */
};

/* Per CPU: a tc program is not interrupted by another */
BPF_TABLE_PINNED("percpu_array", u32, struct answered, answers, ONE, MAP_DIRECTORY "/answers");

static inline bool answer_is_allowed(void)
{
	u32 one = 0;
	struct answered *answered = answers.lookup(&one);

	if (!answered)
		return false; /* never: it is an array */
	if (now() - answered->since >= HZ) {
		answered->since = now();
		answered->count = 0;
	}
	answered->count++;
	return answered->count <= ANSWERS_PER_SECOND;
}

/* Back to where it came from: out of the interface that it came in by, or up to the node's own stack. */
static inline int answer_leave(struct __sk_buff *skb, enum hook hook)
{
	skb->tc_index = WALKED;
	return bpf_redirect(skb->ifindex, is_egress(hook) ? BPF_F_INGRESS : 0);
}

static inline void answer_turn_ethernet(struct ethhdr *ethernet)
{
	__u8 to[ETH_ALEN];

	__builtin_memcpy(to, ethernet->h_source, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, ethernet->h_dest, ETH_ALEN);
	__builtin_memcpy(ethernet->h_dest, to, ETH_ALEN);
}

/* The addresses exchanged, with a TTL of our own. */
#if FAMILY == 4
static inline void answer_turn_ip(struct __sk_buff *skb, struct iphdr *ip)
{
	__be32 source = ip->saddr;

	ip->saddr = ip->daddr;
	ip->daddr = source;
	/* TTL is the high byte of its word: network byte order */
	ip->check = ~sum_fold16((__u16)~ip->check + (__u16)~bpf_htons(ip->ttl << 8) + bpf_htons(ANSWER_TTL << 8));
	ip->ttl = ANSWER_TTL;
}
#else
static inline void answer_turn_ip(struct __sk_buff *skb, struct ipv6hdr *ip)
{
	struct address source = ip_source(ip), destination = ip_destination(ip);

#pragma unroll
	for (int i = 0; i < WORDS; i++) {
		ip->saddr.s6_addr32[i] = destination.words[i];
		ip->daddr.s6_addr32[i] = source.words[i];
	}
	rewrite_hops_to(skb, ip, ANSWER_TTL);
}
#endif

/* C3: a service's address answers a ping itself (S39). icmp_is_echo has seen that the header is there. */
static inline int answer_echo(struct __sk_buff *skb, enum hook hook, struct packet *packet)
{
	__u8 *icmp = packet->transport;
	__sum16 *check = packet->transport + 2; /* of both families' ICMP */

	if (!answer_is_allowed())
		return drop(DROP_ANSWER_LIMIT);
	if ((void *)icmp + sizeof(icmp_header) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	answer_turn_ethernet(packet->ethernet);
	answer_turn_ip(skb, packet->ip);
	*check = ~sum_fold16((__u16)~*check + (__u16)~bpf_htons(ICMP_TYPE_ECHO << 8) + bpf_htons(ICMP_TYPE_ECHO_REPLY << 8));
	icmp[0] = ICMP_TYPE_ECHO_REPLY;
	return answer_leave(skb, hook);
}

/*
 * RFC 9293 3.10.7.1: a segment without ACK is refused by sequence 0 and the acknowledgment of all that it holds, one
 * with ACK by the sequence that it acknowledges. The segment itself is turned round: options and data stay, which no
 * receiver of a RST minds, so that a checksum of either kind (complete, or CHECKSUM_PARTIAL) needs the change only.
 * Ends the validity of the packet's pointers.
 */
static inline int answer_reset(struct __sk_buff *skb, enum hook hook, struct packet *packet)
{
	struct tcphdr *tcp = packet->tcp;
	struct tcp_words *words = (void *)tcp, old;
	__u8 flags = packet->tcp_flags;
	__u32 length;
	__u64 change;

	/*
	 * Again for the verifier, which has forgotten by which protocol the bounds were checked. The first of several fragments
	 * would leave as one, and its receiver wait for the others.
	 */
	if ((void *)(tcp + 1) > (void *)(long)skb->data_end || (flags & TCP_RST) || skb->gso_segs > 1 || packet->is_first)
		return TC_ACT_SHOT;
	old = *words;
	length = ip_total_length(packet->ip) - (packet->transport_offset - IP_OFFSET) - tcp->doff * 4;
	length += !!(flags & TCP_SYN) + !!(flags & TCP_FIN);
	answer_turn_ethernet(packet->ethernet);
	answer_turn_ip(skb, packet->ip);
	words->ports = old.ports << 16 | old.ports >> 16;
	words->seq = flags & TCP_ACK ? old.ack : 0;
	words->ack = flags & TCP_ACK ? 0 : bpf_htonl(bpf_ntohl(old.seq) + length);
	words->flags = (old.flags & bpf_htonl(0xf0000000)) |
		       bpf_htonl((flags & TCP_ACK ? TCP_RST : TCP_RST | TCP_ACK) << 16);
	change = sum_change(old.seq, words->seq) + sum_change(old.ack, words->ack) + sum_change(old.flags, words->flags);
	if (bpf_l4_csum_replace(skb, packet->transport_offset + offsetof(struct tcphdr, check), 0, sum_fold32(change), 0))
		return TC_ACT_SHOT;
	return answer_leave(skb, hook);
}

/* An ICMP error: what stands between the Ethernet header and the packet that it is about. */
struct icmp_head {
	ip_header ip;
	icmp_header icmp;
};

#if FAMILY == 4
/*
 * RFC 1122 3.2.2.1: destination unreachable, for the reason `code`. The quoted header's own checksum makes its sum 0, so the
 * ICMP checksum is that of its first word and the quoted 8 bytes.
 */
static inline void answer_head(struct __sk_buff *skb, const struct packet *packet, __u8 code, __u32 quoted,
			       struct icmp_head *head)
{
	const struct udphdr *udp = packet->udp;
	const __u16 *words = (const __u16 *)&head->ip;
	__u64 sum;

	head->ip.version = 4;
	head->ip.ihl = 5;
	head->ip.tos = 0xc0; /* RFC 1812 4.3.2.5: internetwork control */
	head->ip.tot_len = bpf_htons(sizeof(*head) + quoted);
	head->ip.frag_off = bpf_htons(0x4000); /* don't fragment: the identification may stay 0 (RFC 6864) */
	head->ip.ttl = ANSWER_TTL;
	head->ip.protocol = IPPROTO_ICMP;
	head->ip.saddr = packet->ip->daddr;
	head->ip.daddr = packet->ip->saddr;
	head->icmp.type = ICMP_DEST_UNREACH;
	head->icmp.code = code;
	sum = (__u64)udp->source + udp->dest + udp->len + udp->check + bpf_htons(ICMP_DEST_UNREACH << 8 | code);
	head->icmp.checksum = ~sum_fold16(sum);
	sum = 0;
#pragma unroll
	for (int i = 0; i < sizeof(head->ip) / 2; i++)
		sum += words[i];
	head->ip.check = ~sum_fold16(sum);
}
#else
/*
 * RFC 4443 3.1: destination unreachable, for the reason `code`; its checksum covers a pseudo-header and all that is quoted.
 * That is as little as IPv4 quotes, and not all that would fit: nobody's packets are multiplied.
 */
static inline void answer_head(struct __sk_buff *skb, const struct packet *packet, __u8 code, __u32 quoted,
			       struct icmp_head *head)
{
	__u64 sum = bpf_htons(sizeof(head->icmp) + quoted) + bpf_htons(IPPROTO_ICMPV6) +
		    bpf_htons(ICMPV6_DEST_UNREACH << 8 | code);
	__u32 words[2] = {};

	head->ip.version = 6;
	head->ip.payload_len = bpf_htons(sizeof(head->icmp) + quoted);
	head->ip.nexthdr = IPPROTO_ICMPV6;
	head->ip.hop_limit = ANSWER_TTL;
#pragma unroll
	for (int i = 0; i < WORDS; i++) {
		head->ip.saddr.s6_addr32[i] = packet->ip->daddr.s6_addr32[i];
		head->ip.daddr.s6_addr32[i] = packet->ip->saddr.s6_addr32[i];
		sum += (__u64)head->ip.saddr.s6_addr32[i] + head->ip.daddr.s6_addr32[i];
	}
	head->icmp.icmp6_type = ICMPV6_DEST_UNREACH;
	head->icmp.icmp6_code = code;
	/* All headers are of so many times 8 bytes */
	for (int i = 0; i < (sizeof(head->ip) + EXTENSION_BYTES + ICMP_QUOTE) / 8; i++) {
		if (i * 8 >= quoted || bpf_skb_load_bytes(skb, IP_OFFSET + i * 8, words, sizeof(words)))
			break;
		sum += (__u64)words[0] + words[1];
	}
	head->icmp.icmp6_cksum = ~sum_fold16(sum);
}
#endif

/* Ends the validity of the packet's pointers. */
static inline int answer_unreachable(struct __sk_buff *skb, enum hook hook, const struct packet *packet, __u8 code)
{
	__u32 quoted = packet->transport_offset - IP_OFFSET + ICMP_QUOTE;
	struct icmp_head head = {};
	struct ethhdr *ethernet;

	answer_head(skb, packet, code, quoted, &head);
	if (bpf_skb_change_tail(skb, IP_OFFSET + quoted, 0) ||
	    bpf_skb_adjust_room(skb, sizeof(head), BPF_ADJ_ROOM_MAC, 0) ||
	    bpf_skb_store_bytes(skb, IP_OFFSET, &head, sizeof(head), 0))
		return TC_ACT_SHOT;
	ethernet = (void *)(long)skb->data;
	if ((void *)(ethernet + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	answer_turn_ethernet(ethernet);
	return answer_leave(skb, hook);
}

/* Refuses a packet for a reason, which is counted; one that gets no answer has no other (N108) */
static inline int answer_refuse(struct __sk_buff *skb, enum hook hook, struct packet *packet, u32 reason)
{
	if (!answer_is_allowed())
		return drop(DROP_ANSWER_LIMIT);
	count(reason);
	if (packet->protocol == IPPROTO_TCP)
		return answer_reset(skb, hook, packet);
	return answer_unreachable(skb, hook, packet, CODE_PORT_UNREACHABLE);
}

#if MASQUERADE
/*
 * RFC 5508 REQ-8: communication administratively prohibited, to a pod that may have no new flow or finds no port for it (N23,
 * N24), TCP's too: a RST would be the server's word. The drop is counted by its reason, whether or not it is answered.
 */
static inline int answer_prohibited(struct __sk_buff *skb, enum hook hook, u32 reason)
{
	struct packet packet = {};
	enum parsed parsed = packet_parse(skb, &packet, ALL_HEADERS);

	count(reason);
	if ((parsed != PARSED && parsed != PARSED_FIRST && parsed != PARSED_ICMP) ||
	    packet.transport + ICMP_QUOTE > (void *)(long)skb->data_end || !answer_is_allowed())
		return TC_ACT_SHOT;
	return answer_unreachable(skb, hook, &packet, CODE_PROHIBITED);
}
#endif

#endif
