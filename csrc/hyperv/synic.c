/* SPDX-License-Identifier: MIT */
/*
 * synic.c - what the hypervisor gives each virtual CPU: the event flag page and the message page
 * (TLFS chapter 11).
 *
 * Both pages are written by the host side (any thread) and the CPU itself, with atomic operations
 * only. "No event lost" rests on one order: the signaller sets the flag, then the doorbell; the CPU
 * clears the doorbell with an exchange before it looks at the flags.
 */
#include "internals.h"

#define PAGE_WORDS (VI_PAGE / sizeof(uint64_t))

_Static_assert(sizeof(struct vi_message) == 256, "a message slot is 256 bytes");
_Static_assert(offsetof(struct vi_message, payload_size) == 4, "size at 4");
_Static_assert(offsetof(struct vi_message, flags) == 5, "flags at 5");
_Static_assert(offsetof(struct vi_message, origin) == 8, "origin at 8");
_Static_assert(offsetof(struct vi_message, payload) == 16, "payload at 16");
_Static_assert(VI_SINTS * VI_SINT_WORDS * sizeof(uint64_t) == VI_PAGE, "event flags fill a page");
_Static_assert(VI_SINTS * sizeof(struct vi_message) == VI_PAGE, "messages fill a page");

int vi_synic_init(struct vi_machine *m)
{
	uint8_t *page = aligned_alloc(VI_PAGE, (size_t)2 * VI_PAGE * m->nr_cpus);

	if (!page)
		return -ENOMEM;
	memset(page, 0, (size_t)2 * VI_PAGE * m->nr_cpus);
	m->synic_pages = page;
	for (uint32_t c = 0; c < m->nr_cpus; c++, page += 2 * VI_PAGE) {
		struct vi_cpu *cpu = &m->cpus[c];

		cpu->flag_page = (uint64_t *)(void *)page;
		cpu->message_page = (struct vi_message *)(void *)(page + VI_PAGE);
		cpu->sint_flags = cpu->flag_page + VI_SINT_VMBUS * VI_SINT_WORDS;
		cpu->vmbus_slot = &cpu->message_page[VI_SINT_VMBUS];
	}
	return 0;
}

void vi_synic_exit(struct vi_machine *m)
{
	free(m->synic_pages);
}

int vi_synic_enable(struct vi_machine *m, uint32_t cpu, uint32_t on)
{
	if (cpu >= m->nr_cpus)
		return -EINVAL;
	__atomic_store_n(&vi_cpu_of(m, cpu)->synic_on, on != 0, __ATOMIC_SEQ_CST);
	return 0;
}

/*
 * Only the VMBus SINT is unmasked by the guest; a masked SINT takes neither flags nor messages here
 * (TLFS: invalid SynIC state).
 */
static int check_target(struct vi_machine *m, uint32_t cpu, uint32_t sint)
{
	if (cpu >= m->nr_cpus || sint >= VI_SINTS)
		return -EINVAL;
	if (!vi_load(&vi_cpu_of(m, cpu)->synic_on) || sint != VI_SINT_VMBUS)
		return -ENXIO;
	return 0;
}

static void request_vector(struct vi_cpu *cpu)
{
	__atomic_store_n(&cpu->pending, 1, __ATOMIC_SEQ_CST);
}

int vi_synic_signal(struct vi_machine *m, uint32_t cpu, uint32_t sint, uint32_t flag)
{
	uint64_t bit = 1ull << (flag % 64), old;
	int result;

	if (flag >= VI_SINT_FLAGS)
		return -EINVAL;
	result = check_target(m, cpu, sint);
	if (result < 0)
		return result;
	old = __atomic_fetch_or(&vi_cpu_of(m, cpu)->flag_page[sint * VI_SINT_WORDS + flag / 64],
				bit, __ATOMIC_SEQ_CST);
	vi_trace(m, VI_TRACE_SYNIC_FLAG, cpu, flag, !(old & bit));
	if (old & bit)
		return 0;
	request_vector(vi_cpu_of(m, cpu));
	vi_trace(m, VI_TRACE_SYNIC_VECTOR, cpu, flag, 0);
	return 1;
}

/* Raise a flag once more on the CPU that claimed it: it may not run there just now. */
void vi_synic_raise(struct vi_cpu *cpu, uint32_t flag)
{
	__atomic_fetch_or(&cpu->sint_flags[flag / 64], 1ull << (flag % 64), __ATOMIC_SEQ_CST);
	request_vector(cpu);
}

/* Fill a slot that is free. Context: the CPU's post_lock. */
static int deposit(struct vi_message *slot, uint32_t type, const void *payload, uint32_t size)
{
	if (__atomic_load_n(&slot->type, __ATOMIC_SEQ_CST) != VI_MSG_NONE) {
		__atomic_fetch_or(&slot->flags, 1, __ATOMIC_SEQ_CST);
		/*
		 * the guest may have freed the slot before it could see the pending bit: it will
		 * not write EOM then
		 */
		if (__atomic_load_n(&slot->type, __ATOMIC_SEQ_CST) != VI_MSG_NONE)
			return -EAGAIN;
	}
	vi_store_relaxed(&slot->flags, 0);
	slot->payload_size = (uint8_t)size;
	slot->origin = 0;
	if (size)
		memcpy(slot->payload, payload, size);
	__atomic_store_n(&slot->type, type, __ATOMIC_SEQ_CST);
	return 0;
}

int vi_synic_post(struct vi_machine *m, uint32_t cpu, uint32_t sint, uint32_t type,
		  const void *payload, uint32_t size)
{
	struct vi_cpu *target;
	int result;

	if (size > VI_MSG_PAYLOAD)
		return -EMSGSIZE;
	if (type == VI_MSG_NONE || (!payload && size))
		return -EINVAL;
	result = check_target(m, cpu, sint);
	if (result < 0)
		return result;
	target = vi_cpu_of(m, cpu);
	vi_lock(&target->post_lock);
	result = deposit(&target->message_page[sint], type, payload, size);
	vi_unlock(&target->post_lock);
	if (result == 0)
		request_vector(target);
	return result;
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
		__atomic_fetch_add(&cpu->eom_count, 1, __ATOMIC_SEQ_CST);
}

int vi_synic_eom(struct vi_machine *m, uint32_t cpu, uint32_t sint, uint32_t seen_type)
{
	if (cpu >= m->nr_cpus || sint >= VI_SINTS)
		return -EINVAL;
	vi_synic_signal_eom(vi_cpu_of(m, cpu), vi_cpu_of(m, cpu)->message_page + sint, seen_type);
	return 0;
}

uint64_t vi_synic_eom_count(struct vi_machine *m, uint32_t cpu)
{
	return cpu < m->nr_cpus ? __atomic_load_n(&vi_cpu_of(m, cpu)->eom_count, __ATOMIC_SEQ_CST) :
				  0;
}

uint64_t *vi_synic_flags(struct vi_machine *m, uint32_t cpu, uint32_t sint)
{
	return cpu < m->nr_cpus && sint < VI_SINTS ?
		       vi_cpu_of(m, cpu)->flag_page + sint * VI_SINT_WORDS :
		       NULL;
}

struct vi_message *vi_synic_slot(struct vi_machine *m, uint32_t cpu, uint32_t sint)
{
	return cpu < m->nr_cpus && sint < VI_SINTS ? vi_cpu_of(m, cpu)->message_page + sint : NULL;
}
