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

static inline __attribute__((always_inline)) int sched_legacy(struct vi_cpu *cpu, const bool traced)
{
	uint64_t *words = cpu->sint_flags;
	int claimed = 0;

	vi_trace_if(traced, VI_TRACE_SCAN, 0, 0);
	for (uint32_t relid = find_next_bit(words, VI_SINT_FLAGS, 0); relid < VI_SINT_FLAGS;
	     relid = find_next_bit(words, VI_SINT_FLAGS, relid + 1)) {
		struct vi_channel *ch;

		if (!test_and_clear_bit(words, relid))
			continue;
		if (relid == 0) {
			vi_count(&cpu->lost.flag_zero, 1);
			continue;
		}
		claimed++;
		vi_trace_if(traced, VI_TRACE_CLAIM, relid, 0);
		rcu_barrier_here();
		ch = vi_load(&cpu->m->channel[relid]);
		vi_trace_if(traced, VI_TRACE_LOOKUP, ch ? ch->column : 0,
			    way_of(ch, ch, VI_WAY_CHANNEL));
		if (unlikely(!ch))
			vi_count(&cpu->lost.unmapped, 1);
		else if (unlikely(vi_load_relaxed(&ch->rescind)))
			__atomic_fetch_add(&cpu->m->rescinded, 1, __ATOMIC_RELAXED);
		else
			(traced ? vi_chan_arrival_traced : vi_chan_arrival)(cpu, ch);
		rcu_barrier_here();
	}
	vi_trace_if(traced, VI_TRACE_SCAN_END, 0, claimed);
	return claimed;
}

static inline __attribute__((always_inline)) int sched_rfc(struct vi_cpu *cpu, const bool traced,
							   const bool redirect)
{
	uint64_t *words = cpu->sint_flags;
	int claimed = 0;

	vi_trace_if(traced, VI_TRACE_SCAN, 0, 0);
	for (uint32_t relid = find_next_bit(words, VI_SINT_FLAGS, 0); relid < VI_SINT_FLAGS;
	     relid = find_next_bit(words, VI_SINT_FLAGS, relid + 1)) {
		struct vi_irq_desc *desc;
		struct vi_channel *ch;

		if (!test_and_clear_bit(words, relid))
			continue;
		if (relid == 0) {
			vi_count(&cpu->lost.flag_zero, 1);
			continue;
		}
		claimed++;
		vi_trace_if(traced, VI_TRACE_CLAIM, relid, 0);
		rcu_barrier_here();
		desc = vi_load(&cpu->m->domain.revmap[relid]);
		ch = desc ? vi_load(&desc->handler_data) : NULL;
		vi_trace_if(traced, VI_TRACE_LOOKUP, desc ? desc->irq : 0,
			    way_of(desc, ch, VI_WAY_FLOW));
		if (unlikely(!desc))
			vi_count(&cpu->lost.unmapped, 1);
		else if (unlikely(ch && vi_load_relaxed(&ch->rescind)))
			__atomic_fetch_add(&cpu->m->rescinded, 1, __ATOMIC_RELAXED);
		else if (!redirect || !vi_redirect_remote(cpu, desc))
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
