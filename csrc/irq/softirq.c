/* SPDX-License-Identifier: MIT */
/*
 * softirq.c - what runs after the hard interrupt on the same CPU: tasklets and NAPI polls
 * (kernel/softirq.c, v6.10).
 *
 * The lists belong to their CPU. A tasklet is queued at most once and runs on one CPU at a time.
 */
#include "internals.h"

/* MAX_SOFTIRQ_RESTART; the rest is ksoftirqd's, here the next vi_vcpu_run() */
#define SOFTIRQ_RESTARTS 10

static void list_add(struct vi_tasklet_list *list, struct vi_tasklet *t)
{
	t->next = NULL;
	if (list->tail)
		list->tail->next = t;
	else
		list->head = t;
	list->tail = t;
}

void vi_tasklet_schedule(struct vi_cpu *cpu, struct vi_tasklet *t)
{
	if (__atomic_exchange_n(&t->scheduled, 1, __ATOMIC_ACQ_REL))
		return;
	list_add(&cpu->tasklets, t);
	cpu->softirq_pending |= 1u << VI_SOFTIRQ_TASKLET;
}

void vi_napi_schedule(struct vi_cpu *cpu, struct vi_tasklet *t)
{
	if (__atomic_exchange_n(&t->scheduled, 1, __ATOMIC_ACQ_REL))
		return;
	list_add(&cpu->napi, t);
	cpu->softirq_pending |= 1u << VI_SOFTIRQ_NET_RX;
}

static void run_list(struct vi_cpu *cpu, struct vi_tasklet_list *list, uint32_t vec)
{
	struct vi_tasklet *t = list->head;

	list->head = NULL;
	list->tail = NULL;
	while (t) {
		struct vi_tasklet *next = t->next;

		/* on another CPU: later */
		if (__atomic_exchange_n(&t->running, 1, __ATOMIC_ACQUIRE)) {
			list_add(list, t);
			cpu->softirq_pending |= 1u << vec;
		} else {
			__atomic_exchange_n(&t->scheduled, 0, __ATOMIC_ACQ_REL);
			t->func(cpu, t->data);
			vi_store(&t->running, 0);
		}
		t = next;
	}
}

/**
 * vi_do_softirq() - run what is pending, lowest vector first, counting each vector once a round
 * Context: the CPU's own thread, after the hard interrupt.
 */
void vi_do_softirq(struct vi_cpu *cpu)
{
	for (uint32_t round = 0; cpu->softirq_pending && round < SOFTIRQ_RESTARTS; round++) {
		uint32_t pending = cpu->softirq_pending;

		cpu->softirq_pending = 0;
		for (; pending; pending &= pending - 1) {
			uint32_t vec = (uint32_t)__builtin_ctz(pending);

			vi_count(&cpu->softirq[vec], 1);
			vi_trace(cpu->m, VI_TRACE_SOFTIRQ, cpu->id, vec, 0);
			if (vec == VI_SOFTIRQ_TASKLET)
				run_list(cpu, &cpu->tasklets, vec);
			else if (vec == VI_SOFTIRQ_NET_RX)
				run_list(cpu, &cpu->napi, vec);
		}
	}
}
