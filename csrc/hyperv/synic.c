/* SPDX-License-Identifier: MIT */
/*
 * synic.c - what the hypervisor gives each virtual CPU: 16 interrupt sources, the event flag page
 * and the message page (TLFS chapter 11).
 *
 * Both pages are written by the host side (any thread) and the CPU itself, with atomic operations
 * only. "No event lost" rests on one order: the signaller sets the flag, then the doorbell; the CPU
 * clears the doorbell with an exchange before it looks at the flags.
 *
 * Who signals looks at no register. When one is set, vi_synic_refresh() works out what a signal or
 * message does to each SINT, and stores that as one 16-bit route per SINT, on the CPU's doorbell
 * line. A signal that is under way while a register changes goes either way, as on real hardware.
 */
#include "internals.h"

#define ENABLE 1ull
#define SINT_RESET VI_SINT_MASKED

_Static_assert(sizeof(struct vi_message) == 256, "a message slot is 256 bytes");
_Static_assert(offsetof(struct vi_message, payload_size) == 4, "size at 4");
_Static_assert(offsetof(struct vi_message, flags) == 5, "flags at 5");
_Static_assert(offsetof(struct vi_message, origin) == 8, "origin at 8");
_Static_assert(offsetof(struct vi_message, payload) == 16, "payload at 16");
_Static_assert(VI_SINTS * VI_SINT_WORDS * sizeof(uint64_t) == VI_PAGE, "event flags fill a page");
_Static_assert(VI_SINTS * sizeof(struct vi_message) == VI_PAGE, "messages fill a page");

/* ---- pages ----------------------------------------------------------------------------------- */

static uint8_t *own_page(struct vi_machine *m, uint32_t cpu)
{
	return (uint8_t *)m->synic_pages + (size_t)2 * VI_PAGE * cpu;
}

static void set_flag_page(struct vi_cpu *cpu, uint64_t *page)
{
	vi_store(&cpu->flag_page, page);
	cpu->sint_flags = page + VI_SINT_VMBUS * VI_SINT_WORDS;
}

static void set_message_page(struct vi_cpu *cpu, struct vi_message *page)
{
	vi_store(&cpu->message_page, page);
	cpu->vmbus_slot = &page[VI_SINT_VMBUS];
}

void *vi_synic_own_flags(struct vi_machine *m, uint32_t cpu)
{
	return cpu < m->nr_cpus ? own_page(m, cpu) : NULL;
}

void *vi_synic_own_messages(struct vi_machine *m, uint32_t cpu)
{
	return cpu < m->nr_cpus ? own_page(m, cpu) + VI_PAGE : NULL;
}

int vi_synic_set_pages(struct vi_machine *m, uint32_t cpu, void *flags, void *messages)
{
	if (cpu >= m->nr_cpus)
		return -EINVAL;
	set_flag_page(vi_cpu_of(m, cpu), flags ? flags : vi_synic_own_flags(m, cpu));
	set_message_page(vi_cpu_of(m, cpu), messages ? messages : vi_synic_own_messages(m, cpu));
	return 0;
}

static bool lies_in(const void *page, const void *base, uint64_t bytes)
{
	return (uintptr_t)page - (uintptr_t)base < bytes;
}

void vi_synic_leave_memory(struct vi_machine *m, const void *base, uint64_t bytes)
{
	for (uint32_t c = 0; c < m->nr_cpus; c++) {
		struct vi_cpu *cpu = vi_cpu_of(m, c);

		if (lies_in(cpu->flag_page, base, bytes))
			set_flag_page(cpu, vi_synic_own_flags(m, c));
		if (lies_in(cpu->message_page, base, bytes))
			set_message_page(cpu, vi_synic_own_messages(m, c));
	}
}

int vi_synic_init(struct vi_machine *m)
{
	m->synic_pages = aligned_alloc(VI_PAGE, (size_t)2 * VI_PAGE * m->nr_cpus);
	if (!m->synic_pages)
		return -ENOMEM;
	memset(m->synic_pages, 0, (size_t)2 * VI_PAGE * m->nr_cpus);
	for (uint32_t c = 0; c < m->nr_cpus; c++) {
		(void)!vi_synic_set_pages(m, c, NULL, NULL);
		for (uint32_t s = 0; s < VI_SINTS; s++)
			m->cpus[c].synic.sint[s] = SINT_RESET;
	}
	vi_synic_set_policy(m, VI_SYNIC_CONTROL_GATES_MESSAGES);
	return 0;
}

void vi_synic_exit(struct vi_machine *m)
{
	free(m->synic_pages);
}

/* ---- registers: what a signal will find ------------------------------------------------------ */

static uint32_t interrupt_route(const struct vi_machine *m, const struct vi_cpu *cpu, uint64_t sint)
{
	uint32_t vector = sint & VI_SINT_VECTOR, route = vector;

	if (sint & VI_SINT_MASKED || vector < VI_VECTOR_MIN || cpu->apic_off)
		return route;
	if (sint & VI_SINT_POLLING && !(m->synic_policy & VI_SYNIC_POLLING_INTERRUPTS))
		return route;
	route |= VI_ROUTE_INTERRUPT;
	return vector == m->callback_vector ? route | VI_ROUTE_DOORBELL : route;
}

static uint32_t flag_route(uint32_t policy, const struct vi_synic_registers *r, uint64_t sint)
{
	bool page = r->siefp & ENABLE || policy & VI_SYNIC_PRIVATE_PAGES;
	bool open = !(sint & VI_SINT_MASKED) || policy & VI_SYNIC_MASKED_TAKES_FLAGS;

	if (r->scontrol & ENABLE && page && open)
		return VI_ROUTE_FLAGS;
	return policy & VI_SYNIC_QUIET_FLAGS ? VI_ROUTE_NO_FLAGS : 0;
}

static uint32_t message_route(uint32_t policy, const struct vi_synic_registers *r, uint64_t sint)
{
	if (policy & VI_SYNIC_MASKED_LOSES_MESSAGES && sint & (VI_SINT_MASKED | VI_SINT_PROXY))
		return VI_ROUTE_NO_MESSAGES;
	if (!(r->simp & ENABLE) && !(policy & VI_SYNIC_PRIVATE_PAGES))
		return 0;
	if (!(r->scontrol & ENABLE) && policy & VI_SYNIC_CONTROL_GATES_MESSAGES)
		return 0;
	return VI_ROUTE_MESSAGES;
}

static bool bit_of(const uint64_t *words, uint32_t bit)
{
	return words[bit / 64] >> (bit % 64) & 1;
}

static void note_vector(struct vi_synic_registers *r, uint64_t sint)
{
	uint32_t vector = sint & VI_SINT_VECTOR;
	uint64_t bit = 1ull << (vector % 64);

	if (sint & VI_SINT_MASKED)
		return;
	r->vectors[vector / 64] |= bit;
	if (sint & VI_SINT_AUTO_EOI)
		r->auto_eoi[vector / 64] |= bit;
}

/**
 * vi_synic_refresh() - work the routes of a CPU out anew: a register, the policy or the APIC has
 * changed
 */
void vi_synic_refresh(struct vi_machine *m, struct vi_cpu *cpu)
{
	struct vi_synic_registers *r = &cpu->synic;

	memset(r->vectors, 0, sizeof(r->vectors));
	memset(r->auto_eoi, 0, sizeof(r->auto_eoi));
	for (uint32_t s = 0; s < VI_SINTS; s++) {
		uint32_t route = interrupt_route(m, cpu, r->sint[s]) |
				 flag_route(m->synic_policy, r, r->sint[s]) |
				 message_route(m->synic_policy, r, r->sint[s]);

		note_vector(r, r->sint[s]);
		__atomic_store_n(&cpu->route[s], (uint16_t)route, __ATOMIC_SEQ_CST);
	}
	if (bit_of(r->vectors, m->callback_vector) && !bit_of(r->auto_eoi, m->callback_vector))
		__atomic_fetch_or(&cpu->vector_mode, VI_VECTOR_EOI, __ATOMIC_SEQ_CST);
	else
		__atomic_fetch_and(&cpu->vector_mode, ~(uint32_t)VI_VECTOR_EOI, __ATOMIC_SEQ_CST);
	vi_notice(cpu, VI_NOTICE_REGISTERS);
}

static uint64_t control_at_reset(const struct vi_machine *m)
{
	return m->synic_policy & VI_SYNIC_CONTROL_AT_RESET ? ENABLE : 0;
}

void vi_synic_set_policy(struct vi_machine *m, uint32_t policy)
{
	m->synic_policy = policy;
	for (uint32_t c = 0; c < m->nr_cpus; c++) {
		m->cpus[c].synic.scontrol = control_at_reset(m);
		vi_synic_refresh(m, &m->cpus[c]);
	}
}

static int set_register(struct vi_machine *m, uint32_t cpu, uint64_t *value_of, uint64_t value)
{
	*value_of = value;
	vi_synic_refresh(m, vi_cpu_of(m, cpu));
	return 0;
}

int vi_synic_set_sint(struct vi_machine *m, uint32_t cpu, uint32_t sint, uint64_t value)
{
	if (cpu >= m->nr_cpus || sint >= VI_SINTS)
		return -EINVAL;
	return set_register(m, cpu, &vi_cpu_of(m, cpu)->synic.sint[sint], value);
}

int vi_synic_set_control(struct vi_machine *m, uint32_t cpu, uint64_t value)
{
	if (cpu >= m->nr_cpus)
		return -EINVAL;
	return set_register(m, cpu, &vi_cpu_of(m, cpu)->synic.scontrol, value);
}

int vi_synic_set_siefp(struct vi_machine *m, uint32_t cpu, uint64_t value)
{
	if (cpu >= m->nr_cpus)
		return -EINVAL;
	return set_register(m, cpu, &vi_cpu_of(m, cpu)->synic.siefp, value);
}

int vi_synic_set_simp(struct vi_machine *m, uint32_t cpu, uint64_t value)
{
	if (cpu >= m->nr_cpus)
		return -EINVAL;
	return set_register(m, cpu, &vi_cpu_of(m, cpu)->synic.simp, value);
}

int vi_synic_reset(struct vi_machine *m, uint32_t cpu)
{
	struct vi_synic_registers *r;

	if (cpu >= m->nr_cpus)
		return -EINVAL;
	r = &vi_cpu_of(m, cpu)->synic;
	*r = (struct vi_synic_registers){ .scontrol = control_at_reset(m) };
	for (uint32_t s = 0; s < VI_SINTS; s++)
		r->sint[s] = SINT_RESET;
	vi_synic_refresh(m, vi_cpu_of(m, cpu));
	memset(own_page(m, cpu), 0, (size_t)2 * VI_PAGE);
	return vi_synic_set_pages(m, cpu, NULL, NULL);
}

const struct vi_synic_registers *vi_synic_registers(struct vi_machine *m, uint32_t cpu)
{
	return cpu < m->nr_cpus ? &vi_cpu_of(m, cpu)->synic : NULL;
}

/* ---- flags ----------------------------------------------------------------------------------- */

static void request_vector(struct vi_cpu *cpu, uint32_t route)
{
	if (likely(route & VI_ROUTE_DOORBELL))
		__atomic_store_n(&cpu->pending, 1, __ATOMIC_SEQ_CST);
	else if (route & VI_ROUTE_INTERRUPT)
		vi_lapic_post(cpu, route & VI_ROUTE_VECTOR);
}

int vi_synic_signal(struct vi_machine *m, uint32_t cpu, uint32_t sint, uint32_t flag)
{
	uint64_t bit = 1ull << (flag % 64), old;
	struct vi_cpu *target;
	uint32_t route;

	if (flag >= VI_SINT_FLAGS || cpu >= m->nr_cpus || sint >= VI_SINTS)
		return -EINVAL;
	target = vi_cpu_of(m, cpu);
	route = vi_load(&target->route[sint]);
	if (unlikely(!(route & VI_ROUTE_FLAGS)))
		return route & VI_ROUTE_NO_FLAGS ? 0 : -ENXIO;
	old = __atomic_fetch_or(&vi_load(&target->flag_page)[sint * VI_SINT_WORDS + flag / 64],
				bit, __ATOMIC_SEQ_CST);
	vi_trace(m, VI_TRACE_SYNIC_FLAG, cpu, flag, !(old & bit));
	if (old & bit)
		return 0;
	request_vector(target, route);
	if (route & VI_ROUTE_INTERRUPT)
		vi_trace(m, VI_TRACE_SYNIC_VECTOR, cpu, flag, 0);
	return 1;
}

/* Raise a flag once more on the CPU that claimed it: it may not run there just now. */
void vi_synic_raise(struct vi_cpu *cpu, uint32_t flag)
{
	__atomic_fetch_or(&cpu->sint_flags[flag / 64], 1ull << (flag % 64), __ATOMIC_SEQ_CST);
	__atomic_store_n(&cpu->pending, 1, __ATOMIC_SEQ_CST);
}

int vi_synic_poke(struct vi_machine *m, uint32_t cpu, uint32_t flag)
{
	if (cpu >= m->nr_cpus || flag >= VI_SINT_FLAGS)
		return -EINVAL;
	vi_synic_raise(vi_cpu_of(m, cpu), flag);
	return 0;
}

/* ---- messages -------------------------------------------------------------------------------- */

struct letter {
	uint32_t type;
	uint32_t size;
	uint64_t origin;
	const void *payload;
	uint32_t how;			/* enum vi_deposit */
};

/* Fill a slot that is free. Context: the CPU's post_lock. */
static int deposit(struct vi_cpu *cpu, struct vi_message *slot, const struct letter *l)
{
	if (__atomic_load_n(&slot->type, __ATOMIC_SEQ_CST) != VI_MSG_NONE) {
		if (l->how & VI_DEPOSIT_QUIET)
			return -EAGAIN;
		vi_trace(cpu->m, VI_TRACE_SYNIC_BUSY, cpu->id, 0, l->type);
		__atomic_fetch_or(&slot->flags, 1, __ATOMIC_SEQ_CST);
		vi_lapic_watch(cpu);
		/*
		 * the guest may have freed the slot before it could see the pending bit: it will
		 * not write EOM then, and its EOI may be over
		 */
		if (__atomic_load_n(&slot->type, __ATOMIC_SEQ_CST) != VI_MSG_NONE)
			return -EAGAIN;
	}
	if (l->how & VI_DEPOSIT_MORE)
		vi_lapic_watch(cpu);
	vi_store_relaxed(&slot->flags, l->how & VI_DEPOSIT_MORE ? 1 : 0);
	slot->payload_size = (uint8_t)l->size;
	slot->reserved = 0;
	slot->origin = l->origin;
	if (l->size)
		memcpy(slot->payload, l->payload, l->size);
	__atomic_store_n(&slot->type, l->type, __ATOMIC_SEQ_CST);
	return 0;
}

int vi_synic_deposit(struct vi_machine *m, uint32_t cpu, uint32_t sint, uint32_t type,
		     uint64_t origin, const void *payload, uint32_t size, uint32_t how)
{
	const struct letter letter = { type, size, origin, payload, how };
	struct vi_cpu *target;
	uint32_t route;
	int result;

	if (size > VI_MSG_PAYLOAD)
		return -EMSGSIZE;
	if (type == VI_MSG_NONE || (!payload && size) || cpu >= m->nr_cpus || sint >= VI_SINTS)
		return -EINVAL;
	target = vi_cpu_of(m, cpu);
	route = vi_load(&target->route[sint]);
	if (!(route & VI_ROUTE_MESSAGES))
		return route & VI_ROUTE_NO_MESSAGES ? -EPERM : -ENXIO;
	vi_lock(&target->post_lock);
	result = deposit(target, &vi_load(&target->message_page)[sint], &letter);
	vi_unlock(&target->post_lock);
	if (result < 0)
		return result;
	request_vector(target, route);
	return route & VI_ROUTE_INTERRUPT ? 1 : 0;
}

int vi_synic_takes_messages(struct vi_machine *m, uint32_t cpu, uint32_t sint)
{
	if (cpu >= m->nr_cpus || sint >= VI_SINTS)
		return -EINVAL;
	return (vi_load(&vi_cpu_of(m, cpu)->route[sint]) &
		(VI_ROUTE_MESSAGES | VI_ROUTE_NO_MESSAGES)) != 0;
}

int vi_synic_post(struct vi_machine *m, uint32_t cpu, uint32_t sint, uint32_t type,
		  const void *payload, uint32_t size)
{
	int result = vi_synic_deposit(m, cpu, sint, type, 0, payload, size, 0);

	return result > 0 ? 0 : result;
}

static void write_eom(struct vi_cpu *cpu)
{
	__atomic_fetch_add(&cpu->eom_count, 1, __ATOMIC_SEQ_CST);
	vi_notice(cpu, VI_NOTICE_EOM);
}

/**
 * vi_synic_signal_eom() - free the slot, and tell the hypervisor if another message waits
 * (vmbus_signal_eom)
 *
 * The type is compared and swapped, so that a slot somebody else has emptied meanwhile is left
 * alone; the pending bit is read after that, or a wake-up could be lost.
 */
void vi_synic_signal_eom(struct vi_cpu *cpu, struct vi_message *slot, uint32_t seen_type)
{
	if (!__atomic_compare_exchange_n(&slot->type, &seen_type, VI_MSG_NONE, false,
					 __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return;
	if (__atomic_load_n(&slot->flags, __ATOMIC_SEQ_CST) & 1)
		write_eom(cpu);
}

int vi_synic_eom(struct vi_machine *m, uint32_t cpu, uint32_t sint, uint32_t seen_type)
{
	if (cpu >= m->nr_cpus || sint >= VI_SINTS)
		return -EINVAL;
	vi_synic_signal_eom(vi_cpu_of(m, cpu), vi_synic_slot(m, cpu, sint), seen_type);
	return 0;
}

int vi_synic_write_eom(struct vi_machine *m, uint32_t cpu)
{
	if (cpu >= m->nr_cpus)
		return -EINVAL;
	write_eom(vi_cpu_of(m, cpu));
	return 0;
}

uint64_t vi_synic_eom_count(struct vi_machine *m, uint32_t cpu)
{
	return cpu < m->nr_cpus ? __atomic_load_n(&vi_cpu_of(m, cpu)->eom_count, __ATOMIC_SEQ_CST) :
				  0;
}

uint32_t vi_synic_stimer_count(struct vi_machine *m, uint32_t cpu)
{
	return cpu < m->nr_cpus ? vi_load_relaxed(&vi_cpu_of(m, cpu)->stimer_count) : 0;
}

uint64_t *vi_synic_flags(struct vi_machine *m, uint32_t cpu, uint32_t sint)
{
	return cpu < m->nr_cpus && sint < VI_SINTS ?
		       vi_load(&vi_cpu_of(m, cpu)->flag_page) + sint * VI_SINT_WORDS :
		       NULL;
}

struct vi_message *vi_synic_slot(struct vi_machine *m, uint32_t cpu, uint32_t sint)
{
	return cpu < m->nr_cpus && sint < VI_SINTS ?
		       vi_load(&vi_cpu_of(m, cpu)->message_page) + sint :
		       NULL;
}
