/* SPDX-License-Identifier: MIT */
/*
 * channel.c - the state of a channel in the guest and how it changes: mapping, rings, callback,
 * CPU, signal (drivers/hv/{vmbus_drv,connection}.c, v6.10). What an arrival does is arrival.c's,
 * how the ring is read reading.c's.
 */
#include "internals.h"

_Static_assert(VI_RELIDS == VI_DOMAIN_SIZE, "a slot per relid");

int vi_channels_init(struct vi_machine *m)
{
	m->channel = calloc(VI_RELIDS, sizeof(*m->channel));
	m->channel_place = malloc(VI_RELIDS * sizeof(*m->channel_place));
	m->channel_memory = calloc(VI_RELIDS + 1, VI_CHANNEL_SLOT);
	if (!m->channel || !m->channel_place || !m->channel_memory)
		return -ENOMEM;
	m->channel_pool = (uint8_t *)(((uintptr_t)m->channel_memory + VI_CHANNEL_SLOT - 1) &
				      ~(uintptr_t)(VI_CHANNEL_SLOT - 1));
	for (uint32_t i = 0; i < VI_RELIDS; i++)
		m->channel_place[i] = i;
	if (m->engine == VI_ENGINE_LINUX)
		vi_shuffle_places(m->seed + 1, VI_RELIDS, m->channel_place);
	return 0;
}

void vi_channels_exit(struct vi_machine *m)
{
	for (uint32_t i = 0; m->channel_pool && vi_image_next(m->channel_used, VI_RELIDS, &i); i++)
		free(vi_channel_place(m, i)->in.pkt_buffer);
	free(m->channel);
	free(m->channel_place);
	free(m->channel_memory);
}

/* Its relid may be another channel's by now: a suspended channel keeps the name that it had. */
static bool is_mapped(const struct vi_channel *ch)
{
	return ch->m->channel[ch->relid] == ch;
}

/* ---- control --------------------------------------------------------------------------------- */

/*
 * tasklet_disable(): once this returns, the channel's tasklet does not run until running is 0
 * again.
 * Return: 0; -EBUSY: it is run step by step.
 */
static int hold_tasklet(struct vi_machine *m, struct vi_channel *ch)
{
	while (__atomic_exchange_n(&ch->tasklet.running, 1, __ATOMIC_ACQUIRE)) {
		if (vi_any_stepped(m))
			return -EBUSY;
		sched_yield();
	}
	return 0;
}

/*
 * The relid's own place in the pool, or any other one: a channel that waits for another relid (a
 * suspended one) keeps its place.
 */
static struct vi_channel *free_place(struct vi_machine *m, uint32_t relid)
{
	if (m->channel[relid])
		return NULL;
	for (uint32_t i = 0; i < VI_RELIDS; i++) {
		uint32_t place = m->channel_place[(relid + i) % VI_RELIDS];
		struct vi_channel *ch = vi_channel_place(m, place);

		if (!ch->m)
			return ch;
	}
	return NULL;
}

int vi_channel_create(struct vi_machine *m, uint32_t relid, uint32_t mode,
		      struct vi_channel **result)
{
	struct vi_channel *ch;

	if (relid < VI_RELID_MIN || relid > VI_RELID_MAX || mode > VI_CALL_ISR)
		return -EINVAL;
	ch = free_place(m, relid);
	if (!ch)
		return -EEXIST;
	if (hold_tasklet(m, ch) < 0)
		return -EBUSY;
	vi_set_bit(m->channel_used,
		   (uint32_t)(((uint8_t *)ch - m->channel_pool) / VI_CHANNEL_SLOT));
	memset(ch, 0, offsetof(struct vi_channel, tasklet));
	memset(&ch->interrupts, 0, sizeof(*ch) - offsetof(struct vi_channel, interrupts));
	ch->m = m;
	ch->relid = relid;
	ch->callback_mode = mode;
	ch->tasklet.data = ch;
	ch->tasklet.func = vi_on_event;
	vi_store(&ch->tasklet.running, 0);
	*result = ch;
	return 0;
}

/*
 * The tasklet stays: a CPU may have it in its list still, and will find nothing to call, or the
 * slot's next channel.
 */
void vi_channel_destroy(struct vi_channel *ch)
{
	VI_BUG_ON(ch->callback || is_mapped(ch));
	free(ch->in.pkt_buffer);
	ch->in.pkt_buffer = NULL;
	ch->m = NULL;
}

int vi_channel_set_rings(struct vi_channel *ch, const struct vi_ring_mem *in,
			 const struct vi_ring_mem *out, uint32_t max_packet)
{
	uint8_t *buffer = NULL;
	int result;

	if (ch->callback)
		return -EBUSY;
	free(ch->in.pkt_buffer);
	memset(&ch->in, 0, sizeof(ch->in));
	memset(&ch->out, 0, sizeof(ch->out));
	if (!in || !out)
		return 0;
	buffer = malloc(max_packet);
	if (!buffer)
		return -ENOMEM;
	result = vi_ring_reader_init(&ch->in, in, VI_RING_LINUX, buffer, max_packet);
	if (result == 0)
		result = vi_ring_writer_init(&ch->out, out, VI_RING_LINUX);
	if (result < 0) {
		free(buffer);
		memset(&ch->in, 0, sizeof(ch->in));
	}
	return result;
}

/*
 * A channel without an IRQ is run by a descriptor that no table shows, so that there is one kind of
 * slot.
 */
static struct vi_irq_desc *hidden_desc(struct vi_channel *ch)
{
	struct vi_irq_desc *desc = vi_desc_create(ch->m, ch->m->nr_irqs_max + ch->relid);

	desc->flow = VI_FLOW_SIMPLE;
	desc->handle_irq = vi_flow_handler(VI_FLOW_SIMPLE);
	desc->settings = VI_IRQ_NO_DEBUG;
	desc->state = VI_IRQD_STARTED | VI_IRQD_ACTIVATED;
	desc->depth = 0;
	memset(&ch->own_action, 0, sizeof(ch->own_action));
	ch->own_action.irq = desc->irq;
	ch->action = &ch->own_action;
	vi_channel_apply(ch);
	desc->action = &ch->own_action;
	desc->nr_actions = 1;
	return desc;
}

/*
 * What the fast engine, which counts an arrival once and on its IRQ, has to add to ch->interrupts
 * while the channel is mapped; those that found nobody to call are taken off.
 */
static uint64_t uncollected_interrupts(const struct vi_channel *ch)
{
	const struct vi_machine *m = ch->m;
	uint64_t arrivals = 0;

	if (m->engine == VI_ENGINE_LINUX || !is_mapped(ch))
		return 0;
	for (uint32_t c = 0; c < m->nr_cpus; c++)
		arrivals += vi_load_relaxed(&m->cpus[c].kstat[ch->column]);
	return arrivals - ch->no_callback;
}

int vi_channel_map(struct vi_channel *ch, uint32_t irq)
{
	struct vi_machine *m = ch->m;
	struct vi_irq_desc *desc;

	if (m->channel[ch->relid])
		return -EBUSY;
	if (m->channel_irqs) {
		desc = vi_irq_to_desc(m, irq);
		if (!desc || !desc->slot || desc->slot->hwirq != ch->relid)
			return -EINVAL;
	} else {
		if (irq || m->slot[ch->relid].desc)
			return -EINVAL;
		desc = hidden_desc(ch);
		vi_slot_bind(m, ch->relid, desc);
	}
	ch->column = desc->irq;
	vi_store(&desc->handler_data, ch);
	vi_desc_set_owner(m, desc, ch->target_cpu);
	vi_store(&m->channel[ch->relid], ch);
	/* what the IRQ counted before is not this channel's */
	ch->interrupts -= uncollected_interrupts(ch);
	if (ch->rescind)
		vi_slot_set_drop(m, desc, &m->rescinded);
	return 0;
}

int vi_channel_unmap(struct vi_channel *ch)
{
	struct vi_machine *m = ch->m;
	struct vi_irq_desc *desc = m->desc[ch->column];

	if (!is_mapped(ch))
		return -ENOENT;
	if (vi_inside_interrupt(m))
		return -EDEADLK;
	if (vi_would_wait(m))
		return -EBUSY;
	ch->interrupts += uncollected_interrupts(ch);
	vi_store(&m->channel[ch->relid], NULL);
	vi_store(&desc->handler_data, NULL);
	vi_slot_set_drop(m, desc, NULL);
	vi_synchronize_cpus(m);
	if (!m->channel_irqs) {
		vi_slot_unbind(m, ch->relid);
		vi_store(&m->desc[ch->column], NULL);
		for (uint32_t c = 0; c < m->nr_cpus; c++)
			vi_store_relaxed(&m->cpus[c].kstat[ch->column], 0);
	}
	ch->action = NULL;
	return 0;
}

void vi_channel_bind_action(struct vi_channel *ch, struct vi_irqaction *action)
{
	ch->action = action;
	vi_channel_apply(ch);
}

static bool reads_ring(const struct vi_channel *ch, uint32_t callback)
{
	if (callback == VI_CALLBACK_NONE)
		return false;
	return ch->callback_mode == VI_CALL_BATCHED || callback == VI_CALLBACK_DRAIN ||
	       callback == VI_CALLBACK_NAPI || callback == VI_CALLBACK_UTIL;
}

/*
 * fast engine: wait until nobody runs the handler, or is between reading it and reading its cookie;
 * both may change. Return: 0 with desc->lock; -EBUSY without: it is run step by step.
 */
static int hold_desc(struct vi_machine *m, struct vi_irq_desc *desc)
{
	for (;;) {
		vi_lock(&desc->lock);
		vi_slot_fence(m, desc->slot);
		if (!(desc->state & VI_IRQD_INPROGRESS) && !vi_slot_hazard(m, desc->slot, NULL))
			return 0;
		if (vi_any_stepped(m)) {
			vi_slot_refresh(m, desc);
			vi_unlock(&desc->lock);
			return -EBUSY;
		}
		vi_unlock(&desc->lock);
		sched_yield();
	}
}

static struct vi_irq_desc *desc_of(const struct vi_channel *ch)
{
	return is_mapped(ch) ? ch->m->desc[ch->column] : NULL;
}

/*
 * Until release(), nobody runs the callback. linux engine: sched_lock is all that an arrival asks
 * for, as in v6.10 (vmbus_reset_channel_cb); its action is the same for every callback.
 * Return: 0; -EBUSY; 1: all but a tasklet that is run step by step, which the caller waits for.
 */
static int hold(struct vi_channel *ch)
{
	struct vi_irq_desc *desc = desc_of(ch);

	if (hold_tasklet(ch->m, ch) < 0) {
		if (!ch->m->own_waits)
			return -EBUSY;
		vi_lock(&ch->sched_lock);
		return 1;
	}
	if (desc && ch->m->engine == VI_ENGINE_FAST && hold_desc(ch->m, desc) < 0) {
		vi_store(&ch->tasklet.running, 0);
		return -EBUSY;
	}
	vi_lock(&ch->sched_lock);
	return 0;
}

/* @held: what hold() has returned. */
static void release(struct vi_channel *ch, int held)
{
	struct vi_irq_desc *desc = desc_of(ch);

	ch->looks = vi_looks_of(ch->callback_kind, ch->attention);
	vi_unlock(&ch->sched_lock);
	if (ch->m->engine == VI_ENGINE_FAST) {
		vi_channel_apply(ch);
		if (desc) {
			vi_slot_refresh(ch->m, desc);
			vi_unlock(&desc->lock);
		}
	}
	if (held == 0)
		vi_store(&ch->tasklet.running, 0);
}

/*
 * Somebody traces from now on, or no longer. Context: not inside an interrupt; nobody runs a CPU.
 * Return: 0; -EBUSY: one is run step by step.
 */
int vi_channels_refresh(struct vi_machine *m)
{
	if (vi_any_stepped(m))
		return -EBUSY;
	for (uint32_t relid = VI_RELID_MIN; relid <= VI_RELID_MAX; relid++) {
		struct vi_channel *ch = m->channel[relid];
		int held = ch ? hold(ch) : -ENOENT;

		if (held < 0)
			continue;
		vi_channel_apply(ch);
		release(ch, held);
	}
	return 0;
}

int vi_channel_set_callback(struct vi_channel *ch, uint32_t callback, vi_handler_t fn,
			    void *context)
{
	static const vi_handler_t builtin[] = {
		[VI_CALLBACK_NONE] = NULL, [VI_CALLBACK_DRAIN] = vi_read_drain,
		[VI_CALLBACK_NAPI] = vi_read_napi, [VI_CALLBACK_COUNT] = vi_callback_count,
		[VI_CALLBACK_HOOK] = NULL, [VI_CALLBACK_UTIL] = vi_read_drain,
	};
	const bool hook = callback == VI_CALLBACK_HOOK, count = callback == VI_CALLBACK_COUNT;
	int held;

	if (callback > VI_CALLBACK_UTIL || (hook && !fn) || (count && !context))
		return -EINVAL;
	if (callback == VI_CALLBACK_NAPI && ch->callback_mode != VI_CALL_ISR)
		return -EINVAL;
	if (reads_ring(ch, callback) && !ch->in.hdr)
		return -EINVAL;
	if (vi_inside_interrupt(ch->m))
		return -EDEADLK;
	held = hold(ch);
	if (held < 0)
		return -EBUSY;
	vi_store(&ch->callback, hook ? fn : builtin[callback]);
	ch->callback_kind = callback;
	ch->context = hook || count ? context : ch;
	ch->tasklet.func = callback == VI_CALLBACK_NAPI ? vi_read_napi_poll : vi_on_event;
	release(ch, held);
	return 0;
}

int vi_channel_set_attention(struct vi_channel *ch, uint32_t mode, void *handle)
{
	int held;

	if (mode > VI_ATTENTION_ALL)
		return -EINVAL;
	if (vi_inside_interrupt(ch->m))
		return -EDEADLK;
	held = hold(ch);
	if (held < 0)
		return -EBUSY;
	ch->attention = mode;
	ch->attention_handle = handle;
	release(ch, held);
	return 0;
}

int vi_channel_set_cpu(struct vi_channel *ch, uint32_t cpu)
{
	if (cpu >= ch->m->nr_cpus)
		return -EINVAL;
	ch->target_cpu = cpu;
	if (is_mapped(ch))
		vi_desc_set_owner(ch->m, ch->m->desc[ch->column], cpu);
	return 0;
}

int vi_channel_set_relid(struct vi_channel *ch, uint32_t relid)
{
	if (relid < VI_RELID_MIN || relid > VI_RELID_MAX)
		return -EINVAL;
	if (is_mapped(ch))
		return -EBUSY;
	ch->relid = relid;
	return 0;
}

void vi_channel_set_rescind(struct vi_channel *ch, uint32_t rescind)
{
	struct vi_machine *m = ch->m;

	vi_store(&ch->rescind, rescind != 0);
	if (is_mapped(ch))
		vi_slot_set_drop(m, m->desc[ch->column], rescind ? &m->rescinded : NULL);
}

void vi_channel_get_stats(const struct vi_channel *ch, struct vi_channel_stats *out)
{
	*out = (struct vi_channel_stats){
		.interrupts = ch->interrupts + uncollected_interrupts(ch),
		.no_callback = ch->no_callback,
		.calls = ch->calls,
		.packets = ch->tally.packets,
		.bytes = ch->tally.bytes,
		.checksum = ch->tally.checksum,
		.resyncs = ch->tally.resyncs,
		.sig_events = ch->sig_events,
		.intr_in_full = ch->in.intr_in_full,
		.attended = ch->attended,
		.replies = ch->replies,
		.replies_dropped = ch->replies_dropped,
	};
}

struct vi_ring_reader *vi_channel_in(struct vi_channel *ch)
{
	return &ch->in;
}

struct vi_ring_writer *vi_channel_out(struct vi_channel *ch)
{
	return &ch->out;
}

int vi_channel_set_signal(struct vi_channel *ch, uint32_t connection_id, uint64_t *send_int_page,
			  uint32_t *monitor_pending, uint32_t monitor_bit)
{
	if (connection_id > VI_CONNECTION_ID_MAX || monitor_bit >= 32)
		return -EINVAL;
	if (ch->callback)
		return -EBUSY;
	ch->connection_id = connection_id;
	ch->send_int_page = send_int_page;
	ch->monitor_pending = monitor_pending;
	ch->monitor_mask = 1u << monitor_bit;
	return 0;
}

/*
 * The relid's bit comes before what makes the host look for it; a monitored signal is not counted
 * (vmbus_setevent, vmbus_set_event).
 */
void vi_channel_setevent(struct vi_channel *ch)
{
	if (ch->send_int_page)
		__atomic_fetch_or(&ch->send_int_page[ch->relid / 64], 1ull << (ch->relid % 64),
				  __ATOMIC_SEQ_CST);
	if (ch->monitor_pending) {
		__atomic_fetch_or(ch->monitor_pending, ch->monitor_mask, __ATOMIC_SEQ_CST);
		vi_trace(ch->m, VI_TRACE_HOST_EVENT, ch->target_cpu, ch->relid, 0);
		return;
	}
	ch->sig_events++;
	vi_store(&ch->signalled, 1);
	/* v6.10 does not look at the status either */
	if (ch->connection_id)
		(void)vi_signal_event(ch->m, ch->connection_id, 0);
	vi_trace(ch->m, VI_TRACE_HOST_EVENT, ch->target_cpu, ch->relid, 1);
}

uint32_t vi_channel_take_event(struct vi_channel *ch)
{
	return __atomic_exchange_n(&ch->signalled, 0, __ATOMIC_ACQ_REL);
}

uint32_t vi_channel_is_running(const struct vi_channel *ch)
{
	return vi_load(&ch->tasklet.running);
}
