/* SPDX-License-Identifier: MIT */
/*
 * isr.c - from the vector to the scan and the message slot: the top level of every VMBus interrupt
 * (drivers/hv/vmbus_drv.c and arch/x86/kernel/cpu/mshyperv.c, v6.10, with RFC patch 09's
 * conditional counting as an option).
 */
#include "internals.h"

static void copy_message(const struct vi_message *slot, uint32_t type, struct vi_message *copy)
{
	copy->type = type;
	copy->payload_size = slot->payload_size;
	/* the host may set its pending bit at any time: no business of the reader */
	copy->flags = 0;
	copy->reserved = slot->reserved;
	copy->origin = slot->origin;
	memcpy(copy->payload, slot->payload, sizeof(copy->payload));
}

/* Copy what is in the slot. Return: its type; VI_MSG_NONE: it is empty. */
uint32_t vi_message_copy(struct vi_cpu *cpu, struct vi_message *copy)
{
	const struct vi_message *slot = cpu->vmbus_slot;
	uint32_t type = vi_load(&slot->type);

	if (type != VI_MSG_NONE)
		copy_message(slot, type, copy);
	return type;
}

void vi_message_hand(struct vi_cpu *cpu, const struct vi_message *copy)
{
	if (cpu->m->hooks.message)
		cpu->m->hooks.message(cpu, copy);
}

/*
 * The tasklet behind a full slot: hand a copy to the guest's control path, then free the slot
 * (vmbus_on_msg_dpc).
 */
void vi_msg_dpc(struct vi_cpu *cpu, void *data)
{
	struct vi_message *slot = cpu->vmbus_slot, copy;
	uint32_t type = vi_message_copy(cpu, &copy);

	(void)data;
	if (type == VI_MSG_NONE)
		return;
	vi_message_hand(cpu, &copy);
	vi_synic_signal_eom(cpu, slot, type);
}

/*
 * The message of a synthetic timer: hv_stimer0_isr(), then the slot is freed, all in the hard
 * interrupt, so that no tasklet holds a tick up (vmbus_isr).
 */
static void take_timer_message(struct vi_cpu *cpu, uint32_t type)
{
	struct vi_message *slot = cpu->vmbus_slot, copy;

	vi_count(&cpu->stimer_count, 1);
	if (cpu->m->hooks.stimer) {
		copy_message(slot, type, &copy);
		cpu->m->hooks.stimer(cpu, &copy);
	}
	vi_synic_signal_eom(cpu, slot, type);
}

/* There is a message in the slot. Return: whose flow handler takes it; NULL: it is seen to. */
static inline struct vi_irq_desc *isr_message(struct vi_cpu *cpu, uint32_t type)
{
	if (type == VI_MSG_TIMER_EXPIRED)
		take_timer_message(cpu, type);
	else if (cpu->m->message_desc)
		return cpu->m->message_desc;
	else
		vi_tasklet_schedule(cpu, &cpu->msg_dpc);
	return NULL;
}

/* The same to its end. Out of line, so that an interrupt without a message saves few registers. */
static __attribute__((noinline)) void take_message(struct vi_cpu *cpu, uint32_t type)
{
	struct vi_irq_desc *desc = isr_message(cpu, type);

	if (desc)
		desc->handle_irq(cpu, desc);
}

static inline __attribute__((always_inline)) void isr_end(struct vi_cpu *cpu, bool handled)
{
	if (cpu->m->engine == VI_ENGINE_LINUX && !cpu->m->skip_entropy &&
	    (handled || cpu->m->hyp_count == VI_HYP_ALWAYS))
		vi_lx_add_interrupt_randomness(cpu, 0);
}

static inline __attribute__((always_inline)) bool vmbus_isr(struct vi_cpu *cpu, const bool traced)
{
	uint32_t type;
	bool handled;

	cpu->m->scan(cpu);
	type = vi_load(&cpu->vmbus_slot->type);
	handled = type != VI_MSG_NONE;
	if (unlikely(handled))
		take_message(cpu, type);
	vi_trace_if(traced, VI_TRACE_MESSAGE, 0, type);
	isr_end(cpu, handled);
	return handled;
}

/**
 * vi_vmbus_isr() - channel flags first, then the message slot
 * Return: true if the slot held a message, which is what the RFC counts as the top level's own
 * interrupt.
 */
bool vi_vmbus_isr(struct vi_cpu *cpu)
{
	return unlikely(cpu->m->trace) ? vmbus_isr(cpu, true) : vmbus_isr(cpu, false);
}

static uint32_t percpu_isr(struct vi_cpu *cpu, uint32_t irq, void *dev_id)
{
	(void)irq;
	(void)dev_id;
	return vi_vmbus_isr(cpu) ? VI_IRQ_HANDLED : VI_IRQ_NONE;
}

vi_handler_t vi_handler_percpu_isr(void)
{
	return percpu_isr;
}

/*
 * The action of the message IRQ (designs mgmt-irq*): what vmbus_isr does itself where there is
 * none.
 */
static uint32_t message_isr(struct vi_cpu *cpu, uint32_t irq, void *dev_id)
{
	(void)irq;
	(void)dev_id;
	vi_tasklet_schedule(cpu, &cpu->msg_dpc);
	return VI_IRQ_HANDLED;
}

vi_handler_t vi_handler_message(void)
{
	return message_isr;
}

/* x86: around the service routine, which has told whether the slot held a message. */
static inline __attribute__((always_inline)) void entry_begin(struct vi_cpu *cpu)
{
	if (cpu->m->hyp_count == VI_HYP_ALWAYS)
		vi_count(&cpu->arch[VI_ROW_HYP], 1);
}

static inline __attribute__((always_inline)) void entry_end(struct vi_cpu *cpu, bool handled)
{
	if (handled && cpu->m->hyp_count == VI_HYP_MESSAGE)
		vi_count(&cpu->arch[VI_ROW_HYP], 1);
}

/* x86 away from the shortcut, and arm64. */
static inline __attribute__((always_inline)) void take_vector(struct vi_cpu *cpu, const bool traced)
{
	struct vi_machine *m = cpu->m;

	if (m->arch == VI_ARCH_ARM64) {
		if (m->toplevel_desc)
			m->toplevel_desc->handle_irq(cpu, m->toplevel_desc);
		return;
	}
	entry_begin(cpu);
	vi_trace_if(traced, VI_TRACE_ENTRY, 0, m->hyp_count);
	entry_end(cpu, vmbus_isr(cpu, traced));
	vi_trace_if(traced, VI_TRACE_ENTRY_END, 0, m->hyp_count);
}

/**
 * vi_take_vector() - what the CPU does when the SINT's vector arrives
 *
 * x86: HYPERVISOR_CALLBACK_VECTOR, no Linux IRQ, the HYP row. arm64: the PPI's flow handler counts,
 * or does not.
 */
void vi_take_vector(struct vi_cpu *cpu)
{
	struct vi_machine *m = cpu->m;

	/*
	 * Channels only, and nobody counts the top level: the scan is all there is. A message that
	 * comes meanwhile has rung the doorbell and is the next vector's.
	 */
	if (likely(m->scan_is_all && vi_load(&cpu->vmbus_slot->type) == VI_MSG_NONE)) {
		(void)m->scan(cpu);
		return;
	}
	take_vector(cpu, false);
}

/* The same without the shortcut, which changes nothing but what it costs. */
void vi_take_vector_traced(struct vi_cpu *cpu)
{
	take_vector(cpu, true);
}

/* ---- the same, step by step ------------------------------------------------------------------ */

/* On arm64 the service routine has parts only where it is the PPI's one action. */
bool vi_isr_has_steps(const struct vi_machine *m)
{
	const struct vi_irqaction *action;

	if (m->arch == VI_ARCH_X86)
		return true;
	action = m->toplevel_desc ? vi_load(&m->toplevel_desc->action) : NULL;
	return action && action->handler == percpu_isr && !vi_load(&action->next) &&
	       vi_flow_has_steps(m->toplevel_desc);
}

struct vi_irq_desc *vi_isr_message(struct vi_cpu *cpu, uint32_t type)
{
	return isr_message(cpu, type);
}

/* What comes before the service routine. Context: vi_isr_has_steps(). */
void vi_vector_begin(struct vi_cpu *cpu)
{
	if (cpu->m->arch == VI_ARCH_ARM64) {
		vi_percpu_enter(cpu, cpu->m->toplevel_desc);
		return;
	}
	entry_begin(cpu);
	vi_trace(cpu->m, VI_TRACE_ENTRY, cpu->id, 0, cpu->m->hyp_count);
}

/* The end of the service routine, and what comes after it. @handled: the slot held a message. */
void vi_vector_end(struct vi_cpu *cpu, bool handled)
{
	isr_end(cpu, handled);
	if (cpu->m->arch == VI_ARCH_ARM64) {
		vi_percpu_leave(cpu, cpu->m->toplevel_desc, handled);
		return;
	}
	entry_end(cpu, handled);
	vi_trace(cpu->m, VI_TRACE_ENTRY_END, cpu->id, 0, cpu->m->hyp_count);
}
