/* SPDX-License-Identifier: MIT */
/*
 * entropy.c - what add_interrupt_randomness() costs: one cycle counter read and two mixing rounds
 * into a per-CPU pool, per call (drivers/char/random.c, v6.10). Nothing is ever drawn from the
 * pool; it exists so that the linux engine pays what Linux pays.
 */
#include "internals.h"

static inline uint64_t cycles(void)
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#else
	return 0;
#endif
}

static inline uint64_t rotate(uint64_t x, uint32_t n)
{
	return x << n | x >> (64 - n);
}

/* one SipHash round */
static inline void sip_round(uint64_t v[4])
{
	v[0] += v[1];
	v[1] = rotate(v[1], 13) ^ v[0];
	v[0] = rotate(v[0], 32);
	v[2] += v[3];
	v[3] = rotate(v[3], 16) ^ v[2];
	v[0] += v[3];
	v[3] = rotate(v[3], 21) ^ v[0];
	v[2] += v[1];
	v[1] = rotate(v[1], 17) ^ v[2];
	v[2] = rotate(v[2], 32);
}

static void mix(uint64_t s[4], uint64_t a, uint64_t b)
{
	s[3] ^= a;
	sip_round(s);
	s[0] ^= a;
	s[3] ^= b;
	sip_round(s);
	s[0] ^= b;
}

__attribute__((noinline)) void vi_lx_add_interrupt_randomness(struct vi_cpu *cpu, uint32_t irq)
{
	struct vi_lx_fast_pool *pool = &cpu->fast_pool;
	uint64_t swapped = __builtin_bswap32(irq);

	mix(pool->state, cycles(),
	    (uint64_t)(uintptr_t)__builtin_return_address(0) ^ swapped << 32);
	if (++pool->count < 1024 && vi_load_relaxed(&cpu->m->time_ms) < pool->last + 1000)
		return;
	pool->count = 0;
	pool->last = vi_load_relaxed(&cpu->m->time_ms);
}
