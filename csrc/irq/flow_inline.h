/* SPDX-License-Identifier: MIT */
/*
 * flow_inline.h - the parts of a flow handler between which another CPU can come: entry, actions,
 * exit (kernel/irq/{chip,handle}.c, v6.10).
 *
 * chip.c and handle.c compose them to the handlers that run at full speed, substeps.c lets each be
 * run by itself. What an arrival adds to, as the kernel has it: count3 = cnt, irqs_sum and
 * tot_count; count2 = cnt and irqs_sum.
 */
#ifndef VMBUSIRQ_FLOW_INLINE_H
#define VMBUSIRQ_FLOW_INLINE_H

#include "internals.h"

#define VI_FLOW_INLINE static inline __attribute__((always_inline))

static inline void vi_chip_call(struct vi_cpu *cpu, struct vi_irq_desc *desc, uint32_t op)
{
	if (desc->chip && (desc->chip->ops & op) && desc->chip->call)
		desc->chip->call(cpu, desc->irq, op);
}

static inline void vi_flow_count2(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	vi_count(&desc->kstat_irqs[(size_t)cpu->id * cpu->m->irq_stride], 1);
	vi_count(cpu->irqs_sum, desc->visible);
}

static inline void vi_flow_count3(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	vi_flow_count2(cpu, desc);
	desc->tot_count++;
}

/* irq_may_run() */
static inline bool vi_flow_may_run(const struct vi_irq_desc *desc)
{
	return likely(!(desc->state & VI_IRQD_INPROGRESS));
}

/*
 * An arrival while the IRQ runs already: v6.10's simple flow drops it; a descriptor marked replay
 * (the fast engine, and what later kernels call resend-when-in-progress) remembers it.
 */
static inline void vi_flow_while_running(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	if (desc->replay)
		desc->istate |= VI_IRQS_PENDING;
	else
		vi_count(&cpu->lost.in_progress, 1);
}

/* An arrival nobody can take now collapses into one remembered PENDING. */
static inline bool vi_flow_usable(struct vi_irq_desc *desc)
{
	if (likely(desc->action && !(desc->state & VI_IRQD_DISABLED)))
		return true;
	desc->istate |= VI_IRQS_PENDING;
	return false;
}

/* ---- the simple flow; context of all: desc->lock --------------------------------------------- */

/* Return: false: it runs elsewhere, and this arrival is dropped, or remembered. */
VI_FLOW_INLINE bool vi_simple_arrive(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	if (vi_flow_may_run(desc))
		return true;
	vi_flow_while_running(cpu, desc);
	return false;
}

/* Return: false: nobody can take it now, and it is remembered. */
VI_FLOW_INLINE bool vi_simple_admit(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	desc->istate &= ~(uint32_t)(VI_IRQS_REPLAY | VI_IRQS_WAITING);
	if (!vi_flow_usable(desc))
		return false;
	vi_flow_count3(cpu, desc);
	return true;
}

/* After a run: another one came meanwhile, and was remembered. */
VI_FLOW_INLINE bool vi_flow_again(const struct vi_irq_desc *desc)
{
	return unlikely(desc->replay && (desc->istate & VI_IRQS_PENDING));
}

/* ---- handle_irq_event(), around the actions -------------------------------------------------- */

/* Context: desc->lock, which is dropped. */
static inline void vi_event_begin(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	desc->istate &= ~(uint32_t)VI_IRQS_PENDING;
	desc->state |= VI_IRQD_INPROGRESS;
	desc->running_cpu = cpu->id;
	vi_unlock(&desc->lock);
}

/* Context: no lock; desc->lock is taken. */
static inline void vi_event_end(struct vi_irq_desc *desc)
{
	vi_lock(&desc->lock);
	desc->state &= ~(uint32_t)VI_IRQD_INPROGRESS;
}

/* ---- per-CPU flows, around their actions ----------------------------------------------------- */

static inline void vi_percpu_begin(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	vi_chip_call(cpu, desc, VI_CHIP_ACK);
}

static inline void vi_devid_end(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	vi_chip_call(cpu, desc, VI_CHIP_EOI);
}

static inline void vi_demux_end(struct vi_cpu *cpu, struct vi_irq_desc *desc, uint32_t result)
{
	if (result != VI_IRQ_NONE)
		vi_flow_count2(cpu, desc);
	vi_devid_end(cpu, desc);
}

static inline void vi_nostat_end(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	vi_chip_call(cpu, desc, VI_CHIP_EOI);
	if (!(desc->settings & VI_IRQ_HIDDEN))
		vi_count(&desc->kstat_irqs[(size_t)cpu->id * cpu->m->irq_stride], 1);
}

#endif
