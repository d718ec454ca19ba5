/* SPDX-License-Identifier: MIT */
/*
 * test_demux.c - the scanner at every vector level, the linux engine, and a naive model of what
 * each flag must do, on random flags.
 *
 * 	test_demux [scans]
 *
 * Flags fall on every kind of relid at once: flag 0, unmapped, disabled, rescinded, closed, owned
 * by another CPU, batched, refused by its handler. Prints one line per failed check and exits 1.
 */
#include <stdio.h>

#include "internals.h"
#include "synic.h"

#define SCANS 300
#define FIRST_IRQ 24
#define RIG_CPUS 3

static int failures;

#define CHECK(expected, actual) check(__LINE__, #actual, (long long)(expected), (long long)(actual))

static void check(int line, const char *what, long long expected, long long actual)
{
	if (expected == actual)
		return;
	failures++;
	fprintf(stderr, "test_demux.c:%d: %s is %lld, not %lld\n", line, what, actual, expected);
}

/* ---- who is behind a relid ------------------------------------------------------------------- */

enum kind { UNMAPPED, OPEN, CLOSED, RESCINDED, DISABLED, ELSEWHERE, REFUSED, BATCHED, KINDS };

static enum kind kind_of(uint32_t relid, bool irqs)
{
	static const enum kind kinds[] = { OPEN,    OPEN,      UNMAPPED, OPEN, CLOSED,
					   OPEN,    RESCINDED, DISABLED, OPEN, ELSEWHERE,
					   REFUSED, OPEN,      BATCHED };
	enum kind kind = kinds[relid * 7 % (sizeof(kinds) / sizeof(kinds[0]))];

	if (!irqs && (kind == DISABLED || kind == REFUSED || kind == BATCHED))
		return OPEN;	/* design legacy: there is no IRQ to do that to */
	return kind;
}

struct rig {
	struct vi_machine *m;
	bool irqs;
	struct vi_irq_chip chip;
	struct vi_irqaction actions[VI_RELIDS];
	struct vi_channel *channels[VI_RELIDS];
	uint64_t calls;		/* of open channels */
	uint64_t refusals;
	uint64_t batched;
	/* the model */
	uint32_t counted[VI_RELIDS];
	bool pending[VI_RELIDS];
	uint64_t arrived[KINDS];
	uint64_t flag_zero;
};

static uint32_t refuse(struct vi_cpu *cpu, uint32_t irq, void *dev_id)
{
	struct rig *rig = dev_id;

	(void)cpu;
	(void)irq;
	rig->refusals++;
	return VI_IRQ_NONE;
}

static uint32_t count_batched(struct vi_cpu *cpu, uint32_t irq, void *dev_id)
{
	struct rig *rig = dev_id;

	(void)cpu;
	(void)irq;
	rig->batched++;
	return VI_IRQ_HANDLED;
}

static void batch(struct vi_cpu *cpu, uint32_t n, const uint32_t *irqs, uint32_t *results)
{
	struct rig *rig = vi_cpu_owner(cpu);

	for (uint32_t i = 0; i < n; i++) {
		CHECK(BATCHED, kind_of(irqs[i] - FIRST_IRQ, true));
		rig->batched++;
		results[i] = VI_IRQ_HANDLED;
	}
}

static uint32_t make_irq(struct rig *rig, uint32_t relid)
{
	uint32_t irq = FIRST_IRQ + relid;

	CHECK(0, vi_irq_alloc_desc(rig->m, irq));
	CHECK(0, vi_irq_set_chip_and_flow(rig->m, irq, &rig->chip, VI_FLOW_SIMPLE));
	CHECK(0, vi_domain_map(rig->m, relid, irq));
	return irq;
}

static void make_channel(struct rig *rig, uint32_t relid, enum kind kind)
{
	uint32_t irq = rig->irqs ? make_irq(rig, relid) : 0;
	struct vi_channel *ch;

	CHECK(0, vi_channel_create(rig->m, relid, VI_CALL_ISR, &ch));
	rig->channels[relid] = ch;
	CHECK(0, vi_channel_map(ch, irq));
	if (irq) {
		vi_channel_bind_action(ch, &rig->actions[relid]);
		CHECK(0, vi_irq_add_action(rig->m, irq, &rig->actions[relid]));
		CHECK(0, vi_irq_startup(rig->m, irq, 1));
	}
	if (kind != CLOSED)
		CHECK(0, vi_channel_set_callback(ch, VI_CALLBACK_COUNT, NULL, &rig->calls));
	if (kind == ELSEWHERE)
		CHECK(0, vi_channel_set_cpu(ch, 1 + relid % (RIG_CPUS - 1)));
	if (kind == RESCINDED)
		vi_channel_set_rescind(ch, 1);
	if (kind == DISABLED)
		CHECK(1, vi_irq_disable(rig->m, irq));
}

static void make_action(struct rig *rig, uint32_t relid, enum kind kind)
{
	struct vi_irqaction *action = &rig->actions[relid];
	uint32_t irq = make_irq(rig, relid);

	action->handler = kind == REFUSED ? refuse : count_batched;
	action->batched = kind == BATCHED;
	action->dev_id = rig;
	CHECK(0, vi_irq_add_action(rig->m, irq, action));
	CHECK(0, vi_irq_startup(rig->m, irq, 1));
}

static struct rig *make_rig(uint32_t engine, uint32_t simd, bool irqs)
{
	const struct vi_config config = {
		.nr_cpus = RIG_CPUS,
		.nr_irqs_max = FIRST_IRQ + VI_RELIDS,
		.engine = engine,
		.simd = simd,
		.arch = VI_ARCH_X86,
		.hyp_count = VI_HYP_MESSAGE,
		.channel_irqs = irqs,
		.seed = 1,
	};
	const struct vi_hooks hooks = { .batch = batch };
	struct rig *rig = calloc(1, sizeof(*rig));

	if (!rig || vi_machine_create(&config, &rig->m) < 0)
		abort();
	rig->irqs = irqs;
	rig->chip.ops = VI_CHIP_MASK | VI_CHIP_UNMASK;
	vi_machine_set_hooks(rig->m, &hooks);
	vi_machine_set_owner(rig->m, rig);
	CHECK(0, switch_synic(rig->m, 0, 1));
	for (uint32_t relid = 1; relid < VI_RELIDS; relid++) {
		enum kind kind = kind_of(relid, irqs);

		if (kind == REFUSED || kind == BATCHED)
			make_action(rig, relid, kind);
		else if (kind != UNMAPPED)
			make_channel(rig, relid, kind);
	}
	return rig;
}

static void drop_rig(struct rig *rig)
{
	for (uint32_t relid = 1; relid < VI_RELIDS; relid++)
		if (rig->channels[relid])
			CHECK(0, vi_channel_set_callback(rig->channels[relid], VI_CALLBACK_NONE,
							 NULL, NULL));
	vi_machine_destroy(rig->m);
	free(rig);
}

/* ---- flags ----------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t *state)
{
	uint64_t x = (*state += 0x9e3779b97f4a7c15u);

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/*
 * Every path of the scanner: no flag, one, several in one word, in one pair, scattered, in nearly
 * every word, all.
 */
static void make_flags(uint64_t *state, uint32_t scan, uint64_t flags[VI_SINT_WORDS])
{
	static const uint32_t amounts[] = { 0, 1, 2, 5, 12, 40, 90, 300, 1500 };
	uint32_t n = amounts[scan % 9], first = 0, span = VI_SINT_FLAGS;

	memset(flags, 0, VI_SINT_WORDS * sizeof(*flags));
	if (scan % 4 == 1) {
		span = scan % 8 == 1 ? 64 : 128;
		first = (uint32_t)(mix(state) % (VI_SINT_FLAGS / span)) * span;
	}
	for (uint32_t i = 0; i < n; i++) {
		uint32_t flag = first + (uint32_t)(mix(state) % span);

		flags[flag / 64] |= 1ull << (flag % 64);
	}
	if (scan % 50 == 49)
		memset(flags, 0xff, VI_SINT_WORDS * sizeof(*flags));
}

/* What the flags must do. Return: how many are claimed. */
static int model(struct rig *rig, const uint64_t flags[VI_SINT_WORDS])
{
	int claimed = 0;

	rig->flag_zero += flags[0] & 1;
	for (uint32_t relid = 1; relid < VI_RELIDS; relid++) {
		enum kind kind = kind_of(relid, rig->irqs);

		if (!(flags[relid / 64] >> (relid % 64) & 1))
			continue;
		claimed++;
		rig->arrived[kind]++;
		if (kind == DISABLED)
			rig->pending[relid] = true;
		else if (kind != UNMAPPED && kind != RESCINDED)
			rig->counted[relid]++;
	}
	return claimed;
}

static void raise_and_scan(struct rig *rig, uint32_t scan, const uint64_t flags[VI_SINT_WORDS])
{
	const uint64_t *area = vi_synic_flags(rig->m, 0, VI_SINT_VMBUS);
	int claimed = model(rig, flags);
	uint64_t left = 0;

	for (uint32_t flag = 0; flag < VI_SINT_FLAGS; flag++)
		if (flags[flag / 64] >> (flag % 64) & 1)
			CHECK(1, vi_synic_signal(rig->m, 0, VI_SINT_VMBUS, flag));
	if (scan % 2)
		CHECK(claimed, vi_scan(rig->m, 0));
	while (vi_vcpu_run(rig->m, 0))
		;
	for (uint32_t word = 0; word < VI_SINT_WORDS; word++)
		left |= area[word];
	CHECK(0, left);
}

/* ---- what must be true afterwards ------------------------------------------------------------ */

static void check_counts(struct rig *rig)
{
	uint64_t sum = 0;
	struct vi_counters counters;

	vi_machine_counters(rig->m, &counters);
	for (uint32_t relid = 1; relid < VI_RELIDS; relid++) {
		uint32_t column = rig->irqs ? FIRST_IRQ + relid : 0;
		struct vi_channel *ch = rig->channels[relid];
		struct vi_channel_stats stats;

		for (uint32_t cpu = 0; rig->irqs && cpu < RIG_CPUS; cpu++)
			CHECK(cpu ? 0 : rig->counted[relid],
			      counters.irq[cpu * counters.irq_stride + column]);
		sum += rig->irqs ? rig->counted[relid] : 0;
		if (!ch)
			continue;
		vi_channel_get_stats(ch, &stats);
		CHECK(rig->counted[relid], stats.interrupts + stats.no_callback);
	}
	CHECK(sum, counters.irqs_sum[0]);
}

static void check_rig(struct rig *rig)
{
	const uint64_t *arrived = rig->arrived;
	struct vi_lost lost;

	vi_machine_lost(rig->m, &lost);
	CHECK(arrived[UNMAPPED], lost.unmapped);
	CHECK(rig->flag_zero, lost.flag_zero);
	CHECK(arrived[RESCINDED], lost.rescinded);
	CHECK(arrived[CLOSED], lost.no_callback);
	CHECK(0, lost.in_progress);
	CHECK(arrived[OPEN] + arrived[ELSEWHERE], rig->calls);
	CHECK(arrived[REFUSED], rig->refusals);
	CHECK(arrived[BATCHED], rig->batched);
	check_counts(rig);
}

/* However often a disabled IRQ was raised, enabling it replays one arrival, on the boot CPU. */
static void enable_all(struct rig *rig)
{
	for (uint32_t relid = 1; relid < VI_RELIDS; relid++) {
		if (kind_of(relid, rig->irqs) != DISABLED)
			continue;
		CHECK(0, vi_irq_enable(rig->m, FIRST_IRQ + relid));
		rig->counted[relid] += rig->pending[relid];
		rig->arrived[OPEN] += rig->pending[relid];
	}
	CHECK(true, vi_machine_settle(rig->m) >= 0);
	check_rig(rig);
}

static void run_rig(uint32_t engine, uint32_t simd, bool irqs, uint32_t scans)
{
	struct rig *rig = make_rig(engine, simd, irqs);
	uint64_t state = 7, flags[VI_SINT_WORDS];

	for (uint32_t scan = 0; scan < scans; scan++) {
		make_flags(&state, scan, flags);
		raise_and_scan(rig, scan, flags);
	}
	check_rig(rig);
	enable_all(rig);
	drop_rig(rig);
}

int main(int argc, char **argv)
{
	uint32_t scans = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : SCANS;

	for (int irqs = 0; irqs < 2; irqs++) {
		for (uint32_t simd = VI_SIMD_SCALAR; simd <= vi_simd_best(); simd++)
			run_rig(VI_ENGINE_FAST, simd, irqs, scans);
		run_rig(VI_ENGINE_LINUX, VI_SIMD_SCALAR, irqs, scans);
	}
	if (failures)
		fprintf(stderr, "test_demux: %d checks failed\n", failures);
	return failures != 0;
}
