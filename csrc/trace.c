/* SPDX-License-Identifier: MIT */
/*
 * trace.c - who hears of the steps of an interrupt, and the choice of the traced twins.
 *
 * Owns m->trace. While it is set the owner's thread alone runs CPUs and hosts, so that events come
 * in the order of what happened, and what differs from one to the next is what one step did.
 */
#include "internals.h"

void vi_trace_event(struct vi_machine *m, uint32_t step, uint32_t cpu, uint32_t id, int64_t value,
		    const char *file, const char *function)
{
	const struct vi_trace_event event = {
		.step = step,
		.cpu = cpu,
		.id = id,
		.value = value,
		.file = file,
		.function = function,
	};

	m->trace(m->trace_context, &event);
}

static vi_scan_t scan_of(const struct vi_machine *m)
{
	if (m->engine == VI_ENGINE_LINUX)
		return vi_lx_scan_variant(m, m->trace);
	return m->trace ? vi_scan_variant_traced() : vi_scan_variant(m->simd);
}

int vi_machine_set_trace(struct vi_machine *m, vi_trace_t fn, void *context)
{
	if (vi_inside_interrupt(m))
		return -EDEADLK;
	if (vi_any_stepped(m))
		return -EBUSY;
	m->trace = fn;
	m->trace_context = context;
	m->scan = scan_of(m);
	return vi_channels_refresh(m);
}
