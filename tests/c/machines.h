/* SPDX-License-Identifier: MIT */
/*
 * machines.h - machines of every shape with every kind of channel, random work for them, and their
 * whole state as bytes, for programs that compare two ways from one state.
 *
 * A failed check prints one line and is counted in failures.
 */
#ifndef TESTS_MACHINES_H
#define TESTS_MACHINES_H

#include <stdio.h>

#include "internals.h"
#include "synic.h"

#define CPUS 3
#define IRQS 64
#define FIRST_IRQ 24
#define MESSAGE_IRQ 20
#define TOPLEVEL_IRQ 21
#define WORK_IRQ 22
#define CHANNELS 10
#define RING_BYTES 8192
#define CONNECTION 77

static int failures;

#define CHECK(expected, actual) \
	check(__FILE__, __LINE__, #actual, (long long)(expected), (long long)(actual))

static void check(const char *file, int line, const char *what, long long expected,
		  long long actual)
{
	if (expected == actual)
		return;
	failures++;
	fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", file, line, what, actual, expected);
}

/* ---- a machine with every kind of channel ---------------------------------------------------- */

struct kind {
	uint32_t relid;
	uint32_t mode;
	uint32_t callback;
	uint32_t cpu;
};

static const struct kind kinds[CHANNELS] = {
	{ 1, VI_CALL_BATCHED, VI_CALLBACK_DRAIN, 0 },
	{ 2, VI_CALL_DIRECT, VI_CALLBACK_DRAIN, 0 },
	{ 3, VI_CALL_ISR, VI_CALLBACK_NAPI, 0 },
	{ 63, VI_CALL_ISR, VI_CALLBACK_COUNT, 0 },
	{ 64, VI_CALL_BATCHED, VI_CALLBACK_HOOK, 1 },
	{ 65, VI_CALL_BATCHED, VI_CALLBACK_NONE, 1 },
	{ 66, VI_CALL_ISR, VI_CALLBACK_NAPI, 1 },
	{ 500, VI_CALL_BATCHED, VI_CALLBACK_DRAIN, 2 },
	{ 501, VI_CALL_ISR, VI_CALLBACK_HOOK, 2 },
	{ 2047, VI_CALL_DIRECT, VI_CALLBACK_DRAIN, 2 },
};

/* What a machine looks like: every combination is one run. */
struct shape {
	uint32_t engine;
	uint32_t arch;
	uint32_t hyp_count;
	uint32_t toplevel_flow;		/* arm64 */
	uint32_t channel_irqs;
	uint32_t message_irq;
	uint32_t replay;
	uint32_t redirect;
};

/* Memory beside the machine, saved with it by the test. */
struct beside {
	uint64_t calls;
	uint64_t messages;
	uint64_t ticks;
	uint64_t sums;
	struct vi_ring_writer host[CHANNELS];
	uint8_t rings[CHANNELS][2][RING_BYTES];
};

struct rig {
	struct shape shape;
	struct vi_machine *m;
	struct vi_irq_chip chip;
	struct vi_irqaction actions[CHANNELS], message, toplevel, ipi;
	struct vi_channel *ch[CHANNELS];
	struct vi_ring_mem mem[CHANNELS][2];
	struct beside now;
	uint64_t state;
	uint64_t bytes;
};

static struct rig *rig_of(struct vi_cpu *cpu)
{
	return vi_cpu_owner(cpu);
}

static uint32_t hook(struct vi_cpu *cpu, uint32_t irq, void *context)
{
	struct vi_channel *ch = context;
	struct vi_ring_tally tally = { 0 };

	(void)irq;
	CHECK(true, vi_inside_interrupt(rig_of(cpu)->m));
	CHECK(-EDEADLK, vi_channel_set_callback(ch, VI_CALLBACK_NONE, NULL, NULL));
	(void)!vi_ring_drain(vi_channel_in(ch), UINT32_MAX, &tally);
	rig_of(cpu)->now.calls += tally.packets + 1;
	return VI_IRQ_HANDLED;
}

static void on_message(struct vi_cpu *cpu, const struct vi_message *message)
{
	rig_of(cpu)->now.messages += message->origin + 1;
}

static void on_stimer(struct vi_cpu *cpu, const struct vi_message *message)
{
	rig_of(cpu)->now.ticks += message->type == VI_MSG_TIMER_EXPIRED;
}

static void batch(struct vi_cpu *cpu, uint32_t n, const uint32_t *irqs, uint32_t *results)
{
	for (uint32_t i = 0; i < n; i++) {
		rig_of(cpu)->now.sums += irqs[i];
		results[i] = i % 2 ? VI_IRQ_NONE : VI_IRQ_HANDLED;
	}
}

static void add_irq(struct rig *rig, uint32_t irq, uint32_t flow, struct vi_irqaction *action)
{
	if (!vi_irq_to_desc(rig->m, irq))
		CHECK(0, vi_irq_alloc_desc(rig->m, irq));
	CHECK(0, vi_irq_set_chip_and_flow(rig->m, irq, &rig->chip, flow));
	CHECK(0, vi_irq_add_action(rig->m, irq, action));
	CHECK(0, vi_irq_startup(rig->m, irq, 1));
}

/* Where a channel's IRQ runs at once, and first of all. */
static void set_effective(struct rig *rig, uint32_t i, uint64_t mask)
{
	const uint64_t words[VI_CPU_WORDS] = { mask };

	CHECK(0, vi_irq_set_effective(rig->m, FIRST_IRQ + i, words,
				      (uint32_t)__builtin_ctzll(mask)));
}

static void make_channel(struct rig *rig, uint32_t i)
{
	const struct kind *kind = &kinds[i];
	const uint32_t irq = rig->shape.channel_irqs ? FIRST_IRQ + i : 0;
	struct vi_channel *ch;

	for (uint32_t way = 0; way < 2; way++) {
		CHECK(0, vi_ring_mem_create(RING_BYTES, &rig->mem[i][way]));
		vi_ring_reset(&rig->mem[i][way]);
	}
	CHECK(0, vi_channel_create(rig->m, kind->relid, kind->mode, &ch));
	rig->ch[i] = ch;
	if (irq) {
		CHECK(0, vi_irq_alloc_desc(rig->m, irq));
		CHECK(0, vi_domain_map(rig->m, kind->relid, irq));
		vi_irq_to_desc(rig->m, irq)->replay |= rig->shape.replay;
	}
	CHECK(0, vi_channel_map(ch, irq));
	if (irq) {
		vi_channel_bind_action(ch, &rig->actions[i]);
		rig->actions[i].batched = i == 3 && rig->shape.engine == VI_ENGINE_FAST;
		add_irq(rig, irq, VI_FLOW_SIMPLE, &rig->actions[i]);
	}
	CHECK(0, vi_channel_set_cpu(ch, kind->cpu));
	if (rig->shape.redirect)
		set_effective(rig, i, 1ull << (i % CPUS));
	CHECK(0, vi_channel_set_rings(ch, &rig->mem[i][0], &rig->mem[i][1], 4096));
	CHECK(0, vi_channel_set_signal(ch, CONNECTION, NULL, NULL, 0));
	CHECK(0, vi_ring_writer_init(&rig->now.host[i], &rig->mem[i][0], VI_RING_STRICT));
	CHECK(0, vi_channel_set_callback(ch, kind->callback, hook,
					 kind->callback == VI_CALLBACK_COUNT ?
						 (void *)&rig->now.calls :
						 (void *)ch));
}

static struct rig *make_rig(const struct shape *shape)
{
	const struct vi_config config = {
		.nr_cpus = CPUS,
		.nr_irqs_max = IRQS,
		.engine = shape->engine,
		.simd = VI_SIMD_SCALAR,
		.arch = shape->arch,
		.hyp_count = shape->hyp_count,
		.channel_irqs = shape->channel_irqs,
		.redirect = shape->redirect,
		.seed = 1,
	};
	const struct vi_hooks hooks = {
		.batch = batch,
		.message = on_message,
		.stimer = on_stimer,
	};
	struct rig *rig = calloc(1, sizeof(*rig));

	if (!rig || vi_machine_create(&config, &rig->m) < 0)
		abort();
	rig->shape = *shape;
	rig->chip.ops = VI_CHIP_MASK | VI_CHIP_UNMASK;
	rig->state = 5;
	vi_machine_set_hooks(rig->m, &hooks);
	vi_machine_set_owner(rig->m, rig);
	for (uint32_t cpu = 0; cpu < CPUS; cpu++)
		CHECK(0, switch_synic(rig->m, cpu, 1));
	CHECK(0, vi_connect_event(rig->m, CONNECTION, 3));
	if (shape->message_irq) {
		rig->message.handler = vi_handler_message();
		add_irq(rig, MESSAGE_IRQ, VI_FLOW_SIMPLE, &rig->message);
		CHECK(0, vi_machine_set_message_irq(rig->m, MESSAGE_IRQ));
	}
	if (shape->arch == VI_ARCH_ARM64) {
		rig->toplevel.handler = vi_handler_percpu_isr();
		add_irq(rig, TOPLEVEL_IRQ, shape->toplevel_flow, &rig->toplevel);
		CHECK(0, vi_machine_set_toplevel_irq(rig->m, TOPLEVEL_IRQ));
	}
	if (shape->arch == VI_ARCH_ARM64 && shape->redirect) {
		rig->ipi.handler = vi_handler_always_handled();
		add_irq(rig, WORK_IRQ, VI_FLOW_PERCPU_DEVID, &rig->ipi);
		CHECK(0, vi_machine_set_irq_work_irq(rig->m, WORK_IRQ));
	}
	for (uint32_t i = 0; i < CHANNELS; i++)
		make_channel(rig, i);
	return rig;
}

static void drop_rig(struct rig *rig)
{
	for (uint32_t i = 0; i < CHANNELS; i++) {
		CHECK(0, vi_channel_set_callback(rig->ch[i], VI_CALLBACK_NONE, NULL, NULL));
		CHECK(0, vi_channel_set_rings(rig->ch[i], NULL, NULL, 0));
	}
	vi_machine_destroy(rig->m);
	for (uint32_t i = 0; i < CHANNELS; i++) {
		vi_ring_mem_destroy(&rig->mem[i][0]);
		vi_ring_mem_destroy(&rig->mem[i][1]);
	}
	free(rig);
}

/* ---- all of it, as bytes --------------------------------------------------------------------- */

struct snapshot {
	uint64_t bytes;
	struct beside beside;
	struct vi_irqaction actions[CHANNELS];
	uint8_t *image;
};

static void save(struct rig *rig, struct snapshot *s)
{
	int64_t bytes = vi_machine_save(rig->m, NULL, 0);

	for (uint32_t cpu = 0; cpu < CPUS; cpu++) {
		/* an entropy sample has the clock in it; how many there were is state */
		memset(vi_cpu_of(rig->m, cpu)->fast_pool.state, 0,
		       sizeof(vi_cpu_of(rig->m, cpu)->fast_pool.state));
	}

	CHECK(true, bytes > 0);
	memset(s, 0, sizeof(*s));
	s->bytes = (uint64_t)bytes;
	s->image = malloc(s->bytes);
	if (!s->image)
		abort();
	CHECK(-ENOSPC, vi_machine_save(rig->m, s->image, s->bytes - 1));
	CHECK(bytes, vi_machine_save(rig->m, s->image, s->bytes));
	s->beside = rig->now;
	memcpy(s->actions, rig->actions, sizeof(s->actions));
	for (uint32_t i = 0; i < CHANNELS; i++)
		for (uint32_t way = 0; way < 2; way++)
			memcpy(s->beside.rings[i][way], rig->mem[i][way].hdr, RING_BYTES);
}

static void restore(struct rig *rig, const struct snapshot *s)
{
	CHECK(0, vi_machine_restore(rig->m, s->image, s->bytes));
	rig->now = s->beside;
	memcpy(rig->actions, s->actions, sizeof(s->actions));
	for (uint32_t i = 0; i < CHANNELS; i++)
		for (uint32_t way = 0; way < 2; way++)
			memcpy(rig->mem[i][way].hdr, s->beside.rings[i][way], RING_BYTES);
}

static void check_same(const char *file, int line, const struct snapshot *a,
		       const struct snapshot *b)
{
	check(file, line, "size of the image", (long long)a->bytes, (long long)b->bytes);
	if (a->bytes != b->bytes)
		return;
	for (uint64_t i = 0; i < a->bytes; i++)
		if (a->image[i] != b->image[i]) {
			check(file, line, "first byte that differs", -1, (long long)i);
			break;
		}
	check(file, line, "rings and calls", 0, memcmp(&a->beside, &b->beside, sizeof(a->beside)));
}

#define CHECK_SAME(a, b) check_same(__FILE__, __LINE__, (a), (b))

static void drop(struct snapshot *s)
{
	free(s->image);
}

/* ---- random work ----------------------------------------------------------------------------- */

static uint32_t draw(struct rig *rig, uint32_t n)
{
	return (uint32_t)(vi_random(&rig->state) % n);
}

static void write_packets(struct rig *rig, uint32_t i)
{
	const uint32_t cpu = draw(rig, 4) ? rig->ch[i]->target_cpu : draw(rig, CPUS);
	const uint64_t payload = rig->state;
	int signal = 0;

	for (uint32_t n = draw(rig, 90); n; n--)
		signal |= vi_ring_write(&rig->now.host[i], VI_PKT_DATA_INBAND, 0, n, &payload,
					sizeof(payload)) == 1;
	if (signal || !draw(rig, 3))
		(void)!vi_synic_signal(rig->m, cpu, VI_SINT_VMBUS, kinds[i].relid);
}

static void change_irq(struct rig *rig, uint32_t i)
{
	const uint32_t irq = FIRST_IRQ + i;

	if (!rig->shape.channel_irqs)
		return;
	if (vi_irq_to_desc(rig->m, irq)->depth)
		CHECK(true, vi_irq_enable(rig->m, irq) >= 0);
	else
		CHECK(1, vi_irq_disable(rig->m, irq));
}

static void work(struct rig *rig)
{
	const uint32_t i = draw(rig, CHANNELS), cpu = draw(rig, CPUS);
	const uint64_t vectored = VI_VECTOR_CALLBACK | (draw(rig, 2) ? VI_SINT_AUTO_EOI : 0);

	switch (draw(rig, 12)) {
	case 0:
		(void)!vi_synic_signal(rig->m, cpu, VI_SINT_VMBUS, draw(rig, 8) ? 700 : 0);
		break;
	case 1:
		(void)!vi_synic_post(rig->m, cpu, VI_SINT_VMBUS, VI_MSG_VMBUS, NULL, 0);
		break;
	case 2:
		(void)!vi_synic_post(rig->m, cpu, VI_SINT_VMBUS, VI_MSG_TIMER_EXPIRED, NULL, 0);
		break;
	case 3:
		change_irq(rig, i);
		break;
	case 4:
		CHECK(0, vi_channel_set_cpu(rig->ch[i], cpu));
		if (rig->shape.redirect)
			set_effective(rig, i, 1 + draw(rig, (1 << CPUS) - 1));
		break;
	case 5:
		CHECK(0, vi_lapic_hold(rig->m, cpu, draw(rig, 3) == 0));
		break;
	case 6:
		vi_channel_set_rescind(rig->ch[i], draw(rig, 4) == 0);
		break;
	case 7:
		if (rig->shape.arch == VI_ARCH_X86)
			CHECK(0, vi_synic_set_sint(rig->m, cpu, VI_SINT_VMBUS, vectored));
		break;
	default:
		write_packets(rig, i);
	}
}

static const struct shape shapes[] = {
	{ VI_ENGINE_LINUX, VI_ARCH_X86, VI_HYP_MESSAGE, 0, 1, 0, 0, 0 },
	{ VI_ENGINE_LINUX, VI_ARCH_X86, VI_HYP_ALWAYS, 0, 0, 0, 0, 0 },
	{ VI_ENGINE_LINUX, VI_ARCH_X86, VI_HYP_NEVER, 0, 1, 1, 1, 0 },
	{ VI_ENGINE_LINUX, VI_ARCH_ARM64, VI_HYP_NEVER, VI_FLOW_PERCPU_DEVID, 1, 0, 0, 0 },
	{ VI_ENGINE_LINUX, VI_ARCH_ARM64, VI_HYP_NEVER, VI_FLOW_PERCPU, 1, 0, 0, 0 },
	{ VI_ENGINE_FAST, VI_ARCH_X86, VI_HYP_MESSAGE, 0, 1, 0, 0, 0 },
	{ VI_ENGINE_FAST, VI_ARCH_X86, VI_HYP_ALWAYS, 0, 0, 0, 0, 0 },
	{ VI_ENGINE_FAST, VI_ARCH_X86, VI_HYP_NEVER, 0, 1, 1, 0, 0 },
	{ VI_ENGINE_FAST, VI_ARCH_ARM64, VI_HYP_NEVER, VI_FLOW_PERCPU_DEMUX, 1, 0, 0, 0 },
	{ VI_ENGINE_FAST, VI_ARCH_ARM64, VI_HYP_NEVER, VI_FLOW_PERCPU_NOSTAT, 1, 1, 0, 0 },
	{ VI_ENGINE_LINUX, VI_ARCH_X86, VI_HYP_NEVER, 0, 1, 1, 0, 1 },
	{ VI_ENGINE_LINUX, VI_ARCH_ARM64, VI_HYP_NEVER, VI_FLOW_PERCPU_NOSTAT, 1, 1, 1, 1 },
	{ VI_ENGINE_FAST, VI_ARCH_ARM64, VI_HYP_NEVER, VI_FLOW_PERCPU_NOSTAT, 1, 1, 0, 1 },
	{ VI_ENGINE_FAST, VI_ARCH_X86, VI_HYP_NEVER, 0, 1, 1, 0, 1 },
};
#define SHAPES (sizeof(shapes) / sizeof(shapes[0]))

#endif
