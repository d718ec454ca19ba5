/* SPDX-License-Identifier: MIT */
/*
 * connection.c - how the guest signals the host: connection ids, the event ports behind them, and
 * which ports were signalled (TLFS: ports and connections; synic.md 7).
 *
 * The owner of the machine connects and disconnects while any thread signals. The table is open
 * addressed, one 64-bit word per connection, so that an entry is there as a whole or not at all. An
 * entry never moves. One that goes leaves a grave behind, over which a search walks on to what lies
 * further; the grave becomes free again once nothing lies behind it.
 *
 * A signal must not land in a port that was closed after its connection was looked up: the next
 * port with that index would get it. So 32 ports share a word with a count of those closed among
 * them. A signaller reads the word, then the entry, and sets the bit only if the word is still what
 * it was. The owner redirects the entries first, and then counts and clears the bit in one step:
 * either the bit was set before and is cleared, or the word has changed and the signaller looks the
 * entry up again.
 */
#include "internals.h"

#define TABLE_BITS 13
#define TABLE_SIZE (1u << TABLE_BITS)

/* An entry: the id in the low half, the port above it. Ids have 24 bits and 0 is none. */
#define ENTRY_FREE 0ull
#define ENTRY_GRAVE UINT64_MAX

_Static_assert(VI_CONNECTIONS_MAX < TABLE_SIZE, "a search finds a free entry");
_Static_assert(VI_EVENT_PORT_WORDS * 64 == VI_EVENT_PORTS, "a bit per port");

/* A word of ports: a bit for each that was signalled, and how many were closed. */
#define GROUP_PORTS 32
#define GROUP_SIGNALLED 0xffffffffull
#define GROUP_CLOSED (1ull << 32)

struct vi_connections {
	uint64_t entry[TABLE_SIZE];
	uint64_t group[VI_EVENT_PORTS / GROUP_PORTS] VI_ALIGNED;
	uint32_t used;		/* the owner's, as is what follows */
	uint64_t touched[TABLE_SIZE / 64];	/* entries that were ever used */
};

int vi_connections_init(struct vi_machine *m)
{
	struct vi_connections *c = aligned_alloc(VI_LINE, sizeof(*c));

	if (!c)
		return -ENOMEM;
	memset(c, 0, sizeof(*c));
	m->connections = c;
	return 0;
}

void vi_connections_exit(struct vi_machine *m)
{
	free(m->connections);
}

static uint64_t make_entry(uint32_t id, uint32_t port)
{
	return (uint64_t)port << 32 | id;
}

static uint32_t entry_id(uint64_t entry)
{
	return (uint32_t)entry;
}

/* Ids of one bus follow each other: multiply, so that their places do not. */
static uint32_t first_place(uint32_t id)
{
	return (id * 0x9e3779b1u) >> (32 - TABLE_BITS);
}

static uint32_t next_place(uint32_t place)
{
	return (place + 1) % TABLE_SIZE;
}

/*
 * Find @id. Return: its place and *entry, or TABLE_SIZE. The end of the search is certain for the
 * owner only; others may meet graves as fast as they are dug, and give up after one turn.
 */
static uint32_t find(const struct vi_connections *c, uint32_t id, uint64_t *entry)
{
	uint32_t place = first_place(id);

	for (uint32_t n = 0; n < TABLE_SIZE; n++, place = next_place(place)) {
		*entry = vi_load(&c->entry[place]);
		if (entry_id(*entry) == id)
			return place;
		if (*entry == ENTRY_FREE)
			break;
	}
	return TABLE_SIZE;
}

static int check_numbers(uint32_t id, uint32_t port)
{
	return id && id <= VI_CONNECTION_ID_MAX && port <= VI_EVENT_PORT_NONE ? 0 : -EINVAL;
}

int vi_connect_event(struct vi_machine *m, uint32_t connection_id, uint32_t port_index)
{
	struct vi_connections *c = m->connections;
	uint32_t place = first_place(connection_id);
	uint64_t entry;

	if (check_numbers(connection_id, port_index) < 0)
		return -EINVAL;
	if (find(c, connection_id, &entry) != TABLE_SIZE)
		return -EEXIST;
	if (c->used == VI_CONNECTIONS_MAX)
		return -ENOSPC;
	while (c->entry[place] != ENTRY_FREE && c->entry[place] != ENTRY_GRAVE)
		place = next_place(place);
	vi_set_bit(c->touched, place);
	vi_store(&c->entry[place], make_entry(connection_id, port_index));
	c->used++;
	return 0;
}

int vi_redirect_event(struct vi_machine *m, uint32_t connection_id, uint32_t port_index)
{
	struct vi_connections *c = m->connections;
	uint64_t entry;
	uint32_t place;

	if (check_numbers(connection_id, port_index) < 0)
		return -EINVAL;
	place = find(c, connection_id, &entry);
	if (place == TABLE_SIZE)
		return -ENOENT;
	vi_store(&c->entry[place], make_entry(connection_id, port_index));
	return 0;
}

/* Free the graves before @place, if nothing lies behind: no search needs to walk over them. */
static void clear_graves(struct vi_connections *c, uint32_t place)
{
	if (c->entry[next_place(place)] != ENTRY_FREE)
		return;
	while (c->entry[place] == ENTRY_GRAVE) {
		vi_store(&c->entry[place], ENTRY_FREE);
		place = (place + TABLE_SIZE - 1) % TABLE_SIZE;
	}
}

int vi_disconnect_event(struct vi_machine *m, uint32_t connection_id)
{
	struct vi_connections *c = m->connections;
	uint64_t entry;
	uint32_t place;

	if (check_numbers(connection_id, 0) < 0)
		return -ENOENT;
	place = find(c, connection_id, &entry);
	if (place == TABLE_SIZE)
		return -ENOENT;
	vi_store(&c->entry[place], ENTRY_GRAVE);
	c->used--;
	clear_graves(c, place);
	return 0;
}

uint32_t vi_signal_event(struct vi_machine *m, uint32_t connection_id, uint32_t flag)
{
	struct vi_connections *c = m->connections;
	uint64_t entry, *group, seen;
	uint32_t port, place;

	if (check_numbers(connection_id, 0) < 0)
		return VI_HV_INVALID_CONNECTION_ID;
	do {
		place = find(c, connection_id, &entry);
		if (place == TABLE_SIZE)
			return VI_HV_INVALID_CONNECTION_ID;
		port = (uint32_t)(entry >> 32);
		if (port == VI_EVENT_PORT_NONE)
			return VI_HV_INVALID_PORT_ID;
		if (flag)
			return VI_HV_INVALID_PARAMETER;
		group = &c->group[port / GROUP_PORTS];
		seen = __atomic_load_n(group, __ATOMIC_SEQ_CST);
		/* a bit seen set is written, too: who looked too early may be about to take it */
	} while (__atomic_load_n(&c->entry[place], __ATOMIC_SEQ_CST) != entry ||
		 !__atomic_compare_exchange_n(group, &seen, seen | 1ull << (port % GROUP_PORTS),
					      false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
	return VI_HV_SUCCESS;
}

int vi_close_event_port(struct vi_machine *m, uint32_t port_index)
{
	uint64_t *group, seen, bit = 1ull << (port_index % GROUP_PORTS);

	if (port_index >= VI_EVENT_PORTS)
		return -EINVAL;
	group = &m->connections->group[port_index / GROUP_PORTS];
	seen = vi_load(group);
	while (!__atomic_compare_exchange_n(group, &seen, (seen & ~bit) + GROUP_CLOSED, false,
					    __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		;
	return (seen & bit) != 0;
}

static uint64_t take_group(uint64_t *group)
{
	if (!(vi_load_relaxed(group) & GROUP_SIGNALLED))
		return 0;
	return __atomic_fetch_and(group, ~GROUP_SIGNALLED, __ATOMIC_SEQ_CST) & GROUP_SIGNALLED;
}

uint32_t vi_take_events(struct vi_machine *m, uint64_t *words)
{
	struct vi_connections *c = m->connections;
	uint32_t ports = 0;

	for (uint32_t i = 0; i < VI_EVENT_PORT_WORDS; i++) {
		words[i] = take_group(&c->group[2 * i]) | take_group(&c->group[2 * i + 1]) << 32;
		ports += (uint32_t)__builtin_popcountll(words[i]);
	}
	return ports;
}

uint32_t vi_monitor_take(uint32_t *pending, uint32_t mask)
{
	return __atomic_fetch_and(pending, ~mask, __ATOMIC_SEQ_CST) & mask;
}

/* Entries that came after the image was made are free again. */
static void forget_new_entries(struct vi_connections *c, const uint64_t *touched)
{
	for (uint32_t i = 0, place; i < TABLE_SIZE / 64; i++)
		for (uint64_t fresh = c->touched[i] & ~touched[i]; fresh; fresh &= fresh - 1) {
			place = i * 64 + (uint32_t)__builtin_ctzll(fresh);
			c->entry[place] = ENTRY_FREE;
		}
}

/* See image.c. */
void vi_connections_image(struct vi_machine *m, struct vi_image *image)
{
	struct vi_connections *c = m->connections;

	if (image->how == VI_IMAGE_RESTORE)
		forget_new_entries(c, (const uint64_t *)(const void *)image->at);
	vi_image_move(image, c->touched, sizeof(c->touched));
	for (uint32_t place = 0; vi_image_next(c->touched, TABLE_SIZE, &place); place++)
		vi_image_move(image, &c->entry[place], sizeof(c->entry[place]));
	vi_image_move(image, c->group, sizeof(c->group));
	vi_image_move(image, &c->used, sizeof(c->used));
}
