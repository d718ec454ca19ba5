/* SPDX-License-Identifier: MIT */
/*
 * scan.c - the fast engine's demultiplexer: SINT2's 2048 event flags of one CPU -> handlers.
 *
 * A read of the whole area gives a mask of the non-zero words (a hint: it may be torn). Each of
 * those words is then claimed: the flags just read are cleared by one locked instruction, up to 64
 * for the price of one, up to 128 where two non-zero words are neighbours. A flag set later stays
 * for the next delivery. What may not run from the slot is found out by the slot's stub, see
 * irq/irqdomain.c.
 *
 * Nearly all of the cost is the locked instructions, and each waits until every store before it has
 * left the core. So the calls take their flags from the read before the claim and need not wait for
 * its result; claims and calls alternate, so that they overlap; and what follows the mask are
 * functions of their own, so that each saves few registers.
 *
 * Everything here runs on the CPU's own thread. Others only set flags; nobody else clears them.
 */
#include "internals.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define FORCE_INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))

#define DENSE_WORDS 31		/* from here on it is not worth asking which words are not empty */

/* Flag 0 is no channel. */
static FORCE_INLINE uint64_t without_flag_zero(struct vi_cpu *cpu, uint32_t word, uint64_t bits)
{
	if (unlikely(word == 0 && (bits & 1))) {
		vi_count(&cpu->lost.flag_zero, 1);
		bits &= ~1ull;
	}
	return bits;
}

/* What was read is still set when it is cleared. */
static FORCE_INLINE uint64_t claim_word(struct vi_cpu *cpu, uint32_t word)
{
	uint64_t bits = vi_load_relaxed(&cpu->sint_flags[word]);

	(void)__atomic_fetch_and(&cpu->sint_flags[word], ~bits, __ATOMIC_SEQ_CST);
	return without_flag_zero(cpu, word, bits);
}

/*
 * Two words, the first one even: in one locked instruction if the CPU is known to have it (@wide).
 */
static FORCE_INLINE void claim_pair(struct vi_cpu *cpu, uint32_t word, bool wide, uint64_t *lo,
				    uint64_t *hi)
{
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) /* which does not know the instruction */
	uint64_t *pair = &cpu->sint_flags[word], low, high, seen_low, seen_high;
	bool claimed;

	if (wide) {
		do {
			seen_low = low = vi_load_relaxed(&pair[0]);
			seen_high = high = vi_load_relaxed(&pair[1]);
			__asm__ volatile("lock cmpxchg16b %0"
					 : "+m"(*(uint64_t(*)[2])pair), "+a"(low), "+d"(high),
					   "=@ccz"(claimed)
					 : "b"(0ull), "c"(0ull)
					 : "memory");
		} while (unlikely(!claimed));
		*lo = without_flag_zero(cpu, word, seen_low);
		*hi = seen_high;
		return;
	}
#endif
	(void)wide;
	*lo = claim_word(cpu, word);
	*hi = claim_word(cpu, word + 1);
}

/* The handler of @irq did not say "handled". Return: how many arrivals to leave out of irqs_sum. */
static NOINLINE uint32_t handled_otherwise(struct vi_cpu *cpu, uint32_t irq, uint32_t result)
{
	struct vi_machine *m = cpu->m;

	if (result != VI_IRQ_DEFERRED)
		vi_slot_handled_otherwise(cpu, &m->slot[vi_load(&m->desc[irq])->hwirq], result);
	return 1;
}

/* This CPU does not own the slot. Return: as above. */
static NOINLINE uint32_t dispatch_slow(struct vi_cpu *cpu, struct vi_irq_slot *slot)
{
	(void)vi_slot_dispatch_slow(cpu, slot);
	return 1;
}

/* For a tracer: which way a claimed flag goes, where the owner would go @way. */
static uint32_t way_of(const struct vi_irq_slot *slot, uint32_t way)
{
	if (!slot->desc)
		return VI_WAY_UNMAPPED;
	if (slot->drop)
		return VI_WAY_RESCINDED;
	return way == VI_WAY_SLOT && vi_slot_is_stub(slot) ? VI_WAY_STUB : way;
}

/* Run one claimed flag. Return: how many arrivals to leave out of irqs_sum. */
static FORCE_INLINE uint32_t run_slot(struct vi_cpu *cpu, struct vi_irq_slot *slot,
				      const bool traced)
{
	/*
	 * before the owner: what a new owner may call is stored after it; after irq_seq, which
	 * vi_irq_enter() has made odd with a full barrier (rule 2 in irq/irqdomain.c)
	 */
	vi_handler_t handler = __atomic_load_n(&slot->handler, __ATOMIC_SEQ_CST);
	uint32_t irq, result;

	if (unlikely(vi_load_relaxed(&slot->owner) != cpu->id)) {
		vi_trace_if(traced, VI_TRACE_LOOKUP, slot->irq, way_of(slot, VI_WAY_NOT_OWNER));
		return dispatch_slow(cpu, slot);
	}
	irq = vi_load_relaxed(&slot->irq);
	vi_trace_if(traced, VI_TRACE_LOOKUP, irq, way_of(slot, VI_WAY_SLOT));
	result = handler(cpu, irq, vi_load_relaxed(&slot->dev_id));
	if (unlikely(result != VI_IRQ_HANDLED))
		return handled_otherwise(cpu, irq, result);
	vi_count(&cpu->kstat[irq], 1);
	vi_trace_if(traced, VI_TRACE_COUNT, irq, 0);
	return 0;
}

static FORCE_INLINE uint32_t dispatch_slot(struct vi_cpu *cpu, struct vi_irq_slot *slot)
{
	return run_slot(cpu, slot, false);
}

static FORCE_INLINE void dispatch_bits(struct vi_cpu *cpu, uint32_t word, uint64_t bits,
				       uint32_t *others)
{
	struct vi_irq_slot *slots = &cpu->m->slot[word * 64];

	__asm__("" : "+r"(slots));	/* one register, not a base and an offset */
	for (; bits; bits &= bits - 1) {
		uint32_t other = dispatch_slot(cpu, &slots[__builtin_ctzll(bits)]);

		if (unlikely(other))
			*others += other;
	}
}

/*
 * The same, and with each flag one of two words later has its slot fetched: worth half the time
 * when the slots are in no cache. It shares the loop of the calls, since a loop of its own would
 * end unpredictably.
 */
static FORCE_INLINE void dispatch_bits_ahead(struct vi_cpu *cpu, uint32_t word, uint64_t bits,
					     uint64_t ahead, uint32_t *others)
{
	struct vi_irq_slot *slots = &cpu->m->slot[word * 64];

	__asm__("" : "+r"(slots));
	for (; bits; bits &= bits - 1) {
		uintptr_t far = 128 + (uintptr_t)__builtin_ctzll(ahead | 1ull << 63);
		uint32_t other;

		__builtin_prefetch((const void *)((uintptr_t)slots + far * sizeof(*slots)));
		ahead &= ahead - 1;
		other = dispatch_slot(cpu, &slots[__builtin_ctzll(bits)]);
		if (unlikely(other))
			*others += other;
	}
}

static FORCE_INLINE void count_in_sum(struct vi_cpu *cpu, uint32_t claimed, uint32_t others)
{
	if (cpu->m->counts_in_sum)
		vi_count(cpu->irqs_sum, claimed - others);
}

static FORCE_INLINE void flush_batch(struct vi_cpu *cpu)
{
	if (unlikely(cpu->batch_n))
		vi_batch_flush(cpu);
}

static FORCE_INLINE int scan_end(struct vi_cpu *cpu, uint32_t claimed, uint32_t others)
{
	count_in_sum(cpu, claimed, others);
	flush_batch(cpu);
	return (int)claimed;
}

/* The rest of a scan whose only word held not just one flag. */
static FORCE_INLINE int scan_one_word(struct vi_cpu *cpu, uint32_t word, uint64_t bits)
{
	uint32_t others = 0;

	dispatch_bits(cpu, word, bits, &others);
	return scan_end(cpu, (uint32_t)__builtin_popcountll(bits), others);
}

static FORCE_INLINE int scan_words(struct vi_cpu *cpu, uint32_t words, bool wide)
{
	uint32_t claimed = 0, others = 0;

	do {
		uint32_t word = (uint32_t)__builtin_ctz(words) & ~1u, pair = words >> word & 3;
		uint64_t lo, bits;

		words &= ~(3u << word);
		if (pair == 3) {
			claim_pair(cpu, word, wide, &lo, &bits);
			claimed += (uint32_t)__builtin_popcountll(lo);
			dispatch_bits(cpu, word, lo, &others);
			word++;
		} else {
			word += pair >> 1;
			bits = claim_word(cpu, word);
		}
		claimed += (uint32_t)__builtin_popcountll(bits);
		dispatch_bits(cpu, word, bits, &others);
	} while (words);
	return scan_end(cpu, claimed, others);
}

/* Nearly every word has flags: take all pairs in turn. */
static FORCE_INLINE int scan_dense(struct vi_cpu *cpu, bool wide)
{
	uint32_t claimed = 0, others = 0;

	for (uint32_t word = 0; word < VI_SINT_WORDS; word += 2) {
		const uint64_t *ahead = &cpu->sint_flags[(word + 2) % VI_SINT_WORDS];
		uint64_t lo, hi;

		claim_pair(cpu, word, wide, &lo, &hi);
		claimed += (uint32_t)__builtin_popcountll(lo) + (uint32_t)__builtin_popcountll(hi);
		dispatch_bits_ahead(cpu, word, lo, vi_load_relaxed(&ahead[0]), &others);
		dispatch_bits_ahead(cpu, word + 1, hi, vi_load_relaxed(&ahead[1]), &others);
	}
	return scan_end(cpu, claimed, others);
}

/* What all of these do, in the plainest order, for a tracer. */
static int scan_traced(struct vi_cpu *cpu)
{
	uint32_t claimed = 0, others = 0;

	vi_trace_always(cpu->m, VI_TRACE_SCAN, cpu->id, 0, 0);
	for (uint32_t word = 0; word < VI_SINT_WORDS; word++) {
		uint64_t bits = claim_word(cpu, word);

		claimed += (uint32_t)__builtin_popcountll(bits);
		for (; bits; bits &= bits - 1) {
			uint32_t relid = word * 64 + (uint32_t)__builtin_ctzll(bits);

			vi_trace_always(cpu->m, VI_TRACE_CLAIM, cpu->id, relid, 0);
			others += run_slot(cpu, &cpu->m->slot[relid], true);
		}
	}
	(void)scan_end(cpu, claimed, others);
	vi_trace_always(cpu->m, VI_TRACE_SCAN_END, cpu->id, 0, claimed);
	return (int)claimed;
}

vi_scan_t vi_scan_variant_traced(void)
{
	return scan_traced;
}

/* How to go on from the mask of non-zero words, for one set of instructions. */
#define DEFINE_SCAN_FROM(kind, isa, wide)                                                         \
	static NOINLINE isa int one_word_##kind(struct vi_cpu *cpu, uint32_t word, uint64_t bits) \
	{                                                                                         \
		return scan_one_word(cpu, word, bits);                                            \
	}                                                                                         \
                                                                                                  \
	static NOINLINE isa int one_flag_##kind(struct vi_cpu *cpu, uint32_t words)               \
	{                                                                                         \
		uint32_t word = (uint32_t)__builtin_ctz(words);                                   \
		uint64_t bits;                                                                    \
                                                                                                  \
		bits = claim_word(cpu, word);                                                     \
		if (!bits || (bits & (bits - 1)))                                                 \
			return one_word_##kind(cpu, word, bits);                                  \
		word = word * 64 + (uint32_t)__builtin_ctzll(bits);                               \
		return scan_end(cpu, 1, dispatch_slot(cpu, &cpu->m->slot[word]));                 \
	}                                                                                         \
                                                                                                  \
	static NOINLINE isa int words_##kind(struct vi_cpu *cpu, uint32_t words)                  \
	{                                                                                         \
		return scan_words(cpu, words, wide);                                              \
	}                                                                                         \
                                                                                                  \
	static NOINLINE isa int dense_##kind(struct vi_cpu *cpu)                                  \
	{                                                                                         \
		return scan_dense(cpu, wide);                                                     \
	}                                                                                         \
                                                                                                  \
	static FORCE_INLINE isa int scan_from_##kind(struct vi_cpu *cpu, uint32_t words)          \
	{                                                                                         \
		if (!words)                                                                       \
			return 0;                                                                 \
		if (!(words & (words - 1)))                                                       \
			return one_flag_##kind(cpu, words);                                       \
		if (__builtin_popcount(words) >= DENSE_WORDS)                                     \
			return dense_##kind(cpu);                                                 \
		return words_##kind(cpu, words);                                                  \
	}

DEFINE_SCAN_FROM(base, , false)

/* Bit i: words[i] is not 0. */
static FORCE_INLINE uint32_t nonzero8(const uint64_t *words)
{
	uint32_t zero = 0;

#pragma GCC unroll 8
	for (uint32_t i = 0; i < 8; i++)
		zero = zero * 2 + (vi_load_relaxed(&words[7 - i]) == 0);
	return zero ^ 0xff;
}

static int scan_scalar(struct vi_cpu *cpu)
{
	const uint64_t *area = cpu->sint_flags;

	return scan_from_base(cpu, nonzero8(area) | nonzero8(area + 8) << 8 |
					   nonzero8(area + 16) << 16 | nonzero8(area + 24) << 24);
}

#if defined(__x86_64__)

#define WITH_BMI __attribute__((target("popcnt,bmi,bmi2")))
#define WITH_AVX2 __attribute__((target("avx2,popcnt,bmi,bmi2")))
#define WITH_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,popcnt,bmi,bmi2")))

DEFINE_SCAN_FROM(bmi, WITH_BMI, true)	/* who has these has cmpxchg16b */

/*
 * The vector loads below race with signallers by design: a flag seen too late was raised together
 * with a doorbell that the next vi_vcpu_run() answers. No sanitizer can know that.
 */
#define RACES_BY_DESIGN __attribute__((no_sanitize("thread")))

static WITH_AVX2 RACES_BY_DESIGN int scan_avx2(struct vi_cpu *cpu)
{
	const __m256i *area = (const __m256i *)(const void *)cpu->sint_flags,
		      zero = _mm256_setzero_si256();
	uint32_t empty = 0;

#pragma GCC unroll 8
	for (uint32_t i = 0; i < VI_SINT_WORDS / 4; i++) {
		__m256i equal = _mm256_cmpeq_epi64(_mm256_load_si256(&area[i]), zero);

		empty |= (uint32_t)_mm256_movemask_pd(_mm256_castsi256_pd(equal)) << (i * 4);
	}
	return scan_from_bmi(cpu, ~empty);
}

static WITH_AVX512 RACES_BY_DESIGN int scan_avx512(struct vi_cpu *cpu)
{
	uint32_t words = 0;

#pragma GCC unroll 4
	for (uint32_t i = 0; i < VI_SINT_WORDS / 8; i++) {
		__m512i v = _mm512_load_si512((const void *)&cpu->sint_flags[i * 8]);

		words |= (uint32_t)_mm512_test_epi64_mask(v, v) << (i * 8);
	}
	return scan_from_bmi(cpu, words);
}

static bool has_avx2(void)
{
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") &&
	       __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

uint32_t vi_simd_best(void)
{
	if (has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
	    __builtin_cpu_supports("avx512vl"))
		return VI_SIMD_AVX512;
	return has_avx2() ? VI_SIMD_AVX2 : VI_SIMD_SCALAR;
}

vi_scan_t vi_scan_variant(uint32_t simd)
{
	return simd == VI_SIMD_AVX512 ? scan_avx512 :
	       simd == VI_SIMD_AVX2   ? scan_avx2 :
					scan_scalar;
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
	int claimed;

	if (cpu >= m->nr_cpus)
		return -EINVAL;
	c = vi_cpu_of(m, cpu);
	if (!vi_irq_enter(c))
		return -EBUSY;
	claimed = m->scan(c);
	vi_irq_exit(c);
	return claimed;
}

uint64_t vi_scan_claim_word(struct vi_machine *m, uint32_t cpu, uint32_t word)
{
	return cpu < m->nr_cpus && word < VI_SINT_WORDS ? claim_word(vi_cpu_of(m, cpu), word) : 0;
}

int vi_scan_dispatch(struct vi_machine *m, uint32_t cpu, uint32_t relid)
{
	uint32_t others;
	struct vi_cpu *c;

	if (cpu >= m->nr_cpus || relid < VI_RELID_MIN || relid > VI_RELID_MAX)
		return -EINVAL;
	c = vi_cpu_of(m, cpu);
	if (!vi_irq_enter(c))
		return -EBUSY;
	others = dispatch_slot(c, &m->slot[relid]);
	(void)scan_end(c, 1, others);
	vi_irq_exit(c);
	return (int)(1 - others);
}

/* ---- the same, step by step ------------------------------------------------------------------ */

int vi_step_claim_word(struct vi_machine *m, uint32_t cpu, uint32_t from, uint64_t *bits)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);
	uint32_t word = from;

	if (!c)
		return -EINVAL;
	while (word < VI_SINT_WORDS && !(*bits = claim_word(c, word)))
		word++;
	return (int)word;
}

int vi_step_dispatch(struct vi_machine *m, uint32_t cpu, uint32_t relid)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);
	uint32_t others;

	if (!c || relid < VI_RELID_MIN || relid > VI_RELID_MAX)
		return -EINVAL;
	vi_step_begin(c);
	others = run_slot(c, &m->slot[relid], m->trace);
	count_in_sum(c, 1, others);
	vi_step_end(c);
	return (int)(1 - others);
}

int vi_step_scan_end(struct vi_machine *m, uint32_t cpu)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);

	if (!c)
		return -EINVAL;
	vi_step_begin(c);
	flush_batch(c);
	vi_step_end(c);
	return 0;
}
