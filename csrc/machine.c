/* SPDX-License-Identifier: MIT */
/*
 * machine.c - makes and joins the rooms: CPUs, descriptors, SynICs, channels; runs virtual CPUs.
 *
 * A machine is one allocation tree; nothing else keeps state. vi_vcpu_run() may be called on one
 * thread per CPU at once.
 */
#include "internals.h"

#define SETTLE_SOFTIRQS 100000	/* a ring of the largest size holds work for half as many */
#define SETTLE_RUNS (1 << 18)	/* vectors of one CPU in one call: far more than it has flags */

/* Virtual CPUs may outnumber real ones, so whoever waits long gives way. */
void vi_lock_contended(uint32_t *lock)
{
	uint32_t spins = 0, zero;

	do {
		if (++spins % 128 == 0)
			sched_yield();
		vi_cpu_relax();
		zero = 0;
	} while (!__atomic_compare_exchange_n(lock, &zero, 1, false, __ATOMIC_ACQUIRE,
					      __ATOMIC_RELAXED));
}

static int check_config(const struct vi_config *c)
{
	if (c->nr_cpus < 1 || c->nr_cpus > VI_CPUS_MAX || c->nr_irqs_max < 1 ||
	    c->nr_irqs_max > VI_IRQS_MAX)
		return -EINVAL;
	if (c->engine > VI_ENGINE_LINUX || c->arch > VI_ARCH_ARM64 || c->hyp_count > VI_HYP_NEVER)
		return -EINVAL;
	if (c->redirect && !c->channel_irqs)
		return -EINVAL;
	if (c->simd > VI_SIMD_AVX512 && c->simd != VI_SIMD_BEST)
		return -EINVAL;
	if (c->simd != VI_SIMD_BEST && c->simd > vi_simd_best())
		return -EOPNOTSUPP;
	return 0;
}

static int init_cpus(struct vi_machine *m)
{
	m->cpus = aligned_alloc(VI_LINE, (size_t)m->nr_cpus * sizeof(*m->cpus));
	if (!m->cpus)
		return -ENOMEM;
	memset(m->cpus, 0, (size_t)m->nr_cpus * sizeof(*m->cpus));
	for (uint32_t c = 0; c < m->nr_cpus; c++) {
		m->cpus[c].m = m;
		m->cpus[c].id = c;
		m->cpus[c].msg_dpc.func = vi_msg_dpc;
	}
	return 0;
}

int vi_machine_create(const struct vi_config *config, struct vi_machine **out)
{
	int result = check_config(config);
	struct vi_machine *m;

	if (result < 0)
		return result;
	m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	m->nr_cpus = config->nr_cpus;
	m->nr_irqs_max = config->nr_irqs_max;
	m->engine = config->engine;
	m->arch = config->arch;
	m->hyp_count = config->hyp_count;
	m->simd = config->simd == VI_SIMD_BEST ? vi_simd_best() : config->simd;
	m->channel_irqs = config->channel_irqs != 0;
	m->counts_in_sum = m->channel_irqs;
	m->shutdown_adds_depth = config->shutdown_adds_depth;
	m->redirect = config->redirect != 0;
	m->seed = config->seed;
	m->scan_is_all = m->engine == VI_ENGINE_FAST && m->arch == VI_ARCH_X86 &&
			 m->hyp_count != VI_HYP_ALWAYS;
	m->domain.retrigger = vi_synic_raise;
	m->callback_vector = m->arch == VI_ARCH_X86 ? VI_VECTOR_CALLBACK : VI_INTID_CALLBACK;
	m->scan = m->engine == VI_ENGINE_FAST ? vi_scan_variant(m->simd) :
						vi_lx_scan_variant(m, false);
	result = init_cpus(m);
	if (result == 0)
		result = vi_irq_core_init(m);
	if (result == 0)
		result = vi_synic_init(m);
	if (result == 0)
		result = vi_connections_init(m);
	if (result == 0)
		result = vi_channels_init(m);
	if (result < 0) {
		vi_machine_destroy(m);
		return result;
	}
	*out = m;
	return 0;
}

void vi_machine_destroy(struct vi_machine *m)
{
	if (!m)
		return;
	vi_channels_exit(m);
	vi_connections_exit(m);
	vi_synic_exit(m);
	vi_irq_core_exit(m);
	free(m->cpus);
	free(m);
}

void vi_machine_counters(struct vi_machine *m, struct vi_counters *out)
{
	*out = (struct vi_counters){
		.irq = m->irq_counts,
		.irq_stride = m->irq_stride,
		.arch = m->arch_counts,
		.softirq = m->softirq_counts,
		.irqs_sum = m->irqs_sums,
		.irq_err_count = &m->irq_err_count,
		.irq_mis_count = &m->irq_mis_count,
	};
}

void vi_machine_lost(struct vi_machine *m, struct vi_lost *out)
{
	*out = (struct vi_lost){ .rescinded = vi_load_relaxed(&m->rescinded) };
	for (uint32_t c = 0; c < m->nr_cpus; c++) {
		const struct vi_lost *lost = &m->cpus[c].lost;

		out->unmapped += vi_load_relaxed(&lost->unmapped);
		out->flag_zero += vi_load_relaxed(&lost->flag_zero);
		out->no_callback += vi_load_relaxed(&lost->no_callback);
		out->in_progress += vi_load_relaxed(&lost->in_progress);
		out->no_action += vi_load_relaxed(&lost->no_action);
	}
}

void vi_machine_set_time(struct vi_machine *m, uint64_t time_ms)
{
	vi_store_relaxed(&m->time_ms, time_ms);
}

void vi_machine_set_hooks(struct vi_machine *m, const struct vi_hooks *hooks)
{
	m->hooks = *hooks;
}

void vi_machine_set_owner(struct vi_machine *m, void *owner)
{
	m->owner = owner;
}

static int set_special_irq(struct vi_machine *m, uint32_t irq, struct vi_irq_desc **place)
{
	struct vi_irq_desc *desc = irq ? vi_irq_to_desc(m, irq) : NULL;

	if (irq && !desc)
		return -ENOENT;
	*place = desc;
	return 0;
}

int vi_machine_set_message_irq(struct vi_machine *m, uint32_t irq)
{
	return set_special_irq(m, irq, &m->message_desc);
}

int vi_machine_set_toplevel_irq(struct vi_machine *m, uint32_t irq)
{
	return set_special_irq(m, irq, &m->toplevel_desc);
}

int vi_machine_set_irq_work_irq(struct vi_machine *m, uint32_t irq)
{
	return set_special_irq(m, irq, &m->irq_work_desc);
}

uint32_t vi_machine_nr_irqs_max(const struct vi_machine *m)
{
	return m->nr_irqs_max;
}

struct vi_cpu *vi_machine_cpu(struct vi_machine *m, uint32_t cpu)
{
	return cpu < m->nr_cpus ? vi_cpu_of(m, cpu) : NULL;
}

uint32_t vi_cpu_id(const struct vi_cpu *cpu)
{
	return cpu->id;
}

void *vi_cpu_owner(const struct vi_cpu *cpu)
{
	return cpu->m->owner;
}

/*
 * The resend tasklet is scheduled by whoever enables an IRQ, but its list belongs to the boot CPU.
 */
static inline __attribute__((always_inline)) void take_resend(struct vi_cpu *cpu)
{
	if (cpu->id == 0 && unlikely(vi_load(&cpu->m->resend_pending))) {
		(void)__atomic_exchange_n(&cpu->m->resend_pending, 0, __ATOMIC_ACQ_REL);
		vi_tasklet_schedule(cpu, &cpu->m->resend_tasklet);
	}
}

/* The interrupt of irq_works is next. */
static inline bool takes_work(uint32_t mode)
{
	return (mode & (VI_VECTOR_HELD | VI_VECTOR_WORK)) == VI_VECTOR_WORK;
}

/* Nothing for @cpu to do: no vector that can be taken, no softirq. vi_vcpu_run() asks in one go. */
static bool is_idle(const struct vi_cpu *cpu, uint32_t mode)
{
	return !takes_work(mode) && !cpu->softirq_pending &&
	       (!vi_load_relaxed(&cpu->pending) || mode & VI_VECTOR_HELD);
}

/* Take the doorbell back. Return: it had rung, and the vector can be taken. */
static inline bool claim_vector(struct vi_cpu *cpu, uint32_t mode)
{
	return !(mode & VI_VECTOR_HELD) &&
	       __atomic_exchange_n(&cpu->pending, 0, __ATOMIC_SEQ_CST);
}

int vi_vcpu_run(struct vi_machine *m, uint32_t cpu_id)
{
	struct vi_cpu *cpu;
	uint32_t mode;
	bool vector;

	if (cpu_id >= m->nr_cpus)
		return -EINVAL;
	cpu = vi_cpu_of(m, cpu_id);
	take_resend(cpu);
	mode = vi_load_relaxed(&cpu->vector_mode);
	if (!vi_load_relaxed(&cpu->pending) || mode & (VI_VECTOR_HELD | VI_VECTOR_WORK)) {
		if (takes_work(mode))
			return vi_take_irq_work(cpu);
		if (!cpu->softirq_pending)
			return 0;
	}
	if (!vi_irq_enter(cpu))
		return 0;	/* interrupts are off in a handler: the doorbell stays */
	vector = claim_vector(cpu, mode);
	vi_trace(m, VI_TRACE_VECTOR, cpu_id, 0, vector);
	if (vector) {
		(unlikely(m->trace) ? vi_take_vector_traced : vi_take_vector)(cpu);
		if (unlikely(mode & VI_VECTOR_EOI))
			vi_lapic_callback_eoi(cpu);
	}
	vi_do_softirq(cpu);
	vi_irq_exit(cpu);
	vi_trace(m, VI_TRACE_IRQ_EXIT, cpu_id, 0, 0);
	return 1;
}

int vi_step_vector(struct vi_machine *m, uint32_t cpu_id)
{
	struct vi_cpu *cpu;
	uint32_t mode;
	int taken;

	if (cpu_id >= m->nr_cpus)
		return -EINVAL;
	cpu = vi_cpu_of(m, cpu_id);
	take_resend(cpu);
	mode = vi_load_relaxed(&cpu->vector_mode);
	if (is_idle(cpu, mode) || !vi_irq_enter(cpu))
		return 0;
	if (takes_work(mode)) {
		vi_irq_work_begin(cpu);
		vi_step_end(cpu);
		return VI_STEP_ENTERED | VI_STEP_WORK;
	}
	taken = VI_STEP_ENTERED;
	if (claim_vector(cpu, mode))
		taken |= VI_STEP_VECTOR | (mode & VI_VECTOR_EOI ? VI_STEP_EOI : 0);
	vi_trace(m, VI_TRACE_VECTOR, cpu_id, 0, (taken & VI_STEP_VECTOR) != 0);
	if (taken & VI_STEP_VECTOR && vi_isr_has_steps(m)) {
		taken |= VI_STEP_ISR;
		vi_vector_begin(cpu);
	} else if (taken & VI_STEP_VECTOR) {
		vi_take_vector_traced(cpu);
	}
	vi_step_end(cpu);
	return taken;
}

int vi_step_vector_end(struct vi_machine *m, uint32_t cpu_id, uint32_t taken)
{
	struct vi_cpu *cpu = vi_step_cpu(m, cpu_id);

	if (!cpu)
		return -EINVAL;
	vi_step_begin(cpu);
	if (taken & VI_STEP_ISR)
		vi_vector_end(cpu, taken & VI_STEP_HANDLED);
	if (taken & VI_STEP_EOI)
		vi_lapic_callback_eoi(cpu);
	vi_step_end(cpu);
	return 0;
}

int vi_step_leave(struct vi_machine *m, uint32_t cpu_id)
{
	struct vi_cpu *cpu = vi_step_cpu(m, cpu_id);

	if (!cpu)
		return -EINVAL;
	cpu->step = (struct vi_cpu_step){ 0 };
	vi_step_begin(cpu);	/* as vi_vcpu_run() leaves it */
	vi_irq_exit(cpu);
	vi_trace(m, VI_TRACE_IRQ_EXIT, cpu_id, 0, 0);
	return 0;
}

uint32_t vi_step_in_interrupt(const struct vi_machine *m, uint32_t cpu)
{
	return cpu < m->nr_cpus ? vi_load(&m->cpus[cpu].irq_seq) & 1 : 0;
}

uint32_t vi_step_seq(struct vi_machine *m, uint32_t cpu)
{
	const struct vi_cpu *c = vi_step_cpu(m, cpu);

	return c ? vi_load(&c->irq_seq) : 0;
}

int vi_machine_set_own_waits(struct vi_machine *m, uint32_t on)
{
	if (m->engine == VI_ENGINE_FAST || !m->channel_irqs)
		return -EINVAL;
	m->own_waits = on != 0;
	return 0;
}

uint32_t vi_step_deliverable(const struct vi_machine *m, uint32_t cpu)
{
	const struct vi_cpu *c;

	if (cpu >= m->nr_cpus)
		return 0;
	c = &m->cpus[cpu];
	if (vi_load(&c->irq_seq) & 1)
		return 0;
	return !is_idle(c, vi_load_relaxed(&c->vector_mode)) ||
	       (cpu == 0 && vi_load(&m->resend_pending));
}

uint32_t vi_vcpu_pending(const struct vi_machine *m, uint32_t cpu)
{
	if (cpu >= m->nr_cpus)
		return 0;
	return vi_load_relaxed(&m->cpus[cpu].pending) ||
	       vi_load_relaxed(&m->cpus[cpu].vector_mode) & VI_VECTOR_WORK;
}

/**
 * vi_settle_cpu() - run one CPU until it is idle
 * Return: runs, or -ELOOP when its softirqs keep each other alive without any interrupt, or a
 * handler raises its own interrupt for ever.
 */
int64_t vi_settle_cpu(struct vi_machine *m, uint32_t cpu)
{
	uint32_t quiet = 0;
	int64_t runs = 0;

	for (;;) {
		quiet = vi_load_relaxed(&m->cpus[cpu].pending) ? 0 : quiet + 1;
		if (vi_vcpu_run(m, cpu) != 1)
			return runs;
		if (quiet > SETTLE_SOFTIRQS || ++runs > SETTLE_RUNS)
			return -ELOOP;
	}
}

int64_t vi_machine_settle(struct vi_machine *m)
{
	int64_t runs = 0, before;

	do {
		before = runs;
		for (uint32_t c = 0; c < m->nr_cpus; c++) {
			int64_t more = vi_settle_cpu(m, c);

			if (more < 0)
				return more;
			runs += more;
		}
	} while (runs != before);
	return runs;
}
