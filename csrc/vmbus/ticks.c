/* SPDX-License-Identifier: MIT */
/*
 * ticks.c - the guest's clock ticks in bulk: timer 0 of a VP set, expired, delivered and taken,
 * over and over (drivers/clocksource/hyperv_timer.c, v6.10; TLFS: synthetic timers).
 *
 * Between two events of a scenario nobody looks at a timer, so its ticks need no clock: each has
 * its own due time, and goes the whole way that its mode has. A message really lies in the slot, is
 * taken by the VMBus service routine, and freed. Timers that somebody programs by their registers
 * are vmbusirq/hyperv/stimer.py's.
 */
#include "internals.h"

struct timer_payload {
	uint32_t index;
	uint32_t reserved;
	uint64_t expiration;
	uint64_t delivery;
};
_Static_assert(sizeof(struct timer_payload) == 24, "a timer message has 24 bytes");

/* A vector of its own: no SynIC page, no SINT; the row is the vector's. */
static int take_vector_of_its_own(struct vi_cpu *cpu, uint32_t row)
{
	if (!vi_irq_enter(cpu))
		return -EDEADLK;
	vi_count(&cpu->arch[row], 1);
	if (unlikely(cpu->softirq_pending))
		vi_do_softirq(cpu);
	vi_irq_exit(cpu);
	return 0;
}

static int take_message(struct vi_cpu *cpu, uint64_t due)
{
	struct timer_payload payload = { .expiration = due, .delivery = due };
	struct vi_machine *m = cpu->m;
	int result = vi_synic_post(m, cpu->id, VI_SINT_VMBUS, VI_MSG_TIMER_EXPIRED, &payload,
				   sizeof(payload));

	if (unlikely(result == -EAGAIN)) {
		/* a control message is in the slot: its tasklet frees it */
		int64_t runs = vi_settle_cpu(m, cpu->id);

		if (runs < 0)
			return (int)runs;
		result = vi_synic_post(m, cpu->id, VI_SINT_VMBUS, VI_MSG_TIMER_EXPIRED, &payload,
				       sizeof(payload));
	}
	if (result < 0)
		return result;
	return vi_vcpu_run(m, cpu->id) == 1 ? 0 : -EBUSY;
}

static int take_one(struct vi_cpu *cpu, uint32_t mode, uint64_t due)
{
	if (mode == VI_TICKS_MESSAGE)
		return take_message(cpu, due);
	return take_vector_of_its_own(cpu, mode == VI_TICKS_DIRECT ? VI_ROW_HVS : VI_ROW_LOC);
}

int64_t vi_timer_ticks(struct vi_machine *m, const struct vi_ticks *ticks)
{
	uint64_t span = ticks->end - ticks->start, n = ticks->n, due = ticks->start, part = 0;

	if (ticks->cpu >= m->nr_cpus || ticks->mode > VI_TICKS_MESSAGE)
		return -EINVAL;
	if (ticks->end < ticks->start || n > INT64_MAX || m->arch != VI_ARCH_X86)
		return -EINVAL;
	for (uint64_t k = 0; k < n; k++) {
		int result;

		due += span / n;
		part += span % n;
		if (part >= n) {
			part -= n;
			due++;
		}
		result = take_one(vi_cpu_of(m, ticks->cpu), ticks->mode, due);
		if (result < 0)
			return result;
	}
	return (int64_t)n;
}
