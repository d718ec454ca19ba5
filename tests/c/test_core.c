/* SPDX-License-Identifier: MIT */
/*
 * test_core.c - the core on one thread, for the sanitizers: what each flow counts, how flags become
 * interrupts in each engine, the message slot, remembered arrivals, channels of each mode, what is
 * refused, and a machine taken apart half-way.
 */
#include "internals.h"
#include "synic.h"

#include <stdio.h>

#define CHECK(cond) do { if (!(cond)) fail(#cond, __LINE__); } while (0)
#define IRQ 9
#define RELID 5
#define CH_IRQ 29

static void fail(const char *what, int line)
{
	fprintf(stderr, "test_core.c:%d: %s\n", line, what);
	exit(1);
}

static struct vi_machine *make(uint32_t engine, uint32_t channel_irqs)
{
	const struct vi_config config = {
		.nr_cpus = 2,
		.nr_irqs_max = 64,
		.engine = engine,
		.simd = VI_SIMD_BEST,
		.channel_irqs = channel_irqs,
		.hyp_count = channel_irqs ? VI_HYP_MESSAGE : VI_HYP_ALWAYS,
		.seed = 1,
	};
	struct vi_machine *m;

	CHECK(vi_machine_create(&config, &m) == 0);
	CHECK(switch_synic(m, 0, 1) == 0 && switch_synic(m, 1, 1) == 0);
	return m;
}

static uint32_t count_of(struct vi_machine *m, uint32_t cpu, uint32_t irq)
{
	struct vi_counters c;

	vi_machine_counters(m, &c);
	return c.irq[(size_t)cpu * c.irq_stride + irq];
}

static uint64_t sum_of(struct vi_machine *m, uint32_t cpu)
{
	struct vi_counters c;

	vi_machine_counters(m, &c);
	return c.irqs_sum[(size_t)cpu * 8];
}

/* ---- flows ----------------------------------------------------------------------------------- */

static uint32_t answer(struct vi_cpu *cpu, uint32_t irq, void *dev_id)
{
	(void)cpu;
	(void)irq;
	return *(uint32_t *)dev_id;
}

/* cnt, irqs_sum, tot_count of one arrival, by what the action said (genirq.md 4.5) */
static void test_flows(uint32_t engine)
{
	static const uint8_t expected[VI_FLOWS][2][3] = {
		[VI_FLOW_BAD] = { { 1, 1, 1 }, { 1, 1, 1 } },
		[VI_FLOW_SIMPLE] = { { 1, 1, 1 }, { 1, 1, 1 } },
		[VI_FLOW_EDGE] = { { 1, 1, 1 }, { 1, 1, 1 } },
		[VI_FLOW_LEVEL] = { { 1, 1, 1 }, { 1, 1, 1 } },
		[VI_FLOW_FASTEOI] = { { 1, 1, 1 }, { 1, 1, 1 } },
		[VI_FLOW_PERCPU] = { { 1, 1, 0 }, { 1, 1, 0 } },
		[VI_FLOW_PERCPU_DEVID] = { { 1, 1, 0 }, { 1, 1, 0 } },
		[VI_FLOW_PERCPU_DEMUX] = { { 0, 0, 0 }, { 1, 1, 0 } },
		[VI_FLOW_PERCPU_NOSTAT] = { { 1, 0, 0 }, { 1, 0, 0 } },
	};

	for (uint32_t flow = 0; flow < VI_FLOWS; flow++)
		for (uint32_t result = 0; result < 2; result++) {
			struct vi_machine *m = make(engine, 1);
			const uint8_t *want = expected[flow][result];
			struct vi_irqaction action = { .handler = answer, .dev_id = &result };

			CHECK(vi_irq_alloc_desc(m, IRQ) == 0);
			CHECK(vi_irq_set_chip_and_flow(m, IRQ, NULL, flow) == 0);
			CHECK(vi_irq_add_action(m, IRQ, &action) == 0);
			CHECK(vi_irq_startup(m, IRQ, 1) == 0);
			CHECK(vi_generic_handle_irq(m, 1, IRQ) == 0);
			CHECK(count_of(m, 1, IRQ) == want[0] && sum_of(m, 1) == want[1]);
			CHECK(vi_irq_to_desc(m, IRQ)->tot_count == want[2]);
			CHECK(vi_irq_remove_action(m, IRQ, &action) == 0);
			CHECK(vi_irq_free_desc(m, IRQ) == 0);
			CHECK(count_of(m, 1, IRQ) == 0 && sum_of(m, 1) == want[1]);
			vi_machine_destroy(m);
		}
}

struct nested {
	struct vi_machine *m;
	uint32_t runs;
	uint32_t arrivals;	/* to make on the other CPU, from inside */
};

static uint32_t nest(struct vi_cpu *cpu, uint32_t irq, void *dev_id)
{
	struct nested *n = dev_id;

	n->runs++;
	if (n->arrivals) {
		n->arrivals--;
		CHECK(vi_generic_handle_irq(n->m, 1 - vi_cpu_id(cpu), irq) == 0);
	}
	CHECK(vi_irq_synchronize(n->m, irq) == -EDEADLK);
	CHECK(vi_domain_unmap(n->m, RELID) == -EDEADLK);
	return VI_IRQ_HANDLED;
}

/*
 * An arrival while the IRQ runs elsewhere: dropped as in v6.10, or run afterwards; by the slot, by
 * the lock.
 */
static void test_nested(uint32_t engine, uint32_t exact)
{
	struct nested n = { .m = make(engine, 1), .arrivals = 1 };
	struct vi_irqaction action = { .handler = nest, .dev_id = &n, .exact = exact };
	bool fast = engine == VI_ENGINE_FAST;
	struct vi_lost lost;

	CHECK(vi_irq_alloc_desc(n.m, IRQ) == 0);
	CHECK(vi_irq_set_chip_and_flow(n.m, IRQ, NULL, VI_FLOW_SIMPLE) == 0);
	CHECK(vi_domain_map(n.m, RELID, IRQ) == 0);
	CHECK(vi_irq_add_action(n.m, IRQ, &action) == 0);
	CHECK(vi_irq_startup(n.m, IRQ, 1) == 0);
	CHECK(vi_synic_signal(n.m, 0, VI_SINT_VMBUS, RELID) == 1);
	CHECK(vi_machine_settle(n.m) >= 1);
	vi_machine_lost(n.m, &lost);
	CHECK(n.runs == (fast ? 2 : 1) && lost.in_progress == (fast ? 0 : 1));
	CHECK(count_of(n.m, 0, IRQ) + count_of(n.m, 1, IRQ) == n.runs);
	CHECK(count_of(n.m, 1, IRQ) == (fast && !exact));

	CHECK(vi_irq_disable(n.m, IRQ) == 1);
	for (uint32_t i = 0; i < 3; i++) {
		CHECK(vi_synic_signal(n.m, 1, VI_SINT_VMBUS, RELID) == 1);
		CHECK(vi_machine_settle(n.m) == 1);
	}
	CHECK(vi_irq_enable(n.m, IRQ) == 0);
	CHECK(vi_irq_enable(n.m, IRQ) == -EPERM);
	CHECK(vi_machine_settle(n.m) == 1);
	CHECK(n.runs == (fast ? 3 : 2));
	CHECK(vi_irq_remove_action(n.m, IRQ, &action) == 0);
	CHECK(vi_domain_unmap(n.m, RELID) == 0);
	CHECK(vi_irq_free_desc(n.m, IRQ) == 0);
	vi_machine_destroy(n.m);
}

static void test_spurious(uint32_t engine)
{
	uint32_t none = VI_IRQ_NONE;
	struct vi_irqaction action = { .handler = answer, .dev_id = &none }, second = action;
	struct vi_machine *m = make(engine, 1);
	struct vi_irq_desc *desc;

	CHECK(vi_irq_alloc_desc(m, IRQ) == 0);
	CHECK(vi_irq_set_chip_and_flow(m, IRQ, NULL, VI_FLOW_SIMPLE) == 0);
	CHECK(vi_irq_add_action(m, IRQ, &action) == 0);
	CHECK(vi_irq_startup(m, IRQ, 1) == 0);
	for (uint32_t i = 0; i < 100001; i++)
		CHECK(vi_generic_handle_irq(m, 0, IRQ) == 0);
	desc = vi_irq_to_desc(m, IRQ);
	CHECK(count_of(m, 0, IRQ) == 100000 && desc->depth == 1);
	CHECK((desc->istate & VI_IRQS_SPURIOUS_DISABLED) && (desc->istate & VI_IRQS_PENDING));
	CHECK(vi_irq_add_action(m, IRQ, &second) == 0);
	CHECK(desc->depth == 0 && vi_machine_settle(m) == 1 && count_of(m, 0, IRQ) == 100001);
	vi_machine_destroy(m);
}

/* ---- flags and messages ---------------------------------------------------------------------- */

static void test_flags(uint32_t engine, uint32_t channel_irqs)
{
	struct vi_machine *m = make(engine, channel_irqs);
	struct vi_lost lost;

	for (uint32_t flag = 0; flag < VI_SINT_FLAGS; flag++) {
		CHECK(vi_synic_signal(m, 1, VI_SINT_VMBUS, flag) == 1);
		CHECK(vi_synic_signal(m, 1, VI_SINT_VMBUS, flag) == 0);
	}
	CHECK(vi_synic_signal(m, 1, VI_SINT_VMBUS, VI_SINT_FLAGS) == -EINVAL);
	CHECK(vi_synic_signal(m, 1, VI_SINTS, 1) == -EINVAL &&
	      vi_synic_signal(m, 2, VI_SINT_VMBUS, 1) == -EINVAL);
	CHECK(vi_synic_signal(m, 1, VI_SINT_VMBUS + 1, 1) == -ENXIO);
	CHECK(vi_scan(m, 1) == VI_RELID_MAX && vi_scan(m, 1) == 0 && vi_scan(m, 2) == -EINVAL);
	vi_machine_lost(m, &lost);
	CHECK(lost.unmapped == VI_RELID_MAX && lost.flag_zero == 1);
	CHECK(switch_synic(m, 0, 0) == 0 && vi_synic_signal(m, 0, VI_SINT_VMBUS, 1) == -ENXIO);
	CHECK(vi_synic_flags(m, 0, VI_SINT_VMBUS)[0] == 0);
	vi_machine_destroy(m);
}

static void take_message(struct vi_cpu *cpu, const struct vi_message *message)
{
	uint32_t *sizes = vi_cpu_owner(cpu);

	CHECK(message->payload[message->payload_size - 1] == message->payload_size);
	sizes[message->type]++;
}

static void test_messages(void)
{
	const struct vi_hooks hooks = { .message = take_message };
	struct vi_machine *m = make(VI_ENGINE_FAST, 1);
	uint8_t payload[VI_MSG_PAYLOAD + 1];
	uint32_t types[4] = { 0 };

	memset(payload, VI_MSG_PAYLOAD, sizeof(payload));
	vi_machine_set_owner(m, types);
	vi_machine_set_hooks(m, &hooks);
	CHECK(vi_synic_post(m, 0, VI_SINT_VMBUS, 1, payload, VI_MSG_PAYLOAD + 1) == -EMSGSIZE);
	CHECK(vi_synic_post(m, 0, VI_SINT_VMBUS, 0, payload, 1) == -EINVAL);
	CHECK(vi_synic_post(m, 0, VI_SINT_VMBUS, 1, NULL, 1) == -EINVAL);
	CHECK(vi_synic_post(m, 0, VI_SINT_VMBUS, 1, payload, VI_MSG_PAYLOAD) == 0);
	CHECK(vi_synic_post(m, 0, VI_SINT_VMBUS, 2, payload, VI_MSG_PAYLOAD) == -EAGAIN);
	CHECK(vi_machine_settle(m) == 1 && types[1] == 1 && types[2] == 0);
	CHECK(vi_synic_eom_count(m, 0) == 1);
	CHECK(vi_synic_post(m, 0, VI_SINT_VMBUS, 2, payload, VI_MSG_PAYLOAD) == 0);
	CHECK(vi_machine_settle(m) == 1 && types[2] == 1 && vi_synic_eom_count(m, 0) == 1);
	vi_machine_destroy(m);
}

/* ---- channels -------------------------------------------------------------------------------- */

struct pair {
	struct vi_machine *m;
	struct vi_channel *ch;
	struct vi_vsp *vsp;
	struct vi_ring_mem in, out;
	struct vi_irqaction action;
};

static void open_pair(struct pair *p, uint32_t engine, uint32_t channel_irqs, uint32_t mode,
		      uint32_t callback)
{
	memset(p, 0, sizeof(*p));
	p->m = make(engine, channel_irqs);
	CHECK(vi_ring_mem_create(8192, &p->in) == 0 && vi_ring_mem_create(8192, &p->out) == 0);
	vi_ring_reset(&p->in);
	vi_ring_reset(&p->out);
	CHECK(vi_channel_create(p->m, RELID, mode, &p->ch) == 0);
	/* nothing to read */
	CHECK(vi_channel_set_callback(p->ch, callback, NULL, NULL) == -EINVAL);
	CHECK(vi_channel_set_rings(p->ch, &p->in, &p->out, 4096) == 0);
	CHECK(vi_vsp_create(p->m, RELID, &p->in, &p->out, &p->vsp) == 0);
	if (channel_irqs) {
		CHECK(vi_irq_alloc_desc(p->m, CH_IRQ) == 0);
		CHECK(vi_irq_set_chip_and_flow(p->m, CH_IRQ, NULL, VI_FLOW_SIMPLE) == 0);
		CHECK(vi_domain_map(p->m, RELID, CH_IRQ) == 0);
	}
	CHECK(vi_channel_map(p->ch, channel_irqs ? CH_IRQ : 0) == 0);
	if (channel_irqs) {
		vi_channel_bind_action(p->ch, &p->action);
		CHECK(vi_irq_add_action(p->m, CH_IRQ, &p->action) == 0);
		CHECK(vi_irq_startup(p->m, CH_IRQ, 1) == 0);
	}
	CHECK(vi_channel_set_callback(p->ch, callback, NULL, NULL) == 0);
}

static void close_pair(struct pair *p, uint32_t channel_irqs)
{
	CHECK(vi_channel_set_callback(p->ch, VI_CALLBACK_NONE, NULL, NULL) == 0);
	if (channel_irqs)
		CHECK(vi_domain_unmap(p->m, RELID) == -EBUSY);
	CHECK(vi_channel_unmap(p->ch) == 0 && vi_channel_unmap(p->ch) == -ENOENT);
	if (channel_irqs) {
		CHECK(vi_irq_remove_action(p->m, CH_IRQ, &p->action) == 0);
		CHECK(vi_irq_free_desc(p->m, CH_IRQ) == 0);
	}
	vi_channel_destroy(p->ch);
	vi_vsp_destroy(p->vsp);
	vi_ring_mem_destroy(&p->in);
	vi_ring_mem_destroy(&p->out);
	vi_machine_destroy(p->m);
}

static void note_step(void *context, const struct vi_trace_event *event)
{
	uint32_t *steps = context;

	CHECK(event->step < VI_TRACE_STEPS && event->file && event->function);
	steps[event->step]++;
}

/* Every other block of 20 interrupts is traced, and so is what comes after them. */
static void test_channel(uint32_t engine, uint32_t channel_irqs, uint32_t mode, uint32_t callback)
{
	uint32_t steps[VI_TRACE_STEPS] = { 0 };
	struct vi_channel_stats got;
	struct vi_vsp_stats sent;
	struct pair p;

	open_pair(&p, engine, channel_irqs, mode, callback);
	for (uint32_t i = 0; i < 300; i++) {
		if (i % 20 == 0)
			CHECK(vi_machine_set_trace(p.m, i % 40 ? NULL : note_step, steps) == 0);
		CHECK(vi_channel_set_cpu(p.ch, i / 7 % 2) == 0);
		CHECK(vi_vsp_set_target(p.vsp, i / 11 % 2) == 0);
		CHECK(vi_vsp_send(p.vsp, 1 + i % 5, i) == 1 + i % 5);
		CHECK(vi_machine_settle(p.m) == 1);
	}
	vi_channel_get_stats(p.ch, &got);
	vi_vsp_get_stats(p.vsp, &sent);
	CHECK(got.interrupts == 300 && sent.edges == 300);
	CHECK(steps[VI_TRACE_CLAIM] == 160 && steps[VI_TRACE_LOOKUP] == 160);
	CHECK(steps[VI_TRACE_RING_DECIDE] == 160 && steps[VI_TRACE_IRQ_EXIT] == 160);
	CHECK(steps[VI_TRACE_READ] >= 160 && steps[VI_TRACE_CHANNEL_CLOSED] == 0);
	CHECK(got.packets == sent.packets && got.bytes == sent.bytes &&
	      got.checksum == sent.checksum);
	vi_channel_set_rescind(p.ch, 1);
	CHECK(vi_vsp_signal(p.vsp) == 1 && vi_machine_settle(p.m) == 1);
	vi_channel_set_rescind(p.ch, 0);
	CHECK(vi_channel_set_callback(p.ch, VI_CALLBACK_NONE, NULL, NULL) == 0);
	CHECK(vi_vsp_signal(p.vsp) == 1 && vi_machine_settle(p.m) == 1);
	vi_channel_get_stats(p.ch, &got);
	CHECK(got.interrupts == 300 && got.no_callback == 1);
	CHECK(steps[VI_TRACE_CLAIM] == 162 && steps[VI_TRACE_CHANNEL_CLOSED] == 1);
	CHECK(vi_machine_set_trace(p.m, NULL, NULL) == 0);
	close_pair(&p, channel_irqs);
}

/*
 * A writer that publishes half a packet, or an index outside the ring: the callback ends, whatever
 * it read.
 */
static void test_broken_writer(uint32_t engine, uint32_t mode)
{
	static const uint32_t index[] = { 8, 12, 16, 4095, 4096, 0xffffffff };
	struct pair p;

	for (uint32_t i = 0; i < sizeof(index) / sizeof(index[0]); i++) {
		open_pair(&p, engine, 1, mode, VI_CALLBACK_DRAIN);
		p.in.hdr->write_index = index[i];
		CHECK(vi_vsp_signal(p.vsp) == 1);
		CHECK(vi_vcpu_run(p.m, 0) == 1);
		close_pair(&p, 1);
	}
}

/*
 * In batched mode the tasklet asks for itself as long as the ring is not empty. Half a packet is
 * dropped; behind an index outside the data there is nothing.
 */
static void test_settling_ends(void)
{
	struct pair p;

	open_pair(&p, VI_ENGINE_FAST, 1, VI_CALL_BATCHED, VI_CALLBACK_DRAIN);
	p.in.hdr->write_index = 8;
	CHECK(vi_vsp_signal(p.vsp) == 1);
	CHECK(vi_machine_settle(p.m) == 1);
	p.in.hdr->write_index = 1u << 31;
	CHECK(vi_vsp_signal(p.vsp) == 1);
	CHECK(vi_machine_settle(p.m) == 1);
	close_pair(&p, 1);
}

static void test_refusals(void)
{
	const struct vi_config good = { .nr_cpus = 1, .nr_irqs_max = 1 };
	struct vi_config bad[] = { good, good, good, good, good, good, good, good };
	struct vi_machine *m;
	struct vi_channel *ch, *again;

	bad[0].nr_cpus = 0;
	bad[1].nr_cpus = VI_CPUS_MAX + 1;
	bad[2].nr_irqs_max = 0;
	bad[3].nr_irqs_max = VI_IRQS_MAX + 1;
	bad[4].engine = 2;
	bad[5].simd = 3;
	bad[6].arch = 2;
	bad[7].hyp_count = 3;
	for (uint32_t i = 0; i < 8; i++)
		CHECK(vi_machine_create(&bad[i], &m) == -EINVAL);
	m = make(VI_ENGINE_FAST, 1);
	CHECK(vi_channel_create(m, 0, VI_CALL_ISR, &ch) == -EINVAL);
	CHECK(vi_channel_create(m, 2048, VI_CALL_ISR, &ch) == -EINVAL);
	CHECK(vi_channel_create(m, 2047, VI_CALL_ISR, &ch) == 0);
	/* a suspended channel keeps its name until the next offer: unmapped ones may share it */
	CHECK(vi_channel_create(m, 2047, VI_CALL_ISR, &again) == 0 && again != ch);
	CHECK(vi_channel_set_relid(again, 0) == -EINVAL && vi_channel_set_relid(again, 5) == 0);
	vi_channel_destroy(again);
	CHECK(vi_channel_set_cpu(ch, 2) == -EINVAL && vi_channel_unmap(ch) == -ENOENT);
	CHECK(vi_channel_map(ch, 3) == -EINVAL);
	vi_channel_destroy(ch);
	CHECK(vi_vcpu_run(m, 2) == -EINVAL && vi_generic_handle_irq(m, 2, 0) == -EINVAL);
	CHECK(vi_irq_alloc_desc(m, 64) == -EINVAL && vi_domain_map(m, 1, 0) == -EINVAL);
	vi_machine_destroy(m);
	vi_machine_destroy(NULL);
}

int main(void)
{
	for (uint32_t engine = VI_ENGINE_FAST; engine <= VI_ENGINE_LINUX; engine++) {
		test_flows(engine);
		test_nested(engine, 0);
		test_nested(engine, 1);
		test_spurious(engine);
		test_broken_writer(engine, VI_CALL_ISR);
		test_broken_writer(engine, VI_CALL_BATCHED);
		for (uint32_t channel_irqs = 0; channel_irqs < 2; channel_irqs++) {
			test_flags(engine, channel_irqs);
			for (uint32_t mode = 0; mode <= VI_CALL_ISR; mode++)
				test_channel(engine, channel_irqs, mode, VI_CALLBACK_DRAIN);
			test_channel(engine, channel_irqs, VI_CALL_ISR, VI_CALLBACK_NAPI);
		}
	}
	test_settling_ends();
	test_messages();
	test_refusals();
	printf("test_core: passed\n");
	return 0;
}
