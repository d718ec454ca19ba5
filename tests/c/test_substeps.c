/* SPDX-License-Identifier: MIT */
/*
 * test_substeps.c - one delivery in parts is the whole one: on one machine, from one saved state,
 * both ways leave the same bytes. And what can come in between two parts.
 *
 * 	test_substeps [turns]
 *
 * Prints one line per failed check and exits 1.
 */
#include "machines.h"

#define TURNS 400

/* ---- one delivery, step by step (vmbusirq_api.h has the order) ------------------------------- */

static void step_flow(struct rig *rig, uint32_t cpu, uint32_t irq)
{
	int again = vi_step_flow_enter(rig->m, cpu, irq);

	while (again == 1) {
		CHECK(0, vi_step_flow_actions(rig->m, cpu, irq));
		again = vi_step_flow_exit(rig->m, cpu, irq);
	}
	CHECK(0, again);
}

static void step_flags(struct rig *rig, uint32_t cpu)
{
	int relid = -1;

	for (;;) {
		uint32_t irq;
		int way;

		relid = vi_step_claim_flag(rig->m, cpu, (uint32_t)(relid + 1));
		if (relid == VI_SINT_FLAGS)
			break;
		way = vi_step_lookup(rig->m, cpu, (uint32_t)relid, &irq);
		if (way == VI_WAY_FLOW && vi_step_redirect(rig->m, cpu, irq))
			CHECK(1, rig->shape.redirect);
		else if (way == VI_WAY_FLOW)
			step_flow(rig, cpu, irq);
		else if (way == VI_WAY_CHANNEL)
			CHECK(0, vi_step_arrival(rig->m, cpu, (uint32_t)relid));
		else
			CHECK(true, way == VI_WAY_UNMAPPED || way == VI_WAY_RESCINDED);
	}
}

static void step_words(struct rig *rig, uint32_t cpu)
{
	uint64_t bits;
	int word = vi_step_claim_word(rig->m, cpu, 0, &bits);

	for (; word < VI_SINT_WORDS;
	     word = vi_step_claim_word(rig->m, cpu, (uint32_t)word + 1, &bits))
		for (; bits; bits &= bits - 1)
			CHECK(true, vi_step_dispatch(rig->m, cpu, (uint32_t)word * 64 +
						     (uint32_t)__builtin_ctzll(bits)) >= 0);
	CHECK(0, vi_step_scan_end(rig->m, cpu));
}

static void step_resend(struct rig *rig, uint32_t cpu)
{
	uint64_t bits;
	int word = vi_step_resend(rig->m, cpu, 0, &bits);

	for (; word < VI_STEP_WORDS_END;
	     word = vi_step_resend(rig->m, cpu, (uint32_t)word + 1, &bits))
		for (; bits; bits &= bits - 1) {
			uint32_t irq = (uint32_t)word * 64 + (uint32_t)__builtin_ctzll(bits);

			if (rig->shape.engine == VI_ENGINE_FAST)
				CHECK(0, vi_step_handle_irq(rig->m, cpu, irq));
			else
				step_flow(rig, cpu, irq);
		}
}

static void step_message(struct rig *rig, uint32_t cpu)
{
	struct vi_message copy;
	int64_t type = vi_step_message_copy(rig->m, cpu, &copy);

	if (type == VI_MSG_NONE)
		return;
	CHECK(0, vi_step_message_hand(rig->m, cpu, &copy));
	CHECK(0, vi_step_message_eom(rig->m, cpu, (uint32_t)type));
}

static void step_tasklets(struct rig *rig, uint32_t cpu, uint32_t vec)
{
	struct vi_step_tasklet t;

	CHECK(0, vi_step_softirq(rig->m, cpu, vec));
	while (vi_step_tasklet(rig->m, cpu, &t) == 1) {
		if (!vi_step_tasklet_begin(rig->m, cpu))
			continue;
		if (t.kind == VI_STEP_MESSAGES) {
			step_message(rig, cpu);
		} else if (t.kind == VI_STEP_RESEND) {
			step_resend(rig, cpu);
		} else if (vi_step_callback(rig->m, cpu)) {
			CHECK(0, vi_step_unmask(rig->m, cpu));
			CHECK(true, vi_step_end_read(rig->m, cpu) >= 0);
		}
		CHECK(0, vi_step_tasklet_end(rig->m, cpu));
	}
}

static void step_isr(struct rig *rig, uint32_t cpu, int *taken)
{
	uint32_t irq;

	if (rig->shape.engine == VI_ENGINE_FAST)
		step_words(rig, cpu);
	else
		step_flags(rig, cpu);
	if (vi_step_message(rig->m, cpu, &irq) == 1)
		*taken |= VI_STEP_HANDLED;
	if (irq)
		step_flow(rig, cpu, irq);
}

static void step_works(struct rig *rig, uint32_t cpu)
{
	uint32_t irq;

	while (vi_step_work(rig->m, cpu, &irq) == 1)
		if (rig->shape.engine == VI_ENGINE_FAST)
			CHECK(0, vi_step_do_work(rig->m, cpu, irq));
		else
			step_flow(rig, cpu, irq);
}

static int run_by_steps(struct rig *rig, uint32_t cpu)
{
	int taken = vi_step_vector(rig->m, cpu);

	if (!taken)
		return 0;
	CHECK(1, vi_step_in_interrupt(rig->m, cpu));
	CHECK(false, vi_inside_interrupt(rig->m));
	if (taken & VI_STEP_WORK)
		step_works(rig, cpu);
	if (taken & VI_STEP_ISR)
		step_isr(rig, cpu, &taken);
	if (taken & VI_STEP_VECTOR)
		CHECK(0, vi_step_vector_end(rig->m, cpu, (uint32_t)taken));
	for (uint32_t round = 0; round < VI_STEP_ROUNDS; round++) {
		uint32_t pending = vi_step_softirqs(rig->m, cpu);

		if (!pending)
			break;
		for (; pending; pending &= pending - 1)
			step_tasklets(rig, cpu, (uint32_t)__builtin_ctz(pending));
	}
	CHECK(0, vi_step_leave(rig->m, cpu));
	CHECK(0, vi_step_in_interrupt(rig->m, cpu));
	return 1;
}

/* From one state, whole and in parts: the same answer, the same bytes. */
static void compare(struct rig *rig, uint32_t cpu)
{
	struct snapshot before, whole, stepped;
	uint32_t deliverable = vi_step_deliverable(rig->m, cpu);
	int taken;

	save(rig, &before);
	taken = vi_vcpu_run(rig->m, cpu);
	save(rig, &whole);
	restore(rig, &before);
	CHECK(taken, run_by_steps(rig, cpu));
	save(rig, &stepped);
	CHECK(taken, deliverable);
	CHECK_SAME(&whole, &stepped);
	drop(&before);
	drop(&whole);
	drop(&stepped);
}

static void run_shape(const struct shape *shape, uint32_t turns)
{
	struct rig *rig = make_rig(shape);

	for (uint32_t turn = 0; turn < turns && !failures; turn++) {
		for (uint32_t n = draw(rig, 6); n; n--)
			work(rig);
		compare(rig, draw(rig, CPUS));
	}
	drop_rig(rig);
}

/* ---- between two sub-steps ------------------------------------------------------------------- */

/* Raise relid 1 on @cpu and go to where its IRQ is IN_PROGRESS, or is not. Return: its answer. */
static int arrive(struct rig *rig, uint32_t cpu)
{
	uint32_t irq;

	CHECK(1, vi_synic_signal(rig->m, cpu, VI_SINT_VMBUS, 1));
	CHECK(VI_STEP_ENTERED | VI_STEP_VECTOR | VI_STEP_ISR, vi_step_vector(rig->m, cpu));
	CHECK(1, vi_step_claim_flag(rig->m, cpu, 0));
	CHECK(VI_WAY_FLOW, vi_step_lookup(rig->m, cpu, 1, &irq));
	CHECK(FIRST_IRQ, irq);
	return vi_step_flow_enter(rig->m, cpu, irq);
}

/* v6.10 drops an arrival while the IRQ runs elsewhere; a descriptor marked replay runs it again. */
static void arrive_while_running(bool replay)
{
	struct shape shape = shapes[0];
	struct vi_counters counters;
	struct vi_lost lost;
	struct rig *rig;

	shape.replay = replay;
	rig = make_rig(&shape);
	CHECK(1, arrive(rig, 0));
	CHECK(0, arrive(rig, 1));
	CHECK(0, vi_step_flow_actions(rig->m, 0, FIRST_IRQ));
	CHECK(replay, vi_step_flow_exit(rig->m, 0, FIRST_IRQ));
	if (replay) {
		CHECK(0, vi_step_flow_actions(rig->m, 0, FIRST_IRQ));
		CHECK(0, vi_step_flow_exit(rig->m, 0, FIRST_IRQ));
	}
	vi_machine_lost(rig->m, &lost);
	CHECK(!replay, lost.in_progress);
	vi_machine_counters(rig->m, &counters);
	CHECK(1 + replay, counters.irq[FIRST_IRQ]);
	CHECK(0, vi_step_leave(rig->m, 0));
	CHECK(0, vi_step_leave(rig->m, 1));
	drop_rig(rig);
}

/* Raise relid 1 on CPU 0, which its IRQ may not run on. */
static void arrive_to_be_sent(struct rig *rig)
{
	uint32_t irq;

	CHECK(1, vi_synic_signal(rig->m, 0, VI_SINT_VMBUS, 1));
	CHECK(VI_STEP_ENTERED | VI_STEP_VECTOR | VI_STEP_ISR, vi_step_vector(rig->m, 0));
	CHECK(1, vi_step_claim_flag(rig->m, 0, 0));
	CHECK(VI_WAY_FLOW, vi_step_lookup(rig->m, 0, 1, &irq));
	CHECK(1, vi_step_redirect(rig->m, 0, irq));
	CHECK(0, vi_step_leave(rig->m, 0));
}

/*
 * An arrival merges with one whose work has not begun, be it taken off its list already; one that
 * comes later is a work of its own.
 */
static void merge_works(void)
{
	struct shape shape = shapes[0];
	struct vi_counters counters;
	struct rig *rig;
	uint32_t irq;

	shape.redirect = 1;
	rig = make_rig(&shape);
	set_effective(rig, 0, 2);
	CHECK(0, vi_step_deliverable(rig->m, 1));
	arrive_to_be_sent(rig);
	CHECK(1, vi_step_deliverable(rig->m, 1));
	CHECK(0, vi_step_deliverable(rig->m, 0));
	CHECK(VI_STEP_ENTERED | VI_STEP_WORK, vi_step_vector(rig->m, 1));
	arrive_to_be_sent(rig);
	CHECK(0, vi_vcpu_pending(rig->m, 1));
	CHECK(1, vi_irq_work_pending(rig->m, FIRST_IRQ));
	CHECK(1, vi_step_work(rig->m, 1, &irq));
	CHECK(FIRST_IRQ, irq);
	CHECK(0, vi_irq_work_pending(rig->m, FIRST_IRQ));
	step_flow(rig, 1, irq);
	CHECK(0, vi_step_work(rig->m, 1, &irq));
	arrive_to_be_sent(rig);
	CHECK(1, vi_vcpu_pending(rig->m, 1));
	CHECK(0, vi_step_leave(rig->m, 1));
	CHECK(1, run_by_steps(rig, 1));
	vi_machine_counters(rig->m, &counters);
	CHECK(2, counters.irq[counters.irq_stride + FIRST_IRQ]);
	CHECK(2, vi_cpu_of(rig->m, 1)->arch[VI_ROW_IWI]);
	drop_rig(rig);
}

/* What would wait for ever says so and changes nothing; what need not wait, does not. */
static void control_plane_in_between(uint32_t engine)
{
	const bool dropping = engine == VI_ENGINE_LINUX;
	struct shape shape = shapes[0];
	struct vi_channel *ch;
	struct rig *rig;

	shape.engine = engine;
	rig = make_rig(&shape);
	CHECK(1, vi_synic_signal(rig->m, 0, VI_SINT_VMBUS, 1));
	CHECK(true, vi_step_vector(rig->m, 0) > 0);
	CHECK(0, vi_step_vector(rig->m, 0));
	CHECK(0, vi_vcpu_run(rig->m, 0));
	CHECK(-EBUSY, vi_channel_unmap(rig->ch[0]));
	CHECK(-EBUSY, vi_irq_remove_action(rig->m, FIRST_IRQ, &rig->actions[0]));
	CHECK(-EBUSY, vi_irq_free_desc(rig->m, FIRST_IRQ));
	CHECK(-EBUSY, vi_domain_unmap(rig->m, 1));
	CHECK(-EBUSY, vi_machine_set_trace(rig->m, NULL, NULL));
	CHECK(-EBUSY, vi_machine_save(rig->m, NULL, 0));
	CHECK(dropping ? 0 : -EBUSY, vi_irq_synchronize(rig->m, FIRST_IRQ));
	CHECK(dropping ? 0 : -EBUSY,
	      vi_channel_set_callback(rig->ch[0], VI_CALLBACK_NONE, NULL, NULL));
	CHECK(dropping ? 0 : -EBUSY, vi_channel_set_attention(rig->ch[0], VI_ATTENTION_NONE, NULL));
	CHECK(1, vi_irq_disable(rig->m, FIRST_IRQ));
	CHECK(0, vi_irq_enable(rig->m, FIRST_IRQ));
	CHECK(0, vi_channel_set_cpu(rig->ch[0], 1));
	CHECK(0, vi_channel_create(rig->m, 9, VI_CALL_ISR, &ch));
	CHECK(0, vi_step_leave(rig->m, 0));
	CHECK(0, vi_channel_set_callback(rig->ch[0], VI_CALLBACK_NONE, NULL, NULL));
	drop_rig(rig);
}

/* tasklet_disable() waits for a tasklet at work; synchronize_irq() for IN_PROGRESS. */
static void wait_for_handlers(void)
{
	struct rig *rig = make_rig(&shapes[0]);
	struct vi_step_tasklet t;

	CHECK(1, arrive(rig, 0));
	CHECK(-EBUSY, vi_irq_synchronize(rig->m, FIRST_IRQ));
	CHECK(0, vi_step_flow_actions(rig->m, 0, FIRST_IRQ));
	CHECK(0, vi_step_flow_exit(rig->m, 0, FIRST_IRQ));
	CHECK(0, vi_irq_synchronize(rig->m, FIRST_IRQ));
	CHECK(1u << VI_SOFTIRQ_TASKLET, vi_step_softirqs(rig->m, 0));
	CHECK(0, vi_step_softirq(rig->m, 0, VI_SOFTIRQ_TASKLET));
	CHECK(1, vi_step_tasklet(rig->m, 0, &t));
	CHECK(1, t.relid);
	CHECK(1, t.own);
	CHECK(0, vi_channel_is_running(rig->ch[0]));
	CHECK(1, vi_step_tasklet_begin(rig->m, 0));
	CHECK(1, vi_channel_is_running(rig->ch[0]));
	CHECK(-EBUSY, vi_channel_set_callback(rig->ch[0], VI_CALLBACK_NONE, NULL, NULL));
	CHECK(1, vi_channel_is_running(rig->ch[0]));
	CHECK(1, vi_step_callback(rig->m, 0));
	CHECK(0, vi_step_unmask(rig->m, 0));
	CHECK(0, vi_step_end_read(rig->m, 0));
	CHECK(0, vi_step_tasklet_end(rig->m, 0));
	CHECK(0, vi_channel_set_callback(rig->ch[0], VI_CALLBACK_NONE, NULL, NULL));
	CHECK(0, vi_step_leave(rig->m, 0));
	drop_rig(rig);
}

/* A tasklet that runs on another CPU goes back into the list. */
static void tasklet_elsewhere(void)
{
	struct rig *rig = make_rig(&shapes[0]);
	struct vi_step_tasklet t;

	for (uint32_t cpu = 0; cpu < 2; cpu++) {
		CHECK(1, arrive(rig, cpu));
		CHECK(0, vi_step_flow_actions(rig->m, cpu, FIRST_IRQ));
		CHECK(0, vi_step_flow_exit(rig->m, cpu, FIRST_IRQ));
		CHECK(true, vi_step_softirqs(rig->m, cpu) != 0);
		CHECK(0, vi_step_softirq(rig->m, cpu, VI_SOFTIRQ_TASKLET));
		CHECK(1, vi_step_tasklet(rig->m, cpu, &t));
		CHECK(cpu == 0, vi_step_tasklet_begin(rig->m, cpu));
	}
	CHECK(0, vi_step_tasklet(rig->m, 1, &t));
	CHECK(1u << VI_SOFTIRQ_TASKLET, vi_step_softirqs(rig->m, 1));
	CHECK(0, vi_step_tasklet_end(rig->m, 0));
	CHECK(0, vi_step_leave(rig->m, 0));
	CHECK(0, vi_step_leave(rig->m, 1));
	drop_rig(rig);
}

/* An order that is given up half-way is forgotten by a restore, as if it had not begun. */
static void give_up_half_way(void)
{
	struct rig *rig = make_rig(&shapes[0]);
	struct snapshot then, again;

	save(rig, &then);
	CHECK(1, arrive(rig, 0));
	CHECK(0, arrive(rig, 1));
	restore(rig, &then);
	CHECK(0, vi_step_in_interrupt(rig->m, 0));
	CHECK(-EINVAL, vi_step_flow_exit(rig->m, 0, FIRST_IRQ));
	save(rig, &again);
	CHECK_SAME(&then, &again);
	drop(&then);
	drop(&again);
	drop_rig(rig);
}

static void refuse_nonsense(void)
{
	struct rig *rig = make_rig(&shapes[0]);
	struct vi_step_tasklet t;
	uint64_t bits;
	uint32_t irq;

	for (uint32_t cpu = 0; cpu < 2 * CPUS; cpu += CPUS) {
		CHECK(-EINVAL, vi_step_claim_flag(rig->m, cpu, 0));
		CHECK(-EINVAL, vi_step_claim_word(rig->m, cpu, 0, &bits));
		CHECK(-EINVAL, vi_step_lookup(rig->m, cpu, 1, &irq));
		CHECK(-EINVAL, vi_step_redirect(rig->m, cpu, FIRST_IRQ));
		CHECK(-EINVAL, vi_step_work(rig->m, cpu, &irq));
		CHECK(-EINVAL, vi_step_do_work(rig->m, cpu, FIRST_IRQ));
		CHECK(-EINVAL, vi_step_flow_enter(rig->m, cpu, FIRST_IRQ));
		CHECK(-EINVAL, vi_step_flow_actions(rig->m, cpu, FIRST_IRQ));
		CHECK(-EINVAL, vi_step_arrival(rig->m, cpu, 1));
		CHECK(-EINVAL, vi_step_dispatch(rig->m, cpu, 1));
		CHECK(-EINVAL, vi_step_scan_end(rig->m, cpu));
		CHECK(-EINVAL, vi_step_message(rig->m, cpu, &irq));
		CHECK(-EINVAL, vi_step_vector_end(rig->m, cpu, 0));
		CHECK(0, vi_step_softirqs(rig->m, cpu));
		CHECK(-EINVAL, vi_step_softirq(rig->m, cpu, 0));
		CHECK(-EINVAL, vi_step_tasklet(rig->m, cpu, &t));
		CHECK(-EINVAL, vi_step_tasklet_begin(rig->m, cpu));
		CHECK(-EINVAL, vi_step_tasklet_end(rig->m, cpu));
		CHECK(-EINVAL, vi_step_callback(rig->m, cpu));
		CHECK(-EINVAL, vi_step_unmask(rig->m, cpu));
		CHECK(-EINVAL, vi_step_end_read(rig->m, cpu));
		CHECK(-EINVAL, vi_step_message_eom(rig->m, cpu, 1));
		CHECK(-EINVAL, vi_step_resend(rig->m, cpu, 0, &bits));
		CHECK(-EINVAL, vi_step_handle_irq(rig->m, cpu, FIRST_IRQ));
		CHECK(-EINVAL, vi_step_leave(rig->m, cpu));
	}
	CHECK(-EINVAL, vi_step_vector(rig->m, CPUS));
	CHECK(0, vi_step_deliverable(rig->m, CPUS));
	CHECK(0, vi_step_is_own(rig->m, UINT32_MAX));
	drop_rig(rig);
}

int main(int argc, char **argv)
{
	uint32_t turns = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : TURNS;

	for (uint32_t i = 0; i < SHAPES; i++)
		run_shape(&shapes[i], turns);
	arrive_while_running(false);
	arrive_while_running(true);
	merge_works();
	control_plane_in_between(VI_ENGINE_LINUX);
	control_plane_in_between(VI_ENGINE_FAST);
	wait_for_handlers();
	tasklet_elsewhere();
	give_up_half_way();
	refuse_nonsense();
	if (failures)
		fprintf(stderr, "test_substeps: %d checks failed\n", failures);
	return failures != 0;
}
