/* SPDX-License-Identifier: MIT */
/*
 * chip.c - flow handlers: who counts, who acks, when the actions run (kernel/irq/chip.c, v6.10).
 *
 * Every handler but the per-CPU ones takes desc->lock and drops it around the actions, with
 * IN_PROGRESS set. Callers hold no lock. The parts that they are made of are flow_inline.h's.
 */
#include "irq/flow_inline.h"

static bool chip_has(const struct vi_irq_desc *desc, uint32_t op)
{
	return desc->chip && (desc->chip->ops & op);
}

/*
 * MASKED follows the callback, not the wish: a chip without irq_mask stays unmasked, one without
 * irq_unmask stays MASKED for ever.
 */
static void mask_irq(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	if ((desc->state & VI_IRQD_MASKED) || !chip_has(desc, VI_CHIP_MASK))
		return;
	vi_chip_call(cpu, desc, VI_CHIP_MASK);
	desc->state |= VI_IRQD_MASKED;
}

static void unmask_irq(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	if (!(desc->state & VI_IRQD_MASKED) || !chip_has(desc, VI_CHIP_UNMASK))
		return;
	vi_chip_call(cpu, desc, VI_CHIP_UNMASK);
	desc->state &= ~(uint32_t)VI_IRQD_MASKED;
}

static void mask_ack_irq(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	if (chip_has(desc, VI_CHIP_MASK_ACK)) {
		vi_chip_call(cpu, desc, VI_CHIP_MASK_ACK);
		desc->state |= VI_IRQD_MASKED;
		return;
	}
	mask_irq(cpu, desc);
	vi_chip_call(cpu, desc, VI_CHIP_ACK);
}

/* Control-plane calls have no CPU of their own: they run on the boot CPU. */
static struct vi_cpu *boot_cpu(struct vi_machine *m)
{
	return &m->cpus[0];
}

/* irq_enable() */
void vi_desc_enable(struct vi_machine *m, struct vi_irq_desc *desc)
{
	if (!(desc->state & VI_IRQD_DISABLED)) {
		unmask_irq(boot_cpu(m), desc);
		return;
	}
	desc->state &= ~(uint32_t)VI_IRQD_DISABLED;
	if (chip_has(desc, VI_CHIP_ENABLE)) {
		vi_chip_call(boot_cpu(m), desc, VI_CHIP_ENABLE);
		desc->state &= ~(uint32_t)VI_IRQD_MASKED;
	} else {
		unmask_irq(boot_cpu(m), desc);
	}
}

/* __irq_disable() */
static void disable_irq(struct vi_machine *m, struct vi_irq_desc *desc, bool mask)
{
	if (desc->state & VI_IRQD_DISABLED) {
		if (mask)
			mask_irq(boot_cpu(m), desc);
		return;
	}
	desc->state |= VI_IRQD_DISABLED;
	if (chip_has(desc, VI_CHIP_DISABLE)) {
		vi_chip_call(boot_cpu(m), desc, VI_CHIP_DISABLE);
		desc->state |= VI_IRQD_MASKED;
	} else if (mask) {
		mask_irq(boot_cpu(m), desc);
	}
}

/* irq_disable(): lazy, unless the chip has a callback or the IRQ is marked DISABLE_UNLAZY */
void vi_desc_disable(struct vi_machine *m, struct vi_irq_desc *desc)
{
	disable_irq(m, desc, desc->settings & VI_IRQ_DISABLE_UNLAZY);
}

/* irq_startup() without affinity and resend, which the caller does next */
void vi_desc_startup(struct vi_machine *m, struct vi_irq_desc *desc)
{
	desc->depth = 0;
	if (desc->state & VI_IRQD_STARTED) {
		vi_desc_enable(m, desc);
		return;
	}
	if (chip_has(desc, VI_CHIP_STARTUP)) {
		vi_chip_call(boot_cpu(m), desc, VI_CHIP_STARTUP);
		desc->state &= ~(uint32_t)(VI_IRQD_DISABLED | VI_IRQD_MASKED);
	} else {
		vi_desc_enable(m, desc);
	}
	desc->state |= VI_IRQD_STARTED | VI_IRQD_ACTIVATED;
}

/* irq_shutdown() */
void vi_desc_shutdown(struct vi_machine *m, struct vi_irq_desc *desc)
{
	if (!(desc->state & VI_IRQD_STARTED))
		return;
	__atomic_fetch_and(&m->resend[desc->irq / 64], ~(1ull << (desc->irq % 64)),
			   __ATOMIC_RELAXED);
	desc->depth = m->shutdown_adds_depth ? desc->depth + 1 : 1;
	if (chip_has(desc, VI_CHIP_SHUTDOWN)) {
		vi_chip_call(boot_cpu(m), desc, VI_CHIP_SHUTDOWN);
		desc->state |= VI_IRQD_DISABLED | VI_IRQD_MASKED;
	} else {
		disable_irq(m, desc, true);
	}
	desc->state &= ~(uint32_t)(VI_IRQD_STARTED | VI_IRQD_ACTIVATED);
}

static void handle_bad_irq(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	vi_lock(&desc->lock);
	vi_flow_count3(cpu, desc);
	vi_unlock(&desc->lock);
	if (cpu->m->arch == VI_ARCH_ARM64)	/* ack_bad_irq(): x86 only prints */
		__atomic_fetch_add(&cpu->m->irq_err_count, 1, __ATOMIC_RELAXED);
	if (cpu->m->hooks.report)
		cpu->m->hooks.report(cpu, VI_REPORT_BAD_IRQ, desc->irq, 0);
}

static inline __attribute__((always_inline)) void simple_irq(struct vi_cpu *cpu,
							     struct vi_irq_desc *desc,
							     const bool traced)
{
	vi_lock(&desc->lock);
	if (!vi_simple_arrive(cpu, desc)) {
		vi_trace_if(traced, VI_TRACE_FLOW_DROP, desc->irq, desc->replay);
		goto out;
	}
	do {
		if (!vi_simple_admit(cpu, desc)) {
			vi_trace_if(traced, VI_TRACE_FLOW_PENDING, desc->irq, 0);
			break;
		}
		vi_trace_if(traced, VI_TRACE_FLOW_COUNT, desc->irq, 0);
		vi_handle_irq_event(cpu, desc);
		vi_trace_if(traced, VI_TRACE_FLOW_DONE, desc->irq, 0);
	} while (vi_flow_again(desc));
out:
	vi_unlock(&desc->lock);
}

static void handle_simple_irq(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	simple_irq(cpu, desc, false);
}

static void handle_simple_irq_traced(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	simple_irq(cpu, desc, true);
}

/* The twin that tells a tracer what it does; a flow that has none stands for itself. */
vi_flow_t vi_flow_traced(vi_flow_t flow)
{
	return flow == handle_simple_irq ? handle_simple_irq_traced : flow;
}

/*
 * As simple, but leaves no trace in any statistics (kernel: for demultiplexers that keep their
 * own).
 */
static void handle_untracked_irq(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	vi_lock(&desc->lock);
	if (!vi_flow_may_run(desc)) {
		vi_flow_while_running(cpu, desc);
		goto out;
	}
	do {
		desc->istate &= ~(uint32_t)(VI_IRQS_REPLAY | VI_IRQS_WAITING);
		if (!vi_flow_usable(desc))
			break;
		vi_event_begin(cpu, desc);
		vi_run_actions(cpu, desc);
		vi_event_end(desc);
	} while (vi_flow_again(desc));
out:
	vi_unlock(&desc->lock);
}

static void handle_edge_irq(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	vi_lock(&desc->lock);
	desc->istate &= ~(uint32_t)(VI_IRQS_REPLAY | VI_IRQS_WAITING);
	if (!vi_flow_may_run(desc) || !vi_flow_usable(desc)) {
		desc->istate |= VI_IRQS_PENDING;
		mask_ack_irq(cpu, desc);
		goto out;
	}
	vi_flow_count3(cpu, desc);
	vi_chip_call(cpu, desc, VI_CHIP_ACK);
	do {
		if (unlikely(!desc->action)) {
			mask_irq(cpu, desc);
			break;
		}
		if (unlikely(desc->istate & VI_IRQS_PENDING) && !(desc->state & VI_IRQD_DISABLED))
			unmask_irq(cpu, desc);
		vi_handle_irq_event(cpu, desc);
	} while ((desc->istate & VI_IRQS_PENDING) && !(desc->state & VI_IRQD_DISABLED));
out:
	vi_unlock(&desc->lock);
}

static void cond_unmask(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	if (!(desc->state & VI_IRQD_DISABLED))
		unmask_irq(cpu, desc);
}

static void handle_level_irq(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	vi_lock(&desc->lock);
	mask_ack_irq(cpu, desc);
	if (!vi_flow_may_run(desc))
		goto out;
	desc->istate &= ~(uint32_t)(VI_IRQS_REPLAY | VI_IRQS_WAITING);
	if (!vi_flow_usable(desc))
		goto out;	/* stays masked */
	vi_flow_count3(cpu, desc);
	vi_handle_irq_event(cpu, desc);
	cond_unmask(cpu, desc);
out:
	vi_unlock(&desc->lock);
}

static void handle_fasteoi_irq(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	bool ran = false;

	vi_lock(&desc->lock);
	if (!vi_flow_may_run(desc)) {
		if (desc->replay)
			desc->istate |= VI_IRQS_PENDING;
		goto out;
	}
	desc->istate &= ~(uint32_t)(VI_IRQS_REPLAY | VI_IRQS_WAITING);
	if (!vi_flow_usable(desc)) {
		mask_irq(cpu, desc);
		goto out;
	}
	ran = true;
	vi_flow_count3(cpu, desc);
	if (desc->istate & VI_IRQS_ONESHOT)
		mask_irq(cpu, desc);
	vi_handle_irq_event(cpu, desc);
out:
	if (ran || !desc->chip || !(desc->chip->flags & VI_CHIP_EOI_IF_HANDLED))
		vi_chip_call(cpu, desc, VI_CHIP_EOI);
	if (ran && (desc->istate & VI_IRQS_ONESHOT))
		cond_unmask(cpu, desc);
	if (ran && unlikely(desc->istate & VI_IRQS_PENDING))
		(void)vi_desc_check_resend(cpu->m, desc);
	vi_unlock(&desc->lock);
}

static void handle_percpu_irq(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	vi_flow_count2(cpu, desc);
	vi_chip_call(cpu, desc, VI_CHIP_ACK);
	vi_handle_irq_event_percpu(cpu, desc);
	vi_chip_call(cpu, desc, VI_CHIP_EOI);
}

/* Nobody has requested it: off on this CPU, and said so. */
static void spurious_percpu(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	uint64_t bit = 1ull << (cpu->id % 64);
	uint64_t *word = desc->percpu_enabled ? &desc->percpu_enabled[cpu->id / 64] : NULL;
	bool enabled = word && (__atomic_fetch_and(word, ~bit, __ATOMIC_RELAXED) & bit);

	if (enabled)
		vi_chip_call(cpu, desc,
			  chip_has(desc, VI_CHIP_DISABLE) ? VI_CHIP_DISABLE : VI_CHIP_MASK);
	if (cpu->m->hooks.report)
		cpu->m->hooks.report(cpu, VI_REPORT_SPURIOUS_PERCPU, desc->irq, enabled);
}

static void handle_percpu_devid_irq(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	struct vi_irqaction *action = vi_load(&desc->action);

	vi_flow_count2(cpu, desc);
	vi_trace(cpu->m, VI_TRACE_FLOW_ENTRY, cpu->id, desc->irq, 0);
	vi_percpu_begin(cpu, desc);
	if (likely(action))
		action->handler(cpu, desc->irq,
				action->percpu_dev_id ? action->percpu_dev_id[cpu->id] :
							action->dev_id);
	else
		spurious_percpu(cpu, desc);
	vi_devid_end(cpu, desc);
	vi_trace(cpu->m, VI_TRACE_FLOW_EXIT, cpu->id, desc->irq, 0);
}

/* Run the actions of a per-CPU demultiplexer, each with this CPU's cookie where it has cookies. */
static uint32_t run_percpu_actions(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	uint32_t result = VI_IRQ_NONE;

	for (struct vi_irqaction *action = vi_load(&desc->action); action;
	     action = vi_load(&action->next))
		result |= action->handler(cpu, desc->irq,
					  action->percpu_dev_id ? action->percpu_dev_id[cpu->id] :
								  action->dev_id);
	return result;
}

/*
 * RFC patch 06: the parent of a demultiplexer counts, after the fact, only what the actions say
 * they handled themselves.
 */
static void handle_percpu_demux_irq(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	vi_trace(cpu->m, VI_TRACE_FLOW_ENTRY, cpu->id, desc->irq, 0);
	vi_percpu_begin(cpu, desc);
	vi_demux_end(cpu, desc, run_percpu_actions(cpu, desc));
	vi_trace(cpu->m, VI_TRACE_FLOW_EXIT, cpu->id, desc->irq, 0);
}

/*
 * Review of RFC patch 06: a visible row counts in cnt alone, so that /proc/stat's total has each
 * event once; a hidden one nowhere.
 */
static void handle_percpu_nostat_irq(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	vi_trace(cpu->m, VI_TRACE_FLOW_ENTRY, cpu->id, desc->irq, 0);
	vi_percpu_begin(cpu, desc);
	run_percpu_actions(cpu, desc);
	vi_nostat_end(cpu, desc);
	vi_trace(cpu->m, VI_TRACE_FLOW_EXIT, cpu->id, desc->irq, 0);
}

struct flow {
	vi_flow_t handle;
	/* tot_count too: /proc/stat has a number even if the IRQ is not marked per-CPU */
	bool bumps_total;
};

/* The one table to extend when a flow handler is added (enum vi_flow). */
static const struct flow flows[VI_FLOWS] = {
	[VI_FLOW_BAD] = { handle_bad_irq, true },
	[VI_FLOW_SIMPLE] = { handle_simple_irq, true },
	[VI_FLOW_UNTRACKED] = { handle_untracked_irq, true },
	[VI_FLOW_EDGE] = { handle_edge_irq, true },
	[VI_FLOW_LEVEL] = { handle_level_irq, true },
	[VI_FLOW_FASTEOI] = { handle_fasteoi_irq, true },
	[VI_FLOW_PERCPU] = { handle_percpu_irq, false },
	[VI_FLOW_PERCPU_DEVID] = { handle_percpu_devid_irq, false },
	[VI_FLOW_PERCPU_DEMUX] = { handle_percpu_demux_irq, false },
	[VI_FLOW_PERCPU_NOSTAT] = { handle_percpu_nostat_irq, false },
};

vi_flow_t vi_flow_handler(uint32_t flow)
{
	VI_BUG_ON(flow >= VI_FLOWS);
	return flows[flow].handle;
}

bool vi_flow_bumps_total(uint32_t flow)
{
	VI_BUG_ON(flow >= VI_FLOWS);
	return flows[flow].bumps_total;
}

/**
 * vi_desc_handle_irq() - let the flow handler run, whoever else may run the descriptor from its
 * slot (generic_handle_irq_desc)
 * Context: @cpu's own thread, desc->lock not held.
 */
void vi_desc_handle_irq(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	struct vi_irq_slot *slot = cpu->m->engine == VI_ENGINE_FAST ? vi_load(&desc->slot) : NULL;

	if (slot)
		vi_slot_handle_irq(cpu, slot, desc);
	else
		desc->handle_irq(cpu, desc);
}

/* The action of a device that only the counters look at. */
static uint32_t always_handled(struct vi_cpu *cpu, uint32_t irq, void *dev_id)
{
	(void)cpu;
	(void)irq;
	(void)dev_id;
	return VI_IRQ_HANDLED;
}

vi_handler_t vi_handler_always_handled(void)
{
	return always_handled;
}

int vi_generic_handle_irq_times(struct vi_machine *m, uint32_t cpu, uint32_t irq, uint32_t times)
{
	int result = vi_irq_to_desc(m, irq) && cpu < m->nr_cpus ? 0 : -EINVAL;

	for (uint32_t i = 0; i < times && result == 0; i++)
		result = vi_generic_handle_irq(m, cpu, irq);
	return result;
}

int vi_generic_handle_irq(struct vi_machine *m, uint32_t cpu, uint32_t irq)
{
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);
	bool outermost;

	if (!desc || cpu >= m->nr_cpus)
		return -EINVAL;
	outermost = vi_irq_enter(vi_cpu_of(m, cpu));
	vi_desc_handle_irq(vi_cpu_of(m, cpu), desc);
	if (outermost)
		vi_irq_exit(vi_cpu_of(m, cpu));
	return 0;
}
