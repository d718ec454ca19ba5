/* SPDX-License-Identifier: MIT */
/*
 * scan.c - the fast engine's demultiplexer: SINT2's 2048 event flags of one CPU -> handlers.
 *
 * A vector read of the area gives a mask of the non-zero words (a hint: it may be torn). Each of those words is claimed by one
 * exchange with 0, which takes up to 64 flags for the price of one locked instruction; a flag set later stays for the next
 * delivery. Few words are dispatched as they come. Many are claimed in pairs, 128 flags per locked instruction, and flattened to a
 * list in chunks: a loop per word would end unpredictably each time, and the locked instructions of the next chunk overlap with the
 * calls of this one. What may not run from the slot is found out by the slot's stub, see irq/irqdomain.c.
 *
 * Everything here runs on the CPU's own thread. A handler cannot start another scan of its CPU: scan_seq, which is odd, would tell
 * others that the first one is over.
 */
#include "internals.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define FORCE_INLINE inline __attribute__((always_inline))

#define DIRECT_WORDS 12		/* up to here a loop per word beats the list */
#define CHUNK_PAIRS 4		/* pairs of words flattened before their flags are dispatched */
#define CHUNK_FLAGS (CHUNK_PAIRS * 2 * 64)
#define FLATTEN_STEP 4		/* entries appended at a time, so up to 3 too many */

/* Flag 0 is no channel. */
static FORCE_INLINE uint64_t without_flag_zero(struct vi_cpu *cpu, uint32_t word, uint64_t bits)
{
	if (unlikely(word == 0 && (bits & 1))) {
		vi_count(&cpu->lost.flag_zero, 1);
		bits &= ~1ull;
	}
	return bits;
}

static FORCE_INLINE uint64_t claim_word(struct vi_cpu *cpu, uint32_t word)
{
	uint64_t bits = vi_load_relaxed(&cpu->sint_flags[word]);

	(void)__atomic_fetch_and(&cpu->sint_flags[word], ~bits, __ATOMIC_SEQ_CST);
	return without_flag_zero(cpu, word, bits);
}

/* Two words, the first one even, in one locked instruction. Thread sanitizers do not know that instruction. */
static FORCE_INLINE void claim_pair(struct vi_cpu *cpu, uint32_t word, uint64_t *lo, uint64_t *hi)
{
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
	uint64_t *pair = &cpu->sint_flags[word], low, high, seen_low, seen_high;
	bool claimed;

	do {
		seen_low = low = vi_load_relaxed(&pair[0]);
		seen_high = high = vi_load_relaxed(&pair[1]);
		__asm__ volatile("lock cmpxchg16b %0"
				 : "+m"(*(uint64_t(*)[2])pair), "+a"(low), "+d"(high), "=@ccz"(claimed)
				 : "b"(0ull), "c"(0ull)
				 : "memory");
	} while (unlikely(!claimed));
	*lo = without_flag_zero(cpu, word, seen_low);
	*hi = seen_high;
#else
	*lo = claim_word(cpu, word);
	*hi = claim_word(cpu, word + 1);
#endif
}

/* What is not simply "handled, count it". Return: how many to leave out of irqs_sum. */
static __attribute__((noinline, cold)) uint32_t dispatched_otherwise(struct vi_cpu *cpu, struct vi_irq_slot *slot, uint32_t result)
{
	if (result != VI_IRQ_DEFERRED)
		vi_slot_handled_otherwise(cpu, slot, result);
	return 1;
}

/* Run one claimed flag. @row: cpu->kstat. *others: flags that irqs_sum must not count here. */
static FORCE_INLINE void dispatch_slot(struct vi_cpu *cpu, struct vi_irq_slot *slot, uint32_t *row, uint32_t *others)
{
	vi_handler_t handler = vi_load(&slot->handler);	/* before the owner: what a new owner may call is stored after it */
	uint32_t irq, result;

	if (unlikely(vi_load_relaxed(&slot->owner) != cpu->id)) {
		*others += dispatched_otherwise(cpu, slot, vi_slot_dispatch_slow(cpu, slot));
		return;
	}
	irq = vi_load_relaxed(&slot->irq);
	result = handler(cpu, irq, vi_load_relaxed(&slot->dev_id));
	if (likely(result == VI_IRQ_HANDLED))
		vi_count(&row[irq], 1);
	else
		*others += dispatched_otherwise(cpu, slot, result);
}

static FORCE_INLINE uint32_t dispatch_words(struct vi_cpu *cpu, uint32_t words, uint32_t *others)
{
	uint32_t *row = cpu->kstat, claimed = 0;

	for (; words; words &= words - 1) {
		uint32_t word = (uint32_t)__builtin_ctz(words);
		struct vi_irq_slot *slots = &cpu->m->slot[word * 64];
		uint64_t bits = claim_word(cpu, word);

		claimed += (uint32_t)__builtin_popcountll(bits);
		for (; bits; bits &= bits - 1)
			dispatch_slot(cpu, &slots[__builtin_ctzll(bits)], row, others);
	}
	return claimed;
}

/* Append the flags of one word to the list. Return: how many. */
static FORCE_INLINE uint32_t flatten_word(uint64_t bits, uint32_t base, uint16_t *list)
{
	uint32_t n = (uint32_t)__builtin_popcountll(bits);

	for (uint32_t i = 0; i < n; i += FLATTEN_STEP)
		for (uint32_t k = 0; k < FLATTEN_STEP; k++) {
			list[i + k] = (uint16_t)(base + (uint32_t)__builtin_ctzll(bits | 1ull << 63));
			bits &= bits - 1;
		}
	return n;
}

static FORCE_INLINE uint32_t dispatch_chunks(struct vi_cpu *cpu, uint32_t words, uint32_t *others)
{
	struct vi_irq_slot *slots = cpu->m->slot;
	uint32_t *row = cpu->kstat, claimed = 0;
	uint16_t list[CHUNK_FLAGS + FLATTEN_STEP];

	while (words) {
		uint32_t n = 0;

		for (uint32_t k = 0; k < CHUNK_PAIRS && words; k++) {
			uint32_t word = (uint32_t)__builtin_ctz(words) & ~1u;
			uint64_t lo, hi;

			words &= ~(3u << word);
			claim_pair(cpu, word, &lo, &hi);
			n += flatten_word(lo, word * 64, list + n);
			n += flatten_word(hi, word * 64 + 64, list + n);
		}
		for (uint32_t i = 0; i < n; i++)
			dispatch_slot(cpu, &slots[list[i]], row, others);
		claimed += n;
	}
	return claimed;
}

static FORCE_INLINE void scan_begin(struct vi_cpu *cpu)
{
	vi_store_relaxed(&cpu->scan_seq, cpu->scan_seq + 1);	/* odd; the claims that follow are full barriers */
}

static FORCE_INLINE int scan_end(struct vi_cpu *cpu, uint32_t claimed, uint32_t others)
{
	if (cpu->m->counts_in_sum)
		vi_count(cpu->irqs_sum, claimed - others);
	if (unlikely(cpu->batch_n))
		vi_batch_flush(cpu);
	vi_store(&cpu->scan_seq, cpu->scan_seq + 1);
	return (int)claimed;
}

static FORCE_INLINE int scan_direct(struct vi_cpu *cpu, uint32_t words)
{
	uint32_t others = 0, claimed;

	scan_begin(cpu);
	claimed = dispatch_words(cpu, words, &others);
	return scan_end(cpu, claimed, others);
}

static FORCE_INLINE int scan_chunks(struct vi_cpu *cpu, uint32_t words)
{
	uint32_t others = 0, claimed;

	scan_begin(cpu);
	claimed = dispatch_chunks(cpu, words, &others);
	return scan_end(cpu, claimed, others);
}

/* Out of line, so that a scan of few words does not set up the list's stack frame. */
static __attribute__((noinline)) int scan_many(struct vi_cpu *cpu, uint32_t words)
{
	return scan_chunks(cpu, words);
}

static int scan_scalar(struct vi_cpu *cpu)
{
	uint32_t words = 0;

	for (uint32_t w = 0; w < VI_SINT_WORDS; w++)
		words |= (uint32_t)(vi_load_relaxed(&cpu->sint_flags[w]) != 0) << w;
	if (!words)
		return 0;
	if (__builtin_popcount(words) > DIRECT_WORDS)
		return scan_many(cpu, words);
	return scan_direct(cpu, words);
}

#if defined(__x86_64__)

#define WITH_AVX2 __attribute__((target("avx2,popcnt,bmi,bmi2")))
#define WITH_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,popcnt,bmi,bmi2")))
/*
 * The vector loads below race with signallers by design: a flag seen too late was raised together with a doorbell that the next
 * vi_vcpu_run() answers. No sanitizer can know that.
 */
#define RACES_BY_DESIGN __attribute__((no_sanitize("thread")))

static WITH_AVX2 __attribute__((noinline)) int scan_many_bmi(struct vi_cpu *cpu, uint32_t words)
{
	return scan_chunks(cpu, words);
}

static WITH_AVX2 RACES_BY_DESIGN int scan_avx2(struct vi_cpu *cpu)
{
	const __m256i *area = (const __m256i *)(const void *)cpu->sint_flags, zero = _mm256_setzero_si256();
	uint32_t empty = 0;

#pragma GCC unroll 8
	for (uint32_t i = 0; i < VI_SINT_WORDS / 4; i++) {
		__m256i equal = _mm256_cmpeq_epi64(_mm256_load_si256(&area[i]), zero);

		empty |= (uint32_t)_mm256_movemask_pd(_mm256_castsi256_pd(equal)) << (i * 4);
	}
	if (!~empty)
		return 0;
	if (__builtin_popcount(~empty) > DIRECT_WORDS)
		return scan_many_bmi(cpu, ~empty);
	return scan_direct(cpu, ~empty);
}

static WITH_AVX512 RACES_BY_DESIGN int scan_avx512(struct vi_cpu *cpu)
{
	uint32_t words = 0;

#pragma GCC unroll 4
	for (uint32_t i = 0; i < VI_SINT_WORDS / 8; i++) {
		__m512i v = _mm512_load_si512((const void *)&cpu->sint_flags[i * 8]);

		words |= (uint32_t)_mm512_test_epi64_mask(v, v) << (i * 8);
	}
	if (!words)
		return 0;
	if (__builtin_popcount(words) > DIRECT_WORDS)
		return scan_many_bmi(cpu, words);
	return scan_direct(cpu, words);
}

static bool has_avx2(void)
{
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi") &&
	       __builtin_cpu_supports("bmi2");
}

uint32_t vi_simd_best(void)
{
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
	    has_avx2())
		return VI_SIMD_AVX512;
	return has_avx2() ? VI_SIMD_AVX2 : VI_SIMD_SCALAR;
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
	struct vi_cpu *c;
	bool outermost;
	int claimed;

	if (cpu >= m->nr_cpus)
		return -EINVAL;
	c = vi_cpu_of(m, cpu);
	if (c->scan_seq & 1)
		return -EBUSY;
	outermost = vi_irq_enter(c);
	claimed = m->scan(c);
	if (outermost)
		vi_irq_exit(c);
	return claimed;
}

uint64_t vi_scan_claim_word(struct vi_machine *m, uint32_t cpu, uint32_t word)
{
	return cpu < m->nr_cpus && word < VI_SINT_WORDS ? claim_word(vi_cpu_of(m, cpu), word) : 0;
}

int vi_scan_dispatch(struct vi_machine *m, uint32_t cpu, uint32_t relid)
{
	uint32_t others = 0;
	struct vi_cpu *c;
	bool outermost;

	if (cpu >= m->nr_cpus || relid < VI_RELID_MIN || relid > VI_RELID_MAX)
		return -EINVAL;
	c = vi_cpu_of(m, cpu);
	if (c->scan_seq & 1)
		return -EBUSY;
	outermost = vi_irq_enter(c);
	__atomic_exchange_n(&c->scan_seq, c->scan_seq + 1, __ATOMIC_SEQ_CST);
	dispatch_slot(c, &m->slot[relid], c->kstat, &others);
	(void)scan_end(c, 1, others);
	if (outermost)
		vi_irq_exit(c);
	return (int)(1 - others);
}
