/* SPDX-License-Identifier: MIT */
/*
 * test_connection.c - the table of connections and the signals through it: against a plain list,
 * with collisions and graves, full; and with the owner changing it while another thread signals.
 */
#include "internals.h"

#include <stdio.h>

#define CHECK(cond) do { if (!(cond)) fail(#cond, __LINE__); } while (0)

static void fail(const char *what, int line)
{
	fprintf(stderr, "test_connection.c:%d: %s\n", line, what);
	exit(1);
}

static struct vi_machine *make(void)
{
	const struct vi_config config = { .nr_cpus = 1, .nr_irqs_max = 1 };
	struct vi_machine *m;

	CHECK(vi_machine_create(&config, &m) == 0);
	return m;
}

/* ---- one thread ------------------------------------------------------------------------------ */

static void test_statuses(void)
{
	struct vi_machine *m = make();
	uint64_t words[VI_EVENT_PORT_WORDS];

	CHECK(vi_connect_event(m, 0, 0) == -EINVAL);
	CHECK(vi_connect_event(m, VI_CONNECTION_ID_MAX + 1, 0) == -EINVAL);
	CHECK(vi_connect_event(m, 5, VI_EVENT_PORT_NONE + 1) == -EINVAL);
	CHECK(vi_connect_event(m, VI_CONNECTION_ID_MAX, VI_EVENT_PORTS - 1) == 0);
	CHECK(vi_connect_event(m, VI_CONNECTION_ID_MAX, 0) == -EEXIST);
	CHECK(vi_signal_event(m, 0, 0) == VI_HV_INVALID_CONNECTION_ID);
	CHECK(vi_signal_event(m, 5, 0) == VI_HV_INVALID_CONNECTION_ID);
	CHECK(vi_signal_event(m, UINT32_MAX, 0) == VI_HV_INVALID_CONNECTION_ID);
	CHECK(vi_signal_event(m, VI_CONNECTION_ID_MAX, 1) == VI_HV_INVALID_PARAMETER);
	CHECK(vi_take_events(m, words) == 0);
	CHECK(vi_signal_event(m, VI_CONNECTION_ID_MAX, 0) == VI_HV_SUCCESS);
	CHECK(vi_signal_event(m, VI_CONNECTION_ID_MAX, 0) == VI_HV_SUCCESS);
	CHECK(vi_redirect_event(m, VI_CONNECTION_ID_MAX, VI_EVENT_PORT_NONE) == 0);
	CHECK(vi_signal_event(m, VI_CONNECTION_ID_MAX, 0) == VI_HV_INVALID_PORT_ID);
	CHECK(vi_disconnect_event(m, VI_CONNECTION_ID_MAX) == 0);
	CHECK(vi_disconnect_event(m, VI_CONNECTION_ID_MAX) == -ENOENT);
	CHECK(vi_redirect_event(m, VI_CONNECTION_ID_MAX, 0) == -ENOENT);
	CHECK(vi_disconnect_event(m, 0) == -ENOENT && vi_redirect_event(m, 0, 0) == -EINVAL);
	/* what was signalled before stays, once */
	CHECK(vi_take_events(m, words) == 1 && words[VI_EVENT_PORT_WORDS - 1] == 1ull << 63);
	CHECK(vi_take_events(m, words) == 0 && words[VI_EVENT_PORT_WORDS - 1] == 0);
	vi_machine_destroy(m);
}

#define IDS 20000	/* far more than fit, so that the table is full and empties again */

static void test_against_a_list(uint64_t seed)
{
	static uint8_t connected[IDS];
	struct vi_machine *m = make();
	uint32_t used = 0;

	memset(connected, 0, sizeof(connected));
	for (uint32_t step = 0; step < 60000; step++) {
		uint32_t id = 1 + (uint32_t)(vi_random(&seed) % (IDS - 1));
		/* fill it up, then take away more than is added */
		bool add = step < 20000 || vi_random(&seed) % 3 == 0;
		int result = add ? vi_connect_event(m, id, id % VI_EVENT_PORTS) :
				   vi_disconnect_event(m, id);

		if (add)
			CHECK(result == (connected[id]		      ? -EEXIST :
					 used == VI_CONNECTIONS_MAX ? -ENOSPC :
								      0));
		else
			CHECK(result == (connected[id] ? 0 : -ENOENT));
		if (result == 0) {
			connected[id] = add;
			used += add ? 1u : -1u;
		}
	}
	for (uint32_t id = 1; id < IDS; id++)
		CHECK(vi_signal_event(m, id, 0) ==
		      (connected[id] ? VI_HV_SUCCESS : VI_HV_INVALID_CONNECTION_ID));
	vi_machine_destroy(m);
}

/* ---- the owner and a CPU that signals -------------------------------------------------------- */

enum { STEADY = 64, COMING = 512, ROUNDS = 200000 };

struct rig {
	struct vi_machine *m;
	uint64_t raised[STEADY];	/* by the signaller, before each signal */
	uint32_t done;
};

static uint32_t steady_id(uint32_t port)
{
	return 0x2001 + port;
}

static void *signaller(void *arg)
{
	struct rig *rig = arg;
	uint64_t seed = 1;

	for (uint32_t n = 0; n < ROUNDS; n++) {
		uint32_t port = (uint32_t)(vi_random(&seed) % STEADY), status;
		uint32_t coming = (uint32_t)(vi_random(&seed) % COMING);

		__atomic_fetch_add(&rig->raised[port], 1, __ATOMIC_RELAXED);
		/* never missed, whatever comes and goes beside it */
		CHECK(vi_signal_event(rig->m, steady_id(port), 0) == VI_HV_SUCCESS);
		status = vi_signal_event(rig->m, 0x10000 + coming, 0);
		CHECK(status == VI_HV_SUCCESS || status == VI_HV_INVALID_CONNECTION_ID);
	}
	vi_store(&rig->done, 1);
	return NULL;
}

static void take(struct rig *rig, uint64_t seen[STEADY])
{
	uint64_t words[VI_EVENT_PORT_WORDS];

	(void)vi_take_events(rig->m, words);
	for (uint32_t port = 0; port < STEADY; port++)
		if (words[port / 64] >> (port % 64) & 1)
			seen[port] = vi_load_relaxed(&rig->raised[port]);
	/* what comes and goes has other ports, and no signal strays to a third */
	for (uint32_t i = STEADY / 64 + COMING / 64; i < VI_EVENT_PORT_WORDS; i++)
		CHECK(words[i] == 0);
}

static void test_signals_while_the_owner_changes_the_table(void)
{
	static struct rig rig;
	uint64_t seen[STEADY] = { 0 }, seed = 2;
	bool connected[COMING] = { false };
	pthread_t thread;

	rig.m = make();
	for (uint32_t port = 0; port < STEADY; port++)
		CHECK(vi_connect_event(rig.m, steady_id(port), port) == 0);
	CHECK(pthread_create(&thread, NULL, signaller, &rig) == 0);
	while (!vi_load(&rig.done)) {
		uint32_t n = (uint32_t)(vi_random(&seed) % COMING);

		CHECK((connected[n] ? vi_disconnect_event(rig.m, 0x10000 + n) :
				      vi_connect_event(rig.m, 0x10000 + n, STEADY + n)) == 0);
		connected[n] = !connected[n];
		if (vi_random(&seed) % 8 == 0)
			take(&rig, seen);
	}
	CHECK(pthread_join(thread, NULL) == 0);
	take(&rig, seen);
	for (uint32_t port = 0; port < STEADY; port++)
		CHECK(seen[port] == rig.raised[port]);
	vi_machine_destroy(rig.m);
}

/* ---- a port that is closed while CPUs signal it ---------------------------------------------- */

enum { CLOSING_ID = 5, CLOSING = 1, NEIGHBOUR_ID = 6, NEIGHBOUR = 2, CLOSES = 10000, CPUS = 2 };

static void *signal_closing(void *arg)
{
	struct rig *rig = arg;
	uint32_t n;

	for (n = 0; !vi_load(&rig->done); n++) {
		uint32_t status = vi_signal_event(rig->m, CLOSING_ID, 0);

		CHECK(status == VI_HV_SUCCESS || status == VI_HV_INVALID_PORT_ID ||
		      status == VI_HV_INVALID_CONNECTION_ID);
	}
	return NULL;
}

/* While it is closed nobody finds it signalled, however late a signal comes; others are kept. */
static void check_closed(struct rig *rig)
{
	uint64_t words[VI_EVENT_PORT_WORDS];
	bool neighbour = false;

	CHECK(vi_signal_event(rig->m, NEIGHBOUR_ID, 0) == VI_HV_SUCCESS);
	CHECK(vi_close_event_port(rig->m, CLOSING) >= 0);
	for (uint32_t look = 0; look < 20; look++) {
		(void)vi_take_events(rig->m, words);
		CHECK(!(words[0] >> CLOSING & 1));
		neighbour |= words[0] >> NEIGHBOUR & 1;
		if (look % 8 == 7)
			sched_yield();
	}
	CHECK(neighbour);
}

static void test_a_closed_port_gets_no_signal(void)
{
	struct rig rig = { .m = make() };
	pthread_t threads[CPUS];

	CHECK(vi_close_event_port(rig.m, VI_EVENT_PORTS) == -EINVAL);
	CHECK(vi_connect_event(rig.m, NEIGHBOUR_ID, NEIGHBOUR) == 0);
	for (uint32_t i = 0; i < CPUS; i++)
		CHECK(pthread_create(&threads[i], NULL, signal_closing, &rig) == 0);
	for (uint32_t n = 0; n < CLOSES; n++) {
		CHECK(vi_connect_event(rig.m, CLOSING_ID, CLOSING) == 0);
		if (n % 16 == 0)
			sched_yield();
		if (n % 2)
			CHECK(vi_redirect_event(rig.m, CLOSING_ID, VI_EVENT_PORT_NONE) == 0);
		else
			CHECK(vi_disconnect_event(rig.m, CLOSING_ID) == 0);
		check_closed(&rig);
		if (n % 2)
			CHECK(vi_disconnect_event(rig.m, CLOSING_ID) == 0);
	}
	vi_store(&rig.done, 1);
	for (uint32_t i = 0; i < CPUS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	vi_machine_destroy(rig.m);
}

/* ---- a channel's signal ---------------------------------------------------------------------- */

static void test_setevent(void)
{
	struct vi_machine *m = make();
	struct vi_channel_stats stats;
	struct vi_channel *ch;
	uint64_t words[VI_EVENT_PORT_WORDS], page[256] = { 0 };
	uint32_t pending = 1;

	CHECK(vi_connect_event(m, 0x2046, 3) == 0);
	CHECK(vi_channel_create(m, 70, VI_CALL_ISR, &ch) == 0);
	CHECK(vi_channel_set_signal(ch, VI_CONNECTION_ID_MAX + 1, NULL, NULL, 0) == -EINVAL);
	CHECK(vi_channel_set_signal(ch, 0x2046, NULL, NULL, 32) == -EINVAL);
	vi_channel_setevent(ch);
	CHECK(vi_take_events(m, words) == 0 && vi_channel_take_event(ch) == 1);
	CHECK(vi_channel_set_signal(ch, 0x2046, NULL, NULL, 0) == 0);
	vi_channel_setevent(ch);
	CHECK(vi_take_events(m, words) == 1 && words[0] == 8 && vi_channel_take_event(ch) == 1);
	CHECK(vi_channel_set_signal(ch, 0x2046, page, NULL, 0) == 0);
	vi_channel_setevent(ch);
	CHECK(vi_take_events(m, words) == 1 && page[1] == 1u << 6);
	/* by the monitor page: no hypercall, and not counted */
	page[1] = 0;
	CHECK(vi_channel_set_signal(ch, 0x2046, page, &pending, 31) == 0);
	CHECK(vi_channel_take_event(ch) == 1);
	vi_channel_setevent(ch);
	CHECK(vi_take_events(m, words) == 0 && vi_channel_take_event(ch) == 0);
	CHECK(page[1] == 1u << 6 && pending == 0x80000001u);
	CHECK(vi_monitor_take(&pending, 1u << 31) == 1u << 31 && pending == 1);
	CHECK(vi_monitor_take(&pending, 1u << 31) == 0 && pending == 1);
	vi_channel_get_stats(ch, &stats);
	CHECK(stats.sig_events == 3);
	CHECK(vi_channel_map(ch, 0) == 0);
	CHECK(vi_channel_set_callback(ch, VI_CALLBACK_COUNT, NULL, &stats.calls) == 0);
	CHECK(vi_channel_set_signal(ch, 0x2046, NULL, NULL, 0) == -EBUSY);
	CHECK(vi_channel_set_callback(ch, VI_CALLBACK_NONE, NULL, NULL) == 0);
	CHECK(vi_channel_unmap(ch) == 0);
	vi_channel_destroy(ch);
	vi_machine_destroy(m);
}

int main(void)
{
	test_statuses();
	for (uint64_t seed = 0; seed < 4; seed++)
		test_against_a_list(seed);
	test_signals_while_the_owner_changes_the_table();
	test_a_closed_port_gets_no_signal();
	test_setevent();
	printf("test_connection: passed\n");
	return 0;
}
