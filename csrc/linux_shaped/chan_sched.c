/* SPDX-License-Identifier: MIT */
/*
 * chan_sched.c - the linux engine's demultiplexer: the steps of vmbus_chan_sched(), v6.10, bit by
 * bit, in its two forms.
 *
 * legacy: relid -> channels[] -> callback. rfc: relid -> irqdomain -> descriptor -> flow handler ->
 * action -> callback (RFC patches 08 and 09); with redirection between descriptor and flow. It is
 * the oracle for the fast engine's counters and the peer of its benchmarks: same steps, same locked
 * instructions, same cache lines as the kernel's; RCU is a compiler barrier in both.
 */
#include "internals.h"

#define rcu_barrier_here() __asm__ volatile("" ::: "memory")

/*
 * The kernel's find_next_bit(): whole words, first one masked. Aligned, so that what is linked
 * before it does not change what an empty word costs.
 */
static __attribute__((noinline, aligned(64))) uint32_t find_next_bit(const uint64_t *words,
								     uint32_t size, uint32_t start)
{
	uint32_t w = start / 64;
	uint64_t word;

	if (start >= size)
		return size;
	word = vi_load_relaxed(&words[w]) & (~0ull << (start % 64));
	while (!word) {
		if (++w >= size / 64)
			return size;
		word = vi_load_relaxed(&words[w]);
	}
	return w * 64 + (uint32_t)__builtin_ctzll(word);
}

/* sync_test_and_clear_bit(): a locked instruction even on one CPU */
static bool test_and_clear_bit(uint64_t *words, uint32_t bit)
{
	uint64_t mask = 1ull << (bit % 64);

	return __atomic_fetch_and(&words[bit / 64], ~mask, __ATOMIC_SEQ_CST) & mask;
}

/* For a tracer: which way a claimed flag goes. */
static uint32_t way_of(const void *found, const struct vi_channel *ch, uint32_t way)
{
	if (!found)
		return VI_WAY_UNMAPPED;
	return ch && vi_load_relaxed(&ch->rescind) ? VI_WAY_RESCINDED : way;
}

#define PART static inline __attribute__((always_inline))

/* Find and claim the next flag from @from on. Return: its relid, VI_SINT_FLAGS: there is none. */
PART uint32_t claim_next(struct vi_cpu *cpu, uint32_t from)
{
	uint64_t *words = cpu->sint_flags;

	for (uint32_t relid = find_next_bit(words, VI_SINT_FLAGS, from); relid < VI_SINT_FLAGS;
	     relid = find_next_bit(words, VI_SINT_FLAGS, relid + 1)) {
		if (!test_and_clear_bit(words, relid))
			continue;
		if (relid)
			return relid;
		vi_count(&cpu->lost.flag_zero, 1);
	}
	return VI_SINT_FLAGS;
}

/* A claimed flag goes nowhere: its relid leads to nothing, or the channel is being taken away. */
PART bool goes_nowhere(struct vi_cpu *cpu, const void *found, const struct vi_channel *ch)
{
	if (unlikely(!found)) {
		vi_count(&cpu->lost.unmapped, 1);
		return true;
	}
	if (unlikely(ch && vi_load_relaxed(&ch->rescind))) {
		__atomic_fetch_add(&cpu->m->rescinded, 1, __ATOMIC_RELAXED);
		return true;
	}
	return false;
}

/* Return: whose a claimed flag is; NULL: nobody's, which is counted. @way: NULL, or which way. */
PART struct vi_channel *find_channel(struct vi_cpu *cpu, uint32_t relid, const bool traced,
				     uint32_t *way)
{
	struct vi_channel *ch = vi_load(&cpu->m->channel[relid]);

	vi_trace_if(traced, VI_TRACE_LOOKUP, ch ? ch->column : 0, way_of(ch, ch, VI_WAY_CHANNEL));
	if (way)
		*way = way_of(ch, ch, VI_WAY_CHANNEL);
	return goes_nowhere(cpu, ch, ch) ? NULL : ch;
}

PART struct vi_irq_desc *find_desc(struct vi_cpu *cpu, uint32_t relid, const bool traced,
				   uint32_t *way)
{
	struct vi_irq_desc *desc = vi_load(&cpu->m->domain.revmap[relid]);
	struct vi_channel *ch = desc ? vi_load(&desc->handler_data) : NULL;

	vi_trace_if(traced, VI_TRACE_LOOKUP, desc ? desc->irq : 0, way_of(desc, ch, VI_WAY_FLOW));
	if (way)
		*way = way_of(desc, ch, VI_WAY_FLOW);
	return goes_nowhere(cpu, desc, ch) ? NULL : desc;
}

PART int sched_legacy(struct vi_cpu *cpu, const bool traced)
{
	uint32_t relid, from;
	int claimed = 0;

	vi_trace_if(traced, VI_TRACE_SCAN, 0, 0);
	for (from = 0; (relid = claim_next(cpu, from)) < VI_SINT_FLAGS; from = relid + 1) {
		struct vi_channel *ch;

		claimed++;
		vi_trace_if(traced, VI_TRACE_CLAIM, relid, 0);
		rcu_barrier_here();
		ch = find_channel(cpu, relid, traced, NULL);
		if (likely(ch))
			(traced ? vi_chan_arrival_traced : vi_chan_arrival)(cpu, ch);
		rcu_barrier_here();
	}
	vi_trace_if(traced, VI_TRACE_SCAN_END, 0, claimed);
	return claimed;
}

PART int sched_rfc(struct vi_cpu *cpu, const bool traced, const bool redirect)
{
	uint32_t relid, from;
	int claimed = 0;

	vi_trace_if(traced, VI_TRACE_SCAN, 0, 0);
	for (from = 0; (relid = claim_next(cpu, from)) < VI_SINT_FLAGS; from = relid + 1) {
		struct vi_irq_desc *desc;

		claimed++;
		vi_trace_if(traced, VI_TRACE_CLAIM, relid, 0);
		rcu_barrier_here();
		desc = find_desc(cpu, relid, traced, NULL);
		if (likely(desc) && (!redirect || !vi_redirect_remote(cpu, desc)))
			(traced ? vi_flow_traced(desc->handle_irq) : desc->handle_irq)(cpu, desc);
		rcu_barrier_here();
	}
	vi_trace_if(traced, VI_TRACE_SCAN_END, 0, claimed);
	return claimed;
}

__attribute__((aligned(64))) int vi_lx_chan_sched_legacy(struct vi_cpu *cpu)
{
	return sched_legacy(cpu, false);
}

__attribute__((aligned(64))) int vi_lx_chan_sched_rfc(struct vi_cpu *cpu)
{
	return sched_rfc(cpu, false, false);
}

static int sched_legacy_traced(struct vi_cpu *cpu)
{
	return sched_legacy(cpu, true);
}

static int sched_rfc_traced(struct vi_cpu *cpu)
{
	return sched_rfc(cpu, true, false);
}

static int sched_redirect(struct vi_cpu *cpu)
{
	return sched_rfc(cpu, false, true);
}

static int sched_redirect_traced(struct vi_cpu *cpu)
{
	return sched_rfc(cpu, true, true);
}

vi_scan_t vi_lx_scan_variant(const struct vi_machine *m, bool traced)
{
	if (m->redirect)
		return traced ? sched_redirect_traced : sched_redirect;
	if (traced)
		return m->channel_irqs ? sched_rfc_traced : sched_legacy_traced;
	return m->channel_irqs ? vi_lx_chan_sched_rfc : vi_lx_chan_sched_legacy;
}

/* ---- the same, step by step ------------------------------------------------------------------ */

uint32_t vi_lx_claim(struct vi_cpu *cpu, uint32_t from)
{
	return claim_next(cpu, from);
}

/**
 * vi_lx_lookup() - whose a claimed flag is
 * @column: its IRQ, or the column of a channel without one; 0 if it is nobody's, which is counted
 * Return: enum vi_trace_way.
 */
uint32_t vi_lx_lookup(struct vi_cpu *cpu, uint32_t relid, uint32_t *column)
{
	uint32_t way;

	if (cpu->m->channel_irqs) {
		const struct vi_irq_desc *desc = find_desc(cpu, relid, cpu->m->trace, &way);

		*column = desc ? desc->irq : 0;
	} else {
		const struct vi_channel *ch = find_channel(cpu, relid, cpu->m->trace, &way);

		*column = ch ? ch->column : 0;
	}
	return way;
}
