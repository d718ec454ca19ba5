/* SPDX-License-Identifier: MIT */
/*
 * synic_bench.c - timed loops over the SynIC: a signal in either direction, a message into a free
 * and into a busy slot, as the data plane does them.
 *
 * Owns nothing: the caller's machine has a CPU 0 whose SynIC registers say what is measured. Each
 * loop undoes what it did (a flag is cleared, a slot freed), because a second signal of a flag that
 * is set would be another path; what that costs is in the figure and said there.
 *
 * Access rules: nobody else signals or runs CPU 0 meanwhile.
 */
#define _GNU_SOURCE
#include "internals.h"

#include <time.h>

#define CPU 0
#define FLAG 77

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static bool set_flag(uint64_t *word)
{
	return !(__atomic_fetch_or(word, 1ull << (FLAG % 64), __ATOMIC_SEQ_CST) >> (FLAG % 64) & 1);
}

static bool clear_flag(uint64_t *word)
{
	return __atomic_fetch_and(word, ~(1ull << (FLAG % 64)), __ATOMIC_SEQ_CST) >> (FLAG % 64) &
	       1;
}

static bool deposit(struct vi_machine *m, uint32_t sint, const uint8_t *payload, int expected)
{
	int result = vi_synic_deposit(m, CPU, sint, VI_MSG_VMBUS, 0, payload,
				      VI_SYNIC_BENCH_PAYLOAD, 0);

	return result == expected;
}

/* What a guest does at least: look at the type, free the slot, write EOM if more is pending. */
static bool take_message(struct vi_machine *m, uint32_t sint)
{
	struct vi_message *slot = vi_synic_slot(m, CPU, sint);
	bool full = vi_load(&slot->type) == VI_MSG_VMBUS;

	return full && vi_synic_eom(m, CPU, sint, VI_MSG_VMBUS) == 0;
}

/* Return: how many of @count went as they should. Every branch is a loop of its own. */
static uint32_t loop(struct vi_machine *m, const struct vi_synic_work *work, uint64_t *word,
		     const uint8_t *payload)
{
	const uint32_t sint = work->sint;
	const uint32_t route = vi_load(&vi_cpu_of(m, CPU)->route[sint]);
	const int interrupts = route & VI_ROUTE_INTERRUPT ? 1 : 0;
	uint32_t i, good = 0;

	switch (work->contender) {
	case VI_SYNIC_BENCH_FLOOR:
		for (i = 0; i < work->count; i++)
			good += set_flag(word) & clear_flag(word);
		break;
	case VI_SYNIC_BENCH_CONNECTION:
		for (i = 0; i < work->count; i++)
			good += vi_signal_event(m, work->connection_id, 0) == VI_HV_SUCCESS;
		break;
	case VI_SYNIC_BENCH_FLAG:
		for (i = 0; i < work->count; i++)
			good += (vi_synic_signal(m, CPU, sint, FLAG) == 1) & clear_flag(word);
		break;
	case VI_SYNIC_BENCH_SET:
		good = vi_synic_signal(m, CPU, sint, FLAG) == 1 ? 0 : UINT32_MAX / 2;
		for (i = 0; i < work->count; i++)
			good += vi_synic_signal(m, CPU, sint, FLAG) == 0;
		break;
	case VI_SYNIC_BENCH_TAKE:
		for (i = 0; i < work->count; i++)
			good += (vi_synic_signal(m, CPU, sint, FLAG) == 1) &
				(vi_vcpu_run(m, CPU) == 1);
		break;
	case VI_SYNIC_BENCH_MESSAGE:
		for (i = 0; i < work->count; i++)
			good += deposit(m, sint, payload, interrupts) && take_message(m, sint);
		break;
	default: /* the first finds the slot free, each later one busy and then free */
		good = deposit(m, sint, payload, interrupts) ? 0 : UINT32_MAX / 2;
		for (i = 0; i < work->count; i++)
			good += deposit(m, sint, payload, -EAGAIN) && take_message(m, sint) &&
				deposit(m, sint, payload, interrupts);
		break;
	}
	return good;
}

static bool is_possible(const struct vi_machine *m, const struct vi_synic_work *work)
{
	return m->nr_cpus > CPU && work->sint < VI_SINTS && work->contender < VI_SYNIC_CONTENDERS &&
	       (work->contender != VI_SYNIC_BENCH_TAKE || work->sint == VI_SINT_VMBUS);
}

/**
 * vi_synic_bench_run - do one thing many times
 * @m: a machine with SINT @work->sint set up on CPU 0, its flag 77 clear and its slot free
 * @work: what, and how often
 * @ns: time taken
 *
 * Flag and slot are clear and free afterwards, too. The vector stays requested.
 *
 * Return: 0; -EINVAL for what does not exist, TAKE of a SINT other than VMBus's; -EBADMSG if a
 * signal or message did not go as it should.
 */
int vi_synic_bench_run(struct vi_machine *m, const struct vi_synic_work *work, uint64_t *ns)
{
	uint8_t payload[VI_SYNIC_BENCH_PAYLOAD];
	struct vi_message *slot;
	uint64_t begin, *word;
	uint32_t good;

	*ns = 0;
	if (!is_possible(m, work))
		return -EINVAL;
	memset(payload, 0xa5, sizeof(payload));
	word = vi_synic_flags(m, CPU, work->sint) + FLAG / 64;
	slot = vi_synic_slot(m, CPU, work->sint);
	if (vi_load(word) >> (FLAG % 64) & 1 || vi_load(&slot->type) != VI_MSG_NONE)
		return -EBADMSG;
	begin = now_ns();
	good = loop(m, work, word, payload);
	*ns = now_ns() - begin;
	clear_flag(word);
	vi_store(&slot->type, VI_MSG_NONE);
	return good == work->count ? 0 : -EBADMSG;
}
