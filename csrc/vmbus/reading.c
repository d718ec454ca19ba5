/* SPDX-License-Identifier: MIT */
/*
 * reading.c - the driver's own readers: the callbacks that empty a channel's in ring and add up
 * what was in it, and where packets go that somebody has to look at.
 *
 * They run wherever the channel's mode lets its callback run, one at a time per channel. What
 * concerns every packet is vi_ring_drain(), and stays so on a channel that nobody watches; a looker
 * comes in for packets that want attention, and for all of them on a channel whose messages are
 * answered here (util.c). Whoever looks gets the private copy, after it was checked.
 */
#include "wire/ring_inline.h"

#define NAPI_BUDGET 64

/* One drain that somebody watches. */
struct reading {
	struct vi_ring_looker looker;
	struct vi_cpu *cpu;
	struct vi_channel *ch;
};

/**
 * vi_looks_of() - what a reader must look at
 * Return: enum vi_looks.
 */
uint32_t vi_looks_of(uint32_t callback, uint32_t attention)
{
	if (callback == VI_CALLBACK_UTIL || attention == VI_ATTENTION_ALL)
		return VI_LOOKS_ALL;
	return attention == VI_ATTENTION_SPECIAL ? VI_LOOKS_SPECIAL : VI_LOOKS_NONE;
}

static bool answers(const struct vi_channel *ch, const struct vi_packet *p)
{
	if (ch->callback_kind != VI_CALLBACK_UTIL || p->type != VI_PKT_DATA_INBAND)
		return false;
	return ch->attention == VI_ATTENTION_NONE ||
	       (ch->attention == VI_ATTENTION_SPECIAL && !vi_ring_special(p));
}

/* Bytes on a channel of hv_utils that are no message of it: nobody's business. */
static bool is_bulk(const struct vi_channel *ch, const struct vi_packet *p)
{
	return ch->callback_kind == VI_CALLBACK_UTIL && ch->attention == VI_ATTENTION_SPECIAL &&
	       !vi_ring_special(p) && !vi_util_is_message(p);
}

/* Answer it, or hand it to who watches, or add it up. */
static void look(struct vi_ring_looker *looker, const struct vi_packet *p,
		 struct vi_ring_tally *tally)
{
	const struct reading *now = (const struct reading *)(const void *)looker;
	struct vi_channel *ch = now->ch;

	if (answers(ch, p) && vi_util_answer(ch, p, tally))
		return;
	vi_ring_add(tally, p);
	if (ch->attention == VI_ATTENTION_NONE || !ch->m->hooks.packet || is_bulk(ch, p))
		return;
	ch->attended++;
	ch->m->hooks.packet(now->cpu, ch->attention_handle, p);
}

static __attribute__((noinline)) int drain_watched(struct vi_cpu *cpu, struct vi_channel *ch,
						   uint32_t budget)
{
	struct reading now = {
		.looker = { .look = look, .all = ch->looks == VI_LOOKS_ALL },
		.cpu = cpu,
		.ch = ch,
	};

	return vi_ring_drain_with(&ch->in, budget, &ch->tally, &now.looker);
}

/* Read everything that is there; the host hears of it if it waits for room. */
static uint64_t drain(struct vi_cpu *cpu, struct vi_channel *ch, uint32_t budget)
{
	uint64_t before = ch->tally.packets;
	int signal;

	ch->calls++;
	if (likely(ch->looks == VI_LOOKS_NONE))
		signal = vi_ring_drain(&ch->in, budget, &ch->tally);
	else
		signal = drain_watched(cpu, ch, budget);
	vi_trace(ch->m, VI_TRACE_READ, cpu->id, ch->relid, ch->tally.packets - before);
	if (signal == 1)
		vi_channel_setevent(ch);
	return ch->tally.packets - before;
}

/** vi_read_drain() - the callback of VI_CALLBACK_DRAIN and VI_CALLBACK_UTIL */
uint32_t vi_read_drain(struct vi_cpu *cpu, uint32_t irq, void *context)
{
	(void)irq;
	drain(cpu, context, UINT32_MAX);
	return VI_IRQ_HANDLED;
}

/** vi_read_napi() - the callback of VI_CALLBACK_NAPI: mask the ring, poll it later */
uint32_t vi_read_napi(struct vi_cpu *cpu, uint32_t irq, void *context)
{
	struct vi_channel *ch = context;

	(void)irq;
	vi_ring_begin_read(&ch->in);
	vi_napi_schedule(cpu, &ch->tasklet);
	vi_trace(ch->m, VI_TRACE_NAPI, cpu->id, ch->relid, 0);
	return VI_IRQ_HANDLED;
}

/* Read a budget of packets. Return: that was all; false: not all, or nobody is there to read. */
static inline bool napi_read(struct vi_cpu *cpu, struct vi_channel *ch)
{
	if (!vi_load(&ch->callback))
		return false;
	if (drain(cpu, ch, NAPI_BUDGET) < NAPI_BUDGET)
		return true;
	vi_napi_schedule(cpu, &ch->tasklet);
	vi_trace(ch->m, VI_TRACE_RESCHEDULE, cpu->id, ch->relid, 0);
	return false;
}

/* The ring is unmasked, and so many bytes have raced in before that. */
static inline void napi_complete(struct vi_cpu *cpu, struct vi_channel *ch, uint32_t raced)
{
	vi_trace(ch->m, VI_TRACE_UNMASK, cpu->id, ch->relid, raced);
	if (!raced)
		return;
	vi_ring_begin_read(&ch->in);
	vi_napi_schedule(cpu, &ch->tasklet);
	vi_trace(ch->m, VI_TRACE_RESCHEDULE, cpu->id, ch->relid, 0);
}

/** vi_read_napi_poll() - its poll: a budget of packets, attended ones among them */
void vi_read_napi_poll(struct vi_cpu *cpu, void *data)
{
	struct vi_channel *ch = data;

	if (napi_read(cpu, ch))
		napi_complete(cpu, ch, vi_ring_end_read(&ch->in));
}

bool vi_napi_read(struct vi_cpu *cpu, struct vi_channel *ch)
{
	return napi_read(cpu, ch);
}

void vi_napi_complete(struct vi_cpu *cpu, struct vi_channel *ch, uint32_t raced)
{
	napi_complete(cpu, ch, raced);
}
