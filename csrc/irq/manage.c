/* SPDX-License-Identifier: MIT */
/*
 * manage.c - actions, enabling and disabling, waiting for a handler to end (kernel/irq/manage.c,
 * v6.10).
 *
 * Which request is allowed, and what it is called, is decided in Python; here is only what a
 * running flow handler can see.
 */
#include "internals.h"

static struct vi_irqaction **last_link(struct vi_irq_desc *desc)
{
	struct vi_irqaction **link = &desc->action;

	while (*link)
		link = &(*link)->next;
	return link;
}

/* __enable_irq(). Return: the new depth, or -EPERM: unbalanced. Context: desc->lock. */
static int enable_irq(struct vi_machine *m, struct vi_irq_desc *desc)
{
	if (desc->depth == 0 || (desc->depth == 1 && (desc->istate & VI_IRQS_SUSPENDED)))
		return -EPERM;
	if (desc->depth > 1)
		return (int)--desc->depth;
	vi_store_relaxed(&desc->settings, desc->settings | VI_IRQ_NOPROBE);
	vi_desc_startup(m, desc);
	(void)vi_desc_check_resend(m, desc);
	return 0;
}

int vi_irq_add_action(struct vi_machine *m, uint32_t irq, struct vi_irqaction *action)
{
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);
	const uint32_t reset =
		VI_IRQS_AUTODETECT | VI_IRQS_SPURIOUS_DISABLED | VI_IRQS_ONESHOT | VI_IRQS_WAITING;
	bool first;

	if (!desc || !action || !action->handler)
		return -EINVAL;
	vi_lock(&desc->lock);
	if (desc->nr_actions >= VI_ACTIONS_MAX) {
		vi_unlock(&desc->lock);
		return -ENOSPC;
	}
	action->irq = irq;
	action->next = NULL;
	if (desc->slot)
		/* the owner finds a chain of one as long as it runs it without a lock */
		vi_slot_fence(m, desc->slot);
	first = !desc->action;
	if (first) {
		/* PENDING is kept: what came before the request replays */
		desc->istate &= ~reset;
		desc->state &= ~(uint32_t)VI_IRQD_INPROGRESS;
		if (action->flags & VI_IRQF_ONESHOT)
			desc->istate |= VI_IRQS_ONESHOT;
	}
	vi_store_relaxed(&desc->irq_count, 0);
	vi_store_relaxed(&desc->irqs_unhandled, 0);
	vi_store(last_link(desc), action);
	desc->nr_actions++;
	if (!first && (desc->istate & VI_IRQS_SPURIOUS_DISABLED)) {
		desc->istate &= ~(uint32_t)VI_IRQS_SPURIOUS_DISABLED;
		(void)enable_irq(m, desc);
	}
	vi_slot_refresh(m, desc);
	vi_unlock(&desc->lock);
	return 0;
}

int vi_irq_remove_action(struct vi_machine *m, uint32_t irq, struct vi_irqaction *action)
{
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);
	struct vi_irqaction **link;

	if (!desc)
		return -EINVAL;
	if (vi_inside_interrupt(m))
		return -EDEADLK;
	if (vi_would_wait(m))
		return -EBUSY;
	vi_lock(&desc->lock);
	for (link = &desc->action; *link && *link != action; link = &(*link)->next)
		;
	if (!*link) {
		vi_unlock(&desc->lock);
		return -ENOENT;
	}
	if (desc->slot)
		vi_slot_fence(m, desc->slot);
	vi_store(link, action->next);
	desc->nr_actions--;
	if (!desc->action) {
		vi_store_relaxed(&desc->settings,
				 desc->settings & ~(uint32_t)VI_IRQ_DISABLE_UNLAZY);
		vi_desc_shutdown(m, desc);
	}
	vi_unlock(&desc->lock);
	(void)vi_desc_synchronize(m, desc);
	vi_synchronize_cpus(m);		/* per-CPU flows run actions without IN_PROGRESS */

	vi_lock(&desc->lock);
	vi_slot_refresh(m, desc);
	vi_unlock(&desc->lock);
	return 0;
}

/**
 * vi_synchronize_cpus() - wait until every CPU has left the interrupt it takes now
 * (synchronize_rcu)
 *
 * What was unlinked before the call is in nobody's hands after it, but those of CPUs that are run
 * step by step where who unlinks waits for them itself.
 * Context: no lock, not inside an interrupt.
 */
void vi_synchronize_cpus(struct vi_machine *m)
{
	for (uint32_t c = 0; c < m->nr_cpus; c++) {
		uint32_t seq = __atomic_load_n(&m->cpus[c].irq_seq, __ATOMIC_SEQ_CST);

		if (m->own_waits && vi_is_stepped(&m->cpus[c]))
			continue;
		while ((seq & 1) && vi_load(&m->cpus[c].irq_seq) == seq)
			sched_yield();
	}
}

/**
 * vi_desc_synchronize() - wait until nobody runs a handler of @desc, neither on the locked path nor
 * from the slot
 * Context: no lock, not inside an interrupt.
 * Return: 0; -EBUSY: it is run step by step.
 */
int vi_desc_synchronize(struct vi_machine *m, struct vi_irq_desc *desc)
{
	for (;;) {
		bool busy;

		vi_lock(&desc->lock);
		busy = (desc->state & VI_IRQD_INPROGRESS) ||
		       (desc->slot && vi_slot_hazard(m, desc->slot, NULL));
		vi_unlock(&desc->lock);
		if (!busy)
			return 0;
		if (vi_any_stepped(m))
			return m->own_waits ? 0 : -EBUSY;
		sched_yield();
	}
}

int vi_irq_synchronize(struct vi_machine *m, uint32_t irq)
{
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);
	int result;

	if (!desc)
		return -EINVAL;
	if (vi_inside_interrupt(m))
		return -EDEADLK;
	vi_lock(&desc->lock);
	if (desc->slot)
		/* what runs from the slot now becomes a hazard to wait for */
		vi_slot_fence(m, desc->slot);
	vi_unlock(&desc->lock);
	result = vi_desc_synchronize(m, desc);
	vi_lock(&desc->lock);
	vi_slot_refresh(m, desc);
	vi_unlock(&desc->lock);
	return result;
}

int vi_irq_startup(struct vi_machine *m, uint32_t irq, uint32_t resend)
{
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);

	if (!desc)
		return -EINVAL;
	vi_lock(&desc->lock);
	vi_desc_startup(m, desc);
	if (resend)
		(void)vi_desc_check_resend(m, desc);
	vi_slot_refresh(m, desc);
	vi_unlock(&desc->lock);
	return 0;
}

int vi_irq_check_resend(struct vi_machine *m, uint32_t irq)
{
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);
	int result;

	if (!desc)
		return -EINVAL;
	vi_lock(&desc->lock);
	result = vi_desc_check_resend(m, desc);
	vi_slot_refresh(m, desc);
	vi_unlock(&desc->lock);
	return result;
}

int vi_irq_shutdown(struct vi_machine *m, uint32_t irq)
{
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);

	if (!desc)
		return -EINVAL;
	vi_lock(&desc->lock);
	vi_desc_shutdown(m, desc);
	vi_slot_refresh(m, desc);
	vi_unlock(&desc->lock);
	return 0;
}

int vi_irq_disable(struct vi_machine *m, uint32_t irq)
{
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);
	int depth;

	if (!desc)
		return -EINVAL;
	vi_lock(&desc->lock);
	if (desc->depth++ == 0)
		vi_desc_disable(m, desc);
	vi_slot_refresh(m, desc);
	depth = (int)desc->depth;
	vi_unlock(&desc->lock);
	return depth;
}

int vi_irq_enable(struct vi_machine *m, uint32_t irq)
{
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);
	int depth;

	if (!desc)
		return -EINVAL;
	vi_lock(&desc->lock);
	depth = enable_irq(m, desc);
	vi_slot_refresh(m, desc);
	vi_unlock(&desc->lock);
	return depth;
}

int vi_irq_percpu_enable(struct vi_machine *m, uint32_t irq, uint32_t cpu, uint32_t on)
{
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);
	uint64_t bit = 1ull << (cpu % 64);

	if (!desc || !desc->percpu_enabled || cpu >= m->nr_cpus)
		return -EINVAL;
	if (on)
		__atomic_fetch_or(&desc->percpu_enabled[cpu / 64], bit, __ATOMIC_RELAXED);
	else
		__atomic_fetch_and(&desc->percpu_enabled[cpu / 64], ~bit, __ATOMIC_RELAXED);
	if (desc->chip && desc->chip->call) {
		uint32_t op =
			on ? (desc->chip->ops & VI_CHIP_ENABLE ? VI_CHIP_ENABLE : VI_CHIP_UNMASK) :
			     (desc->chip->ops & VI_CHIP_DISABLE ? VI_CHIP_DISABLE : VI_CHIP_MASK);

		if (desc->chip->ops & op)
			desc->chip->call(vi_cpu_of(m, cpu), irq, op);
	}
	return 0;
}
