/* SPDX-License-Identifier: MIT */
/*
 * chan_sched.c - the linux engine's demultiplexer: the steps of vmbus_chan_sched(), v6.10, bit by
 * bit, in its two forms.
 *
 * legacy: relid -> channels[] -> callback. rfc: relid -> irqdomain -> descriptor -> flow handler ->
 * action -> callback (RFC patches 08 and 09). It is the oracle for the fast engine's counters and
 * the peer of its benchmarks: same steps, same locked instructions, same cache lines as the
 * kernel's; RCU is a compiler barrier in both.
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

__attribute__((aligned(64))) int vi_lx_chan_sched_legacy(struct vi_cpu *cpu)
{
	uint64_t *words = cpu->sint_flags;
	int claimed = 0;

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
		rcu_barrier_here();
		ch = vi_load(&cpu->m->channel[relid]);
		if (unlikely(!ch))
			vi_count(&cpu->lost.unmapped, 1);
		else if (unlikely(vi_load_relaxed(&ch->rescind)))
			__atomic_fetch_add(&cpu->m->rescinded, 1, __ATOMIC_RELAXED);
		else
			vi_chan_arrival(cpu, ch);
		rcu_barrier_here();
	}
	return claimed;
}

__attribute__((aligned(64))) int vi_lx_chan_sched_rfc(struct vi_cpu *cpu)
{
	uint64_t *words = cpu->sint_flags;
	int claimed = 0;

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
		rcu_barrier_here();
		desc = vi_load(&cpu->m->domain.revmap[relid]);
		ch = desc ? vi_load(&desc->handler_data) : NULL;
		if (unlikely(!desc))
			vi_count(&cpu->lost.unmapped, 1);
		else if (unlikely(ch && vi_load_relaxed(&ch->rescind)))
			__atomic_fetch_add(&cpu->m->rescinded, 1, __ATOMIC_RELAXED);
		else
			desc->handle_irq(cpu, desc);
		rcu_barrier_here();
	}
	return claimed;
}
