/* SPDX-License-Identifier: MIT */
/*
 * lapic.c - the part of each CPU's local APIC that any thread may ask: the interrupt request
 * register, and the notice that somebody should look (Intel SDM volume 3, chapter 11; TLFS,
 * virtual interrupts).
 *
 * A vector that waits is one bit. The callback vector of VMBus is the exception: its bit is
 * cpu->pending, which the data plane takes by itself; all others wait for the CPU's owner, who
 * knows what is in service and at what priority the CPU runs (hyperv/apic.py).
 *
 * Why no notice is lost. Who has something to tell does it (the fact: an IRR bit, a count), then
 * sets the CPU's bit of that kind, then the machine's word "any". The owner goes the other way
 * round: it clears any, takes the bits, looks at the facts.
 * - Whichever call takes a bit returns kind and CPU together, and the fact was there before the
 *   bit. So a call that was under way because of something else does no harm by taking it.
 * - A bit that no call has taken yet has any set, or its setter is about to set it. For a setter
 *   that finds any set already, the clearing of any is still to come, and the bits are taken after
 *   that. All of these are sequentially consistent.
 */
#include "internals.h"

_Static_assert(VI_IRR_WORDS * 64 == VI_VECTORS, "a bit per vector");
_Static_assert(VI_CPU_WORDS * 64 == VI_CPUS_MAX, "a bit per CPU");

/* Ask the owner to look at @cpu: one bit of enum vi_notice. [any] */
void vi_notice(struct vi_cpu *cpu, uint32_t what)
{
	struct vi_notices *n = &cpu->m->notices;

	__atomic_fetch_or(&n->cpus[__builtin_ctz(what)][cpu->id / 64], 1ull << (cpu->id % 64),
			  __ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&n->any, __ATOMIC_SEQ_CST))
		__atomic_store_n(&n->any, 1, __ATOMIC_SEQ_CST);
}

uint32_t vi_take_notices(struct vi_machine *m, uint64_t *cpus)
{
	struct vi_notices *n = &m->notices;
	uint32_t what = 0;

	if (!vi_load_relaxed(&n->any))
		return 0;
	(void)__atomic_exchange_n(&n->any, 0, __ATOMIC_SEQ_CST);
	memset(cpus, 0, VI_CPU_WORDS * sizeof(*cpus));
	for (uint32_t kind = 0; kind < VI_NOTICE_KINDS; kind++) {
		for (uint32_t i = 0; i <= (m->nr_cpus - 1) / 64; i++) {
			uint64_t *word = &n->cpus[kind][i], taken;

			if (!__atomic_load_n(word, __ATOMIC_SEQ_CST))
				continue;
			taken = __atomic_exchange_n(word, 0, __ATOMIC_SEQ_CST);
			cpus[i] |= taken;
			what |= 1u << kind;
		}
	}
	return what;
}

/* Set the IRR bit of a vector other than the callback vector. [any] */
void vi_lapic_post(struct vi_cpu *cpu, uint32_t vector)
{
	__atomic_fetch_or(&cpu->irr[vector / 64], 1ull << (vector % 64), __ATOMIC_SEQ_CST);
	vi_notice(cpu, VI_NOTICE_VECTOR);
}

/* Announce the EOIs of the callback vector from now on. [any] */
void vi_lapic_watch(struct vi_cpu *cpu)
{
	if (!(__atomic_load_n(&cpu->vector_mode, __ATOMIC_SEQ_CST) & VI_VECTOR_WATCHED))
		__atomic_fetch_or(&cpu->vector_mode, VI_VECTOR_WATCHED, __ATOMIC_SEQ_CST);
}

/*
 * The service routine of the callback vector has written EOI. Nobody is told where nobody waits:
 * this is every interrupt of a guest without auto-EOI. Context: the CPU.
 */
void vi_lapic_callback_eoi(struct vi_cpu *cpu)
{
	if (likely(!(__atomic_load_n(&cpu->vector_mode, __ATOMIC_SEQ_CST) & VI_VECTOR_WATCHED)))
		return;
	vi_count(&cpu->eoi_count, 1);
	vi_notice(cpu, VI_NOTICE_EOI);
}

static int check(const struct vi_machine *m, uint32_t cpu, uint32_t vector)
{
	return cpu < m->nr_cpus && vector < VI_VECTORS ? 0 : -EINVAL;
}

int vi_lapic_request(struct vi_machine *m, uint32_t cpu, uint32_t vector)
{
	struct vi_cpu *target;

	if (check(m, cpu, vector) < 0)
		return -EINVAL;
	target = vi_cpu_of(m, cpu);
	if (vi_load(&target->apic_off) || vector < VI_VECTOR_MIN)
		return 0;
	if (vector == m->callback_vector)
		__atomic_store_n(&target->pending, 1, __ATOMIC_SEQ_CST);
	else
		vi_lapic_post(target, vector);
	return 1;
}

int vi_lapic_irr(struct vi_machine *m, uint32_t cpu, uint64_t *words)
{
	const struct vi_cpu *target;

	if (check(m, cpu, 0) < 0)
		return -EINVAL;
	target = vi_cpu_of(m, cpu);
	for (uint32_t i = 0; i < VI_IRR_WORDS; i++)
		words[i] = vi_load(&target->irr[i]);
	if (vi_load(&target->pending))
		words[m->callback_vector / 64] |= 1ull << (m->callback_vector % 64);
	return 0;
}

int vi_lapic_clear(struct vi_machine *m, uint32_t cpu, uint32_t vector)
{
	struct vi_cpu *target;
	uint64_t bit = 1ull << (vector % 64);

	if (check(m, cpu, vector) < 0)
		return -EINVAL;
	target = vi_cpu_of(m, cpu);
	if (vector == m->callback_vector)
		return __atomic_exchange_n(&target->pending, 0, __ATOMIC_SEQ_CST) != 0;
	return (__atomic_fetch_and(&target->irr[vector / 64], ~bit, __ATOMIC_SEQ_CST) & bit) != 0;
}

int vi_lapic_enable(struct vi_machine *m, uint32_t cpu, uint32_t on)
{
	if (check(m, cpu, 0) < 0)
		return -EINVAL;
	vi_store(&vi_cpu_of(m, cpu)->apic_off, !on);
	vi_synic_refresh(m, vi_cpu_of(m, cpu));
	return 0;
}

int vi_lapic_hold(struct vi_machine *m, uint32_t cpu, uint32_t held)
{
	uint32_t *mode;

	if (check(m, cpu, 0) < 0)
		return -EINVAL;
	mode = &vi_cpu_of(m, cpu)->vector_mode;
	if (held)
		__atomic_fetch_or(mode, VI_VECTOR_HELD, __ATOMIC_SEQ_CST);
	else
		__atomic_fetch_and(mode, ~(uint32_t)VI_VECTOR_HELD, __ATOMIC_SEQ_CST);
	return 0;
}

int vi_lapic_watch_eoi(struct vi_machine *m, uint32_t cpu, uint32_t on)
{
	if (check(m, cpu, 0) < 0)
		return -EINVAL;
	if (on)
		vi_lapic_watch(vi_cpu_of(m, cpu));
	else
		__atomic_fetch_and(&vi_cpu_of(m, cpu)->vector_mode, ~(uint32_t)VI_VECTOR_WATCHED,
				   __ATOMIC_SEQ_CST);
	return 0;
}

uint64_t vi_lapic_eoi_count(struct vi_machine *m, uint32_t cpu)
{
	return cpu < m->nr_cpus ? vi_load_relaxed(&vi_cpu_of(m, cpu)->eoi_count) : 0;
}
