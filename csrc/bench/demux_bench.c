/* SPDX-License-Identifier: MIT */
/*
 * demux_bench.c - timed loops over the demux hot path: one machine per contender, the same flags,
 * the same trivial callback.
 *
 * A group of event flag areas is filled while the clock is stopped and scanned while it runs, so
 * that neither the raising nor the forwarding of its stores into the scan's loads is measured. The
 * areas hold several patterns in turn: a branch predictor learns one pattern by heart, which no
 * real load would let it do. What is timed is the whole top level, vi_take_vector(), or with
 * scan_only the demultiplexer alone; taking and leaving the interrupt (vi_vcpu_run()), which is the
 * same for all contenders, is not.
 */
#define _GNU_SOURCE
#include "internals.h"

#include <time.h>

#define GROUP VI_DEMUX_PATTERNS_MAX	/* areas filled at a time: 16 KiB */
#define AREA_BYTES (VI_SINT_WORDS * sizeof(uint64_t))

struct pattern {
	uint64_t words[VI_SINT_WORDS];
	uint16_t relids[VI_RELIDS];
	uint64_t scans;
};

struct vi_demux_bench {
	struct vi_demux_config config;
	struct vi_machine *m;
	struct vi_cpu *cpu;
	struct vi_irqaction *actions;
	struct vi_irq_chip chip;
	uint64_t *areas;
	uint64_t *own_area;
	struct pattern *patterns;
	uint32_t next_pattern;
	uint64_t calls;			/* what the trivial callback adds to */
	uint8_t *cold;
	uint64_t cold_sum;
};

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void make_pattern(const struct vi_demux_config *config, uint64_t *random, struct pattern *p)
{
	uint32_t wanted = config->pending, n = 0;

	if (config->consecutive) {
		for (uint32_t relid = 1; relid <= wanted; relid++)
			p->words[relid / 64] |= 1ull << (relid % 64);
	} else {
		while (wanted) {
			uint32_t relid = 1 + (uint32_t)(vi_random(random) % VI_RELID_MAX);
			uint64_t bit = 1ull << (relid % 64);

			wanted -= !(p->words[relid / 64] & bit);
			p->words[relid / 64] |= bit;
		}
	}
	for (uint32_t relid = 1; relid <= VI_RELID_MAX; relid++)
		if (p->words[relid / 64] >> (relid % 64) & 1)
			p->relids[n++] = (uint16_t)relid;
}

static const struct vi_config *machine_config(const struct vi_demux_config *c,
					      struct vi_config *out)
{
	bool linux_engine = c->contender != VI_DEMUX_OURS && c->contender != VI_DEMUX_FLOOR;

	*out = (struct vi_config){
		.nr_cpus = 2,
		.nr_irqs_max = 24 + VI_RELIDS,
		.engine = linux_engine ? VI_ENGINE_LINUX : VI_ENGINE_FAST,
		.simd = c->simd,
		.arch = VI_ARCH_X86,
		.hyp_count = c->contender == VI_DEMUX_LEGACY ? VI_HYP_ALWAYS : VI_HYP_MESSAGE,
		.channel_irqs = c->contender != VI_DEMUX_LEGACY,
		.seed = c->seed,
	};
	return out;
}

/* Which flow handler a contender gives its channels. */
static uint32_t flow_of(uint32_t contender)
{
	switch (contender) {
	case VI_DEMUX_RFC_UNTRACKED:
		return VI_FLOW_UNTRACKED;
	case VI_DEMUX_RFC_PERCPU:
		return VI_FLOW_PERCPU;
	default:
		return VI_FLOW_SIMPLE;
	}
}

static int add_channel(struct vi_demux_bench *b, uint32_t relid)
{
	struct vi_irqaction *action = &b->actions[relid];
	uint32_t irq = b->m->channel_irqs ? 24 + relid : 0;
	struct vi_channel *ch;
	int result = vi_channel_create(b->m, relid, VI_CALL_ISR, &ch);

	if (result == 0 && irq) {
		result = vi_irq_alloc_desc(b->m, irq);
		if (result == 0)
			result = vi_irq_set_chip_and_flow(b->m, irq, &b->chip,
							  flow_of(b->config.contender));
		if (result == 0)
			result = vi_domain_map(b->m, relid, irq);
	}
	if (result == 0)
		result = vi_channel_map(ch, irq);
	if (result == 0 && irq) {
		vi_channel_bind_action(ch, action);
		result = vi_irq_add_action(b->m, irq, action);
		if (result == 0)
			result = vi_irq_startup(b->m, irq, 1);
	}
	if (result == 0)
		result = vi_channel_set_callback(ch, VI_CALLBACK_COUNT, NULL, &b->calls);
	return result;
}

/* The registers that a guest of VMBus sets. */
static int switch_synic_on(struct vi_machine *m)
{
	uint64_t sint = m->callback_vector | VI_SINT_AUTO_EOI;
	int result = vi_synic_set_sint(m, 0, VI_SINT_VMBUS, sint);

	if (result == 0)
		result = vi_synic_set_simp(m, 0, 1);
	if (result == 0)
		result = vi_synic_set_siefp(m, 0, 1);
	return result ? result : vi_synic_set_control(m, 0, 1);
}

int vi_demux_bench_create(const struct vi_demux_config *config, struct vi_demux_bench **out)
{
	uint64_t random = config->seed;
	struct vi_demux_bench *b;
	struct vi_config mc;
	int result;

	if (config->contender >= VI_DEMUX_CONTENDERS || config->pending > VI_RELID_MAX ||
	    config->patterns < 1 || config->patterns > VI_DEMUX_PATTERNS_MAX)
		return -EINVAL;
	b = calloc(1, sizeof(*b));
	if (!b)
		return -ENOMEM;
	b->config = *config;
	b->chip.ops = VI_CHIP_MASK | VI_CHIP_UNMASK;
	b->areas = aligned_alloc(VI_LINE, GROUP * AREA_BYTES);
	b->patterns = calloc(config->patterns, sizeof(*b->patterns));
	b->actions = aligned_alloc(VI_LINE, VI_RELIDS * sizeof(*b->actions));
	if (config->cold_bytes)
		b->cold = calloc(1, config->cold_bytes);
	if (!b->areas || !b->patterns || !b->actions || (config->cold_bytes && !b->cold)) {
		vi_demux_bench_destroy(b);
		return -ENOMEM;
	}
	memset(b->actions, 0, VI_RELIDS * sizeof(*b->actions));
	memset(b->areas, 0, GROUP * AREA_BYTES);
	for (uint32_t i = 0; i < config->patterns; i++)
		make_pattern(config, &random, &b->patterns[i]);
	result = vi_machine_create(machine_config(config, &mc), &b->m);
	if (result == 0) {
		b->cpu = vi_cpu_of(b->m, 0);
		b->own_area = b->cpu->sint_flags;
		b->m->skip_entropy = config->contender == VI_DEMUX_RFC_NO_ENTROPY;
		result = switch_synic_on(b->m);
	}
	for (uint32_t relid = 1; result == 0 && relid <= VI_RELID_MAX; relid++)
		result = add_channel(b, relid);
	if (result < 0) {
		vi_demux_bench_destroy(b);
		return result;
	}
	*out = b;
	return 0;
}

void vi_demux_bench_destroy(struct vi_demux_bench *b)
{
	if (!b)
		return;
	if (b->m) {
		for (uint32_t relid = 1; relid <= VI_RELID_MAX; relid++) {
			struct vi_channel *ch = b->m->channel[relid];

			if (ch)
				(void)!vi_channel_set_callback(ch, VI_CALLBACK_NONE, NULL, NULL);
		}
		b->cpu->sint_flags = b->own_area;
	}
	vi_machine_destroy(b->m);
	free(b->areas);
	free(b->patterns);
	free(b->actions);
	free(b->cold);
	free(b);
}

/* The floor: somebody hands over the list, and all that is left are the calls and the counters. */
static __attribute__((noinline)) void calls_only(struct vi_demux_bench *b, const uint16_t *relids)
{
	struct vi_irq_slot *slots = b->m->slot;

	for (uint32_t i = 0; i < b->config.pending; i++) {
		const struct vi_irq_slot *slot = &slots[relids[i]];

		slot->handler(b->cpu, slot->irq, slot->dev_id);
		vi_count(&b->cpu->kstat[slot->irq], 1);
	}
}

static void evict(struct vi_demux_bench *b)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < b->config.cold_bytes; i += VI_LINE)
		sum += b->cold[i]++;
	b->cold_sum += sum;
}

static struct pattern *take_pattern(struct vi_demux_bench *b)
{
	struct pattern *p = &b->patterns[b->next_pattern];

	b->next_pattern = (b->next_pattern + 1) % b->config.patterns;
	return p;
}

static void scan_group(struct vi_demux_bench *b, struct pattern *const *patterns, uint32_t areas)
{
	for (uint32_t i = 0; i < areas; i++) {
		b->cpu->sint_flags = b->areas + i * VI_SINT_WORDS;
		if (b->config.contender == VI_DEMUX_FLOOR)
			calls_only(b, patterns[i]->relids);
		else if (b->config.scan_only)
			b->m->scan(b->cpu);
		else
			vi_take_vector(b->cpu);
	}
}

int vi_demux_bench_run(struct vi_demux_bench *b, uint32_t scans, uint64_t *ns)
{
	struct pattern *patterns[GROUP];
	int64_t total = 0;
	uint32_t group;

	for (uint32_t done = 0; done < scans; done += group) {
		uint64_t start, clock;

		group = b->cold ? 1 : scans - done < GROUP ? scans - done : GROUP;
		for (uint32_t i = 0; i < group; i++) {
			patterns[i] = take_pattern(b);
			patterns[i]->scans++;
			memcpy(b->areas + i * VI_SINT_WORDS, patterns[i]->words, AREA_BYTES);
		}
		if (b->cold)
			evict(b);
		VI_BUG_ON(!vi_irq_enter(b->cpu));
		clock = now_ns();
		start = now_ns();
		scan_group(b, patterns, group);
		/* less the clock's cost */
		total += (int64_t)(now_ns() - start) - (int64_t)(start - clock);
		vi_irq_exit(b->cpu);
	}
	*ns = total > 0 ? (uint64_t)total : 0;
	return (int)scans;
}

int vi_demux_bench_locked(uint32_t n, uint64_t *ns)
{
	uint64_t words[VI_SINT_WORDS] = { 0 }, start;

	if (!n)
		return -EINVAL;
	start = now_ns();
	for (uint32_t i = 0; i < n; i++)
		(void)__atomic_fetch_and(&words[i % VI_SINT_WORDS], ~1ull, __ATOMIC_SEQ_CST);
	*ns = now_ns() - start;
	return 0;
}

int vi_demux_bench_verify(struct vi_demux_bench *b)
{
	uint32_t contender = b->config.contender;
	bool no_stats = contender == VI_DEMUX_RFC_UNTRACKED || contender == VI_DEMUX_LEGACY;
	uint64_t all = 0;
	int wrong = 0;

	for (uint32_t relid = 1; relid <= VI_RELID_MAX; relid++) {
		struct vi_channel *ch = b->m->channel[relid];
		uint32_t irqs = vi_load_relaxed(&b->cpu->kstat[ch->column]);
		uint32_t counted = no_stats ? (uint32_t)ch->interrupts : irqs;
		uint64_t raised = 0;

		for (uint32_t i = 0; i < b->config.patterns; i++)
			if (b->patterns[i].words[relid / 64] >> (relid % 64) & 1)
				raised += b->patterns[i].scans;
		wrong += counted != (uint32_t)raised;
		all += raised;
	}
	return wrong + (b->calls != all);
}
