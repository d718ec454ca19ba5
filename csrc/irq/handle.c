/* SPDX-License-Identifier: MIT */
/*
 * handle.c - from an arrival to the actions' irqreturn: the event itself, spurious accounting,
 * software resend (kernel/irq/{handle,spurious,resend}.c, v6.10).
 *
 * Spurious fields change on the CPU that runs the actions, as in the kernel, so they need no lock
 * of their own. Others look at them, and a per-CPU flow has several such CPUs, so they are atomic,
 * each by itself.
 */
#include "irq/flow_inline.h"

#define SPURIOUS_WINDOW_MS 100		/* HZ / 10 */
#define SPURIOUS_SAMPLE 100000
#define SPURIOUS_LIMIT 99900
#define THREADS_DEFERRED 0x80000000u

static void report(struct vi_cpu *cpu, uint32_t what, uint32_t irq, uint32_t value)
{
	if (cpu->m->hooks.report)
		cpu->m->hooks.report(cpu, what, irq, value);
}

/**
 * vi_run_actions() - run every action in chain order
 * Context: desc->lock not held.
 * Return: the results OR-ed.
 */
uint32_t vi_run_actions(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	uint32_t result = VI_IRQ_NONE;

	for (struct vi_irqaction *action = vi_load(&desc->action); action;
	     action = vi_load(&action->next)) {
		uint32_t one = action->handler(cpu, desc->irq, action->dev_id);

		if (unlikely(one == VI_IRQ_WAKE_THREAD))
			report(cpu, VI_REPORT_WAKE_WITHOUT_THREAD, desc->irq, one);
		result |= one;
	}
	return result;
}

/*
 * Nobody wanted almost every one of the last 100 000 arrivals: the line is stuck, switch it off
 * (4.8 of kernel/irq/spurious.c).
 */
static __attribute__((noinline, cold)) void nobody_cared(struct vi_cpu *cpu,
							 struct vi_irq_desc *desc)
{
	report(cpu, VI_REPORT_NOBODY_CARED, desc->irq, desc->irqs_unhandled);
	vi_lock(&desc->lock);
	desc->istate |= VI_IRQS_SPURIOUS_DISABLED;
	desc->depth++;
	vi_desc_disable(cpu->m, desc);
	vi_unlock(&desc->lock);
}

/*
 * A chain that says nothing but WAKE_THREAD is judged at the next such arrival, by whether a thread
 * has handled something since.
 * Return: the result to account, or -1 to account nothing yet.
 */
static __attribute__((noinline, cold)) int judge_wake_thread(struct vi_irq_desc *desc,
							     uint32_t result)
{
	uint32_t handled = vi_load_relaxed(&desc->threads_handled) | THREADS_DEFERRED,
		 last = desc->threads_handled_last;

	/* one of the handlers took it: the threads need not answer for this line */
	if (result != VI_IRQ_WAKE_THREAD) {
		desc->threads_handled_last = last & ~THREADS_DEFERRED;
		return (int)result;
	}
	if (!(last & THREADS_DEFERRED)) {
		desc->threads_handled_last = last | THREADS_DEFERRED;
		return -1;
	}
	desc->threads_handled_last = handled;
	return handled != last ? VI_IRQ_HANDLED : VI_IRQ_NONE;
}

/**
 * vi_note_interrupt() - keep the count of arrivals that nobody handled
 * Context: IN_PROGRESS, or a per-CPU flow; desc->lock not held.
 */
void vi_note_interrupt(struct vi_cpu *cpu, struct vi_irq_desc *desc, uint32_t result)
{
	uint32_t unhandled = vi_load_relaxed(&desc->irqs_unhandled);
	int judged;

	if (vi_load_relaxed(&desc->settings) & VI_IRQ_IS_POLLED)
		return;
	if (unlikely(result > (VI_IRQ_HANDLED | VI_IRQ_WAKE_THREAD))) {
		report(cpu, VI_REPORT_BOGUS_RETURN, desc->irq, result);
		return;
	}
	judged = unlikely(result & VI_IRQ_WAKE_THREAD) ? judge_wake_thread(desc, result) :
							 (int)result;
	if (judged < 0)
		return;
	if (unlikely(judged == VI_IRQ_NONE)) {
		uint64_t now = vi_load_relaxed(&cpu->m->time_ms);

		unhandled = now > vi_load_relaxed(&desc->last_unhandled_ms) + SPURIOUS_WINDOW_MS ?
				    1 :
				    unhandled + 1;
		vi_store_relaxed(&desc->irqs_unhandled, unhandled);
		vi_store_relaxed(&desc->last_unhandled_ms, now);
	}
	if (likely(!unhandled))
		return;
	vi_count(&desc->irq_count, 1);
	if (vi_load_relaxed(&desc->irq_count) < SPURIOUS_SAMPLE)
		return;
	vi_store_relaxed(&desc->irq_count, 0);
	if (unhandled > SPURIOUS_LIMIT)
		nobody_cared(cpu, desc);
	vi_store_relaxed(&desc->irqs_unhandled, 0);
}

/**
 * vi_handle_irq_event_percpu() - one run of the actions with what belongs to it: the entropy
 * sample, the spurious check
 * Context: IN_PROGRESS, or a per-CPU flow; desc->lock not held.
 */
void vi_handle_irq_event_percpu(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	uint32_t result = vi_run_actions(cpu, desc);

	if (cpu->m->engine == VI_ENGINE_LINUX && !cpu->m->skip_entropy)
		vi_lx_add_interrupt_randomness(cpu, desc->irq);
	if (!(vi_load_relaxed(&desc->settings) & VI_IRQ_NO_DEBUG))
		vi_note_interrupt(cpu, desc, result);
}

/**
 * vi_handle_irq_event() - one run of the actions with IN_PROGRESS set
 * Context: desc->lock, dropped and taken again.
 */
void vi_handle_irq_event(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	vi_event_begin(cpu, desc);
	vi_handle_irq_event_percpu(cpu, desc);
	vi_event_end(desc);
}

/**
 * vi_desc_check_resend() - replay a remembered arrival (check_irq_resend)
 *
 * By the chip if it can, else by the resend tasklet, which belongs to the boot CPU here.
 * Context: desc->lock.
 * Return: 0 (also when nothing was remembered), -EINVAL for a level IRQ, -EBUSY while one is on its
 * way.
 */
int vi_desc_check_resend(struct vi_machine *m, struct vi_irq_desc *desc)
{
	if (desc->settings & VI_IRQ_LEVEL) {
		desc->istate &= ~(uint32_t)VI_IRQS_PENDING;
		return -EINVAL;
	}
	if (desc->istate & VI_IRQS_REPLAY)
		return -EBUSY;
	if (!(desc->istate & VI_IRQS_PENDING))
		return 0;
	desc->istate &= ~(uint32_t)VI_IRQS_PENDING;
	desc->istate |= VI_IRQS_REPLAY;
	if (desc->chip && (desc->chip->ops & VI_CHIP_RETRIGGER) && desc->chip->call) {
		desc->chip->call(&m->cpus[0], desc->irq, VI_CHIP_RETRIGGER);
		return 0;
	}
	__atomic_fetch_or(&m->resend[desc->irq / 64], 1ull << (desc->irq % 64), __ATOMIC_RELAXED);
	vi_store(&m->resend_pending, 1);	/* the boot CPU's list is not ours to touch */
	return 0;
}

/* Take the queued IRQs of one word of the list. */
uint64_t vi_resend_claim(struct vi_machine *m, uint32_t word)
{
	return __atomic_exchange_n(&m->resend[word], 0, __ATOMIC_ACQ_REL);
}

/* The resend tasklet: call the flow handler of every queued IRQ once. */
void vi_resend_run(struct vi_cpu *cpu, void *data)
{
	struct vi_machine *m = cpu->m;

	(void)data;
	for (uint32_t word = 0; word < (m->irq_columns + 63) / 64; word++) {
		uint64_t bits = vi_resend_claim(m, word);

		for (; bits; bits &= bits - 1) {
			struct vi_irq_desc *desc =
				vi_load(&m->desc[word * 64 + (uint32_t)__builtin_ctzll(bits)]);

			if (desc)
				vi_desc_handle_irq(cpu, desc);
		}
	}
}
