/* SPDX-License-Identifier: MIT */
/*
 * scan.c - the fast engine's demultiplexer: SINT2's 2048 event flags of one CPU -> handlers.
 *
 * A vector read of the area gives a mask of the non-zero words (a hint: it may be torn). Each of those words is claimed by one
 * exchange with 0, which takes up to 64 flags for the price of one locked instruction; a flag set later stays for the next
 * delivery. Few words are dispatched as they come; many are first flattened to a list, so that the dispatch loop is one loop with
 * its descriptors prefetched. What may not run from the slot is found out by the slot's stub, see irq/irqdomain.c.
 *
 * Everything here runs on the CPU's own thread. The list is on the stack: a handler may be interrupted by a scan of its own.
 */
#include "internals.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define DIRECT_WORDS 12		/* up to here a loop per word beats the list */
#define PREFETCH_AHEAD 6

static inline uint64_t claim_word(struct vi_cpu *cpu, uint32_t word)
{
	uint64_t bits = __atomic_exchange_n(&cpu->sint_flags[word], 0, __ATOMIC_SEQ_CST);

	if (unlikely(word == 0 && (bits & 1))) {	/* flag 0 is no channel */
		vi_count(&cpu->lost.flag_zero, 1);
		bits &= ~1ull;
	}
	return bits;
}

/* Run one claimed flag. Return: 1 if it is to be added to irqs_sum. */
static inline uint32_t dispatch_slot(struct vi_cpu *cpu, struct vi_irq_slot *slot)
{
	vi_handler_t handler;
	uint32_t irq, result;

	if (unlikely(vi_load_relaxed(&slot->owner) != cpu->id)) {
		vi_slot_dispatch_slow(cpu, slot);
		return 0;
	}
	handler = vi_load(&slot->handler);
	irq = vi_load_relaxed(&slot->irq);
	result = handler(cpu, irq, vi_load_relaxed(&slot->dev_id));
	if (likely(result == VI_IRQ_HANDLED)) {
		vi_count(&cpu->kstat[irq], 1);
		return 1;
	}
	if (result != VI_IRQ_DEFERRED)
		vi_slot_handled_otherwise(cpu, slot, result);
	return 0;
}

static inline __attribute__((always_inline)) uint32_t dispatch_words(struct vi_cpu *cpu, uint32_t words, uint32_t *handled)
{
	struct vi_irq_slot *slots = cpu->m->slot;
	uint32_t claimed = 0, n = 0;

	for (; words; words &= words - 1) {
		uint32_t word = (uint32_t)__builtin_ctz(words);
		uint64_t bits = claim_word(cpu, word);

		claimed += (uint32_t)__builtin_popcountll(bits);
		for (; bits; bits &= bits - 1)
			n += dispatch_slot(cpu, &slots[word * 64 + (uint32_t)__builtin_ctzll(bits)]);
	}
	*handled = n;
	return claimed;
}

/* Append the flags of one word to the list: four at a time, so that the loop ends predictably. Writes up to 3 entries too many. */
static inline __attribute__((always_inline)) uint32_t flatten_word(uint64_t bits, uint32_t base, uint16_t *list)
{
	uint32_t n = (uint32_t)__builtin_popcountll(bits);

	for (uint32_t i = 0; i < n; i += 4)
		for (uint32_t k = 0; k < 4; k++) {
			list[i + k] = (uint16_t)(base + (uint32_t)__builtin_ctzll(bits | 1ull << 63));
			bits &= bits - 1;
		}
	return n;
}

static inline __attribute__((always_inline)) uint32_t dispatch_flattened(struct vi_cpu *cpu, uint32_t words, uint32_t *handled)
{
	struct vi_irq_slot *slots = cpu->m->slot;
	uint16_t list[VI_SINT_FLAGS + PREFETCH_AHEAD + 4];
	uint32_t claimed = 0, n = 0;

	for (; words; words &= words - 1) {
		uint32_t word = (uint32_t)__builtin_ctz(words);

		claimed += flatten_word(claim_word(cpu, word), word * 64, list + claimed);
	}
	for (uint32_t i = 0; i < PREFETCH_AHEAD; i++)
		list[claimed + i] = 0;
	for (uint32_t i = 0; i < claimed; i++) {
		__builtin_prefetch(&slots[list[i + PREFETCH_AHEAD]]);
		n += dispatch_slot(cpu, &slots[list[i]]);
	}
	*handled = n;
	return claimed;
}

static inline __attribute__((always_inline)) int scan(struct vi_cpu *cpu, uint32_t words)
{
	uint32_t claimed, handled;

	if (!words)
		return 0;
	__atomic_store_n(&cpu->scan_seq, cpu->scan_seq + 1, __ATOMIC_RELAXED);	/* odd; the claims below are full barriers */
	if (likely(__builtin_popcount(words) <= DIRECT_WORDS))
		claimed = dispatch_words(cpu, words, &handled);
	else
		claimed = dispatch_flattened(cpu, words, &handled);
	if (cpu->m->counts_in_sum)
		vi_count(cpu->irqs_sum, handled);
	if (unlikely(cpu->batch_n))
		vi_batch_flush(cpu);
	vi_store(&cpu->scan_seq, cpu->scan_seq + 1);
	return (int)claimed;
}

static int scan_scalar(struct vi_cpu *cpu)
{
	uint32_t words = 0;

	for (uint32_t w = 0; w < VI_SINT_WORDS; w++)
		words |= (uint32_t)(vi_load_relaxed(&cpu->sint_flags[w]) != 0) << w;
	return scan(cpu, words);
}

#if defined(__x86_64__)

/*
 * The vector loads below race with signallers by design: a flag seen too late was raised together with a doorbell that the next
 * vi_vcpu_run() answers. No sanitizer can know that.
 */
__attribute__((target("avx2,popcnt,bmi"), no_sanitize("thread"))) static int scan_avx2(struct vi_cpu *cpu)
{
	const __m256i zero = _mm256_setzero_si256();
	uint32_t empty = 0;

	for (uint32_t i = 0; i < VI_SINT_WORDS / 4; i++) {
		__m256i v = _mm256_load_si256((const __m256i *)(const void *)&cpu->sint_flags[i * 4]);

		empty |= (uint32_t)_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(v, zero))) << (i * 4);
	}
	return scan(cpu, ~empty);
}

__attribute__((target("avx512f,avx512bw,avx512vl,popcnt,bmi"), no_sanitize("thread"))) static int scan_avx512(struct vi_cpu *cpu)
{
	uint32_t words = 0;

	for (uint32_t i = 0; i < VI_SINT_WORDS / 8; i++) {
		__m512i v = _mm512_load_si512((const void *)&cpu->sint_flags[i * 8]);

		words |= (uint32_t)_mm512_test_epi64_mask(v, v) << (i * 8);
	}
	return scan(cpu, words);
}

uint32_t vi_simd_best(void)
{
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
	    __builtin_cpu_supports("bmi"))
		return VI_SIMD_AVX512;
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi"))
		return VI_SIMD_AVX2;
	return VI_SIMD_SCALAR;
}

vi_scan_t vi_scan_variant(uint32_t simd)
{
	return simd == VI_SIMD_AVX512 ? scan_avx512 : simd == VI_SIMD_AVX2 ? scan_avx2 : scan_scalar;
}

#else

uint32_t vi_simd_best(void)
{
	return VI_SIMD_SCALAR;
}

vi_scan_t vi_scan_variant(uint32_t simd)
{
	(void)simd;
	return scan_scalar;
}

#endif

int vi_scan(struct vi_machine *m, uint32_t cpu)
{
	return cpu < m->nr_cpus ? m->scan(vi_cpu_of(m, cpu)) : -EINVAL;
}

uint64_t vi_scan_claim_word(struct vi_machine *m, uint32_t cpu, uint32_t word)
{
	return cpu < m->nr_cpus && word < VI_SINT_WORDS ? claim_word(vi_cpu_of(m, cpu), word) : 0;
}

int vi_scan_dispatch(struct vi_machine *m, uint32_t cpu, uint32_t relid)
{
	struct vi_cpu *c;
	uint32_t handled;

	if (cpu >= m->nr_cpus || relid < VI_RELID_MIN || relid > VI_RELID_MAX)
		return -EINVAL;
	c = vi_cpu_of(m, cpu);
	__atomic_exchange_n(&c->scan_seq, c->scan_seq + 1, __ATOMIC_SEQ_CST);
	handled = dispatch_slot(c, &m->slot[relid]);
	if (m->counts_in_sum)
		vi_count(c->irqs_sum, handled);
	if (c->batch_n)
		vi_batch_flush(c);
	vi_store(&c->scan_seq, c->scan_seq + 1);
	return (int)handled;
}
