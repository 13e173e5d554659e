/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Later fragments follow the first, which alone has ports. Map: fragments.
 *
 * The table is bounded, and an LRU of its own: a flood of fragments pushes out fragments only (N65). A later fragment
 * that comes before its first is not known here (N64).
 */
#ifndef PYDATAPATH_FRAGMENT_H
#define PYDATAPATH_FRAGMENT_H

BPF_TABLE_PINNED("lru_hash", struct fragment_key, struct fragment, fragments, MAX_FRAGMENTS, MAP_DIRECTORY "/fragments" FAMILY_NAME);

static inline struct fragment_key fragment_key_of(const struct packet *packet)
{
	struct fragment_key key = {
		.source = ip_source(packet->ip),
		.destination = ip_destination(packet->ip),
		.identification = packet->identification,
		.protocol = fragment_protocol(packet->ip),
	};

	return key;
}

/* N63: what becomes of the first fragment becomes of the others; not only until the last one, which may not come last */
static inline void fragment_note(const struct packet *packet, const struct tuple *to)
{
	struct fragment_key key = fragment_key_of(packet);
	struct fragment fragment = {.first_seen = now(), .source = to->source, .destination = to->destination};

	fragments.update(&key, &fragment);
}

/* The addresses of a later fragment, and what they become. False: its first one was not seen, or long ago. */
static inline bool fragment_find(const struct packet *packet, struct tuple *key, struct tuple *to)
{
	struct fragment_key of = fragment_key_of(packet);
	struct fragment *first = fragments.lookup(&of);

	if (!first || elapsed(first->first_seen) > TIMEOUT_FRAGMENTS * HZ)
		return false;
	*key = (struct tuple){.source = of.source, .destination = of.destination, .protocol = of.protocol};
	*to = (struct tuple){.source = first->source, .destination = first->destination, .protocol = of.protocol};
	return true;
}

#endif
