/* SPDX-License-Identifier: MIT */
/*
 * synic.h - the registers that a guest of VMBus sets (hv_synic_enable_regs of drivers/hv/hv.c,
 * v6.10), for programs that have no register file.
 */
#ifndef TESTS_SYNIC_H
#define TESTS_SYNIC_H

#include "internals.h"

/* Return: 0, or the error of the first that fails. */
static inline int switch_synic(struct vi_machine *m, uint32_t cpu, bool on)
{
	uint64_t sint = m->callback_vector;
	int result;

	if (m->arch == VI_ARCH_X86)
		sint |= VI_SINT_AUTO_EOI;
	result = vi_synic_set_sint(m, cpu, VI_SINT_VMBUS, on ? sint : sint | VI_SINT_MASKED);
	if (result == 0)
		result = vi_synic_set_simp(m, cpu, on);
	if (result == 0)
		result = vi_synic_set_siefp(m, cpu, on);
	return result ? result : vi_synic_set_control(m, cpu, on);
}

#endif
