/* SPDX-License-Identifier: MIT */
/*
 * irqdomain.c - the linear domain: hwirq -> slot (fast engine) and hwirq -> descriptor (linux
 * engine).
 *
 * A slot is what the fast engine's scan reads: one cache line per hwirq, and no lock. The rules
 * that make this safe:
 *
 *  1. Only the slot's owner CPU calls slot->handler. Every other CPU takes vi_slot_dispatch_slow(),
 *     under the descriptor lock. A scan loads handler first and owner second, so that an old owner
 *     never calls what was put there for the new one.
 *  2. Whoever wants to change a slot first replaces handler by a stub with a full exchange, and
 *     then reads the owner's irq_seq (vi_slot_fence). The owner made irq_seq odd when it took the
 *     interrupt, also with a full exchange, and loads handler after that. So either the owner sees
 *     the stub, or the fence sees an odd irq_seq: the old handler may still run (a hazard, until
 *     that interrupt ends).
 *  3. While a hazard lasts nobody else runs the interrupt. An arrival elsewhere is raised once more
 *     on the CPU it came to, so it is neither lost nor run twice at once. This is where the fast
 *     engine is stricter than v6.10's simple flow, which drops it.
 *  4. Every reason why the handler must not be called outright (disabled, shared, in progress on a
 *     locked path, ...) is encoded as the stub, so the hot loop tests none of them.
 *     vi_slot_refresh() decides, under the descriptor lock.
 */
#include "internals.h"

/*
 * The stub: the scan found its own slot, but the interrupt has to go the locked way, or nowhere.
 * dev_id is no help here: a scan that has already loaded the real handler may still be about to
 * load it, so the fence must leave it alone.
 */
static uint32_t stub_locked(struct vi_cpu *cpu, uint32_t irq, void *dev_id)
{
	struct vi_irq_desc *desc = irq ? vi_load(&cpu->m->desc[irq]) : NULL;
	struct vi_irq_slot *slot = desc ? vi_load(&desc->slot) : NULL;

	(void)dev_id;
	if (slot)
		return vi_slot_dispatch_slow(cpu, slot);
	vi_count(&cpu->lost.unmapped, 1);
	return VI_IRQ_DEFERRED;
}

/* The stub of a batched action: remember it, vi_batch_flush() calls once for the whole scan. */
static uint32_t stub_batched(struct vi_cpu *cpu, uint32_t irq, void *dev_id)
{
	(void)dev_id;
	VI_BUG_ON(cpu->batch_n >= VI_DOMAIN_SIZE);
	cpu->batch_irq[cpu->batch_n++] = irq;
	return VI_IRQ_DEFERRED;
}

/**
 * vi_slot_fence() - from here on the owner's scans take the locked path for this slot
 * Context: the lock of the descriptor behind the slot.
 */
void vi_slot_fence(struct vi_machine *m, struct vi_irq_slot *slot)
{
	uint32_t seq;

	if (vi_load_relaxed(&slot->handler) == stub_locked)
		return;		/* an earlier hazard, if any, is still noted */
	(void)__atomic_exchange_n(&slot->handler, stub_locked, __ATOMIC_SEQ_CST);
	seq = __atomic_load_n(&vi_cpu_of(m, slot->owner)->irq_seq, __ATOMIC_SEQ_CST);
	slot->hazard_cpu = slot->owner;
	slot->hazard_seq = seq;
}

/**
 * vi_slot_hazard() - may a CPU other than @me still run the handler that the fence took away?
 * Context: the lock of the descriptor behind the slot.
 */
bool vi_slot_hazard(struct vi_machine *m, const struct vi_irq_slot *slot, const struct vi_cpu *me)
{
	if (!(slot->hazard_seq & 1) || (me && slot->hazard_cpu == me->id))
		return false;
	return __atomic_load_n(&vi_cpu_of(m, slot->hazard_cpu)->irq_seq, __ATOMIC_SEQ_CST) ==
	       slot->hazard_seq;
}

/*
 * May the owner call this descriptor's one handler without a lock? Not that of hwirq 0, which is no
 * flag that could be raised again.
 */
static bool can_run_unlocked(struct vi_machine *m, const struct vi_irq_desc *desc)
{
	const struct vi_irqaction *action = desc->action;

	return m->engine == VI_ENGINE_FAST && desc->flow == VI_FLOW_SIMPLE && desc->slot->hwirq &&
	       action && !action->next && !action->exact &&
	       !(desc->state & (VI_IRQD_DISABLED | VI_IRQD_INPROGRESS)) &&
	       !(desc->istate & (VI_IRQS_PENDING | VI_IRQS_REPLAY | VI_IRQS_WAITING)) &&
	       !desc->slow_users && !vi_load_relaxed(&desc->irqs_unhandled) && !desc->slot->drop &&
	       !vi_slot_hazard(m, desc->slot, vi_cpu_of(m, desc->slot->owner));
}

/**
 * vi_slot_refresh() - let the slot say what the descriptor's state allows now
 * Context: desc->lock.
 */
void vi_slot_refresh(struct vi_machine *m, struct vi_irq_desc *desc)
{
	struct vi_irq_slot *slot = desc->slot;

	if (!slot)
		return;
	if (!can_run_unlocked(m, desc)) {
		vi_slot_fence(m, slot);
		return;
	}
	vi_store(&slot->dev_id, desc->action->dev_id);
	vi_store(&slot->handler, desc->action->batched ? stub_batched : desc->action->handler);
}

/* A tracer asks: does the owner go the locked way? */
bool vi_slot_is_stub(const struct vi_irq_slot *slot)
{
	return vi_load_relaxed(&slot->handler) == stub_locked;
}

/* An unmapped slot. Context: nobody can see it, or everybody finds the stub. */
static void slot_reset(struct vi_irq_slot *slot)
{
	slot->drop = NULL;
	slot->hazard_seq = 0;
	vi_store_relaxed(&slot->owner, 0);
	vi_store_relaxed(&slot->irq, 0);
	vi_store_relaxed(&slot->dev_id, NULL);
	vi_store(&slot->handler, stub_locked);
}

void vi_slot_init(struct vi_machine *m, uint32_t hwirq)
{
	memset(&m->slot[hwirq], 0, sizeof(m->slot[hwirq]));
	m->slot[hwirq].hwirq = hwirq;
	slot_reset(&m->slot[hwirq]);
}

void vi_slot_bind(struct vi_machine *m, uint32_t hwirq, struct vi_irq_desc *desc)
{
	struct vi_irq_slot *slot = &m->slot[hwirq];

	vi_set_bit(m->slot_used, hwirq);
	vi_lock(&desc->lock);
	vi_store(&desc->slot, slot);
	desc->hwirq = hwirq;
	vi_store_relaxed(&slot->irq, desc->irq);
	vi_store(&slot->desc, desc);
	vi_store(&m->domain.revmap[hwirq], desc);
	vi_slot_refresh(m, desc);
	vi_unlock(&desc->lock);
}

/**
 * vi_slot_unbind() - unmap @hwirq, which is bound; afterwards no CPU knows the slot's descriptor
 * from it
 * Context: no lock, not inside an interrupt.
 */
void vi_slot_unbind(struct vi_machine *m, uint32_t hwirq)
{
	struct vi_irq_slot *slot = &m->slot[hwirq];
	struct vi_irq_desc *desc = slot->desc;

	vi_store(&m->domain.revmap[hwirq], NULL);
	vi_lock(&desc->lock);
	vi_slot_fence(m, slot);
	vi_store(&desc->slot, NULL);		/* nobody refreshes it: it stays a stub */
	vi_unlock(&desc->lock);
	while (vi_slot_hazard(m, slot, NULL))	/* the owner accounts for what it ran */
		sched_yield();
	vi_store(&slot->desc, NULL);
	vi_synchronize_cpus(m);
	slot_reset(slot);
}

/*
 * Run the flow handler of @desc with its lock, unless somebody still runs its handler from @slot.
 *
 * slow_users keeps the slot a stub until the last CPU on this path has left.
 * Context: @cpu's own thread, desc->lock not held.
 * Return: false if somebody does.
 */
static bool slot_try_handle_irq(struct vi_cpu *cpu, struct vi_irq_slot *slot,
				struct vi_irq_desc *desc)
{
	struct vi_machine *m = cpu->m;

	vi_lock(&desc->lock);
	vi_slot_fence(m, slot);
	if (vi_slot_hazard(m, slot, cpu)) {
		vi_unlock(&desc->lock);
		return false;
	}
	desc->slow_users++;
	vi_unlock(&desc->lock);

	(unlikely(m->trace) ? vi_flow_traced(desc->handle_irq) : desc->handle_irq)(cpu, desc);

	vi_lock(&desc->lock);
	desc->slow_users--;
	vi_slot_refresh(m, desc);
	vi_unlock(&desc->lock);
	return true;
}

/**
 * vi_slot_handle_irq() - run the flow handler of @desc, or raise it once more on @cpu where it
 * still runs from the slot
 * Context: @cpu's own thread, desc->lock not held.
 */
void vi_slot_handle_irq(struct vi_cpu *cpu, struct vi_irq_slot *slot, struct vi_irq_desc *desc)
{
	if (!slot_try_handle_irq(cpu, slot, desc))
		cpu->m->domain.retrigger(cpu, slot->hwirq);
}

/**
 * vi_desc_try_handle_irq() - let the flow handler run, on a CPU that need not have the flag
 * Context: @cpu's own thread, desc->lock not held.
 * Return: false if the slot's owner may still run the handler: try again.
 */
bool vi_desc_try_handle_irq(struct vi_cpu *cpu, struct vi_irq_desc *desc)
{
	struct vi_machine *m = cpu->m;
	struct vi_irq_slot *slot = m->engine == VI_ENGINE_FAST ? vi_load(&desc->slot) : NULL;

	if (slot)
		return slot_try_handle_irq(cpu, slot, desc);
	(unlikely(m->trace) ? vi_flow_traced(desc->handle_irq) : desc->handle_irq)(cpu, desc);
	return true;
}

/**
 * vi_slot_dispatch_slow() - a claimed flag that may not be run from the slot: unmapped, being taken
 * away, not owned, or stubbed
 * Context: a scan on @cpu.
 * Return: VI_IRQ_DEFERRED, always: it was accounted here.
 */
uint32_t vi_slot_dispatch_slow(struct vi_cpu *cpu, struct vi_irq_slot *slot)
{
	struct vi_irq_desc *desc = vi_load(&slot->desc);
	uint64_t *drop;

	if (!desc) {
		vi_count(&cpu->lost.unmapped, 1);
		return VI_IRQ_DEFERRED;
	}
	drop = vi_load_relaxed(&slot->drop);
	if (drop)
		__atomic_fetch_add(drop, 1, __ATOMIC_RELAXED);
	else if (!cpu->m->redirect || !vi_redirect_remote(cpu, desc))
		vi_slot_handle_irq(cpu, slot, desc);
	return VI_IRQ_DEFERRED;
}

/*
 * Count one arrival that an unlocked handler has run, when its result asks for more than a count.
 */
void vi_slot_handled_otherwise(struct vi_cpu *cpu, struct vi_irq_slot *slot, uint32_t result)
{
	struct vi_irq_desc *desc = vi_load(&slot->desc);

	vi_count(&cpu->kstat[slot->irq], 1);
	vi_count(cpu->irqs_sum, desc->visible);
	if (unlikely(result == VI_IRQ_WAKE_THREAD && cpu->m->hooks.report))
		cpu->m->hooks.report(cpu, VI_REPORT_WAKE_WITHOUT_THREAD, desc->irq, result);
	if (vi_load_relaxed(&desc->settings) & VI_IRQ_NO_DEBUG)
		return;
	vi_note_interrupt(cpu, desc, result);
	vi_lock(&desc->lock);
	/* unhandled now: the next ones go the locked way, which keeps irq_count */
	vi_slot_refresh(cpu->m, desc);
	vi_unlock(&desc->lock);
}

/**
 * vi_batch_flush() - run what stub_batched() has collected, then count
 * Context: the end of a scan on @cpu, before the interrupt ends.
 */
void vi_batch_flush(struct vi_cpu *cpu)
{
	struct vi_machine *m = cpu->m;
	uint32_t n = cpu->batch_n;

	cpu->batch_n = 0;
	memset(cpu->batch_result, 0, n * sizeof(cpu->batch_result[0]));
	if (m->hooks.batch)
		m->hooks.batch(cpu, n, cpu->batch_irq, cpu->batch_result);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t irq = cpu->batch_irq[i], result = cpu->batch_result[i];
		struct vi_irq_desc *desc = vi_load(&m->desc[irq]);

		if (likely(result == VI_IRQ_HANDLED)) {
			vi_count(&cpu->kstat[irq], 1);
			vi_count(cpu->irqs_sum, desc->visible);
		} else {
			vi_slot_handled_otherwise(cpu, &m->slot[desc->hwirq], result);
		}
	}
}

int vi_domain_map(struct vi_machine *m, uint32_t hwirq, uint32_t irq)
{
	struct vi_irq_desc *desc = irq ? vi_irq_to_desc(m, irq) : NULL;

	if (hwirq >= VI_DOMAIN_SIZE)
		return -ERANGE;
	if (!desc)
		return -EINVAL;
	if (m->slot[hwirq].desc || desc->slot)
		return -EBUSY;
	vi_slot_bind(m, hwirq, desc);
	return 0;
}

int vi_domain_unmap(struct vi_machine *m, uint32_t hwirq)
{
	if (hwirq >= VI_DOMAIN_SIZE)
		return -ERANGE;
	if (!m->slot[hwirq].desc)
		return -ENOENT;
	if (m->slot[hwirq].desc->handler_data)
		return -EBUSY;	/* the room that demultiplexes still uses it */
	if (vi_would_wait(m))
		return -EBUSY;
	if (vi_inside_interrupt(m))
		return -EDEADLK;
	vi_slot_unbind(m, hwirq);
	return 0;
}

uint32_t vi_domain_find(struct vi_machine *m, uint32_t hwirq)
{
	struct vi_irq_desc *desc = hwirq < VI_DOMAIN_SIZE ? vi_load(&m->slot[hwirq].desc) : NULL;

	return desc && desc->visible ? desc->irq : 0;
}

/* Nothing happens outside the domain. Context: desc->lock. */
void vi_slot_set_owner(struct vi_machine *m, struct vi_irq_desc *desc, uint32_t cpu)
{
	if (desc->slot && desc->slot->owner != cpu) {
		vi_slot_fence(m, desc->slot);
		vi_store(&desc->slot->owner, cpu);
	}
	vi_slot_refresh(m, desc);
}

/* Context: any thread but not under desc->lock. */
void vi_desc_set_owner(struct vi_machine *m, struct vi_irq_desc *desc, uint32_t cpu)
{
	vi_lock(&desc->lock);
	vi_slot_set_owner(m, desc, cpu);
	vi_unlock(&desc->lock);
}

/* From here on (@drop) arrivals are consumed and only counted there; NULL: no longer. */
void vi_slot_set_drop(struct vi_machine *m, struct vi_irq_desc *desc, uint64_t *drop)
{
	vi_lock(&desc->lock);
	vi_store_relaxed(&desc->slot->drop, drop);
	vi_slot_refresh(m, desc);
	vi_unlock(&desc->lock);
}

int vi_irq_set_owner_cpu(struct vi_machine *m, uint32_t irq, uint32_t cpu)
{
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);

	if (!desc || !desc->slot || cpu >= m->nr_cpus)
		return -EINVAL;
	vi_desc_set_owner(m, desc, cpu);
	return 0;
}

int vi_generic_handle_domain_irq(struct vi_machine *m, uint32_t cpu, uint32_t hwirq)
{
	struct vi_irq_desc *desc;
	struct vi_cpu *c;
	bool outermost;

	if (cpu >= m->nr_cpus || hwirq >= VI_DOMAIN_SIZE)
		return -EINVAL;
	c = vi_cpu_of(m, cpu);
	outermost = vi_irq_enter(c);
	desc = vi_load(&m->domain.revmap[hwirq]);
	if (desc)
		vi_desc_handle_irq(c, desc);
	if (outermost)
		vi_irq_exit(c);
	return desc ? 0 : -EINVAL;
}
