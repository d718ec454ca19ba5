/* SPDX-License-Identifier: MIT */
/*
 * arrival.c - an interrupt has come for a channel: what it calls, in which mode
 * (vmbus_chan_sched() and vmbus_on_event(), drivers/hv/{vmbus_drv,connection}.c, v6.10).
 *
 * linux engine: vi_chan_arrival() makes v6.10's run-time checks under sched_lock. fast engine: the
 * same decisions are taken once, when something changes (vi_channel_apply()), and put into the
 * action's handler; the arrival itself decides nothing.
 */
#include "internals.h"

/* ---- callbacks ------------------------------------------------------------------------------- */

/* Aligned, so that what is linked before it does not change what the benchmarks' calls cost. */
__attribute__((aligned(64))) uint32_t vi_callback_count(struct vi_cpu *cpu, uint32_t irq,
							void *context)
{
	uint64_t *calls = context;

	(void)cpu;
	(void)irq;
	++*calls;
	return VI_IRQ_HANDLED;
}

/* Call back. Return: in batched mode: the ring is masked, and what races in is to be looked for. */
static inline bool event_call(struct vi_cpu *cpu, struct vi_channel *ch)
{
	vi_handler_t callback = vi_load(&ch->callback);

	if (!callback)
		return false;
	vi_trace(cpu->m, VI_TRACE_CALLBACK, cpu->id, ch->relid, ch->callback_mode);
	callback(cpu, ch->column, ch->context);
	return ch->callback_mode == VI_CALL_BATCHED;
}

/* The ring is unmasked, and so many bytes have raced in before that. */
static inline void event_complete(struct vi_cpu *cpu, struct vi_channel *ch, uint32_t raced)
{
	vi_trace(cpu->m, VI_TRACE_UNMASK, cpu->id, ch->relid, raced);
	if (!raced)
		return;
	vi_ring_begin_read(&ch->in);
	vi_tasklet_schedule(cpu, &ch->tasklet);
	vi_trace(cpu->m, VI_TRACE_RESCHEDULE, cpu->id, ch->relid, 0);
}

/* vmbus_on_event(): once; in batched mode again if something raced in while the ring was masked */
void vi_on_event(struct vi_cpu *cpu, void *data)
{
	struct vi_channel *ch = data;

	if (event_call(cpu, ch))
		event_complete(cpu, ch, vi_ring_end_read(&ch->in));
}

bool vi_event_call(struct vi_cpu *cpu, struct vi_channel *ch)
{
	return event_call(cpu, ch);
}

void vi_event_complete(struct vi_cpu *cpu, struct vi_channel *ch, uint32_t raced)
{
	event_complete(cpu, ch, raced);
}

/* ---- arrivals -------------------------------------------------------------------------------- */

#define ARRIVAL static inline __attribute__((always_inline)) uint32_t

ARRIVAL arrival(struct vi_cpu *cpu, struct vi_channel *ch, const bool traced)
{
	vi_handler_t callback;

	vi_lock(&ch->sched_lock);
	callback = ch->callback;
	if (unlikely(!callback)) {
		ch->no_callback++;
		vi_count(&cpu->lost.no_callback, 1);
		vi_trace_if(traced, VI_TRACE_CHANNEL_CLOSED, ch->relid, 0);
		goto out;
	}
	ch->interrupts++;
	switch (ch->callback_mode) {
	case VI_CALL_ISR:
		vi_trace_if(traced, VI_TRACE_CHANNEL, ch->relid, VI_CALL_ISR);
		callback(cpu, ch->column, ch->context);
		break;
	case VI_CALL_BATCHED:
		vi_ring_begin_read(&ch->in);
		vi_tasklet_schedule(cpu, &ch->tasklet);
		vi_trace_if(traced, VI_TRACE_CHANNEL, ch->relid, VI_CALL_BATCHED);
		break;
	default:
		vi_tasklet_schedule(cpu, &ch->tasklet);
		vi_trace_if(traced, VI_TRACE_CHANNEL, ch->relid, ch->callback_mode);
		break;
	}
out:
	vi_unlock(&ch->sched_lock);
	return VI_IRQ_HANDLED;
}

/**
 * vi_chan_arrival() - v6.10's steps for one claimed flag of a channel that is not rescinded:
 * sched_lock, callback, mode
 * Return: VI_IRQ_HANDLED, always.
 */
uint32_t vi_chan_arrival(struct vi_cpu *cpu, struct vi_channel *ch)
{
	return arrival(cpu, ch, false);
}

uint32_t vi_chan_arrival_traced(struct vi_cpu *cpu, struct vi_channel *ch)
{
	return arrival(cpu, ch, true);
}

ARRIVAL batched(struct vi_cpu *cpu, struct vi_channel *ch, const bool traced)
{
	vi_ring_begin_read(&ch->in);
	vi_tasklet_schedule(cpu, &ch->tasklet);
	vi_trace_if(traced, VI_TRACE_CHANNEL, ch->relid, VI_CALL_BATCHED);
	return VI_IRQ_HANDLED;
}

ARRIVAL direct(struct vi_cpu *cpu, struct vi_channel *ch, const bool traced)
{
	vi_tasklet_schedule(cpu, &ch->tasklet);
	vi_trace_if(traced, VI_TRACE_CHANNEL, ch->relid, VI_CALL_DIRECT);
	return VI_IRQ_HANDLED;
}

ARRIVAL closed(struct vi_cpu *cpu, struct vi_channel *ch, const bool traced)
{
	ch->no_callback++;
	vi_count(&cpu->lost.no_callback, 1);
	vi_trace_if(traced, VI_TRACE_CHANNEL_CLOSED, ch->relid, 0);
	return VI_IRQ_HANDLED;
}

static uint32_t chan_linux(struct vi_cpu *cpu, uint32_t irq, void *dev_id)
{
	(void)irq;
	return vi_chan_arrival(cpu, dev_id);
}

static uint32_t chan_linux_traced(struct vi_cpu *cpu, uint32_t irq, void *dev_id)
{
	(void)irq;
	return vi_chan_arrival_traced(cpu, dev_id);
}

/* The handlers of an action, each with the twin that tells a tracer what it does. */
#define DEFINE_CHAN(kind)                                                                    \
	static uint32_t chan_##kind(struct vi_cpu *cpu, uint32_t irq, void *dev_id)          \
	{                                                                                    \
		(void)irq;                                                                   \
		return kind(cpu, dev_id, false);                                             \
	}                                                                                    \
                                                                                             \
	static uint32_t chan_##kind##_traced(struct vi_cpu *cpu, uint32_t irq, void *dev_id) \
	{                                                                                    \
		(void)irq;                                                                   \
		return kind(cpu, dev_id, true);                                              \
	}

DEFINE_CHAN(batched)
DEFINE_CHAN(direct)
DEFINE_CHAN(closed)

/* Is the action a channel's, and all that it calls, tasklets aside, this core's own? */
bool vi_calls_own_code(const struct vi_irqaction *action)
{
	const struct vi_channel *ch = action->dev_id;

	if (action->handler != chan_linux && action->handler != chan_linux_traced)
		return false;
	return ch->callback_mode != VI_CALL_ISR || ch->callback_kind == VI_CALLBACK_NAPI ||
	       !ch->callback;
}

/* What the channel's action calls in its present state. */
void vi_channel_apply(struct vi_channel *ch)
{
	struct vi_irqaction *action = ch->action;
	const bool python = ch->callback_kind == VI_CALLBACK_HOOK, traced = ch->m->trace;

	if (!action)
		return;
	action->dev_id = ch;
	action->exact = python && ch->callback_mode == VI_CALL_ISR;
	if (ch->m->engine == VI_ENGINE_LINUX) {
		action->handler = traced ? chan_linux_traced : chan_linux;
	} else if (!ch->callback) {
		action->handler = traced ? chan_closed_traced : chan_closed;
	} else if (ch->callback_mode == VI_CALL_ISR) {
		action->handler = ch->callback;
		action->dev_id = ch->context;
	} else if (ch->callback_mode == VI_CALL_BATCHED) {
		action->handler = traced ? chan_batched_traced : chan_batched;
	} else {
		action->handler = traced ? chan_direct_traced : chan_direct;
	}
}
