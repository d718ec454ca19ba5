/* SPDX-License-Identifier: MIT */
/*
 * substeps.c - one delivery in the parts between which another CPU or the host can come, for who
 * explores orders: from the claimed flag to the channel, the message slot, the tasklets.
 *
 * Each calls what the whole path is composed of (isr.c, arrival.c, reading.c, chan_sched.c). The
 * vector itself is machine.c's, words and slots of the fast engine are scan.c's, flow handlers are
 * irq/substeps.c's, and the lists of tasklets irq/softirq.c's.
 */
#include "internals.h"

int vi_step_claim_flag(struct vi_machine *m, uint32_t cpu, uint32_t from)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);

	return c ? (int)vi_lx_claim(c, from) : -EINVAL;
}

int vi_step_lookup(struct vi_machine *m, uint32_t cpu, uint32_t relid, uint32_t *irq)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);

	if (!c || relid < VI_RELID_MIN || relid > VI_RELID_MAX)
		return -EINVAL;
	return (int)vi_lx_lookup(c, relid, irq);
}

int vi_step_arrival(struct vi_machine *m, uint32_t cpu, uint32_t relid)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);

	if (!c || relid < VI_RELID_MIN || relid > VI_RELID_MAX || !m->channel[relid])
		return -EINVAL;
	vi_step_begin(c);
	(m->trace ? vi_chan_arrival_traced : vi_chan_arrival)(c, m->channel[relid]);
	vi_step_end(c);
	return 0;
}

uint32_t vi_step_is_own(struct vi_machine *m, uint32_t irq)
{
	struct vi_irq_desc *desc = irq < m->irq_columns ? m->desc[irq] : NULL;

	return desc && desc->flow == VI_FLOW_SIMPLE && desc->action && !desc->action->next &&
	       vi_calls_own_code(desc->action);
}

uint32_t vi_step_reads(struct vi_machine *m, uint32_t relid)
{
	struct vi_channel *ch = relid < VI_RELIDS ? m->channel[relid] : NULL;

	return ch && ch->callback_mode == VI_CALL_ISR && ch->callback_kind == VI_CALLBACK_DRAIN &&
	       ch->looks == VI_LOOKS_NONE;
}

int vi_step_message(struct vi_machine *m, uint32_t cpu, uint32_t *irq)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);
	struct vi_irq_desc *desc = NULL;
	uint32_t type;

	if (!c)
		return -EINVAL;
	type = vi_load(&c->vmbus_slot->type);
	vi_trace(m, VI_TRACE_MESSAGE, cpu, 0, type);
	vi_step_begin(c);
	if (type != VI_MSG_NONE)
		desc = vi_isr_message(c, type);
	vi_step_end(c);
	*irq = desc ? desc->irq : 0;
	return type != VI_MSG_NONE;
}

/* ---- softirq --------------------------------------------------------------------------------- */

static uint32_t kind_of(const struct vi_cpu *cpu, const struct vi_tasklet *t)
{
	if (t == &cpu->msg_dpc)
		return VI_STEP_MESSAGES;
	if (t == &cpu->m->resend_tasklet)
		return VI_STEP_RESEND;
	return t->func == vi_read_napi_poll ? VI_STEP_POLL : VI_STEP_CHANNEL;
}

/* Does nothing but read the ring? */
static bool only_reads(const struct vi_channel *ch)
{
	return ch->looks == VI_LOOKS_NONE && ch->callback_kind != VI_CALLBACK_HOOK;
}

int vi_step_tasklet(struct vi_machine *m, uint32_t cpu, struct vi_step_tasklet *out)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);
	const struct vi_tasklet *t;

	if (!c)
		return -EINVAL;
	t = c->step.list;
	if (!t)
		return 0;
	*out = (struct vi_step_tasklet){ .kind = kind_of(c, t), .running = vi_load(&t->running) };
	if (out->kind == VI_STEP_CHANNEL || out->kind == VI_STEP_POLL) {
		const struct vi_channel *ch = t->data;

		out->relid = ch->relid;
		out->own = only_reads(ch);
		out->gone = !ch->m;
	}
	return 1;
}

static bool is_listed(const struct vi_tasklet *list, const struct vi_tasklet *t)
{
	while (list && list != t)
		list = list->next;
	return list;
}

uint32_t vi_step_has_tasklet(struct vi_machine *m, const struct vi_channel *ch)
{
	const struct vi_tasklet *t = &ch->tasklet;
	uint32_t is = 0;

	for (uint32_t i = 0; i < m->nr_cpus; i++) {
		const struct vi_cpu *c = vi_step_cpu(m, i);

		if (c && c->step.tasklet == t)
			is |= VI_STEP_TASKLET_RUNS;
		if (c && (is_listed(c->step.list, t) || is_listed(c->tasklets.head, t) ||
			  is_listed(c->napi.head, t)))
			is |= VI_STEP_TASKLET_LISTED;
	}
	return is;
}

/* The channel whose tasklet runs on a CPU that is run step by step. */
static struct vi_channel *running_channel(const struct vi_cpu *cpu)
{
	const struct vi_tasklet *t = cpu ? cpu->step.tasklet : NULL;

	if (!t || t == &cpu->msg_dpc || t == &cpu->m->resend_tasklet)
		return NULL;
	return t->data;
}

int vi_step_callback(struct vi_machine *m, uint32_t cpu)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);
	struct vi_channel *ch = running_channel(c);
	bool masked;

	if (!ch)
		return -EINVAL;
	vi_step_begin(c);
	masked = kind_of(c, c->step.tasklet) == VI_STEP_POLL ? vi_napi_read(c, ch) :
							       vi_event_call(c, ch);
	vi_step_end(c);
	return masked;
}

int vi_step_unmask(struct vi_machine *m, uint32_t cpu)
{
	struct vi_channel *ch = running_channel(vi_step_cpu(m, cpu));

	if (!ch)
		return -EINVAL;
	if (!ch->in.hdr)
		return -EFAULT;
	vi_ring_unmask(&ch->in);
	return 0;
}

int64_t vi_step_end_read(struct vi_machine *m, uint32_t cpu)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);
	struct vi_channel *ch = running_channel(c);
	uint32_t raced;

	if (!ch)
		return -EINVAL;
	if (!ch->in.hdr)
		return -EFAULT;
	raced = vi_ring_raced_in(&ch->in);
	if (kind_of(c, c->step.tasklet) == VI_STEP_POLL)
		vi_napi_complete(c, ch, raced);
	else
		vi_event_complete(c, ch, raced);
	return raced;
}

int64_t vi_step_message_copy(struct vi_machine *m, uint32_t cpu, struct vi_message *copy)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);

	return c ? (int64_t)vi_message_copy(c, copy) : -EINVAL;
}

int vi_step_message_hand(struct vi_machine *m, uint32_t cpu, const struct vi_message *copy)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);

	if (!c)
		return -EINVAL;
	vi_step_begin(c);
	vi_message_hand(c, copy);
	vi_step_end(c);
	return 0;
}

int vi_step_message_eom(struct vi_machine *m, uint32_t cpu, uint32_t seen_type)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);

	if (!c)
		return -EINVAL;
	vi_synic_signal_eom(c, c->vmbus_slot, seen_type);
	return 0;
}
