/* SPDX-License-Identifier: MIT */
/*
 * internals.h - shared by the .c files of the core, and by nobody else.
 *
 * Access rules, for all of csrc/:
 *  - A struct vi_cpu belongs to the thread that runs that CPU. Other threads touch only its
 *    doorbell line (pending, irq_seq, route), its irr, its post_lock, its SynIC pages, always with
 *    atomic operations, and its irq_works, under their lock.
 *  - A descriptor's fields change under desc->lock; the fast engine reads none of them.
 *  - A slot is read without a lock by the scan of its owner CPU. Whoever changes it holds the lock
 *    of the descriptor behind it and goes through slot_fence() first (irqdomain.c tells why that is
 *    enough).
 */
#ifndef VMBUSIRQ_INTERNALS_H
#define VMBUSIRQ_INTERNALS_H

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define VI_MUST_CHECK __attribute__((warn_unused_result))
#include "vmbusirq_api.h"

#define VI_LINE 64
#define VI_ALIGNED __attribute__((aligned(VI_LINE)))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* Our own mistakes, never a user's: on in every build. */
#define VI_BUG_ON(cond) do { if (unlikely(cond)) __builtin_trap(); } while (0)

/* splitmix64: every order that is not given comes from a seed through this */
static inline uint64_t vi_random(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15u);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

/* ---- atomics and locks ----------------------------------------------------------------------- */

#define vi_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define vi_load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define vi_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define vi_store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)

/* A counter with one writer that others may read at any time: no locked instruction. */
#define vi_count(p, n) vi_store_relaxed((p), vi_load_relaxed(p) + (n))

static inline void vi_cpu_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#endif
}

/* machine.c: out of line, as the kernel's slow path, so that callers stay small */
void vi_lock_contended(uint32_t *lock);

static inline void vi_lock(uint32_t *lock)
{
	uint32_t zero = 0;

	if (unlikely(!__atomic_compare_exchange_n(lock, &zero, 1, false, __ATOMIC_ACQUIRE,
						  __ATOMIC_RELAXED)))
		vi_lock_contended(lock);
}

static inline void vi_unlock(uint32_t *lock)
{
	__atomic_store_n(lock, 0, __ATOMIC_RELEASE);
}

/* ---- irq/ ------------------------------------------------------------------------------------ */

/*
 * What one hwirq of the linear domain needs in a scan, in one cache line. handler is the action's
 * own, or a stub for everything that the hot loop must not know about: unmapped, disabled, shared,
 * in progress on a locked path.
 */
struct vi_irq_slot {
	vi_handler_t handler;
	void *dev_id;
	struct vi_irq_desc *desc;	/* NULL: unmapped */
	/* arrivals are consumed and only counted here (channel being rescinded) */
	uint64_t *drop;
	uint32_t owner;			/* the CPU that may call handler without a lock */
	uint32_t irq;			/* also the column in the counters */
	uint32_t hwirq;
	uint32_t hazard_cpu;		/* this CPU may still run the old handler ... */
	/* ... while its irq_seq is this (odd; even: nobody does) */
	uint32_t hazard_seq;
	uint32_t reserved;
} VI_ALIGNED;
_Static_assert(sizeof(struct vi_irq_slot) == VI_LINE, "a slot is one cache line");

_Static_assert(sizeof(struct vi_irq_desc) == 448, "as large as the kernel's irq_desc on x86-64");
_Static_assert(offsetof(struct vi_irq_desc, kstat_irqs) == 64, "line 1");
_Static_assert(offsetof(struct vi_irq_desc, lock) == 128, "line 2");
_Static_assert(sizeof(struct vi_irqaction) == 128, "as large as the kernel's irqaction on x86-64");

struct vi_irq_domain {
	struct vi_irq_slot *slot;	/* VI_RELIDS of them */
	struct vi_irq_desc **revmap;	/* what the linux engine looks up */
	/* Raise @hwirq once more on @cpu: it may not run there now, and must not be lost. */
	void (*retrigger)(struct vi_cpu *cpu, uint32_t hwirq);
};

struct vi_tasklet {
	struct vi_tasklet *next;
	void (*func)(struct vi_cpu *cpu, void *data);
	void *data;
	uint32_t scheduled;
	uint32_t running;
};

struct vi_tasklet_list {
	struct vi_tasklet *head;
	struct vi_tasklet *tail;
};

/* ---- wire/ ----------------------------------------------------------------------------------- */

/* Who sees packets that vi_ring_drain_with() reads: special ones, or all. */
struct vi_ring_looker {
	void (*look)(struct vi_ring_looker *looker, const struct vi_packet *p,
		     struct vi_ring_tally *tally);
	uint32_t all;
};

/* An interrupt that is run step by step. */
struct vi_cpu_step {
	struct vi_irq_desc *works;	/* irq_works that it has taken and not begun */
	/* its softirq: what that has detached, what of it runs, its vector */
	struct vi_tasklet *list;
	struct vi_tasklet *tasklet;
	uint32_t vec;
	uint32_t freed;
};

/* entropy pool of the linux engine (linux_shaped/entropy.c) */
struct vi_lx_fast_pool {
	uint64_t state[4];
	uint64_t last;
	uint32_t count;
};

struct vi_cpu {
	/* line 0: the doorbell; other threads write pending */
	uint32_t pending;		/* the callback vector is requested: its bit of the IRR */
	uint32_t vector_mode;		/* enum vi_vector_mode */
	uint32_t irq_seq;		/* odd: takes an interrupt, softirqs included */
	/* pthread_self() of who runs it, while irq_seq is odd; 0 between two sub-steps */
	uintptr_t thread;
	uint16_t route[VI_SINTS];	/* what a signal or message does: enum vi_sint_route */

	/* line 1: read-mostly, owned */
	struct vi_machine *m VI_ALIGNED;
	uint32_t id;
	uint32_t softirq_pending;
	uint64_t *sint_flags;		/* event flags of VI_SINT_VMBUS */
	struct vi_message *vmbus_slot;
	uint32_t *kstat;		/* this CPU's row of vi_counters.irq */
	uint64_t *irqs_sum;
	uint32_t *arch;
	uint32_t *softirq;

	/* the rest is off the per-interrupt path */
	uint64_t *flag_page VI_ALIGNED;	/* VI_SINTS * VI_SINT_WORDS words */
	struct vi_message *message_page;
	uint64_t irr[VI_IRR_WORDS];	/* requested vectors, but for the callback vector */
	struct vi_synic_registers synic;
	uint32_t apic_off;		/* software-disabled: requests are dropped */
	uint32_t stimer_count;		/* timer messages that the guest took */
	uint64_t eoi_count;		/* of the callback vector, while watched */
	uint64_t eom_count;
	uint32_t post_lock;		/* hosts that post to this CPU, one at a time */
	uint32_t work_lock;		/* the list of irq_works, written by any CPU */
	struct vi_irq_desc *work_head;
	struct vi_irq_desc *work_tail;
	struct vi_tasklet msg_dpc;
	struct vi_tasklet_list tasklets;
	struct vi_tasklet_list napi;
	struct vi_lx_fast_pool fast_pool;
	struct vi_lost lost;
	struct vi_cpu_step step;
	uint32_t batch_n;
	uint32_t batch_irq[VI_RELIDS];
	uint32_t batch_result[VI_RELIDS];
} VI_ALIGNED;
_Static_assert(offsetof(struct vi_cpu, m) == VI_LINE, "the doorbell has its line to itself");

/* How the callback vector is taken and ended. */
enum vi_vector_mode {
	VI_VECTOR_HELD = 1,	/* interrupts are off, or its priority does not suffice */
	VI_VECTOR_EOI = 2,	/* the guest ends it with an EOI (SINT without auto-EOI) */
	VI_VECTOR_WATCHED = 4,	/* and somebody waits for that */
	VI_VECTOR_WORK = 8	/* the vector of irq_works is requested, too; it goes first */
};

/*
 * What a signal or a message for one SINT does, all that its registers, the SynIC's, the profile
 * and the APIC say about it: the vector, and these bits.
 */
enum vi_sint_route {
	VI_ROUTE_VECTOR = 0xff,
	VI_ROUTE_FLAGS = 1 << 8,	/* flags are set */
	VI_ROUTE_NO_FLAGS = 1 << 9,	/* they are not, and nobody is told (OpenVMM) */
	VI_ROUTE_MESSAGES = 1 << 10,	/* the slot can be filled */
	VI_ROUTE_NO_MESSAGES = 1 << 11,	/* messages are lost (OpenVMM) */
	VI_ROUTE_INTERRUPT = 1 << 12,	/* the vector is requested */
	VI_ROUTE_DOORBELL = 1 << 13	/* it is the callback vector */
};

/*
 * One channel of the guest. The fields that v6.10's ISR touches lie where they lie in the kernel's
 * 976-byte vmbus_channel (three cache lines), and channels lie in 1 KiB slots as in its slab, so
 * that the linux engine misses what the kernel misses. The fast engine reads none of it for a
 * channel in ISR mode.
 */
struct vi_channel {
	struct vi_machine *m;
	uint32_t relid;
	uint32_t column;		/* its IRQ, or the counter column that stands for one */
	struct vi_irqaction *action;	/* who runs it: a request_irq of the guest, or own_action */
	uint32_t target_cpu;
	uint32_t callback_kind;
	uint8_t pad0[226 - 32];
	uint8_t rescind;		/* 226 */
	uint8_t pad1[256 - 227];
	struct vi_irqaction own_action;	/* design legacy: there is nobody to request */
	uint8_t pad2[576 - 256 - 128];
	vi_handler_t callback;		/* 576: onchannel_callback */
	void *context;
	struct vi_tasklet tasklet;	/* callback_event, or the NAPI context */
	uint8_t pad3[648 - 592 - sizeof(struct vi_tasklet)];
	uint64_t interrupts;		/* 648; the fast engine adds the counters up instead */
	uint64_t sig_events;
	uint32_t callback_mode;
	uint32_t sched_lock;
	struct vi_ring_reader in;
	struct vi_ring_writer out;
	struct vi_ring_tally tally;
	uint64_t calls;
	uint64_t no_callback;
	/* what the driver's own reader does beside adding up (vmbus/reading.c) */
	uint32_t looks;			/* enum vi_looks: what must be looked at */
	uint32_t attention;		/* enum vi_attention */
	void *attention_handle;
	uint64_t attended;
	uint64_t replies;
	uint64_t replies_dropped;
	/* the guest has rung the host since vi_channel_take_event() */
	uint32_t signalled;
	/* where vi_channel_setevent() goes (vi_channel_set_signal) */
	uint32_t connection_id;
	uint32_t monitor_mask;
	uint32_t *monitor_pending;
	uint64_t *send_int_page;
};
/* Nothing (the plain drain), special packets, every packet. */
enum vi_looks { VI_LOOKS_NONE, VI_LOOKS_SPECIAL, VI_LOOKS_ALL };
#define VI_CHANNEL_SLOT 1024
_Static_assert(offsetof(struct vi_channel, rescind) == 226, "as in the kernel");
_Static_assert(offsetof(struct vi_channel, callback) == 576, "as in the kernel");
_Static_assert(offsetof(struct vi_channel, interrupts) == 648, "as in the kernel");
_Static_assert(sizeof(struct vi_channel) <= VI_CHANNEL_SLOT, "a slab slot");

/* What vi_take_notices() finds. Any CPU writes here: on lines of their own. */
struct vi_notices {
	uint32_t any;			/* look at cpus */
	uint64_t cpus[VI_NOTICE_KINDS][VI_CPU_WORDS];	/* [enum vi_notice, as a bit number] */
} VI_ALIGNED;

struct vi_machine {
	/* line 0: what a scan reads */
	struct vi_irq_slot *slot;
	int (*scan)(struct vi_cpu *cpu);
	uint32_t scan_is_all;		/* fast engine on x86, and no message: nothing else to do */
	uint32_t counts_in_sum;		/* channels have IRQs: a dispatch adds to irqs_sum */
	uint32_t engine;
	uint32_t arch;
	uint32_t hyp_count;
	struct vi_irq_desc *message_desc;
	struct vi_irq_desc *toplevel_desc;

	uint32_t nr_cpus;
	uint32_t nr_irqs_max;
	uint32_t irq_columns;		/* nr_irqs_max + VI_RELIDS */
	uint32_t irq_stride;
	uint32_t simd;
	uint32_t channel_irqs;
	uint32_t shutdown_adds_depth;
	uint32_t redirect;
	struct vi_irq_desc *irq_work_desc;
	uint32_t skip_entropy;		/* a benchmark wants to know what the sample costs */
	uint64_t seed;
	uint64_t time_ms;
	struct vi_cpu *cpus;
	struct vi_irq_domain domain;
	struct vi_irq_desc **desc;	/* [irq], NULL: not allocated */
	struct vi_irq_desc *desc_pool;
	/* irq -> place in the pool: shuffled for the linux engine, as slabs are */
	uint32_t *desc_place;
	struct vi_channel **channel;	/* [relid] */
	/* VI_RELIDS slots of VI_CHANNEL_SLOT bytes, zeroed: a slot whose m is NULL is free */
	uint8_t *channel_pool;
	void *channel_memory;		/* what holds the pool */
	uint32_t *channel_place;	/* relid -> slot, shuffled for the linux engine */
	/* what was ever used, a bit each: all else is as it was made (image.c) */
	uint64_t channel_used[VI_RELIDS / 64];	/* by place in the pool */
	uint64_t slot_used[VI_RELIDS / 64];
	uint64_t *desc_used;		/* by column */
	uint64_t rescinded;		/* arrivals for channels that are being taken away */
	uint32_t *irq_counts;
	uint32_t *arch_counts;
	uint32_t *softirq_counts;
	uint64_t *irqs_sums;
	uint32_t irq_err_count;
	uint32_t irq_mis_count;
	void *synic_pages;
	uint32_t synic_policy;		/* enum vi_synic_policy */
	uint32_t callback_vector;
	struct vi_notices notices;
	struct vi_connections *connections VI_ALIGNED;	/* not on the notices' line */
	uint64_t *resend;		/* one bit per IRQ: the resend tasklet's list */
	uint32_t resend_pending;	/* the boot CPU is asked to schedule the resend tasklet */
	struct vi_tasklet resend_tasklet;
	struct vi_hooks hooks;
	void *owner;
	vi_trace_t trace;		/* NULL: nobody looks */
	void *trace_context;
	uint32_t own_waits;		/* who unlinks waits itself for CPUs run step by step */
};

static inline struct vi_cpu *vi_cpu_of(struct vi_machine *m, uint32_t cpu)
{
	return &m->cpus[cpu];
}

/* A slot of the pool; one whose m is NULL is free. */
static inline struct vi_channel *vi_channel_place(const struct vi_machine *m, uint32_t place)
{
	return (struct vi_channel *)(void *)(m->channel_pool + (size_t)place * VI_CHANNEL_SLOT);
}

static inline bool vi_inside_interrupt(struct vi_machine *m)
{
	for (uint32_t c = 0; c < m->nr_cpus; c++)
		if ((vi_load(&m->cpus[c].irq_seq) & 1) &&
		    vi_load_relaxed(&m->cpus[c].thread) == (uintptr_t)pthread_self())
			return true;
	return false;
}

/*
 * This thread takes an interrupt on @cpu. Return: false inside another one, whose vi_irq_exit()
 * ends both.
 */
static inline bool vi_irq_enter(struct vi_cpu *cpu)
{
	if (cpu->irq_seq & 1)
		return false;
	vi_store_relaxed(&cpu->thread, (uintptr_t)pthread_self());
	(void)__atomic_exchange_n(&cpu->irq_seq, cpu->irq_seq + 1, __ATOMIC_SEQ_CST);
	return true;
}

static inline void vi_irq_exit(struct vi_cpu *cpu)
{
	vi_store(&cpu->irq_seq, cpu->irq_seq + 1);
}

/* ---- sub-steps ------------------------------------------------------------------------------- */

/*
 * An interrupt that is taken step by step (vi_step_*) belongs to no thread between two steps, so
 * that the thread that runs them can do something else there, which is what they are for. Whoever
 * would have to wait for it says so instead: nobody goes on with it meanwhile.
 */
static inline bool vi_is_stepped(const struct vi_cpu *cpu)
{
	return (vi_load(&cpu->irq_seq) & 1) && !vi_load_relaxed(&cpu->thread);
}

static inline bool vi_any_stepped(const struct vi_machine *m)
{
	for (uint32_t c = 0; c < m->nr_cpus; c++)
		if (vi_is_stepped(&m->cpus[c]))
			return true;
	return false;
}

/* Must fail, since it would wait for a CPU that nobody runs meanwhile? */
static inline bool vi_would_wait(const struct vi_machine *m)
{
	return !m->own_waits && vi_any_stepped(m);
}

/* The CPU of a sub-step; NULL: there is none, or it is not between two sub-steps. */
static inline struct vi_cpu *vi_step_cpu(struct vi_machine *m, uint32_t cpu)
{
	return cpu < m->nr_cpus && vi_is_stepped(&m->cpus[cpu]) ? &m->cpus[cpu] : NULL;
}

/* Around a sub-step that calls handlers: they are inside an interrupt, as ever. */
static inline void vi_step_begin(struct vi_cpu *cpu)
{
	vi_store_relaxed(&cpu->thread, (uintptr_t)pthread_self());
}

static inline void vi_step_end(struct vi_cpu *cpu)
{
	vi_store_relaxed(&cpu->thread, 0);
}

static inline void vi_set_bit(uint64_t *words, uint32_t bit)
{
	words[bit / 64] |= 1ull << (bit % 64);
}

/* ---- tracing --------------------------------------------------------------------------------- */

/*
 * How to trace without a cost where nobody does. What is hot (scan, simple flow, channel handlers,
 * top level) is written once, as an inline function with a constant parameter traced, and compiled
 * twice; the twin is chosen where a pointer is chosen anyway, or once per vector. What is not, or
 * does far more than the test costs, uses vi_trace() as it stands.
 */
#define vi_trace_always(m, step, on, of, value) \
	vi_trace_event((m), (step), (on), (of), (int64_t)(value), __FILE__, __func__)
#define vi_trace(m, step, on, of, value) \
	do { \
		if (unlikely((m)->trace)) \
			vi_trace_always((m), (step), (on), (of), (value)); \
	} while (0)
/* in functions with a CPU and a constant traced */
#define vi_trace_if(traced, step, of, value) \
	do { \
		if (traced) \
			vi_trace_always(cpu->m, (step), cpu->id, (of), (value)); \
	} while (0)

/* trace.c */
void vi_trace_event(struct vi_machine *m, uint32_t step, uint32_t cpu, uint32_t id, int64_t value,
		    const char *file, const char *function);

/* machine.c */
int64_t vi_settle_cpu(struct vi_machine *m, uint32_t cpu);

/* image.c: one walk over everything, in the direction that @how says */
enum vi_image_how { VI_IMAGE_SIZE, VI_IMAGE_SAVE, VI_IMAGE_RESTORE };
struct vi_image {
	enum vi_image_how how;
	uint8_t *at;
	uint64_t bytes;
};
void vi_image_move(struct vi_image *image, void *what, uint64_t bytes);
bool vi_image_next(const uint64_t *words, uint32_t n, uint32_t *bit);

/* irq/irqdesc.c */
void vi_shuffle_places(uint64_t seed, uint32_t n, uint32_t *place);
int vi_irq_core_init(struct vi_machine *m);
void vi_irq_core_exit(struct vi_machine *m);
struct vi_irq_desc *vi_desc_create(struct vi_machine *m, uint32_t column);

/* irq/irqdomain.c */
void vi_slot_fence(struct vi_machine *m, struct vi_irq_slot *slot);
void vi_slot_refresh(struct vi_machine *m, struct vi_irq_desc *desc);
bool vi_slot_is_stub(const struct vi_irq_slot *slot);
bool vi_slot_hazard(struct vi_machine *m, const struct vi_irq_slot *slot, const struct vi_cpu *me);
uint32_t vi_slot_dispatch_slow(struct vi_cpu *cpu, struct vi_irq_slot *slot);
void vi_slot_handle_irq(struct vi_cpu *cpu, struct vi_irq_slot *slot, struct vi_irq_desc *desc);
void vi_slot_handled_otherwise(struct vi_cpu *cpu, struct vi_irq_slot *slot, uint32_t result);
bool vi_desc_try_handle_irq(struct vi_cpu *cpu, struct vi_irq_desc *desc);
void vi_slot_set_owner(struct vi_machine *m, struct vi_irq_desc *desc, uint32_t cpu);
void vi_slot_set_drop(struct vi_machine *m, struct vi_irq_desc *desc, uint64_t *drop);
void vi_desc_set_owner(struct vi_machine *m, struct vi_irq_desc *desc, uint32_t cpu);
void vi_slot_init(struct vi_machine *m, uint32_t hwirq);
void vi_slot_bind(struct vi_machine *m, uint32_t hwirq, struct vi_irq_desc *desc);
void vi_slot_unbind(struct vi_machine *m, uint32_t hwirq);
void vi_batch_flush(struct vi_cpu *cpu);

/* irq/manage.c */
int vi_desc_synchronize(struct vi_machine *m, struct vi_irq_desc *desc);
void vi_synchronize_cpus(struct vi_machine *m);

/* irq/chip.c */
typedef void (*vi_flow_t)(struct vi_cpu *cpu, struct vi_irq_desc *desc);
vi_flow_t vi_flow_handler(uint32_t flow);
bool vi_flow_bumps_total(uint32_t flow);
vi_flow_t vi_flow_traced(vi_flow_t flow);
void vi_desc_handle_irq(struct vi_cpu *cpu, struct vi_irq_desc *desc);
void vi_desc_enable(struct vi_machine *m, struct vi_irq_desc *desc);
void vi_desc_disable(struct vi_machine *m, struct vi_irq_desc *desc);
void vi_desc_startup(struct vi_machine *m, struct vi_irq_desc *desc);
void vi_desc_shutdown(struct vi_machine *m, struct vi_irq_desc *desc);

/* irq/handle.c */
uint32_t vi_run_actions(struct vi_cpu *cpu, struct vi_irq_desc *desc);
void vi_note_interrupt(struct vi_cpu *cpu, struct vi_irq_desc *desc, uint32_t result);
void vi_handle_irq_event_percpu(struct vi_cpu *cpu, struct vi_irq_desc *desc);
void vi_handle_irq_event(struct vi_cpu *cpu, struct vi_irq_desc *desc);
int vi_desc_check_resend(struct vi_machine *m, struct vi_irq_desc *desc);
uint64_t vi_resend_claim(struct vi_machine *m, uint32_t word);
void vi_resend_run(struct vi_cpu *cpu, void *data);

/* irq/substeps.c */
bool vi_flow_has_steps(const struct vi_irq_desc *desc);
void vi_percpu_enter(struct vi_cpu *cpu, struct vi_irq_desc *desc);
void vi_percpu_leave(struct vi_cpu *cpu, struct vi_irq_desc *desc, bool handled);

/* irq/redirect.c */
bool vi_redirect_remote(struct vi_cpu *cpu, struct vi_irq_desc *desc);
int vi_take_irq_work(struct vi_cpu *cpu);
void vi_irq_work_begin(struct vi_cpu *cpu);
void vi_irq_work_cancel(struct vi_machine *m, struct vi_irq_desc *desc);

/* irq/softirq.c */
void vi_tasklet_schedule(struct vi_cpu *cpu, struct vi_tasklet *t);
void vi_napi_schedule(struct vi_cpu *cpu, struct vi_tasklet *t);
void vi_do_softirq(struct vi_cpu *cpu);

typedef int (*vi_scan_t)(struct vi_cpu *cpu);

/* linux_shaped/ */
void vi_lx_add_interrupt_randomness(struct vi_cpu *cpu, uint32_t irq);
int vi_lx_chan_sched_legacy(struct vi_cpu *cpu);
int vi_lx_chan_sched_rfc(struct vi_cpu *cpu);
vi_scan_t vi_lx_scan_variant(const struct vi_machine *m, bool traced);
uint32_t vi_lx_claim(struct vi_cpu *cpu, uint32_t from);
uint32_t vi_lx_lookup(struct vi_cpu *cpu, uint32_t relid, uint32_t *column);

/* hyperv/synic.c */
int vi_synic_init(struct vi_machine *m);
void vi_synic_exit(struct vi_machine *m);
void vi_synic_raise(struct vi_cpu *cpu, uint32_t flag);
void vi_synic_signal_eom(struct vi_cpu *cpu, struct vi_message *slot, uint32_t seen_type);
void vi_synic_refresh(struct vi_machine *m, struct vi_cpu *cpu);

/* hyperv/lapic.c */
void vi_lapic_post(struct vi_cpu *cpu, uint32_t vector);
void vi_lapic_callback_eoi(struct vi_cpu *cpu);
void vi_lapic_watch(struct vi_cpu *cpu);
void vi_notice(struct vi_cpu *cpu, uint32_t what);

/* hyperv/connection.c */
int vi_connections_init(struct vi_machine *m);
void vi_connections_exit(struct vi_machine *m);
void vi_connections_image(struct vi_machine *m, struct vi_image *image);

/* wire/ */
int vi_ring_drain_with(struct vi_ring_reader *r, uint32_t budget, struct vi_ring_tally *tally,
		       struct vi_ring_looker *looker);

/* vmbus/reading.c */
uint32_t vi_looks_of(uint32_t callback, uint32_t attention);
uint32_t vi_read_drain(struct vi_cpu *cpu, uint32_t irq, void *context);
uint32_t vi_read_napi(struct vi_cpu *cpu, uint32_t irq, void *context);
void vi_read_napi_poll(struct vi_cpu *cpu, void *data);
bool vi_napi_read(struct vi_cpu *cpu, struct vi_channel *ch);
void vi_napi_complete(struct vi_cpu *cpu, struct vi_channel *ch, uint32_t raced);

/* vmbus/util.c */
bool vi_util_is_message(const struct vi_packet *p);
bool vi_util_answer(struct vi_channel *ch, const struct vi_packet *p, struct vi_ring_tally *tally);

/* vmbus/ */
vi_scan_t vi_scan_variant(uint32_t simd);
vi_scan_t vi_scan_variant_traced(void);
void vi_take_vector(struct vi_cpu *cpu);
void vi_take_vector_traced(struct vi_cpu *cpu);
void vi_vector_begin(struct vi_cpu *cpu);
bool vi_isr_has_steps(const struct vi_machine *m);
struct vi_irq_desc *vi_isr_message(struct vi_cpu *cpu, uint32_t type);
void vi_vector_end(struct vi_cpu *cpu, bool handled);
bool vi_vmbus_isr(struct vi_cpu *cpu);
uint32_t vi_message_copy(struct vi_cpu *cpu, struct vi_message *copy);
void vi_message_hand(struct vi_cpu *cpu, const struct vi_message *copy);
void vi_msg_dpc(struct vi_cpu *cpu, void *data);
int vi_channels_init(struct vi_machine *m);
void vi_channels_exit(struct vi_machine *m);
uint32_t vi_chan_arrival(struct vi_cpu *cpu, struct vi_channel *ch);
uint32_t vi_chan_arrival_traced(struct vi_cpu *cpu, struct vi_channel *ch);
void vi_channel_apply(struct vi_channel *ch);
uint32_t vi_callback_count(struct vi_cpu *cpu, uint32_t irq, void *context);
void vi_on_event(struct vi_cpu *cpu, void *data);
bool vi_event_call(struct vi_cpu *cpu, struct vi_channel *ch);
void vi_event_complete(struct vi_cpu *cpu, struct vi_channel *ch, uint32_t raced);
bool vi_calls_own_code(const struct vi_irqaction *action);
int vi_channels_refresh(struct vi_machine *m);

#endif
