/* SPDX-License-Identifier: MIT */
/*
 * irqdesc.c - the descriptor table and the per-CPU counters of every IRQ.
 *
 * Owns m->desc and m->irq_counts. A counter has one writer, its CPU; anybody may read it. Counters
 * of a row restart at 0 when the descriptor is freed, irqs_sum does not (kernel/irq/irqdesc.c,
 * v6.10). In the kernel sparse_irq_lock guards allocation; here the table belongs to the machine's
 * owner thread.
 */
#include "internals.h"

/**
 * vi_shuffle_places() - a permutation of 0..n-1
 *
 * A slab hands out objects in no useful order; an array in order would flatter the linux engine.
 */
void vi_shuffle_places(uint64_t seed, uint32_t n, uint32_t *place)
{
	for (uint32_t i = n - 1; i > 0; i--) {
		uint32_t j = (uint32_t)(vi_random(&seed) % (i + 1)), swap = place[i];

		place[i] = place[j];
		place[j] = swap;
	}
}

/*
 * Counters of one CPU to the next: whole cache lines, an odd number of them, so that no two CPUs'
 * rows alias in a cache set.
 */
static uint32_t counter_stride(uint32_t columns)
{
	uint32_t lines = (columns + 15) / 16;

	return (lines | 1) * 16;
}

/**
 * vi_irq_core_init() - make the descriptor table, the counters and the linear domain
 * Return: 0, or -ENOMEM (vi_irq_core_exit() cleans up).
 */
int vi_irq_core_init(struct vi_machine *m)
{
	uint32_t n = m->nr_cpus;

	m->irq_columns = m->nr_irqs_max + VI_DOMAIN_SIZE;
	m->irq_stride = counter_stride(m->irq_columns);
	m->desc = calloc(m->irq_columns, sizeof(*m->desc));
	m->desc_pool = aligned_alloc(VI_LINE, (size_t)m->irq_columns * sizeof(*m->desc_pool));
	m->desc_used = calloc((m->irq_columns + 63) / 64, sizeof(uint64_t));
	m->desc_place = malloc(m->irq_columns * sizeof(*m->desc_place));
	m->irq_counts = calloc((size_t)m->irq_stride * n + 16, sizeof(uint32_t));
	m->arch_counts = calloc((size_t)VI_ARCH_STRIDE * n, sizeof(uint32_t));
	m->softirq_counts = calloc((size_t)VI_SOFTIRQ_STRIDE * n, sizeof(uint32_t));
	m->irqs_sums = calloc((size_t)VI_IRQS_SUM_STRIDE * n, sizeof(uint64_t));
	m->resend = calloc((m->irq_columns + 63) / 64, sizeof(uint64_t));
	m->slot = aligned_alloc(VI_LINE, VI_DOMAIN_SIZE * sizeof(*m->slot));
	m->domain.slot = m->slot;
	m->domain.revmap = calloc(VI_DOMAIN_SIZE, sizeof(*m->domain.revmap));
	if (!m->desc || !m->desc_pool || !m->desc_used || !m->desc_place || !m->irq_counts ||
	    !m->arch_counts || !m->softirq_counts || !m->irqs_sums || !m->resend || !m->slot ||
	    !m->domain.revmap)
		return -ENOMEM;
	for (uint32_t i = 0; i < m->irq_columns; i++)
		m->desc_place[i] = i;
	if (m->engine == VI_ENGINE_LINUX)
		vi_shuffle_places(m->seed, m->irq_columns, m->desc_place);
	m->resend_tasklet.func = vi_resend_run;
	for (uint32_t hwirq = 0; hwirq < VI_DOMAIN_SIZE; hwirq++) {
		vi_slot_init(m, hwirq);
	}
	for (uint32_t c = 0; c < n; c++) {
		m->cpus[c].kstat = m->irq_counts + (size_t)c * m->irq_stride;
		m->cpus[c].arch = m->arch_counts + (size_t)c * VI_ARCH_STRIDE;
		m->cpus[c].softirq = m->softirq_counts + (size_t)c * VI_SOFTIRQ_STRIDE;
		m->cpus[c].irqs_sum = m->irqs_sums + (size_t)c * VI_IRQS_SUM_STRIDE;
	}
	return 0;
}

void vi_irq_core_exit(struct vi_machine *m)
{
	for (uint32_t i = 0; m->desc && i < m->irq_columns; i++)
		if (m->desc[i])
			free(m->desc[i]->percpu_enabled);
	free(m->desc);
	free(m->desc_pool);
	free(m->desc_used);
	free(m->desc_place);
	free(m->irq_counts);
	free(m->arch_counts);
	free(m->softirq_counts);
	free(m->irqs_sums);
	free(m->resend);
	free(m->slot);
	free(m->domain.revmap);
}

/**
 * vi_desc_create() - a descriptor with the kernel's defaults in counter column @column
 *
 * Columns below nr_irqs_max are IRQ numbers; the others back channels that have no IRQ.
 */
struct vi_irq_desc *vi_desc_create(struct vi_machine *m, uint32_t column)
{
	struct vi_irq_desc *desc = &m->desc_pool[m->desc_place[column]];

	memset(desc, 0, sizeof(*desc));
	desc->irq = column;
	desc->kstat_irqs = m->irq_counts + column;
	desc->state = VI_IRQD_DISABLED | VI_IRQD_MASKED;
	desc->depth = 1;
	desc->flow = VI_FLOW_BAD;
	desc->handle_irq = vi_flow_handler(VI_FLOW_BAD);
	desc->replay = m->engine == VI_ENGINE_FAST;
	desc->visible = column < m->nr_irqs_max;
	vi_set_bit(m->desc_used, column);
	vi_store(&m->desc[column], desc);
	return desc;
}

struct vi_irq_desc *vi_irq_to_desc(struct vi_machine *m, uint32_t irq)
{
	return irq < m->nr_irqs_max ? vi_load(&m->desc[irq]) : NULL;
}

int vi_irq_alloc_desc(struct vi_machine *m, uint32_t irq)
{
	if (irq >= m->nr_irqs_max)
		return -EINVAL;
	if (m->desc[irq])
		return -EEXIST;
	vi_desc_create(m, irq);
	return 0;
}

int vi_irq_free_desc(struct vi_machine *m, uint32_t irq)
{
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);

	if (!desc)
		return -EINVAL;
	if (desc->action || desc->handler_data || vi_would_wait(m))
		return -EBUSY;
	if (vi_inside_interrupt(m))
		return -EDEADLK;
	if (desc->slot)
		vi_slot_unbind(m, desc->slot->hwirq);
	if (m->message_desc == desc)
		m->message_desc = NULL;
	if (m->toplevel_desc == desc)
		m->toplevel_desc = NULL;
	if (m->irq_work_desc == desc)
		m->irq_work_desc = NULL;
	vi_irq_work_cancel(m, desc);
	vi_store(&m->desc[irq], NULL);
	vi_synchronize_cpus(m);
	for (uint32_t c = 0; c < m->nr_cpus; c++)
		vi_store_relaxed(&m->cpus[c].kstat[irq], 0);
	free(desc->percpu_enabled);
	desc->percpu_enabled = NULL;
	return 0;
}

/*
 * Has a number in /proc/stat: the flow bumps tot_count, or the IRQ is marked per-CPU and its counts
 * are added up.
 */
static bool has_stat(const struct vi_irq_desc *desc)
{
	return vi_flow_bumps_total(desc->flow) ||
	       (desc->settings & (VI_IRQ_PER_CPU | VI_IRQ_PER_CPU_DEVID));
}

/*
 * The kernel prints tot_count for an ordinary IRQ and the sum of cnt for a per-CPU one. The fast
 * engine does not keep tot_count; but whoever bumps it bumps cnt once, too, so that the sum of cnt
 * is the same number modulo 2^32 and serves both.
 */
int vi_irq_stat(struct vi_machine *m, uint32_t first, uint32_t n, uint32_t *numbers)
{
	if (first > m->nr_irqs_max || n > m->nr_irqs_max - first)
		return -EINVAL;
	memset(numbers, 0, n * sizeof(*numbers));
	while (n && !vi_load(&m->desc[first + n - 1]))
		n--;	/* most slots of a large machine are empty */
	for (uint32_t c = 0; c < m->nr_cpus; c++) {
		const uint32_t *row = m->cpus[c].kstat + first;

		for (uint32_t i = 0; i < n; i++)
			numbers[i] += vi_load_relaxed(&row[i]);
	}
	for (uint32_t i = 0; i < n; i++) {
		const struct vi_irq_desc *desc = vi_load(&m->desc[first + i]);

		if (!desc || !has_stat(desc))
			numbers[i] = 0;
	}
	return 0;
}

int vi_irq_set_chip_and_flow(struct vi_machine *m, uint32_t irq, const struct vi_irq_chip *chip,
			     uint32_t flow)
{
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);

	if (!desc || flow >= VI_FLOWS)
		return -EINVAL;
	vi_lock(&desc->lock);
	desc->chip = chip;
	desc->flow = flow;
	desc->handle_irq = vi_flow_handler(flow);
	vi_slot_refresh(m, desc);
	vi_unlock(&desc->lock);
	return 0;
}

/* Which state bits follow which settings (irq_modify_status). */
static uint32_t state_of_settings(uint32_t settings)
{
	return (settings & VI_IRQ_LEVEL ? VI_IRQD_LEVEL : 0) |
	       (settings & VI_IRQ_PER_CPU ? VI_IRQD_PER_CPU : 0) |
	       (settings & VI_IRQ_NO_BALANCING ? VI_IRQD_NO_BALANCING : 0) |
	       (settings & VI_IRQ_MOVE_PCNTXT ? VI_IRQD_MOVE_PCNTXT : 0);
}

int vi_irq_modify_settings(struct vi_machine *m, uint32_t irq, uint32_t clear, uint32_t set)
{
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);
	const uint32_t follow =
		VI_IRQD_LEVEL | VI_IRQD_PER_CPU | VI_IRQD_NO_BALANCING | VI_IRQD_MOVE_PCNTXT;

	if (!desc)
		return -EINVAL;
	if ((set & VI_IRQ_PER_CPU_DEVID) && !desc->percpu_enabled) {
		desc->percpu_enabled = calloc((m->nr_cpus + 63) / 64, sizeof(uint64_t));
		if (!desc->percpu_enabled)
			return -ENOMEM;
	}
	vi_lock(&desc->lock);
	vi_store_relaxed(&desc->settings, (desc->settings & ~clear) | set);
	desc->state = (desc->state & ~follow) | state_of_settings(desc->settings);
	vi_slot_refresh(m, desc);
	vi_unlock(&desc->lock);
	return 0;
}

int vi_irq_modify_state(struct vi_machine *m, uint32_t irq, uint32_t clear, uint32_t set)
{
	struct vi_irq_desc *desc = vi_irq_to_desc(m, irq);

	if (!desc)
		return -EINVAL;
	vi_lock(&desc->lock);
	desc->state = (desc->state & ~clear) | set;
	vi_slot_refresh(m, desc);
	vi_unlock(&desc->lock);
	return 0;
}
