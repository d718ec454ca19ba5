/* SPDX-License-Identifier: MIT */
/*
 * softirq.c - what runs after the hard interrupt on the same CPU: tasklets and NAPI polls
 * (kernel/softirq.c, v6.10).
 *
 * The lists belong to their CPU. A tasklet is queued at most once and runs on one CPU at a time.
 */
#include "internals.h"

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

static struct vi_tasklet *detach(struct vi_tasklet_list *list)
{
	struct vi_tasklet *head = list->head;

	list->head = NULL;
	list->tail = NULL;
	return head;
}

/* tasklet_trylock(). Return: false: it runs on another CPU; it is back in the list, for later. */
static inline bool tasklet_begin(struct vi_cpu *cpu, struct vi_tasklet_list *list,
				 struct vi_tasklet *t, uint32_t vec)
{
	if (__atomic_exchange_n(&t->running, 1, __ATOMIC_ACQUIRE)) {
		list_add(list, t);
		cpu->softirq_pending |= 1u << vec;
		return false;
	}
	__atomic_exchange_n(&t->scheduled, 0, __ATOMIC_ACQ_REL);
	return true;
}

static inline void tasklet_end(struct vi_tasklet *t)
{
	vi_store(&t->running, 0);
}

static void run_list(struct vi_cpu *cpu, struct vi_tasklet_list *list, uint32_t vec)
{
	struct vi_tasklet *t = detach(list);

	while (t) {
		struct vi_tasklet *next = t->next;

		if (tasklet_begin(cpu, list, t, vec)) {
			t->func(cpu, t->data);
			tasklet_end(t);
		}
		t = next;
	}
}

static inline uint32_t take_pending(struct vi_cpu *cpu)
{
	uint32_t pending = cpu->softirq_pending;

	cpu->softirq_pending = 0;
	return pending;
}

/* A vector is about to run. Return: its list; NULL: nothing is behind it here. */
static inline struct vi_tasklet_list *vector_begin(struct vi_cpu *cpu, uint32_t vec)
{
	vi_count(&cpu->softirq[vec], 1);
	return vec == VI_SOFTIRQ_TASKLET ? &cpu->tasklets :
	       vec == VI_SOFTIRQ_NET_RX	 ? &cpu->napi :
					   NULL;
}

/**
 * vi_do_softirq() - run what is pending, lowest vector first, counting each vector once a round
 * Context: the CPU's own thread, after the hard interrupt.
 */
void vi_do_softirq(struct vi_cpu *cpu)
{
	for (uint32_t round = 0; cpu->softirq_pending && round < VI_STEP_ROUNDS; round++) {
		for (uint32_t pending = take_pending(cpu); pending; pending &= pending - 1) {
			uint32_t vec = (uint32_t)__builtin_ctz(pending);
			struct vi_tasklet_list *list = vector_begin(cpu, vec);

			vi_trace(cpu->m, VI_TRACE_SOFTIRQ, cpu->id, vec, 0);
			if (list)
				run_list(cpu, list, vec);
		}
	}
}

/* ---- the same, step by step ------------------------------------------------------------------ */

/* The list that the vector at work has detached, and what of it runs, are the CPU's meanwhile. */

uint32_t vi_step_softirqs(struct vi_machine *m, uint32_t cpu)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);

	return c ? take_pending(c) : 0;
}

int vi_step_softirq(struct vi_machine *m, uint32_t cpu, uint32_t vec)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);
	struct vi_tasklet_list *list;

	if (!c || vec >= VI_SOFTIRQS)
		return -EINVAL;
	list = vector_begin(c, vec);
	vi_trace(m, VI_TRACE_SOFTIRQ, cpu, vec, 0);
	c->step.list = list ? detach(list) : NULL;
	c->step.vec = vec;
	return 0;
}

int vi_step_tasklet_begin(struct vi_machine *m, uint32_t cpu)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);
	struct vi_tasklet *t = c ? c->step.list : NULL;

	if (!t)
		return -EINVAL;
	c->step.list = t->next;
	if (!tasklet_begin(c, c->step.vec == VI_SOFTIRQ_NET_RX ? &c->napi : &c->tasklets, t,
			   c->step.vec))
		return 0;
	c->step.tasklet = t;
	return 1;
}

int vi_step_tasklet_end(struct vi_machine *m, uint32_t cpu)
{
	struct vi_cpu *c = vi_step_cpu(m, cpu);

	if (!c || !c->step.tasklet)
		return -EINVAL;
	tasklet_end(c->step.tasklet);
	c->step.tasklet = NULL;
	return 0;
}
