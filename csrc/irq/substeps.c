/* SPDX-License-Identifier: MIT */
/*
 * substeps.c - a flow handler in the parts between which another CPU can come, for who explores
 * orders.
 *
 * Composed of flow_inline.h's parts, as chip.c's handlers are. No lock is held between two of them:
 * what an arrival holds there is IN_PROGRESS.
 */
#include "irq/flow_inline.h"

/* The descriptor of a column, which may stand for a channel without an IRQ. */
static struct vi_irq_desc *column_desc(struct vi_machine *m, uint32_t irq)
{
	return irq < m->irq_columns ? vi_load(&m->desc[irq]) : NULL;
}

static bool is_percpu_demux(uint32_t flow)
{
	return flow == VI_FLOW_PERCPU_DEVID || flow == VI_FLOW_PERCPU_DEMUX ||
	       flow == VI_FLOW_PERCPU_NOSTAT;
}

/**
 * vi_flow_has_steps() - may the parent of a demultiplexer be entered and left by itself?
 */
bool vi_flow_has_steps(const struct vi_irq_desc *desc)
{
	return is_percpu_demux(desc->flow);
}

/* The flow handler of a demultiplexer's parent up to its action. */
void vi_percpu_enter(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	if (desc->flow == VI_FLOW_PERCPU_DEVID)
		vi_flow_count2(cpu, desc);
	vi_trace(cpu->m, VI_TRACE_FLOW_ENTRY, cpu->id, desc->irq, 0);
	vi_percpu_begin(cpu, desc);
}

/* The rest of it. @handled: what the action has said. */
void vi_percpu_leave(struct vi_cpu *cpu, struct vi_irq_desc *desc, bool handled)
{
	if (desc->flow == VI_FLOW_PERCPU_DEMUX)
		vi_demux_end(cpu, desc, handled ? VI_IRQ_HANDLED : VI_IRQ_NONE);
	else if (desc->flow == VI_FLOW_PERCPU_NOSTAT)
		vi_nostat_end(cpu, desc);
	else
		vi_devid_end(cpu, desc);
	vi_trace(cpu->m, VI_TRACE_FLOW_EXIT, cpu->id, desc->irq, 0);
}

/* An arrival that may run, or may not. Context: desc->lock, dropped. Return: as flow_enter. */
static int admit(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	if (!vi_simple_admit(cpu, desc)) {
		vi_trace(cpu->m, VI_TRACE_FLOW_PENDING, cpu->id, desc->irq, 0);
		vi_unlock(&desc->lock);
		return 0;
	}
	vi_trace(cpu->m, VI_TRACE_FLOW_COUNT, cpu->id, desc->irq, 0);
	vi_event_begin(cpu, desc);
	return 1;
}

int vi_step_flow_enter(struct vi_machine *m, uint32_t cpu, uint32_t irq)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);
	struct vi_irq_desc *desc = column_desc(m, irq);

	if (!c || !desc)
		return -EINVAL;
	if (desc->flow != VI_FLOW_SIMPLE) {
		vi_step_begin(c);
		desc->handle_irq(c, desc);
		vi_step_end(c);
		return 0;
	}
	vi_lock(&desc->lock);
	if (vi_simple_arrive(c, desc))
		return admit(c, desc);
	vi_trace(m, VI_TRACE_FLOW_DROP, cpu, desc->irq, desc->replay);
	vi_unlock(&desc->lock);
	return 0;
}

/* Why a CPU cannot go on in a handler of @desc; 0: it can. */
static int not_in_handler(const struct vi_cpu *c, const struct vi_irq_desc *desc)
{
	if (!c || !desc)
		return -EINVAL;
	return c->step.freed ? -EFAULT : 0;
}

int vi_step_flow_actions(struct vi_machine *m, uint32_t cpu, uint32_t irq)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);
	struct vi_irq_desc *desc = column_desc(m, irq);
	int error = not_in_handler(c, desc);

	if (error)
		return error;
	vi_step_begin(c);
	vi_handle_irq_event_percpu(c, desc);
	vi_step_end(c);
	return 0;
}

int vi_step_flow_exit(struct vi_machine *m, uint32_t cpu, uint32_t irq)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);
	struct vi_irq_desc *desc = column_desc(m, irq);
	int error = not_in_handler(c, desc);

	if (error)
		return error;
	vi_event_end(desc);
	vi_trace(m, VI_TRACE_FLOW_DONE, cpu, desc->irq, 0);
	if (vi_flow_again(desc))
		return admit(c, desc);
	vi_unlock(&desc->lock);
	return 0;
}

/* The CPU that is run step by step and is in a handler of @desc; NULL: none. */
static struct vi_cpu *step_runs(struct vi_machine *m, const struct vi_irq_desc *desc)
{
	return desc && (desc->state & VI_IRQD_INPROGRESS) ? vi_step_cpu(m, desc->running_cpu) :
							    NULL;
}

uint32_t vi_step_running(struct vi_machine *m, uint32_t irq)
{
	return step_runs(m, column_desc(m, irq)) != NULL;
}

void vi_step_action_freed(struct vi_machine *m, uint32_t irq)
{
	struct vi_cpu *cpu = step_runs(m, column_desc(m, irq));

	if (cpu)
		cpu->step.freed = 1;
}

int vi_step_handle_irq(struct vi_machine *m, uint32_t cpu, uint32_t irq)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);
	struct vi_irq_desc *desc = column_desc(m, irq);

	if (!c || !desc)
		return -EINVAL;
	vi_step_begin(c);
	vi_desc_handle_irq(c, desc);
	vi_step_end(c);
	return 0;
}

int vi_step_resend(struct vi_machine *m, uint32_t cpu, uint32_t from, uint64_t *bits)
{
	uint32_t word = from, words = (m->irq_columns + 63) / 64;

	if (!vi_step_cpu(m, cpu))
		return -EINVAL;
	while (word < words && !(*bits = vi_resend_claim(m, word)))
		word++;
	return (int)(word < words ? word : VI_STEP_WORDS_END);
}
