/* SPDX-License-Identifier: MIT */
/*
 * redirect.c - children of a demultiplexer that run on a CPU of their own choice, whatever CPU the
 * parent came to (genirq, interrupt redirection, December 2025), and the irq_work that brings them
 * there (kernel/irq_work.c).
 *
 * A child runs at once where its effective mask has the CPU of the parent; otherwise on its target,
 * which is the owner of its slot: one place says both. What is queued on a CPU is a list under
 * that CPU's work_lock, taken inside desc->lock, if at all. A work is on one list at most, since
 * only who turns work_pending from 0 to 1 puts it there; who takes it off clears the flag before
 * the flow handler runs, so that an event that merges is an event that is still to be handled.
 */
#include "internals.h"

/*
 * irq_work_queue_on(): onto the list, and have the interrupt raised: a bit that vi_vcpu_run() looks
 * at anyway.
 */
static void queue_work_on(struct vi_cpu *target, struct vi_irq_desc *desc)
{
	if (__atomic_exchange_n(&desc->work_pending, 1, __ATOMIC_SEQ_CST))
		return;
	desc->work_next = NULL;
	vi_lock(&target->work_lock);
	if (target->work_tail)
		target->work_tail->work_next = desc;
	else
		target->work_head = desc;
	target->work_tail = desc;
	vi_unlock(&target->work_lock);
	__atomic_fetch_or(&target->vector_mode, VI_VECTOR_WORK, __ATOMIC_SEQ_CST);
}

/**
 * vi_redirect_remote() - may the child of an interrupt on @cpu not run there?
 *
 * Then it is queued on its target, or dropped if it has no action.
 * Context: @cpu's own thread, desc->lock not held.
 */
bool vi_redirect_remote(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	struct vi_irq_slot *slot;
	bool remote;

	vi_lock(&desc->lock);
	slot = vi_load(&desc->slot);
	remote = slot && !(desc->effective[cpu->id / 64] >> (cpu->id % 64) & 1);
	if (remote && desc->action) {
		queue_work_on(vi_cpu_of(cpu->m, slot->owner), desc);
		vi_trace(cpu->m, VI_TRACE_REDIRECT, cpu->id, desc->irq, slot->owner);
	} else if (remote) {
		vi_count(&cpu->lost.no_action, 1);
		vi_trace(cpu->m, VI_TRACE_REDIRECT, cpu->id, desc->irq, -1);
	}
	vi_unlock(&desc->lock);
	return remote;
}

/* Take the whole list, and the request of its interrupt back. */
static struct vi_irq_desc *take_works(struct vi_cpu *cpu)
{
	struct vi_irq_desc *first;

	__atomic_fetch_and(&cpu->vector_mode, ~(uint32_t)VI_VECTOR_WORK, __ATOMIC_SEQ_CST);
	vi_lock(&cpu->work_lock);
	first = cpu->work_head;
	cpu->work_head = NULL;
	cpu->work_tail = NULL;
	vi_unlock(&cpu->work_lock);
	return first;
}

/* From here on @desc can be queued again. Return: the next one of its list. */
static struct vi_irq_desc *begin_work(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	struct vi_irq_desc *next = desc->work_next;

	__atomic_store_n(&desc->work_pending, 0, __ATOMIC_SEQ_CST);
	vi_trace(cpu->m, VI_TRACE_IRQ_WORK, cpu->id, desc->irq, 0);
	return next;
}

static void do_work(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	if (!vi_desc_try_handle_irq(cpu, desc))
		queue_work_on(cpu, desc);	/* its old CPU still runs it */
}

/* irq_work_run(). Return: works. Context: an interrupt on @cpu. */
static int run_works(struct vi_cpu *cpu)
{
	struct vi_irq_desc *desc, *next;
	int works = 0;

	for (desc = take_works(cpu); desc; desc = next, works++) {
		next = begin_work(cpu, desc);
		do_work(cpu, desc);
	}
	return works;
}

/* x86: IRQ_WORK_VECTOR, the IWI row. arm64: an IPI, whose flow handler counts. */
static void count_interrupt(struct vi_cpu *cpu)
{
	if (cpu->m->arch == VI_ARCH_X86)
		vi_count(&cpu->arch[VI_ROW_IWI], 1);
	else if (cpu->m->irq_work_desc)
		vi_desc_handle_irq(cpu, cpu->m->irq_work_desc);
}

/**
 * vi_take_irq_work() - take the interrupt that a queued work has raised, with its softirqs
 * Context: @cpu's own thread.
 * Return: as vi_vcpu_run().
 */
int vi_take_irq_work(struct vi_cpu *cpu)
{
	struct vi_machine *m = cpu->m;

	if (!vi_irq_enter(cpu))
		return 0;
	count_interrupt(cpu);
	(void)run_works(cpu);
	vi_do_softirq(cpu);
	vi_irq_exit(cpu);
	vi_trace(m, VI_TRACE_IRQ_EXIT, cpu->id, 0, 0);
	return 1;
}

/*
 * Take a descriptor that is about to be freed off the list it is on. Context: the owner, nobody
 * queues it any more.
 */
void vi_irq_work_cancel(struct vi_machine *m, struct vi_irq_desc *desc)
{
	for (uint32_t c = 0; c < m->nr_cpus && vi_load(&desc->work_pending); c++) {
		struct vi_cpu *cpu = vi_cpu_of(m, c);
		struct vi_irq_desc **link, *last = NULL;

		vi_lock(&cpu->work_lock);
		for (link = &cpu->work_head; *link && *link != desc; link = &(*link)->work_next)
			last = *link;
		if (*link) {
			*link = desc->work_next;
			if (cpu->work_tail == desc)
				cpu->work_tail = last;
			vi_store(&desc->work_pending, 0);
		}
		vi_unlock(&cpu->work_lock);
	}
}

int vi_irq_work_flush(struct vi_machine *m, uint32_t cpu_id)
{
	struct vi_cpu *cpu;
	int works = 0, more;

	if (cpu_id >= m->nr_cpus)
		return -EINVAL;
	cpu = vi_cpu_of(m, cpu_id);
	do {
		if (!vi_irq_enter(cpu))
			return -EDEADLK;
		more = run_works(cpu);
		vi_do_softirq(cpu);
		vi_irq_exit(cpu);
		works += more;
	} while (more);
	return works;
}

uint32_t vi_irq_work_pending(const struct vi_machine *m, uint32_t irq)
{
	const struct vi_irq_desc *desc = irq < m->nr_irqs_max ? vi_load(&m->desc[irq]) : NULL;

	return desc ? vi_load(&desc->work_pending) : 0;
}

int vi_irq_set_effective(struct vi_machine *m, uint32_t irq, const uint64_t *mask, uint32_t owner)
{
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);

	if (!desc || owner >= m->nr_cpus)
		return -EINVAL;
	vi_lock(&desc->lock);
	memcpy(desc->effective, mask, sizeof(desc->effective));
	vi_slot_set_owner(m, desc, owner);
	vi_unlock(&desc->lock);
	return 0;
}

int vi_generic_handle_demux_domain_irq(struct vi_machine *m, uint32_t cpu, uint32_t hwirq)
{
	struct vi_irq_desc *desc;
	bool outermost;
	struct vi_cpu *c;

	if (cpu >= m->nr_cpus || hwirq >= VI_DOMAIN_SIZE)
		return -EINVAL;
	c = vi_cpu_of(m, cpu);
	outermost = vi_irq_enter(c);
	desc = vi_load(&m->domain.revmap[hwirq]);
	if (desc && !vi_redirect_remote(c, desc))
		vi_desc_handle_irq(c, desc);
	if (outermost)
		vi_irq_exit(c);
	return desc ? 0 : -EINVAL;
}

/* ---- the same, step by step ------------------------------------------------------------------ */

/**
 * vi_irq_work_begin() - the interrupt of irq_works up to its first work
 * Context: an interrupt on @cpu.
 */
void vi_irq_work_begin(struct vi_cpu *cpu)
{
	count_interrupt(cpu);
	cpu->step.works = take_works(cpu);
}

int vi_step_redirect(struct vi_machine *m, uint32_t cpu, uint32_t irq)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);

	if (!c || !desc)
		return -EINVAL;
	return m->redirect && vi_redirect_remote(c, desc);
}

int vi_step_work(struct vi_machine *m, uint32_t cpu, uint32_t *irq)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);
	struct vi_irq_desc *desc;

	if (!c)
		return -EINVAL;
	desc = c->step.works;
	if (!desc)
		return 0;
	*irq = desc->irq;
	c->step.works = begin_work(c, desc);
	return 1;
}

int vi_step_do_work(struct vi_machine *m, uint32_t cpu, uint32_t irq)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);

	if (!c || !desc)
		return -EINVAL;
	vi_step_begin(c);
	do_work(c, desc);
	vi_step_end(c);
	return 0;
}
