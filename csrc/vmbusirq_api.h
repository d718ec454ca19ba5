/* SPDX-License-Identifier: MIT */
/*
 * vmbusirq_api.h - the one interface between the C data plane and Python.
 *
 * Read by the C compiler (through internals.h) and by cffi (through build_core.py), so that nothing
 * is declared twice. Plain C: no #include, no #if, no inline; integer #defines only. VI_MUST_CHECK
 * is the one attribute, and build_core.py removes it.
 *
 * Every function that can fail returns 0 or a count, or -Exxx. Outputs come last. Nothing prints,
 * nothing keeps state outside the objects that the caller made.
 *
 * Threads: functions marked [cpu] may run on one thread per virtual CPU at once, functions marked
 * [any] on any thread; all others belong to the thread that owns the machine.
 */

/* ---- limits (the only place that names them) ------------------------------------------------- */

#define VI_CPUS_MAX 2048	/* virtual CPUs of one machine */
#define VI_RELID_MIN 1
#define VI_RELID_MAX 2047	/* channel ids; flag 0 is the pre-2.4 doorbell */
#define VI_RELIDS 2048		/* slots of the VMBus irqdomain (RFC patch 07) */
#define VI_DOMAIN_SIZE 2048	/* slots of the linear domain that scans look up */
#define VI_SINTS 16		/* synthetic interrupt sources per CPU (TLFS 11.3) */
#define VI_SINT_FLAGS 2048	/* event flags per SINT (TLFS 11.8) */
#define VI_SINT_WORDS 32	/* the same in 64-bit words */
#define VI_SINT_VMBUS 2		/* VMBUS_MESSAGE_SINT */
#define VI_VECTORS 256
#define VI_IRR_WORDS 4		/* a bit per vector */
#define VI_CPU_WORDS 32		/* a bit per possible CPU */
#define VI_VECTOR_MIN 16	/* vectors below are the CPU's own exceptions */
#define VI_VECTOR_CALLBACK 0xf3	/* x86: HYPERVISOR_CALLBACK_VECTOR */
#define VI_INTID_CALLBACK 18	/* arm64: the PPI of the VMBus device, as OpenVMM has it */
#define VI_MSG_PAYLOAD 240	/* bytes of payload in a message slot (TLFS 11.7) */
#define VI_PAGE 4096
#define VI_GUEST_MEM_MAX 17592186044416	/* bytes of guest-physical memory: 16 TiB */
#define VI_IRQS_MAX 65536	/* descriptors of one machine */
#define VI_ACTIONS_MAX 64	/* actions on one IRQ */
#define VI_RING_PAYLOAD_MAX 524264	/* VI_PKT_LEN_MAX - VI_PKT_DESC: what len8 can say */

/* ---- enums ----------------------------------------------------------------------------------- */

/* How a scan finds, claims and runs flags. */
enum vi_engine {
	/* one exchange per 64 flags, 64-byte slots, no lock per interrupt */
	VI_ENGINE_FAST = 0,
	/* v6.10's own steps: bit by bit, desc lock, IN_PROGRESS, entropy sample */
	VI_ENGINE_LINUX = 1
};

/* Widest vectors the scanner and the renderer may use. */
enum vi_simd {
	VI_SIMD_SCALAR = 0,
	VI_SIMD_AVX2 = 1,
	VI_SIMD_AVX512 = 2,
	VI_SIMD_BEST = 255	/* what this CPU has */
};

enum vi_arch {
	VI_ARCH_X86 = 0,	/* HYPERVISOR_CALLBACK_VECTOR, the HYP row */
	VI_ARCH_ARM64 = 1	/* a per-CPU PPI with a Linux IRQ of its own */
};

/* When the x86 entry bumps the HYP row. On arm64 the PPI's flow handler decides. */
enum vi_hyp_count {
	VI_HYP_ALWAYS = 0,	/* v6.10 */
	VI_HYP_MESSAGE = 1,	/* RFC patch 09: only if a message was in the slot */
	VI_HYP_NEVER = 2	/* review of RFC patch 06 */
};

enum vi_irqreturn {
	VI_IRQ_NONE = 0,
	VI_IRQ_HANDLED = 1,
	VI_IRQ_WAKE_THREAD = 2,
	/* internal: a stub has accounted, or will account, for this arrival */
	VI_IRQ_DEFERRED = 256
};

/* Flow handlers (kernel/irq/chip.c v6.10; DEMUX is RFC patch 06, NOSTAT the review of it). */
enum vi_flow {
	VI_FLOW_BAD = 0,
	VI_FLOW_SIMPLE = 1,
	VI_FLOW_UNTRACKED = 2,
	VI_FLOW_EDGE = 3,
	VI_FLOW_LEVEL = 4,
	VI_FLOW_FASTEOI = 5,
	VI_FLOW_PERCPU = 6,
	VI_FLOW_PERCPU_DEVID = 7,
	VI_FLOW_PERCPU_DEMUX = 8,	/* counts after the actions, and only if one handled */
	VI_FLOW_PERCPU_NOSTAT = 9,	/* bumps cnt only; nothing at all when the IRQ is hidden */
	VI_FLOWS = 10
};

/*
 * Callbacks a chip may have, as bits of vi_irq_chip.ops and as the op passed to vi_irq_chip.call.
 */
enum vi_chip_op {
	VI_CHIP_ACK = 1,
	VI_CHIP_EOI = 2,
	VI_CHIP_MASK = 4,
	VI_CHIP_UNMASK = 8,
	VI_CHIP_MASK_ACK = 16,
	VI_CHIP_ENABLE = 32,
	VI_CHIP_DISABLE = 64,
	VI_CHIP_STARTUP = 128,
	VI_CHIP_SHUTDOWN = 256,
	VI_CHIP_RETRIGGER = 512
};

enum vi_chip_flag {
	/* IRQCHIP_EOI_IF_HANDLED: no eoi for an arrival that was not run */
	VI_CHIP_EOI_IF_HANDLED = 2,
	VI_CHIP_ONESHOT_SAFE = 32	/* IRQCHIP_ONESHOT_SAFE */
};

/* irq_desc state (IRQD_*; bit numbers of include/linux/irq.h v6.10). */
enum vi_irqd {
	VI_IRQD_TRIGGER_MASK = 0xf,
	VI_IRQD_SETAFFINITY_PENDING = 0x100,
	VI_IRQD_ACTIVATED = 0x200,
	VI_IRQD_NO_BALANCING = 0x400,
	VI_IRQD_PER_CPU = 0x800,
	VI_IRQD_AFFINITY_SET = 0x1000,
	VI_IRQD_LEVEL = 0x2000,
	VI_IRQD_MOVE_PCNTXT = 0x8000,
	VI_IRQD_DISABLED = 0x10000,
	VI_IRQD_MASKED = 0x20000,
	VI_IRQD_INPROGRESS = 0x40000,
	VI_IRQD_MANAGED = 0x200000,
	VI_IRQD_STARTED = 0x400000,
	VI_IRQD_MANAGED_SHUTDOWN = 0x800000,
	VI_IRQD_SINGLE_TARGET = 0x1000000,
	VI_IRQD_DEFAULT_TRIGGER_SET = 0x2000000,
	VI_IRQD_AFFINITY_ON_ACTIVATE = 0x10000000
};

/* irq_desc settings (IRQ_*; bit numbers of include/linux/irq.h v6.10). */
enum vi_irq_setting {
	VI_IRQ_LEVEL = 0x100,
	VI_IRQ_PER_CPU = 0x200,
	VI_IRQ_NOPROBE = 0x400,
	VI_IRQ_NOREQUEST = 0x800,
	VI_IRQ_NOAUTOEN = 0x1000,
	VI_IRQ_NO_BALANCING = 0x2000,
	VI_IRQ_MOVE_PCNTXT = 0x4000,
	VI_IRQ_NESTED_THREAD = 0x8000,
	VI_IRQ_NOTHREAD = 0x10000,
	VI_IRQ_PER_CPU_DEVID = 0x20000,
	VI_IRQ_IS_POLLED = 0x40000,
	VI_IRQ_DISABLE_UNLAZY = 0x80000,
	VI_IRQ_HIDDEN = 0x100000,
	VI_IRQ_NO_DEBUG = 0x200000
};

/* irq_desc core state (IRQS_*; kernel/irq/internals.h v6.10). */
enum vi_irqs {
	VI_IRQS_AUTODETECT = 0x1,
	VI_IRQS_SPURIOUS_DISABLED = 0x2,
	VI_IRQS_ONESHOT = 0x20,
	VI_IRQS_REPLAY = 0x40,
	VI_IRQS_WAITING = 0x80,
	VI_IRQS_PENDING = 0x200,
	VI_IRQS_SUSPENDED = 0x800,
	VI_IRQS_SYSFS = 0x4000
};

/* request_irq flags (IRQF_*; include/linux/interrupt.h v6.10). */
enum vi_irqf {
	VI_IRQF_TRIGGER_RISING = 0x1,
	VI_IRQF_TRIGGER_FALLING = 0x2,
	VI_IRQF_TRIGGER_HIGH = 0x4,
	VI_IRQF_TRIGGER_LOW = 0x8,
	VI_IRQF_TRIGGER_MASK = 0xf,
	VI_IRQF_SHARED = 0x80,
	VI_IRQF_PROBE_SHARED = 0x100,
	VI_IRQF_TIMER = 0x200,
	VI_IRQF_PERCPU = 0x400,
	VI_IRQF_NOBALANCING = 0x800,
	VI_IRQF_IRQPOLL = 0x1000,
	VI_IRQF_ONESHOT = 0x2000,
	VI_IRQF_NO_SUSPEND = 0x4000,
	VI_IRQF_NO_THREAD = 0x10000,
	VI_IRQF_COND_SUSPEND = 0x40000,
	VI_IRQF_NO_AUTOEN = 0x80000,
	VI_IRQF_NO_DEBUG = 0x100000,
	VI_IRQF_COND_ONESHOT = 0x200000
};

/*
 * Per-CPU architecture counters: the x86 rows of /proc/interrupts, in their order
 * (arch/x86/kernel/irq.c v6.10).
 */
enum vi_arch_row {
	VI_ROW_NMI,
	VI_ROW_LOC,
	VI_ROW_SPU,
	VI_ROW_PMI,
	VI_ROW_IWI,
	VI_ROW_RTR,
	VI_ROW_PLT,
	VI_ROW_RES,
	VI_ROW_CAL,
	VI_ROW_TLB,
	VI_ROW_TRM,
	VI_ROW_THR,
	VI_ROW_DFR,
	VI_ROW_MCE,
	VI_ROW_MCP,
	VI_ROW_HYP,
	VI_ROW_HRE,
	VI_ROW_HVS,
	VI_ROW_PIN,
	VI_ROW_NPI,
	VI_ROW_PIW,
	VI_ROW_PMN,
	VI_ARCH_ROWS
};
#define VI_ARCH_STRIDE 32	/* uint32_t per CPU in vi_counters.arch */

/* Softirq vectors, in the order of /proc/softirqs (include/linux/interrupt.h v6.10). */
enum vi_softirq {
	VI_SOFTIRQ_HI,
	VI_SOFTIRQ_TIMER,
	VI_SOFTIRQ_NET_TX,
	VI_SOFTIRQ_NET_RX,
	VI_SOFTIRQ_BLOCK,
	VI_SOFTIRQ_IRQ_POLL,
	VI_SOFTIRQ_TASKLET,
	VI_SOFTIRQ_SCHED,
	VI_SOFTIRQ_HRTIMER,
	VI_SOFTIRQ_RCU,
	VI_SOFTIRQS
};
#define VI_SOFTIRQ_STRIDE 16	/* uint32_t per CPU in vi_counters.softirq */
#define VI_IRQS_SUM_STRIDE 8	/* uint64_t per CPU in vi_counters.irqs_sum: a cache line */

/* Channel callback modes (enum hv_callback_mode, include/linux/hyperv.h v6.10). */
enum vi_callback_mode {
	VI_CALL_BATCHED = 0,	/* mask the ring, run the callback in a tasklet, re-poll */
	VI_CALL_DIRECT = 1,	/* run the callback in a tasklet */
	VI_CALL_ISR = 2		/* run the callback in the hard interrupt */
};

/* Message types (TLFS 11.7). */
#define VI_MSG_NONE 0
#define VI_MSG_VMBUS 1
#define VI_MSG_TIMER_EXPIRED 0x80000010

/* ---- opaque and shared objects --------------------------------------------------------------- */

struct vi_machine;	/* everything hangs from one of these */
struct vi_cpu;		/* one virtual CPU of a machine */

/*
 * An interrupt handler, and a channel callback in ISR mode.
 * @cpu: the virtual CPU it runs on
 * @irq: the Linux IRQ
 * @dev_id: the cookie given at request time (a per-CPU IRQ gets this CPU's cookie)
 * Return: enum vi_irqreturn.
 */
typedef uint32_t (*vi_handler_t)(struct vi_cpu *cpu, uint32_t irq, void *dev_id);

/*
 * A message slot of the SynIC message page (TLFS 11.7; size at 4 and flags at 5, as every
 * implementation has it).
 */
struct vi_message {
	uint32_t type;
	uint8_t payload_size;
	uint8_t flags;			/* bit 0: another message waits */
	uint16_t reserved;
	uint64_t origin;
	uint8_t payload[240];
};

/*
 * What an interrupt controller can do (struct irq_chip). call may be NULL: then the callbacks in
 * ops exist and do nothing.
 */
struct vi_irq_chip {
	uint32_t ops;			/* enum vi_chip_op bits: which callbacks exist */
	uint32_t flags;			/* enum vi_chip_flag bits */
	void (*call)(struct vi_cpu *cpu, uint32_t irq, uint32_t op);
};

/* One handler on an IRQ (struct irqaction, 128 bytes on x86-64). */
struct vi_irqaction {
	vi_handler_t handler;
	void *dev_id;
	/* one cookie per CPU instead of dev_id: percpu_devid, demux and nostat flows only */
	void **percpu_dev_id;
	struct vi_irqaction *next;
	uint32_t irq;
	uint32_t flags;			/* enum vi_irqf bits */
	/* collect this IRQ in a scan and call vi_hooks.batch once, count afterwards */
	uint32_t batched;
	/* count before the call in the fast engine too: the handler may look */
	uint32_t exact;
	uint64_t reserved[10];
};

/*
 * One Linux IRQ. Size and the cache lines touched per interrupt are those of the kernel's irq_desc
 * on x86-64 (448 bytes: lines 0, 1 and 2), so that the linux engine costs what the kernel costs.
 * The fast engine does not touch it in its hot loop.
 */
struct vi_irq_desc {
	/* line 0: irq_common_data and irq_data */
	uint32_t state;			/* enum vi_irqd bits */
	uint32_t irq;
	uint64_t hwirq;
	const struct vi_irq_chip *chip;	/* NULL: no_irq_chip */
	struct vi_irq_slot *slot;	/* its place in the linear domain, NULL outside it */
	void *handler_data;
	uint64_t line0[3];
	/* line 1: what is called and what is counted */
	uint32_t *kstat_irqs;		/* cnt of CPU 0; CPU c is c * stride further */
	void (*handle_irq)(struct vi_cpu *cpu, struct vi_irq_desc *desc);
	struct vi_irqaction *action;
	uint32_t flow;			/* enum vi_flow */
	uint32_t settings;		/* enum vi_irq_setting bits */
	uint32_t istate;		/* enum vi_irqs bits */
	uint32_t depth;			/* disable depth, 0 = enabled */
	struct vi_irq_desc *work_next;	/* irq_work: the next one on its CPU's list */
	uint32_t work_pending;		/* it is on a list */
	uint32_t line1[3];
	/* line 2: the lock and the accounting under it */
	uint32_t lock;
	uint32_t tot_count;
	uint32_t irq_count;		/* spurious: arrivals since the first unhandled one */
	uint32_t irqs_unhandled;
	uint64_t last_unhandled_ms;	/* machine time in milliseconds, 0 = never */
	uint32_t running_cpu;		/* who set IN_PROGRESS */
	/* CPUs on the locked path: the fast slot stays a stub meanwhile */
	uint32_t slow_users;
	/* 1: an arrival while running elsewhere is replayed, 0: dropped as in v6.10 */
	uint32_t replay;
	/* 0: backs a channel without an IRQ (design legacy), no sum counts it */
	uint32_t visible;
	uint32_t nr_actions;
	uint32_t threads_handled;
	uint32_t threads_handled_last;	/* top bit: a wake-up is waiting to be judged */
	uint32_t reserved;
	uint64_t *percpu_enabled;	/* percpu_devid: one bit per CPU */
	/* VI_CPU_WORDS: where a redirected IRQ runs at once (vi_irq_set_effective()) */
	uint64_t effective[32];
};

/* Where the counters live. All are written by the data plane and may be read at any time. */
struct vi_counters {
	uint32_t *irq;			/* [cpu * irq_stride + irq] */
	uint32_t irq_stride;
	uint32_t *arch;			/* [cpu * VI_ARCH_STRIDE + enum vi_arch_row] */
	uint32_t *softirq;		/* [cpu * VI_SOFTIRQ_STRIDE + enum vi_softirq] */
	uint64_t *irqs_sum;		/* [cpu * VI_IRQS_SUM_STRIDE] */
	uint32_t *irq_err_count;	/* ERR (x86) and Err (arm64) */
	uint32_t *irq_mis_count;	/* MIS */
};

/* Things that went by without an interrupt being counted, since the machine was made. */
struct vi_lost {
	uint64_t unmapped;		/* flag of a relid that has no IRQ: consumed, silent */
	uint64_t flag_zero;		/* flag 0: consumed, ignored */
	uint64_t rescinded;		/* channel is being taken away */
	uint64_t no_callback;		/* counted on its IRQ, but nobody to call */
	/* dropped by the simple flow while running elsewhere (linux engine) */
	uint64_t in_progress;
	uint64_t no_action;	/* not to be run on this CPU, and by nobody elsewhere (redirect) */
};

/* ---- machine --------------------------------------------------------------------------------- */

struct vi_config {
	uint32_t nr_cpus;		/* possible CPUs, 1..VI_CPUS_MAX */
	uint32_t nr_irqs_max;		/* descriptors, 1..VI_IRQS_MAX */
	uint32_t engine;		/* enum vi_engine */
	uint32_t simd;			/* enum vi_simd */
	uint32_t arch;			/* enum vi_arch */
	uint32_t hyp_count;		/* enum vi_hyp_count */
	uint32_t channel_irqs;		/* 0: channels have no Linux IRQ (design legacy) */
	/* 1: the last free_irq adds to depth instead of setting it to 1 (since 6.18) */
	uint32_t shutdown_adds_depth;
	/* 1: an IRQ of the domain runs on a CPU of its effective mask, wherever its flag is */
	uint32_t redirect;
	uint64_t seed;
};

/*
 * What the data plane tells or asks its owner. Any may be NULL. Called on the thread that runs the
 * CPU.
 */
enum vi_report {
	VI_REPORT_NOBODY_CARED = 1,	/* value: irqs_unhandled. The IRQ is disabled now */
	VI_REPORT_BOGUS_RETURN = 2,	/* value: what the handler returned */
	VI_REPORT_BAD_IRQ = 3,		/* arrival on an IRQ without flow handler */
	/* per-CPU IRQ without action, now disabled on this CPU; value: 1 if it was enabled there */
	VI_REPORT_SPURIOUS_PERCPU = 4,
	VI_REPORT_WAKE_WITHOUT_THREAD = 5
};
struct vi_packet;
struct vi_hooks {
	/* Run batched handlers: @n IRQs of one scan in, one enum vi_irqreturn each out. */
	void (*batch)(struct vi_cpu *cpu, uint32_t n, const uint32_t *irqs, uint32_t *results);
	/* A message that the guest took out of its slot (a copy; the slot is freed afterwards). */
	void (*message)(struct vi_cpu *cpu, const struct vi_message *message);
	void (*report)(struct vi_cpu *cpu, uint32_t what, uint32_t irq, uint32_t value);
	/*
	 * A packet that wants attention (vi_channel_set_attention()): @handle as given there, the
	 * packet a checked copy that is good until the hook returns. It must not read the in ring.
	 */
	void (*packet)(struct vi_cpu *cpu, void *handle, const struct vi_packet *packet);
	/*
	 * A timer message, in the hard interrupt (hv_stimer0_isr): a copy; the slot is freed, and
	 * EOM written, afterwards.
	 */
	void (*stimer)(struct vi_cpu *cpu, const struct vi_message *message);
};

/*
 * Make a machine. EINVAL: a count or enum out of range; EOPNOTSUPP: vectors this CPU does not have;
 * ENOMEM.
 */
VI_MUST_CHECK int vi_machine_create(const struct vi_config *config, struct vi_machine **out);
void vi_machine_destroy(struct vi_machine *m);
void vi_machine_counters(struct vi_machine *m, struct vi_counters *out);
void vi_machine_lost(struct vi_machine *m, struct vi_lost *out);
void vi_machine_set_time(struct vi_machine *m, uint64_t time_ms);
void vi_machine_set_hooks(struct vi_machine *m, const struct vi_hooks *hooks);
/*
 * The IRQ of control messages (designs mgmt-irq*), 0: they belong to the top level. ENOENT: no such
 * descriptor.
 */
VI_MUST_CHECK int vi_machine_set_message_irq(struct vi_machine *m, uint32_t irq);
/* arm64: the Linux IRQ of the VMBus PPI, which serves the top level. ENOENT: no such descriptor. */
VI_MUST_CHECK int vi_machine_set_toplevel_irq(struct vi_machine *m, uint32_t irq);
/*
 * arm64: the IPI that runs irq_works; 0: nobody counts them. ENOENT: no such descriptor.
 */
VI_MUST_CHECK int vi_machine_set_irq_work_irq(struct vi_machine *m, uint32_t irq);
/* Handlers to request with: the PPI's (vmbus_percpu_isr) and the message IRQ's. */
vi_handler_t vi_handler_percpu_isr(void);
vi_handler_t vi_handler_message(void);
/*
 * Columns of vi_counters.irq: nr_irqs_max, then VI_RELIDS columns of channels that have no IRQ
 * (design legacy).
 */
uint32_t vi_machine_nr_irqs_max(const struct vi_machine *m);
struct vi_cpu *vi_machine_cpu(struct vi_machine *m, uint32_t cpu);	/* NULL past the last */
uint32_t vi_cpu_id(const struct vi_cpu *cpu);
/* what vi_machine_set_owner() stored: a Python handle */
void *vi_cpu_owner(const struct vi_cpu *cpu);
void vi_machine_set_owner(struct vi_machine *m, void *owner);

/* Widest vectors of this CPU (enum vi_simd). [any] */
uint32_t vi_simd_best(void);

/*
 * Take one pending vector of @cpu with its softirqs. Return: 1 taken, 0 nothing pending or @cpu is
 * in a handler. EINVAL. [cpu]
 */
int vi_vcpu_run(struct vi_machine *m, uint32_t cpu);
/*
 * Run every CPU until nothing is deliverable. Return: vi_vcpu_run() calls that did something;
 * -ELOOP: the softirqs of a CPU keep each other alive without any interrupt, as they do on a ring
 * whose writer is broken, or a handler raises its own interrupt for ever.
 */
int64_t vi_machine_settle(struct vi_machine *m);

/* 1: the callback vector, or an irq_work, waits on @cpu and is not yet taken. [any] */
uint32_t vi_vcpu_pending(const struct vi_machine *m, uint32_t cpu);

/* ---- sub-steps: one delivery in parts, for who explores orders ------------------------------- */

/*
 * What vi_vcpu_run() does at once, in the pieces between which another CPU or the host can come, of
 * the same inline functions. Run in their order on one CPU they leave what it leaves:
 *
 *	taken = vector; 0: there is nothing to do
 *	if taken & WORK: work until it says 0; each: its IRQ's flow, in the fast engine do_work
 *	if taken & ISR:	the flags, then message (and the flow of its IRQ, if it has one)
 *	  linux engine:	claim_flag from 0 until VI_SINT_FLAGS; each: lookup, by whose answer
 *			redirect, where vi_config.redirect is set; and, unless it said 1,
 *			flow_enter | flow_actions | flow_exit, the last two as long as they say 1;
 *			or arrival
 *	  fast engine:	claim_word from 0 until VI_SINT_WORDS; each bit of it: dispatch; scan_end
 *	if taken & VECTOR: vector_end
 *	up to VI_STEP_ROUNDS times: softirqs until it is 0; each bit of it, from the lowest:
 *	  softirq, then tasklet until it says 0; each: tasklet_begin; if it said 1, by its kind:
 *	  CHANNEL, POLL: callback; if it said 1: unmask | end_read
 *	  MESSAGES:	message_copy; if there was one: message_hand | message_eom
 *	  RESEND:	resend from 0 until VI_STEP_WORDS_END; each bit of it is an IRQ: its flow,
 *			in the fast engine handle_irq
 *	  tasklet_end
 *	leave
 *
 * Between two of them the CPU is in an interrupt that belongs to no thread: whatever the caller
 * does there is not inside it. Hard interrupts do not come in during softirqs, as in vi_vcpu_run().
 *
 * What waits for a CPU that is run this way would wait for ever; it fails with EBUSY and changes
 * nothing. So before these, an explorer waits:
 *  - vi_irq_free_desc(), vi_irq_remove_action(), vi_domain_unmap(), vi_channel_unmap(),
 *    vi_machine_set_trace(), vi_machine_save(): until no CPU is in an interrupt
 *    (vi_step_in_interrupt()), which is what they do (synchronize_rcu());
 *  - vi_irq_synchronize(): until the descriptor is not IN_PROGRESS; fast engine: and its owner is
 *    in no interrupt;
 *  - vi_channel_set_callback(), vi_channel_set_attention(), and vi_channel_create() for a relid
 *    that had a channel: until that channel's tasklet does not run (vi_channel_is_running()); fast
 *    engine: and as for vi_irq_synchronize().
 * An explorer that wants to see what these waits are for calls vi_machine_set_own_waits(): then
 * they only unlink, and whoever calls them waits before it frees, or does not; a sub-step that uses
 * what was freed fails with EFAULT.
 * A CPU whose flag belongs to an IRQ that another one may still run (fast engine) raises it once
 * more for itself, and so on until the other one has left: let that one go on.
 *
 * All return -EINVAL for a CPU that is not between two sub-steps, or no such IRQ or relid.
 */
enum vi_step_taken {
	VI_STEP_ENTERED = 1,
	VI_STEP_VECTOR = 2,	/* the callback vector was taken, not softirqs alone */
	VI_STEP_EOI = 4,	/* vector_end ends it */
	VI_STEP_ISR = 8,	/* the service routine is run in parts; else it has run whole */
	VI_STEP_HANDLED = 16,	/* for vector_end: message has said 1 */
	VI_STEP_WORK = 32	/* it is the interrupt of irq_works, and has taken them */
};
enum vi_step_kind {
	VI_STEP_CHANNEL = 1,	/* a channel's tasklet */
	VI_STEP_POLL = 2,	/* a channel's NAPI poll */
	VI_STEP_MESSAGES = 3,	/* the message slot's */
	VI_STEP_RESEND = 4
};
/* rounds of softirqs; the rest is the next delivery's (MAX_SOFTIRQ_RESTART) */
#define VI_STEP_ROUNDS 10
#define VI_STEP_WORDS_END 4096	/* past the words of every list of IRQs */
struct vi_step_tasklet {
	uint32_t kind;		/* enum vi_step_kind */
	uint32_t relid;		/* of CHANNEL and POLL */
	uint32_t own;		/* its callback does nothing but read the in ring */
	uint32_t gone;		/* the channel was destroyed */
	uint32_t running;	/* it runs on another CPU: tasklet_begin would put it off */
};
/* 1: @cpu is in an interrupt, softirqs included, whoever runs it. [any] */
uint32_t vi_step_in_interrupt(const struct vi_machine *m, uint32_t cpu);
/* The number of the interrupt that @cpu, run by steps, is in; another one each time; 0: none. */
uint32_t vi_step_seq(struct vi_machine *m, uint32_t cpu);
/* 1: a CPU that is run step by step is in a handler of @irq (IN_PROGRESS). */
uint32_t vi_step_running(struct vi_machine *m, uint32_t irq);
/* An action of @irq, unlinked before, is freed now. */
void vi_step_action_freed(struct vi_machine *m, uint32_t irq);
/*
 * vi_irq_free_desc(), vi_irq_remove_action(), vi_irq_synchronize(), vi_domain_unmap(),
 * vi_channel_unmap() and vi_channel_set_callback() neither wait for CPUs that are run step by step
 * nor fail for them (@on). EINVAL: fast engine, or a machine without channel IRQs.
 */
VI_MUST_CHECK int vi_machine_set_own_waits(struct vi_machine *m, uint32_t on);
/* 1: vi_step_vector() would take something. */
uint32_t vi_step_deliverable(const struct vi_machine *m, uint32_t cpu);
/* 1: the one action of @irq is a channel's, and runs no code of others. */
uint32_t vi_step_is_own(struct vi_machine *m, uint32_t irq);
/* 1: the callback of channel @relid reads its in ring in the hard interrupt, and does no more. */
uint32_t vi_step_reads(struct vi_machine *m, uint32_t relid);
/*
 * Take the callback vector, unless it is held, up to its service routine; or the interrupt of
 * irq_works, if some wait. Return: enum vi_step_taken bits; 0: nothing to do, or @cpu is in an
 * interrupt.
 */
VI_MUST_CHECK int vi_step_vector(struct vi_machine *m, uint32_t cpu);
/* Begin the next of the irq_works that were taken. Return: 1 and *irq; 0 there is none left. */
VI_MUST_CHECK int vi_step_work(struct vi_machine *m, uint32_t cpu, uint32_t *irq);
/* The flow of its IRQ as a whole; queued once more where the slot's owner may still run it. */
VI_MUST_CHECK int vi_step_do_work(struct vi_machine *m, uint32_t cpu, uint32_t irq);
/* Claim the next event flag. Return: its relid, VI_SINT_FLAGS: none from @from on. */
VI_MUST_CHECK int vi_step_claim_flag(struct vi_machine *m, uint32_t cpu, uint32_t from);
/* Claim what the next word holds. Return: which, and *bits; VI_SINT_WORDS: none from @from on. */
VI_MUST_CHECK int vi_step_claim_word(struct vi_machine *m, uint32_t cpu, uint32_t from,
				     uint64_t *bits);
/*
 * Where a claimed flag goes. Return: enum vi_trace_way: FLOW, and *irq; CHANNEL, and its column;
 * UNMAPPED, RESCINDED: nowhere, and counted.
 */
VI_MUST_CHECK int vi_step_lookup(struct vi_machine *m, uint32_t cpu, uint32_t relid, uint32_t *irq);
/*
 * Under desc->lock: may the IRQ run on @cpu? Return: 0 it may; 1 it may not, and is queued on its
 * target, or dropped.
 */
VI_MUST_CHECK int vi_step_redirect(struct vi_machine *m, uint32_t cpu, uint32_t irq);
/*
 * The simple flow under desc->lock, up to where it drops it. Return: 1 IN_PROGRESS, actions come
 * next; 0 it is over: dropped, remembered, or a flow of another kind, which has run as a whole.
 */
VI_MUST_CHECK int vi_step_flow_enter(struct vi_machine *m, uint32_t cpu, uint32_t irq);
/* Its actions, without a lock but what they take. */
VI_MUST_CHECK int vi_step_flow_actions(struct vi_machine *m, uint32_t cpu, uint32_t irq);
/* The rest under desc->lock. Return: 1 another one was remembered: actions again; 0 it is over. */
VI_MUST_CHECK int vi_step_flow_exit(struct vi_machine *m, uint32_t cpu, uint32_t irq);
/* A channel without an IRQ: what its flag does, under sched_lock. */
VI_MUST_CHECK int vi_step_arrival(struct vi_machine *m, uint32_t cpu, uint32_t relid);
/* Run one claimed flag. Return: 1 from its slot, 0 otherwise. */
VI_MUST_CHECK int vi_step_dispatch(struct vi_machine *m, uint32_t cpu, uint32_t relid);
/* Run what dispatch has collected of batched handlers. */
VI_MUST_CHECK int vi_step_scan_end(struct vi_machine *m, uint32_t cpu);
/*
 * Look at the message slot. Return: 1 there is a message; its tasklet was scheduled, or *irq is not
 * 0 and that IRQ's flow takes it; 0 there is none.
 */
VI_MUST_CHECK int vi_step_message(struct vi_machine *m, uint32_t cpu, uint32_t *irq);
/* The end of the hard interrupt. @taken: of vector, with VI_STEP_HANDLED. */
VI_MUST_CHECK int vi_step_vector_end(struct vi_machine *m, uint32_t cpu, uint32_t taken);
/* Take over which softirqs are pending, as bits of 1 << enum vi_softirq. */
uint32_t vi_step_softirqs(struct vi_machine *m, uint32_t cpu);
/* Begin one of them: count it, detach its list. */
VI_MUST_CHECK int vi_step_softirq(struct vi_machine *m, uint32_t cpu, uint32_t vec);
/* Which tasklet comes next in the detached list. Return: 1 and *out, 0 there is none left. */
VI_MUST_CHECK int vi_step_tasklet(struct vi_machine *m, uint32_t cpu, struct vi_step_tasklet *out);
/* Take it. Return: 1 it runs here; 0 it runs on another CPU, and is in the list again. */
VI_MUST_CHECK int vi_step_tasklet_begin(struct vi_machine *m, uint32_t cpu);
/* The channel's callback, or one budget of its poll. Return: 1 unmask and end_read come next. */
VI_MUST_CHECK int vi_step_callback(struct vi_machine *m, uint32_t cpu);
/* Let the host signal again. */
VI_MUST_CHECK int vi_step_unmask(struct vi_machine *m, uint32_t cpu);
/* Mask again and schedule once more if something raced in. Return: how many bytes. */
VI_MUST_CHECK int64_t vi_step_end_read(struct vi_machine *m, uint32_t cpu);
/* Copy the message out of its slot. Return: its type, VI_MSG_NONE: there is none. */
VI_MUST_CHECK int64_t vi_step_message_copy(struct vi_machine *m, uint32_t cpu,
					   struct vi_message *copy);
/* Hand it to vi_hooks.message. */
VI_MUST_CHECK int vi_step_message_hand(struct vi_machine *m, uint32_t cpu,
				       const struct vi_message *copy);
/* Free the slot, and write EOM if another one waits. */
VI_MUST_CHECK int vi_step_message_eom(struct vi_machine *m, uint32_t cpu, uint32_t seen_type);
/*
 * Claim a word of the list of IRQs to replay. Return: which, and *bits: IRQ word * 64 + n for bit
 * n; VI_STEP_WORDS_END: none from @from on.
 */
VI_MUST_CHECK int vi_step_resend(struct vi_machine *m, uint32_t cpu, uint32_t from, uint64_t *bits);
/* The flow of one IRQ as a whole, whoever may run it from its slot. */
VI_MUST_CHECK int vi_step_handle_irq(struct vi_machine *m, uint32_t cpu, uint32_t irq);
/* The tasklet that was taken has run. */
VI_MUST_CHECK int vi_step_tasklet_end(struct vi_machine *m, uint32_t cpu);
/* The CPU leaves the interrupt. */
VI_MUST_CHECK int vi_step_leave(struct vi_machine *m, uint32_t cpu);

/*
 * All that changes in a machine, as bytes: the same state gives the same bytes. @image: 8-aligned;
 * NULL: only say how many bytes it takes. One thread, no CPU in an interrupt. Not in it, since it
 * is not the machine's: rings and guest memory, and the SynIC, monitor and interrupt pages in it;
 * VSPs (vi_vsp_state_bytes()); actions, chips and the cookies of per-CPU actions; what handles and
 * contexts refer to. Return: bytes. ENOSPC: more than @size; EDEADLK from inside an interrupt;
 * EBUSY: a CPU is run step by step.
 */
VI_MUST_CHECK int64_t vi_machine_save(struct vi_machine *m, void *image, uint64_t size);
/*
 * Put it back, in place: every pointer into the machine stays good, and what the image points to
 * must be there again. CPUs that were run step by step are where they were when it was saved.
 * EINVAL: not an image of this machine; EDEADLK as above; ENOMEM: a buffer that was freed since
 * cannot be had, and the machine is good for another restore only.
 */
VI_MUST_CHECK int vi_machine_restore(struct vi_machine *m, const void *image, uint64_t size);

/* ---- tracing: one interrupt, step by step ---------------------------------------------------- */

/*
 * Steps, in the order in which one interrupt takes them. Each event says that its step has just
 * been done, so that whatever changed since the event before it, this step has changed. What id and
 * value are stands beside each.
 */
enum vi_trace_step {
	/* the host; id is the relid, cpu the target or VI_VP_NONE */
	VI_TRACE_RING_PUT,		/* a packet was copied; value: 0, or why not (-Exxx) */
	VI_TRACE_RING_PUBLISH,		/* the write index was stored; value: 1 if it moved */
	VI_TRACE_RING_DECIDE,		/* value: 1 the reader must be signalled, 0 not */
	VI_TRACE_SYNIC_FLAG,		/* id: the flag; value: 1 it was newly set, 0 it was set */
	VI_TRACE_SYNIC_VECTOR,		/* the vector was requested; id: the flag */
	VI_TRACE_SYNIC_BUSY,		/* a message meets a full slot; value: its type */
	VI_TRACE_HOST_SIGNAL,		/* value: what vi_synic_signal() returned */
	/* the CPU, hard interrupt */
	VI_TRACE_VECTOR,		/* the doorbell was taken back; value: it had rung */
	VI_TRACE_ENTRY,			/* x86, before the service routine */
	VI_TRACE_FLOW_ENTRY,		/* a per-CPU flow, before its action; id: the IRQ */
	VI_TRACE_SCAN,			/* the service routine begins to look for flags */
	VI_TRACE_CLAIM,			/* id: the flag that was claimed */
	VI_TRACE_LOOKUP,		/* id: the IRQ found, or column; value: enum vi_trace_way */
	VI_TRACE_FLOW_COUNT,		/* flow handler: counted, actions come next; id: the IRQ */
	VI_TRACE_FLOW_DROP,		/* it runs elsewhere: dropped, or remembered; id: the IRQ */
	VI_TRACE_FLOW_PENDING,		/* nobody can take it: remembered; id: the IRQ */
	VI_TRACE_CHANNEL,		/* the channel's handler; id: relid; value: callback mode */
	VI_TRACE_CHANNEL_CLOSED,	/* the same, nobody to call; id: relid */
	VI_TRACE_NAPI,			/* the callback has scheduled its poll; id: relid */
	VI_TRACE_FLOW_DONE,		/* flow handler: the actions have run; id: the IRQ */
	VI_TRACE_COUNT,			/* fast engine: counted, after the call; id: the IRQ */
	VI_TRACE_SCAN_END,		/* value: flags claimed */
	VI_TRACE_MESSAGE,		/* the message slot was looked at; value: its type */
	VI_TRACE_ENTRY_END,		/* x86, after the service routine */
	VI_TRACE_FLOW_EXIT,		/* a per-CPU flow, after its action; id: the IRQ */
	/* the CPU, softirq */
	VI_TRACE_SOFTIRQ,		/* id: enum vi_softirq, about to run */
	VI_TRACE_CALLBACK,		/* the tasklet calls the channel's callback; id: relid */
	VI_TRACE_READ,			/* the ring was read; id: relid; value: packets */
	VI_TRACE_ANSWER,		/* a request was answered in the out ring; id: relid */
	VI_TRACE_HOST_EVENT,		/* host signalled; id: relid; value: 1 by hypercall */
	VI_TRACE_UNMASK,		/* signals wanted again; id: relid; value: bytes raced in */
	VI_TRACE_RESCHEDULE,		/* masked and scheduled once more; id: relid */
	VI_TRACE_IRQ_EXIT,		/* the CPU has left the interrupt */
	/* redirection */
	VI_TRACE_REDIRECT,		/* not here; id: the IRQ; value: its target, -1 dropped */
	VI_TRACE_IRQ_WORK,		/* the target runs the flow handler next; id: the IRQ */
	VI_TRACE_STEPS
};

/* Which way a claimed flag goes (VI_TRACE_LOOKUP). */
enum vi_trace_way {
	VI_WAY_SLOT,		/* fast engine: the slot's handler, without a lock */
	VI_WAY_STUB,		/* fast engine: the slot's stub, to the locked way */
	VI_WAY_NOT_OWNER,	/* fast engine: another CPU owns the slot: the locked way */
	VI_WAY_FLOW,		/* linux engine: the descriptor's flow handler */
	VI_WAY_CHANNEL,		/* linux engine, no IRQ: the channel itself */
	VI_WAY_UNMAPPED,	/* nowhere */
	VI_WAY_RESCINDED	/* nowhere: the channel is being taken away */
};

struct vi_trace_event {
	uint32_t step;		/* enum vi_trace_step */
	uint32_t cpu;
	uint32_t id;
	int64_t value;
	/* who reports it: path as the compiler was given it, and name */
	const char *file;
	const char *function;
};
typedef void (*vi_trace_t)(void *context, const struct vi_trace_event *event);
/*
 * Call @fn with each step from now on; NULL: no longer. Only the owner's thread may run anything
 * meanwhile. The steps and counters are those of untraced interrupts; nothing on their way tests
 * whether it is traced that the benchmarks measure (internals.h). Flags are claimed word by word.
 * EDEADLK from inside an interrupt.
 */
VI_MUST_CHECK int vi_machine_set_trace(struct vi_machine *m, vi_trace_t fn, void *context);

/* ---- irq/: descriptors, domain, flow handlers ------------------------------------------------ */

/* The descriptor of @irq, NULL past the table or when it is not allocated. */
struct vi_irq_desc *vi_irq_to_desc(struct vi_machine *m, uint32_t irq);
/*
 * Allocate descriptor @irq with kernel defaults (depth 1, DISABLED and MASKED, bad flow). EEXIST,
 * EINVAL.
 */
VI_MUST_CHECK int vi_irq_alloc_desc(struct vi_machine *m, uint32_t irq);
/*
 * Free it: counters of the row return to 0, irqs_sum keeps what it had. EBUSY: an action is left,
 * or a channel is mapped to it; EDEADLK inside an interrupt.
 */
VI_MUST_CHECK int vi_irq_free_desc(struct vi_machine *m, uint32_t irq);
/*
 * What /proc/stat says of @n IRQs from @first on: all their interrupts modulo 2^32; 0 without a
 * descriptor, and for a flow that counts per CPU only while the IRQ is not marked per-CPU. EINVAL:
 * past the table. [any]
 */
VI_MUST_CHECK int vi_irq_stat(struct vi_machine *m, uint32_t first, uint32_t n, uint32_t *numbers);
/*
 * Set chip and flow handler (irq_set_chip_and_handler). @chip must outlive the descriptor; NULL:
 * no_irq_chip.
 */
VI_MUST_CHECK int vi_irq_set_chip_and_flow(struct vi_machine *m, uint32_t irq,
					   const struct vi_irq_chip *chip, uint32_t flow);
/* Change settings and the state bits that follow them (irq_modify_status). */
VI_MUST_CHECK int vi_irq_modify_settings(struct vi_machine *m, uint32_t irq, uint32_t clear,
					 uint32_t set);
/* Set and clear IRQD state bits under the descriptor lock. */
VI_MUST_CHECK int vi_irq_modify_state(struct vi_machine *m, uint32_t irq, uint32_t clear,
				      uint32_t set);
/*
 * Append @action to the chain; it must live until it was removed. First action: core state is reset
 * as in __setup_irq. A later one revives a line that the spurious detector killed.
 */
VI_MUST_CHECK int vi_irq_add_action(struct vi_machine *m, uint32_t irq,
				    struct vi_irqaction *action);
/*
 * Take @action out of the chain, shut the IRQ down if it was the last, wait until no CPU runs it.
 * ENOENT; EDEADLK inside an interrupt; EBUSY: a CPU is run step by step.
 */
VI_MUST_CHECK int vi_irq_remove_action(struct vi_machine *m, uint32_t irq,
				       struct vi_irqaction *action);
/* depth 0, enable, STARTED, replay what came before (irq_startup). */
VI_MUST_CHECK int vi_irq_startup(struct vi_machine *m, uint32_t irq, uint32_t resend);
/*
 * Replay a remembered arrival once, by the resend tasklet (check_irq_resend). EINVAL: level; EBUSY:
 * one is on its way.
 */
VI_MUST_CHECK int vi_irq_check_resend(struct vi_machine *m, uint32_t irq);
VI_MUST_CHECK int vi_irq_shutdown(struct vi_machine *m, uint32_t irq);
/* disable_irq_nosync. Return: the new depth. */
VI_MUST_CHECK int vi_irq_disable(struct vi_machine *m, uint32_t irq);
/*
 * enable_irq. Return: the new depth, or -EPERM for an unbalanced enable (nothing changes; the
 * caller warns).
 */
VI_MUST_CHECK int vi_irq_enable(struct vi_machine *m, uint32_t irq);
/* Wait until no CPU runs a handler of @irq (synchronize_irq). EDEADLK from inside an interrupt. */
VI_MUST_CHECK int vi_irq_synchronize(struct vi_machine *m, uint32_t irq);
/* enable_percpu_irq, disable_percpu_irq for @cpu. */
VI_MUST_CHECK int vi_irq_percpu_enable(struct vi_machine *m, uint32_t irq, uint32_t cpu,
				       uint32_t on);
/*
 * Let the flow handler of @irq run on @cpu (generic_handle_irq). EINVAL without descriptor. [cpu]
 */
VI_MUST_CHECK int vi_generic_handle_irq(struct vi_machine *m, uint32_t cpu, uint32_t irq);
/* The same @times over: bulk traffic of a line that is no channel. [cpu] */
VI_MUST_CHECK int vi_generic_handle_irq_times(struct vi_machine *m, uint32_t cpu, uint32_t irq,
					      uint32_t times);
/* A handler that says IRQ_HANDLED and does nothing. */
vi_handler_t vi_handler_always_handled(void);

/*
 * Linear domain: bind @hwirq to @irq (revmap), unbind it. ERANGE: hwirq past the domain; EBUSY:
 * bound already, or a channel is mapped to it; EINVAL: no such descriptor, or irq 0; ENOENT: not
 * bound; EDEADLK: unbinding inside an interrupt.
 */
VI_MUST_CHECK int vi_domain_map(struct vi_machine *m, uint32_t hwirq, uint32_t irq);
VI_MUST_CHECK int vi_domain_unmap(struct vi_machine *m, uint32_t hwirq);
/* The IRQ of @hwirq, 0 when unmapped (irq_find_mapping). [any] */
uint32_t vi_domain_find(struct vi_machine *m, uint32_t hwirq);
/*
 * Redirection (vi_config.redirect), the entry that a demultiplexer calls instead: the flow handler
 * runs on @cpu if the effective mask has it; else, if there is an action, as an irq_work on the
 * owner CPU. Works that wait for one IRQ merge. EINVAL when unmapped. [cpu]
 */
VI_MUST_CHECK int vi_generic_handle_demux_domain_irq(struct vi_machine *m, uint32_t cpu,
						     uint32_t hwirq);
/*
 * The effective mask, VI_CPU_WORDS words, and in one step with it the owner CPU, which is the
 * target of redirection. EINVAL: no such descriptor or CPU.
 */
VI_MUST_CHECK int vi_irq_set_effective(struct vi_machine *m, uint32_t irq, const uint64_t *mask,
				       uint32_t owner);
/* 1: an irq_work of @irq waits on some CPU. [any] */
uint32_t vi_irq_work_pending(const struct vi_machine *m, uint32_t irq);
/*
 * Run what is queued on @cpu, which is on its way out, without an interrupt, with its softirqs
 * (smpcfd_dying_cpu). Return: works. EINVAL; EDEADLK inside an interrupt of @cpu.
 */
VI_MUST_CHECK int vi_irq_work_flush(struct vi_machine *m, uint32_t cpu);
/* The CPU whose scans run this IRQ without a lock. Any other CPU takes the locked path. */
VI_MUST_CHECK int vi_irq_set_owner_cpu(struct vi_machine *m, uint32_t irq, uint32_t cpu);
/*
 * Let the flow handler behind @hwirq run on @cpu (generic_handle_domain_irq). EINVAL when unmapped.
 * [cpu]
 */
VI_MUST_CHECK int vi_generic_handle_domain_irq(struct vi_machine *m, uint32_t cpu, uint32_t hwirq);

/* ---- hyperv/: SynIC registers, event flags and message slots --------------------------------- */

/*
 * SynIC registers of a CPU as last set, for who wants to look. What they mean for a signal is
 * worked out when they are set, not when it comes.
 */
struct vi_synic_registers {
	uint64_t scontrol;		/* bit 0: enabled */
	uint64_t siefp;			/* bit 0: the event flag page is enabled */
	uint64_t simp;			/* bit 0: the message page is enabled */
	uint64_t sint[VI_SINTS];	/* enum vi_sint_bit */
	uint64_t vectors[VI_IRR_WORDS];	/* of all unmasked SINTs */
	uint64_t auto_eoi[VI_IRR_WORDS];	/* of those, with auto-EOI on one SINT at least */
};
enum vi_sint_bit {
	VI_SINT_VECTOR = 0xff,
	VI_SINT_MASKED = 1 << 16,
	VI_SINT_AUTO_EOI = 1 << 17,
	VI_SINT_POLLING = 1 << 18,
	VI_SINT_PROXY = 1 << 20
};

/* Where implementations differ (synic.md 5.3 and 6); none set: as the TLFS has it. */
enum vi_synic_policy {
	/* SCONTROL disabled: no message either (D6) */
	VI_SYNIC_CONTROL_GATES_MESSAGES = 1,
	VI_SYNIC_CONTROL_AT_RESET = 2,		/* SCONTROL is 1 after reset (D1) */
	VI_SYNIC_MASKED_TAKES_FLAGS = 4,	/* set, no interrupt (D3) */
	VI_SYNIC_QUIET_FLAGS = 8,		/* a flag that cannot be set is no error (D3) */
	VI_SYNIC_MASKED_LOSES_MESSAGES = 16,	/* instead of keeping them in the slot (D4) */
	VI_SYNIC_POLLING_INTERRUPTS = 32,	/* the polling bit changes nothing (D5) */
	/* a page that is disabled takes flags and messages, and shows them when it is enabled */
	VI_SYNIC_PRIVATE_PAGES = 64
};
/* Choose; for all CPUs, before any register is set: SCONTROL goes to its reset value. */
void vi_synic_set_policy(struct vi_machine *m, uint32_t policy);
/*
 * Set a register of @cpu; any value is taken, what a guest may write is checked before. A SINT that
 * is masked, or unmasked, replays nothing. EINVAL: no such CPU or SINT.
 */
VI_MUST_CHECK int vi_synic_set_sint(struct vi_machine *m, uint32_t cpu, uint32_t sint,
				    uint64_t value);
VI_MUST_CHECK int vi_synic_set_control(struct vi_machine *m, uint32_t cpu, uint64_t value);
VI_MUST_CHECK int vi_synic_set_siefp(struct vi_machine *m, uint32_t cpu, uint64_t value);
VI_MUST_CHECK int vi_synic_set_simp(struct vi_machine *m, uint32_t cpu, uint64_t value);
/*
 * Say where the two pages lie, 4096 bytes each; NULL: in the CPU's own, which is what an overlay
 * shows. What is in them stays there. The CPU does not run, and nobody signals it. EINVAL: no such
 * CPU.
 */
VI_MUST_CHECK int vi_synic_set_pages(struct vi_machine *m, uint32_t cpu, void *flags,
				     void *messages);
/*
 * This memory goes: pages of any CPU that lie in it are the CPU's own from now on, where no guest
 * looks. No CPU runs, and nobody signals.
 */
void vi_synic_leave_memory(struct vi_machine *m, const void *base, uint64_t bytes);
/* The CPU's own pages, NULL for a bad CPU. */
void *vi_synic_own_flags(struct vi_machine *m, uint32_t cpu);
void *vi_synic_own_messages(struct vi_machine *m, uint32_t cpu);
/* Registers to their reset values, the CPU's own pages zeroed. EINVAL: no such CPU. */
VI_MUST_CHECK int vi_synic_reset(struct vi_machine *m, uint32_t cpu);
/* NULL for a bad CPU. */
const struct vi_synic_registers *vi_synic_registers(struct vi_machine *m, uint32_t cpu);

/*
 * Set event flag @flag of @sint on @cpu. Return: 1 newly set (the SINT's vector was requested, if
 * it can be), 0 it was set already, or is not set and nobody is told (VI_SYNIC_QUIET_FLAGS).
 * EINVAL: CPU, SINT or flag does not exist; ENXIO: SynIC or page is off, or the SINT masked; the
 * flag is untouched. [any]
 */
VI_MUST_CHECK int vi_synic_signal(struct vi_machine *m, uint32_t cpu, uint32_t sint, uint32_t flag);
/*
 * The guest's own hand: set @flag of VI_SINT_VMBUS in the page of @cpu and have that CPU take its
 * vector. EINVAL: no such CPU or flag. [any]
 */
VI_MUST_CHECK int vi_synic_poke(struct vi_machine *m, uint32_t cpu, uint32_t flag);
/*
 * Put a message into the slot of @sint on @cpu. EAGAIN: the slot is busy, its pending bit is now
 * set, try again after EOM; EMSGSIZE: more than VI_MSG_PAYLOAD bytes; ENXIO: SynIC or page is off;
 * EPERM: it is lost (VI_SYNIC_MASKED_LOSES_MESSAGES); EINVAL as above. [any]
 */
VI_MUST_CHECK int vi_synic_post(struct vi_machine *m, uint32_t cpu, uint32_t sint, uint32_t type,
				const void *payload, uint32_t size);
/* 1: a message posted now would be queued, not refused; 0: ENXIO. EINVAL as above. [any] */
VI_MUST_CHECK int vi_synic_takes_messages(struct vi_machine *m, uint32_t cpu, uint32_t sint);
enum vi_deposit {
	VI_DEPOSIT_MORE = 1,	/* others wait behind this one: the pending bit is set with it */
	VI_DEPOSIT_QUIET = 2	/* a busy slot is left as it is (KVM, periodic timers) */
};
/*
 * The same with who it comes from and @how, enum vi_deposit bits. Return: 1 in the slot and the
 * vector requested, 0 in the slot without an interrupt. [any]
 */
VI_MUST_CHECK int vi_synic_deposit(struct vi_machine *m, uint32_t cpu, uint32_t sint, uint32_t type,
				   uint64_t origin, const void *payload, uint32_t size,
				   uint32_t how);
/* Free a slot by hand, as a crashing guest does, if it still holds what was seen. [cpu] */
VI_MUST_CHECK int vi_synic_eom(struct vi_machine *m, uint32_t cpu, uint32_t sint,
			       uint32_t seen_type);
/* Write EOM. EINVAL: no such CPU. [cpu] */
VI_MUST_CHECK int vi_synic_write_eom(struct vi_machine *m, uint32_t cpu);
/* EOM writes of @cpu so far. [any] */
uint64_t vi_synic_eom_count(struct vi_machine *m, uint32_t cpu);
/* Timer messages that @cpu took (hv_stimer0_isr). [any] */
uint32_t vi_synic_stimer_count(struct vi_machine *m, uint32_t cpu);
/*
 * The event flags of one SINT: VI_SINT_WORDS 64-bit words; and the message slot. NULL for a bad CPU
 * or SINT.
 */
uint64_t *vi_synic_flags(struct vi_machine *m, uint32_t cpu, uint32_t sint);
struct vi_message *vi_synic_slot(struct vi_machine *m, uint32_t cpu, uint32_t sint);

/* ---- clock ticks of the guest ---------------------------------------------------------------- */

enum vi_ticks_mode {
	VI_TICKS_LAPIC = 0,	/* the APIC's own timer: row LOC */
	VI_TICKS_DIRECT = 1,	/* stimer0 with a vector of its own: row HVS */
	VI_TICKS_MESSAGE = 2	/* stimer0 by a message through SINT 2: a 0xF3 with a message */
};

/* @n ticks of one CPU, evenly over reference time from @start to @end, the last one at @end. */
struct vi_ticks {
	uint32_t cpu;
	uint32_t mode;		/* enum vi_ticks_mode */
	uint64_t n;
	uint64_t start, end;	/* 100 ns */
};
/*
 * Deliver ticks to a guest that has nothing else to do meanwhile. Return: n. EINVAL: no such CPU or
 * mode, time runs backwards, or arm64, whose ticks are an IRQ's; ENXIO: that SynIC is off; EAGAIN:
 * the slot stays busy; EBUSY: its interrupts are off; EDEADLK from inside an interrupt. [cpu]
 */
VI_MUST_CHECK int64_t vi_timer_ticks(struct vi_machine *m, const struct vi_ticks *ticks);

/* ---- hyperv/: the part of each local APIC that any thread may ask ---------------------------- */

/*
 * Request @vector on @cpu. Return: 1 it is in the IRR, alone or with others; 0 dropped: the APIC is
 * software-disabled, or the vector below VI_VECTOR_MIN. EINVAL: no such CPU or vector. [any]
 */
VI_MUST_CHECK int vi_lapic_request(struct vi_machine *m, uint32_t cpu, uint32_t vector);
/* The IRR, the callback vector's doorbell included. EINVAL: no such CPU. [any] */
VI_MUST_CHECK int vi_lapic_irr(struct vi_machine *m, uint32_t cpu, uint64_t *words);
/* Clear an IRR bit. Return: 1 it was set, 0 not. EINVAL as above. [cpu] */
VI_MUST_CHECK int vi_lapic_clear(struct vi_machine *m, uint32_t cpu, uint32_t vector);
/* Switch the APIC off or on by software. What is requested already stays. EINVAL: no such CPU. */
VI_MUST_CHECK int vi_lapic_enable(struct vi_machine *m, uint32_t cpu, uint32_t on);
/* Let the callback vector wait in the IRR: interrupts are off, or its priority too low. EINVAL. */
VI_MUST_CHECK int vi_lapic_hold(struct vi_machine *m, uint32_t cpu, uint32_t held);
/*
 * Tell of the EOIs of the callback vector, or no longer. A message that finds its slot busy, or has
 * others behind it, switches it on by itself. EINVAL: no such CPU. Owner only.
 */
VI_MUST_CHECK int vi_lapic_watch_eoi(struct vi_machine *m, uint32_t cpu, uint32_t on);
/* EOIs of the callback vector that were told of so far; with auto-EOI there are none. [any] */
uint64_t vi_lapic_eoi_count(struct vi_machine *m, uint32_t cpu);

/* What has happened since the last vi_take_notices() that somebody may be waiting for. */
enum vi_notice {
	VI_NOTICE_EOM = 1,		/* EOM was written */
	VI_NOTICE_EOI = 2,		/* the callback vector was ended by an EOI, while watched */
	VI_NOTICE_VECTOR = 4,	/* a vector other than the callback vector was requested */
	VI_NOTICE_REGISTERS = 8	/* a SynIC register was set */
};
#define VI_NOTICE_KINDS 4
/*
 * Return: enum vi_notice bits, 0 nothing; @cpus: VI_CPU_WORDS words, where: at each of these CPUs
 * one of these things has happened at least. What a call does not return, a later one does. Owner
 * only.
 */
uint32_t vi_take_notices(struct vi_machine *m, uint64_t *cpus);

/* ---- hyperv/: connections, by which the guest signals the host (synic.md 7) ------------------ */

#define VI_CONNECTION_ID_MAX 0xffffff	/* ids have 24 bits; 0 is none */
#define VI_CONNECTIONS_MAX 6144		/* at once, in one machine */
#define VI_EVENT_PORTS 4096
#define VI_EVENT_PORT_WORDS 64		/* the same in 64-bit words */
/* in place of an event port: a connection to a message port, or to a port that was deleted */
#define VI_EVENT_PORT_NONE 4096

/* What HvSignalEvent answers (TLFS; vmbusirq/hyperv/hypercall.py has all of them). */
enum vi_hv_status {
	VI_HV_SUCCESS = 0,
	VI_HV_INVALID_PARAMETER = 5,
	VI_HV_INVALID_PORT_ID = 17,
	VI_HV_INVALID_CONNECTION_ID = 18
};

/*
 * Let @connection_id signal @port_index, or VI_EVENT_PORT_NONE. Signals may go on meanwhile.
 * EINVAL: id or index does not exist; EEXIST: it is connected; ENOSPC: VI_CONNECTIONS_MAX are.
 */
VI_MUST_CHECK int vi_connect_event(struct vi_machine *m, uint32_t connection_id,
				   uint32_t port_index);
/* Let it signal another port from now on. ENOENT: it is not connected; EINVAL as above. */
VI_MUST_CHECK int vi_redirect_event(struct vi_machine *m, uint32_t connection_id,
				    uint32_t port_index);
/*
 * No connection leads to the port any more; forget its signal. No signal that is under way reaches
 * it after that, so that the index can be another port's. Return: 1 if it was signalled, 0 if not.
 * EINVAL as above. Owner only.
 */
VI_MUST_CHECK int vi_close_event_port(struct vi_machine *m, uint32_t port_index);
/* ENOENT: it is not connected. A signal that was seen before stays. */
VI_MUST_CHECK int vi_disconnect_event(struct vi_machine *m, uint32_t connection_id);
/*
 * HvSignalEvent of the guest. A port has one flag, number 0, as VMBus uses it. Return: enum
 * vi_hv_status: an id that is not connected, a connection without an event port, another flag.
 * [any]
 */
uint32_t vi_signal_event(struct vi_machine *m, uint32_t connection_id, uint32_t flag);
/*
 * Take the ports that were signalled since the last call, bit n of words[n / 64] for port n.
 * @words: VI_EVENT_PORT_WORDS of them. Return: how many ports. [any thread, one at a time]
 */
uint32_t vi_take_events(struct vi_machine *m, uint64_t *words);
/*
 * Clear @mask in a group of the guest-to-host monitor page. Return: which of its bits were set.
 * [any]
 */
uint32_t vi_monitor_take(uint32_t *pending, uint32_t mask);
/*
 * Sub-steps of a scan, for who explores orders: claim what one word holds; run one claimed relid.
 * [cpu]
 */
uint64_t vi_scan_claim_word(struct vi_machine *m, uint32_t cpu, uint32_t word);
VI_MUST_CHECK int vi_scan_dispatch(struct vi_machine *m, uint32_t cpu, uint32_t relid);
/*
 * A whole scan of SINT2 without entry or message check. Return: flags claimed. EBUSY from a handler
 * of that scan. [cpu]
 */
int vi_scan(struct vi_machine *m, uint32_t cpu);

/* ---- hyperv/: guest-physical memory ---------------------------------------------------------- */

/* Memory of one partition: a sparse file, mapped once as a whole. */
struct vi_guest_mem {
	uint8_t *base;			/* guest-physical address 0 */
	uint64_t bytes;
	int32_t fd;			/* the file, for vi_ring_mem_map() */
	uint32_t reserved;
};

/*
 * Make @bytes that read as zeroes and cost nothing until they are touched. EINVAL: not whole pages
 * of VI_PAGE, 0 or more than VI_GUEST_MEM_MAX; EMFILE, ENOMEM. [any]
 */
VI_MUST_CHECK int vi_guest_mem_create(uint64_t bytes, struct vi_guest_mem *out);
/* Give it up; a second call does nothing. Rings mapped from its file keep their pages. */
void vi_guest_mem_destroy(struct vi_guest_mem *mem);
/*
 * Give the contents of @pages pages from @pfn on back to the system: they read as zeroes again, in
 * whatever ring they are mapped. EFAULT: outside, nothing is dropped; ENOMEM. [any]
 */
VI_MUST_CHECK int vi_guest_mem_drop(const struct vi_guest_mem *mem, uint64_t pfn, uint64_t pages);

/* ---- wire/: the ring (vmbus.md 1) ------------------------------------------------------------ */

#define VI_RING_HDR 4096		/* bytes of the control page */
#define VI_RING_BYTES_MIN 8192		/* control page and one page of data */
#define VI_RING_BYTES_MAX 1073741824
#define VI_RING_BATCH 64		/* packets a drain reads before it gives their room back */
#define VI_RING_FEAT_PENDING_SEND_SZ 1	/* feature_bits: pending_send_sz is posted and honoured */
#define VI_PKT_DESC 16			/* bytes of a packet descriptor */
#define VI_PKT_TRAILER 8		/* bytes after every packet */
#define VI_PKT_LEN_MAX 524280		/* descriptor and payload: 8 * 65535 */
#define VI_PKT_FLAG_COMPLETION 1	/* VMBUS_DATA_PACKET_FLAG_COMPLETION_REQUESTED */

/* Packet types in use (enum vmbus_packet_type). */
enum vi_packet_type {
	VI_PKT_DATA_INBAND = 6,
	VI_PKT_DATA_USING_XFER_PAGES = 7,
	VI_PKT_DATA_USING_GPA_DIRECT = 9,
	VI_PKT_COMP = 11
};

/* How an end treats what the other end wrote. */
enum vi_ring_rules {
	VI_RING_LINUX = 0,	/* drivers/hv v6.10: copy out, mend impossible lengths, go on */
	VI_RING_STRICT = 1	/* OpenVMM: anything impossible fails the channel */
};

/* Why a strict end failed its channel; the first reason stays. */
enum vi_ring_error {
	VI_RING_OK = 0,
	VI_RING_BAD_INDEX = 1,	/* the peer's index is outside the data or not a multiple of 8 */
	VI_RING_BAD_AVAIL = 2,	/* not empty, yet less than a descriptor */
	/* len8 is less than offset8, or packet and trailer pass the published data */
	VI_RING_BAD_LENGTH = 3,
	/* offset8 is inside the descriptor: below 2; below 3 with page ranges */
	VI_RING_BAD_OFFSET = 4,
	VI_RING_BAD_FLAGS = 5,	/* a flag other than VI_PKT_FLAG_COMPLETION */
	VI_RING_BAD_TYPE = 6,	/* not in enum vi_packet_type */
	VI_RING_BAD_RANGES = 7	/* GPA direct without a range */
};

/* The control page: the first 4 KiB of each ring, shared between guest and host. */
struct vi_ring_buffer {
	uint32_t write_index;		/* by the writer: offset in the data of its next packet */
	uint32_t read_index;		/* by the reader: offset in the data of its next packet */
	uint32_t interrupt_mask;	/* by the reader: 1 = no signal wanted */
	uint32_t pending_send_sz;	/* by the writer: room it waits for, 0 = not blocked */
	uint32_t reserved1[12];
	uint32_t feature_bits;		/* by the writer: VI_RING_FEAT_PENDING_SEND_SZ */
	uint32_t reserved2[1005];
	uint64_t reserved3;		/* a third-party driver counts guest signals here */
};

/* Memory of one ring: control page, data, and the same data mapped once more behind it. */
struct vi_ring_mem {
	struct vi_ring_buffer *hdr;
	uint8_t *data;
	uint32_t bytes;			/* control page and data */
	uint32_t data_size;
	void *map;
	uint64_t map_bytes;
};

/* The writing end. Private to one thread; only hdr and data are shared. */
struct vi_ring_writer {
	struct vi_ring_buffer *hdr;
	uint8_t *data;
	uint32_t data_size;
	uint32_t rules;			/* enum vi_ring_rules */
	uint32_t write_index;		/* end of the last packet that was put */
	uint32_t published;		/* what the reader has been told */
	uint32_t old_write;		/* what it had been told before the last publish */
	uint32_t room;			/* bytes free as last seen, less what was put since */
	uint32_t out_full_flag;
	uint32_t error;			/* enum vi_ring_error, strict rules only */
	uint64_t out_full_first;	/* episodes of a full ring */
	uint64_t out_full_total;	/* packets refused */
	uint64_t intr_out_empty;	/* signals because the ring was empty */
};

/* The reading end. Private to one thread; only hdr and data are shared. */
struct vi_ring_reader {
	struct vi_ring_buffer *hdr;
	const uint8_t *data;
	uint32_t data_size;
	uint32_t rules;			/* enum vi_ring_rules */
	uint32_t priv_read_index;	/* runs ahead of the shared one until close */
	uint32_t read_index;		/* what the writer has been told */
	uint32_t old_read;		/* what it had been told before the last close */
	/* bytes to read as last seen, less what was stepped over since */
	uint32_t avail;
	uint32_t pkt_len;		/* of the packet handed out, 0 = none */
	uint32_t error;			/* enum vi_ring_error, strict rules only */
	uint32_t pkt_buffer_size;
	/* the caller's: packets are copied here before they are looked at */
	uint8_t *pkt_buffer;
	uint64_t intr_in_full;		/* signals because a waiting writer has room again */
};

/*
 * A packet to write. desc_ext: what stands between descriptor and payload (page ranges), a multiple
 * of 8 bytes.
 */
struct vi_packet_out {
	uint16_t type;			/* enum vi_packet_type */
	uint16_t flags;
	uint32_t len;
	uint64_t trans_id;
	const void *payload;
	const void *desc_ext;
	uint64_t desc_ext_len;
};

/*
 * A packet read. The fields are checked copies; desc and payload point into pkt_buffer, or for a
 * view into the ring.
 */
struct vi_packet {
	uint16_t type;
	uint16_t offset8;
	uint16_t len8;
	uint16_t flags;
	uint64_t trans_id;
	const uint8_t *desc;		/* len8 * 8 bytes, of which offset8 * 8 are descriptor */
	const uint8_t *payload;
	uint32_t payload_len;		/* with the zeroes that pad it to a multiple of 8 */
};

/* What a drain has read, added up over calls. */
struct vi_ring_tally {
	uint64_t packets;
	uint64_t bytes;			/* of payload, padding included */
	uint64_t checksum;		/* sum of transaction ids and payload words, modulo 2^64 */
	/* drains that found no sense in the ring and dropped the rest of it */
	uint64_t resyncs;
};

/*
 * Map a ring of @bytes in all and reset it. EINVAL: not whole pages, too small, too large; ENOMEM.
 */
VI_MUST_CHECK int vi_ring_mem_create(uint32_t bytes, struct vi_ring_mem *out);
/*
 * Map a ring that lies in a file of memory, as it stands: page @pfns[0] of VI_PAGE bytes is the
 * control page, the others are the data, in any order. Who opens the ring resets it. EINVAL: fewer
 * than 2 pages, more than VI_RING_BYTES_MAX, or one outside the file; EBADF: no file; EOPNOTSUPP:
 * pages of this machine are larger than VI_PAGE; ENOMEM. [any]
 */
VI_MUST_CHECK int vi_ring_mem_map(int fd, const uint64_t *pfns, uint32_t n,
				  struct vi_ring_mem *out);
/* Unmap it; a second call does nothing. */
void vi_ring_mem_destroy(struct vi_ring_mem *mem);
/*
 * Zero the control page and set feature_bits to 1, as a guest does at open. Neither end may be at
 * work.
 */
void vi_ring_reset(struct vi_ring_mem *mem);
/*
 * Bytes that wait to be read, bytes free (an empty ring: all of them), from the shared indices.
 * [any]
 */
uint32_t vi_ring_bytes_to_read(const struct vi_ring_buffer *hdr, uint32_t data_size);
uint32_t vi_ring_bytes_to_write(const struct vi_ring_buffer *hdr, uint32_t data_size);

/*
 * Take an end of @mem where the shared indices stand. EINVAL: unknown rules; EIO: an index is
 * outside the data or unaligned.
 */
VI_MUST_CHECK int vi_ring_writer_init(struct vi_ring_writer *w, const struct vi_ring_mem *mem,
				      uint32_t rules);
/*
 * @pkt_buffer: @size bytes (16 or more) that outlive the reader; NULL and 0 for one that only uses
 * views and vi_ring_read().
 */
VI_MUST_CHECK int vi_ring_reader_init(struct vi_ring_reader *r, const struct vi_ring_mem *mem,
				      uint32_t rules, void *pkt_buffer, uint32_t size);

/*
 * Write one packet and publish it. Return: 1 the reader must be signalled, 0 not. EAGAIN: no room;
 * EINVAL: unknown type or flag, page ranges missing or not a multiple of 8 bytes; EMSGSIZE: more
 * than the format (strict: or the ring) can ever hold; EIO: strict, the peer's index is impossible.
 * One thread per ring.
 */
VI_MUST_CHECK int vi_ring_write(struct vi_ring_writer *w, uint32_t type, uint32_t flags,
				uint64_t trans_id, const void *payload, uint32_t len);
VI_MUST_CHECK int vi_ring_write_packet(struct vi_ring_writer *w,
				       const struct vi_packet_out *packet);
/*
 * Write packets until one is refused, publish once, decide once. Errors as above, only if the first
 * one is refused.
 */
VI_MUST_CHECK int vi_ring_write_batch(struct vi_ring_writer *w, const struct vi_packet_out *packets,
				      uint32_t n, uint32_t *accepted);
/*
 * Ask for a signal when more than @size bytes are free; 0: no longer. EINVAL: strict, more than the
 * ring can hold.
 */
VI_MUST_CHECK int vi_ring_set_pending_send_size(struct vi_ring_writer *w, uint32_t size);
/*
 * The steps that vi_ring_write_packet() is made of: copy, publish (Return: 1 if there was
 * anything), signal check (Return: 0, 1).
 */
VI_MUST_CHECK int vi_ring_put(struct vi_ring_writer *w, const struct vi_packet_out *packet);
int vi_ring_publish(struct vi_ring_writer *w);
int vi_ring_must_signal(struct vi_ring_writer *w);

/*
 * The first unread packet, and the one after it. Return: 1 and *out, 0 when empty. EIO: strict,
 * reader->error says why, the channel is failed and nothing of the packet is consumed; ENOBUFS:
 * strict, it is larger than pkt_buffer. *out is good until the next call. The _view forms leave the
 * packet where it is: only *out was checked, the peer may change the bytes behind desc and payload.
 */
VI_MUST_CHECK int vi_ring_first(struct vi_ring_reader *r, struct vi_packet *out);
VI_MUST_CHECK int vi_ring_next(struct vi_ring_reader *r, struct vi_packet *out);
VI_MUST_CHECK int vi_ring_first_view(struct vi_ring_reader *r, struct vi_packet *out);
VI_MUST_CHECK int vi_ring_next_view(struct vi_ring_reader *r, struct vi_packet *out);
/* Step over the packet handed out without looking at the next one. */
void vi_ring_skip(struct vi_ring_reader *r);
/* Give the room of what was read back. Return: 1 the writer must be signalled, 0 not. */
int vi_ring_close(struct vi_ring_reader *r);
/* The steps that vi_ring_close() is made of. */
int vi_ring_publish_read(struct vi_ring_reader *r);
int vi_ring_must_signal_writer(struct vi_ring_reader *r);
/*
 * Read one packet into @buf: with its descriptor (@raw) or its payload alone (vmbus_recvpacket).
 * Return: as vi_ring_close(); 0 and *actual 0 when empty. EINVAL: no buffer; ENOBUFS: *actual bytes
 * are needed, nothing is consumed; EIO as above. @trans_id may be NULL.
 */
VI_MUST_CHECK int vi_ring_read(struct vi_ring_reader *r, void *buf, uint32_t buflen, uint32_t raw,
			       uint32_t *actual, uint64_t *trans_id);
/*
 * Read and check up to @budget packets, VI_RING_BATCH per close, and add to *tally. Return: 1 if a
 * close wants a signal; EIO, ENOBUFS.
 */
VI_MUST_CHECK int vi_ring_drain(struct vi_ring_reader *r, uint32_t budget,
				struct vi_ring_tally *tally);
/*
 * Mask signals; unmask them and say how many bytes raced in, not 0 = begin again (hv_begin_read,
 * hv_end_read).
 */
void vi_ring_begin_read(struct vi_ring_reader *r);
uint32_t vi_ring_end_read(struct vi_ring_reader *r);
/* The steps that vi_ring_end_read() is made of. */
void vi_ring_unmask(struct vi_ring_reader *r);
uint32_t vi_ring_raced_in(const struct vi_ring_reader *r);

/* Who moves packets in vi_ring_bench_run(). */
enum vi_ring_contender {
	/* v6.10's steps (linux_shaped/): lock and two fences per packet, copy-out */
	VI_RING_BENCH_LINUX = 0,
	VI_RING_BENCH_PACKET = 1,	/* ours, publish per packet, copy-out */
	VI_RING_BENCH_BATCH = 2,	/* ours, publish per batch, copy-out */
	VI_RING_BENCH_VIEW = 3,		/* ours, publish per batch, in place */
	VI_RING_BENCH_MEMCPY = 4,	/* the limit: two copies of the payload and nothing else */
	VI_RING_CONTENDERS = 5
};

struct vi_ring_bench;	/* a ring of 512 KiB data, its two ends, a source and a sink */

/*
 * @payload: bytes per packet, @batch: packets written, then read (1..64). EINVAL: a batch does not
 * fit the ring; ENOMEM.
 */
VI_MUST_CHECK int vi_ring_bench_create(uint32_t payload, uint32_t batch,
				       struct vi_ring_bench **out);
void vi_ring_bench_destroy(struct vi_ring_bench *b);
/*
 * Move @packets (rounded up to batches) on this thread. EBADMSG: one was lost or altered; EINVAL:
 * no such contender.
 */
VI_MUST_CHECK int vi_ring_bench_run(struct vi_ring_bench *b, uint32_t contender, uint32_t packets,
				    uint64_t *ns);
/*
 * The same from this thread, pinned to @cpu_writer, to one pinned to @cpu_reader. EINVAL: MEMCPY
 * has no two ends; or errno of the pin.
 */
VI_MUST_CHECK int vi_ring_bench_pair(struct vi_ring_bench *b, uint32_t contender, uint32_t packets,
				     uint32_t cpu_writer, uint32_t cpu_reader, uint64_t *ns);

/* ---- vmbus/: the guest's channels (hot state) ------------------------------------------------ */

struct vi_channel;

enum vi_callback {
	VI_CALLBACK_NONE = 0,	/* closed: arrivals are counted on the IRQ and go nowhere */
	VI_CALLBACK_DRAIN = 1,	/* read every packet, add up what they were */
	VI_CALLBACK_NAPI = 2,	/* ISR mode only: mask the ring, poll from NET_RX (netvsc) */
	/* add one to the uint64_t that is its context: the benchmarks' trivial callback */
	VI_CALLBACK_COUNT = 3,
	VI_CALLBACK_HOOK = 4,	/* call the vi_handler_t given */
	/* DRAIN, and heartbeat and timesync requests are answered (hv_utils) */
	VI_CALLBACK_UTIL = 5
};

/* Which packets the driver's own reader (DRAIN, NAPI, UTIL) hands to vi_hooks.packet. */
enum vi_attention {
	VI_ATTENTION_NONE = 0,		/* none: all are added up */
	/* not in-band, or with a flag; of UTIL also what it cannot answer */
	VI_ATTENTION_SPECIAL = 1,
	VI_ATTENTION_ALL = 2		/* every one; UTIL answers none */
};

struct vi_channel_stats {
	uint64_t interrupts;	/* channel->interrupts: arrivals that found a callback */
	uint64_t no_callback;
	uint64_t calls;		/* runs of DRAIN and UTIL, polls of NAPI */
	/* what DRAIN, NAPI and UTIL have read */
	uint64_t packets, bytes, checksum;
	/* times they found no sense in the ring and dropped the rest of it */
	uint64_t resyncs;
	uint64_t sig_events;	/* guest -> host signals */
	uint64_t intr_in_full;
	uint64_t attended;	/* of the packets, those that vi_hooks.packet has seen */
	uint64_t replies;	/* requests that UTIL has answered */
	uint64_t replies_dropped;	/* answers that a full out ring refused */
};

/*
 * Make the guest's hot state of channel @relid. EINVAL: relid out of 1..2047, unknown mode; EEXIST:
 * the relid is mapped.
 * The channel is closed: no rings, no callback.
 */
VI_MUST_CHECK int vi_channel_create(struct vi_machine *m, uint32_t relid, uint32_t mode,
				    struct vi_channel **result);
/*
 * Take the guest's ends of two rings, which must outlive the channel or the next call (NULL: give
 * them up).
 * @max_packet: bytes of the private copy of a packet. EBUSY: a callback is set; ENOMEM.
 */
VI_MUST_CHECK int vi_channel_set_rings(struct vi_channel *ch, const struct vi_ring_mem *in,
				       const struct vi_ring_mem *out, uint32_t max_packet);
/* The relid must be unmapped and the channel closed. */
void vi_channel_destroy(struct vi_channel *ch);
/*
 * The relid's IRQ (0 in design legacy): binds the relid in the domain or to a counter column of its
 * own.
 */
VI_MUST_CHECK int vi_channel_map(struct vi_channel *ch, uint32_t irq);
VI_MUST_CHECK int vi_channel_unmap(struct vi_channel *ch);
/*
 * Another name for an unmapped channel: what the host offers after a suspend. EINVAL: no relid;
 * EBUSY: it is mapped.
 */
VI_MUST_CHECK int vi_channel_set_relid(struct vi_channel *ch, uint32_t relid);
/* Fill an action for request_irq so that it runs this channel. */
void vi_channel_bind_action(struct vi_channel *ch, struct vi_irqaction *action);
/*
 * Set or clear what an arrival calls. Waits until the old one has ended. EINVAL: not a callback, or
 * one that this mode does not have, or nothing to read: DRAIN, NAPI, UTIL and mode BATCHED need
 * rings; EDEADLK from inside an interrupt.
 */
VI_MUST_CHECK int vi_channel_set_callback(struct vi_channel *ch, uint32_t callback, vi_handler_t fn,
					  void *context);
/*
 * Say which packets go to vi_hooks.packet, with @handle. On an open or closed channel, and for all
 * its openings. Waits until a reader at work has ended; the old handle is not used after that.
 * EINVAL: unknown mode; EDEADLK from inside an interrupt.
 */
VI_MUST_CHECK int vi_channel_set_attention(struct vi_channel *ch, uint32_t mode, void *handle);
VI_MUST_CHECK int vi_channel_set_cpu(struct vi_channel *ch, uint32_t cpu);
void vi_channel_set_rescind(struct vi_channel *ch, uint32_t rescind);
/* 1: the channel's tasklet runs, or nobody may run it just now. */
uint32_t vi_channel_is_running(const struct vi_channel *ch);
/* Where the channel's tasklet is on CPUs that are run step by step. */
enum vi_step_tasklet_is {
	VI_STEP_TASKLET_RUNS = 1,
	VI_STEP_TASKLET_LISTED = 2	/* scheduled */
};
uint32_t vi_step_has_tasklet(struct vi_machine *m, const struct vi_channel *ch);
void vi_channel_get_stats(const struct vi_channel *ch, struct vi_channel_stats *out);
struct vi_ring_reader *vi_channel_in(struct vi_channel *ch);
struct vi_ring_writer *vi_channel_out(struct vi_channel *ch);
/*
 * How vi_channel_setevent() reaches the host: HvSignalEvent on @connection_id (0: nobody hears it),
 * or @monitor_bit of @monitor_pending, a group of the guest-to-host monitor page, where that is not
 * NULL. In either case the relid's bit is set first in @send_int_page, the guest-to-host half of
 * the interrupt page, unless NULL: the caller knows whether the channel has a dedicated interrupt.
 * Both must outlive the channel or the next call. EINVAL: no such connection id or bit; EBUSY: the
 * channel is open, a CPU may be signalling.
 */
VI_MUST_CHECK int vi_channel_set_signal(struct vi_channel *ch, uint32_t connection_id,
					uint64_t *send_int_page, uint32_t *monitor_pending,
					uint32_t monitor_bit);
/*
 * Tell the host about the out ring, or that there is room in the in ring (vmbus_setevent). Counts
 * sig_events, unless the signal goes by the monitor page. [cpu]
 */
void vi_channel_setevent(struct vi_channel *ch);
/* 1 if the guest made that hypercall since the last call. */
uint32_t vi_channel_take_event(struct vi_channel *ch);

/* ---- integration services: what hv_utils and its host say to each other ---------------------- */
/*
 * The payload of an in-band packet: vi_pipe_header, vi_ic_header, body (vmbus.md 1.16). A reply is
 * the request with VI_IC_TRANSACTION | VI_IC_RESPONSE as its flags, under the same transaction id.
 * Layouts as in include/linux/hyperv.h v6.10; a body begins at byte 28: copy it, it is not aligned.
 */
#define VI_PIPE_DATA 1		/* vi_pipe_header.flags */
#define VI_IC_TRANSACTION 1	/* vi_ic_header.flags */
#define VI_IC_REQUEST 2
#define VI_IC_RESPONSE 4

enum vi_ic_type {
	VI_IC_NEGOTIATE = 0,
	VI_IC_HEARTBEAT = 1,
	VI_IC_KVP = 2,
	VI_IC_SHUTDOWN = 3,
	VI_IC_TIMESYNC = 4,
	VI_IC_VSS = 5,
	VI_IC_FCOPY = 7
};

struct vi_pipe_header {
	uint32_t flags;
	uint32_t msgsize;		/* bytes that follow */
};

struct vi_ic_version {
	uint16_t major;
	uint16_t minor;
};

struct vi_ic_header {
	struct vi_ic_version framework;
	uint16_t type;			/* enum vi_ic_type */
	struct vi_ic_version message;
	uint16_t size;			/* bytes of body */
	uint32_t status;
	uint8_t transaction;
	uint8_t flags;			/* VI_IC_TRANSACTION, _REQUEST, _RESPONSE */
	uint8_t reserved[2];
};

struct vi_ic_heartbeat {
	uint64_t seq_num;		/* the guest adds one */
	uint32_t reserved[8];
};

/* Since timesync 4.0; before, 25 bytes. On the wire without the padding at its end. */
struct vi_ic_timesync_ref {
	uint64_t parent_time;		/* 100 ns since 1601 */
	uint64_t vm_reference_time;	/* partition reference time */
	uint8_t flags;
	uint8_t leap_flags;
	uint8_t stratum;
	uint8_t reserved[3];
};
#define VI_IC_TIMESYNC_REF 22	/* its bytes on the wire */

/* ---- host/: a VSP's half of a channel -------------------------------------------------------- */

struct vi_vsp;

struct vi_vsp_stats {
	uint64_t packets, bytes, checksum;	/* written to the in ring */
	uint64_t signals;			/* HvSignalEvent calls */
	uint64_t edges;				/* of them, flags that went 0 -> 1 */
	uint64_t dropped_signals;		/* target SynIC off: the flag is lost */
	uint64_t full;				/* writes refused by a full ring */
	uint64_t responses, response_bytes;	/* packets that vi_vsp_drain() took, payload */
};
#define VI_VSP_TEMPLATE_MAX 256

/* One entry of bulk traffic: @interrupts times @packets packets of @payload bytes. */
struct vi_traffic {
	struct vi_vsp *vsp;
	uint64_t interrupts;
	uint32_t packets;
	uint32_t payload;
};

/*
 * The host's ends of two rings, which must outlive it. EINVAL: relid out of 1..2047; ENOMEM; EIO:
 * an index is impossible.
 */
VI_MUST_CHECK int vi_vsp_create(struct vi_machine *m, uint32_t relid, const struct vi_ring_mem *in,
				const struct vi_ring_mem *out, struct vi_vsp **result);
void vi_vsp_destroy(struct vi_vsp *vsp);
/* The first so many bytes of a VSP are all of it that lasts from one call to the next. */
uint64_t vi_vsp_state_bytes(void);
#define VI_VP_NONE 0xffffffff		/* target of a channel without interrupts */
/*
 * Where HvSignalEvent goes: the VP the guest named in OPENCHANNEL or MODIFYCHANNEL, or VI_VP_NONE.
 * EINVAL: no such CPU.
 */
VI_MUST_CHECK int vi_vsp_set_target(struct vi_vsp *vsp, uint32_t cpu);
/*
 * By which SINT and event flag it is interrupted; SINT 2 and the relid unless the guest says
 * otherwise. EINVAL: there is none. Before the first signal.
 */
VI_MUST_CHECK int vi_vsp_set_interrupt(struct vi_vsp *vsp, uint32_t sint, uint32_t flag);
/*
 * Write @packets in-band packets of @payload patterned bytes, publish once, signal by the ring's
 * rule.
 * Return: packets written, short when the ring is full; EMSGSIZE. [any thread, one at a time per
 * VSP]
 */
VI_MUST_CHECK int64_t vi_vsp_send(struct vi_vsp *vsp, uint64_t packets, uint32_t payload);
void vi_vsp_get_stats(const struct vi_vsp *vsp, struct vi_vsp_stats *out);
struct vi_ring_writer *vi_vsp_in(struct vi_vsp *vsp);
struct vi_ring_reader *vi_vsp_out(struct vi_vsp *vsp);
/* HvSignalEvent for this channel as the guest sees it. Return: as vi_synic_signal(). */
VI_MUST_CHECK int vi_vsp_signal(struct vi_vsp *vsp);
/*
 * Begin the payload of each packet of vi_vsp_send() with @len bytes of @bytes (copied); smaller
 * payloads become @len bytes. 0: patterned bytes alone again. EINVAL: more than
 * VI_VSP_TEMPLATE_MAX.
 */
VI_MUST_CHECK int vi_vsp_set_template(struct vi_vsp *vsp, const void *bytes, uint32_t len);
/*
 * Let vi_drive() read what the guest answers (vi_vsp_drain()) after each burst, or leave the out
 * ring to somebody else.
 */
void vi_vsp_set_drains(struct vi_vsp *vsp, uint32_t on);
/*
 * Read all packets of the out ring and count them in stats.responses; signal the guest if it waits
 * for room. Return: packets; EIO: the guest's ring is broken, vi_vsp_out()->error says how. [any
 * thread, one at a time per VSP]
 */
VI_MUST_CHECK int64_t vi_vsp_drain(struct vi_vsp *vsp);
/*
 * Deliver bulk traffic: pick entries at random in proportion to what they have left (splitmix64
 * from @seed), send one burst, run the target CPU until it is idle. Return: vectors taken, or the
 * first error (-EAGAIN: a ring stayed full; -ENXIO: target is off; -EINVAL: an entry of 0 packets;
 * -EIO as vi_vsp_drain(); -ELOOP as vi_machine_settle()).
 */
VI_MUST_CHECK int64_t vi_drive(struct vi_machine *m, const struct vi_traffic *traffic, uint32_t n,
			       uint64_t seed);

/* ---- fs/: counters to text ------------------------------------------------------------------- */
/*
 * A table of text is a list of rows; a row is a prefix, cells of eleven bytes and a suffix. Every
 * size is known before a digit is written, so that vi_seq_size() is exact and the renderer writes
 * each byte once.
 */
enum vi_seq_style {
	VI_SEQ_LEADING = 0,	/* each cell is " %10u" */
	VI_SEQ_TRAILING = 1	/* each cell is "%10u " */
};
#define VI_SEQ_CELL 11		/* bytes of a cell of either style */
#define VI_SEQ_CELLS_MAX 65536	/* cells of one row: beyond VI_CPUS_MAX, for files from elsewhere */

struct vi_seq_row {
	/* cell i is counts[index[i] * stride], without index counts[i * stride] */
	const uint32_t *counts;
	/* where the prefix begins in vi_seq_table.text; the suffix follows it */
	uint64_t text_off;
	uint32_t prefix_len;
	uint32_t suffix_len;	/* a row with cells ends in text: at least its newline */
	uint32_t cells;		/* 0: the row is text alone and counts is not read */
	/* elements from one index to the next; 0: every cell is counts[0] */
	uint32_t stride;
	uint32_t style;		/* enum vi_seq_style */
	uint32_t reserved;
};

struct vi_seq_table {
	const struct vi_seq_row *rows;
	const void *text;
	const uint32_t *index;	/* CPU ids of the columns; NULL: column i is index i */
	uint64_t text_len;
	uint32_t nr_rows;
	/* length of index, and the most cells a row may have while there is one */
	uint32_t nr_index;
};

/*
 * Bytes of the rendered table, exactly. EINVAL: a row reaches outside text or index, has more than
 * VI_SEQ_CELLS_MAX cells, cells without counts or without a suffix, or a style that does not exist.
 * [any]
 */
VI_MUST_CHECK int64_t vi_seq_size(const struct vi_seq_table *t);
/*
 * Render the table into buf with vectors up to simd (enum vi_simd); counters may change meanwhile.
 * Return: bytes written. ENOSPC: size is less than vi_seq_size(), nothing is written; EOPNOTSUPP:
 * vectors this CPU does not have; EINVAL as above, or simd is no level. [any]
 */
VI_MUST_CHECK int64_t vi_seq_render(const struct vi_seq_table *t, uint32_t simd, void *buf,
				    uint64_t size);
/*
 * Read cells of one style from the start of text into counts, until max are read or what comes next
 * is not a cell: a number that fits 32 bits, without leading zeros, right-aligned in ten, a blank
 * before it and a blank or the end of text after it. (The first cell of the trailing style has no
 * blank before it.) Return: cells read. EINVAL: the style does not exist. [any]
 */
VI_MUST_CHECK int vi_seq_scan(const void *text, uint64_t len, uint32_t style, uint32_t max,
			      uint32_t *counts);

/*
 * Peers of vi_seq_render(): the same bytes, cell by cell as the kernel makes them
 * (linux_shaped/seq.c).
 */
enum vi_seq_how {
	VI_SEQ_OURS = 0,
	VI_SEQ_PRINTF = 1,	/* up to v6.12: one seq_printf() per cell */
	VI_SEQ_PUT_DECIMAL = 2,	/* since v6.13: one seq_put_decimal_ull_width() per cell */
	VI_SEQ_MEMSET = 3,	/* no table at all: memset() of its size, the memory's own limit */
	VI_SEQ_HOWS = 4
};
/*
 * Render with a peer; how is VI_SEQ_PRINTF or VI_SEQ_PUT_DECIMAL. Errors as vi_seq_render(). [any]
 */
VI_MUST_CHECK int64_t vi_linux_seq_render(const struct vi_seq_table *t, uint32_t how, void *buf,
					  uint64_t size);
/*
 * Time repeat renderings in a row by contender how (enum vi_seq_how; simd counts for VI_SEQ_OURS
 * alone). *ns is the time of all of them. Return: bytes of one, or the error of the contender;
 * EINVAL: repeat is 0. [any]
 */
VI_MUST_CHECK int64_t vi_seq_bench(const struct vi_seq_table *t, uint32_t how, uint32_t simd,
				   uint32_t repeat, void *buf, uint64_t size, uint64_t *ns);

/* ---- bench/: the SynIC ----------------------------------------------------------------------- */

#define VI_SYNIC_BENCH_PAYLOAD 64	/* bytes of each message */
/* What vi_synic_bench_run() repeats. */
enum vi_synic_contender {
	VI_SYNIC_BENCH_FLOOR = 0,	/* the limit: two locked instructions, set and clear */
	VI_SYNIC_BENCH_CONNECTION = 1,	/* guest to host: from a connection id to its port's bit */
	VI_SYNIC_BENCH_FLAG = 2,	/* host to guest: a flag from 0 to 1; it is cleared again */
	VI_SYNIC_BENCH_SET = 3,		/* host to guest: a flag that is set already */
	VI_SYNIC_BENCH_TAKE = 4,	/* as FLAG, and the CPU takes it; it is nobody's */
	VI_SYNIC_BENCH_MESSAGE = 5,	/* into a free slot, out of it */
	VI_SYNIC_BENCH_QUEUED = 6,	/* finds the slot busy; it is freed, EOM written; into it */
	VI_SYNIC_CONTENDERS = 7
};
struct vi_synic_work {
	uint32_t contender;		/* enum vi_synic_contender */
	uint32_t sint;
	uint32_t connection_id;		/* of CONNECTION */
	uint32_t count;
};
/*
 * On CPU 0, whose SINT is set up, flag 77 clear and slot free. EINVAL: no such contender or SINT,
 * or TAKE of a SINT other than VMBus's; EBADMSG: something did not go as it should.
 */
VI_MUST_CHECK int vi_synic_bench_run(struct vi_machine *m, const struct vi_synic_work *work,
				     uint64_t *ns);

/* ---- bench/: the demux hot path -------------------------------------------------------------- */

enum vi_demux_contender {
	VI_DEMUX_OURS = 0,		/* fast engine, design rfc */
	VI_DEMUX_LEGACY = 1,		/* linux engine, design legacy: v6.10 without the RFC */
	VI_DEMUX_RFC = 2,		/* linux engine, design rfc */
	VI_DEMUX_RFC_NO_ENTROPY = 3,	/* the same without the entropy sample */
	/* the same, untracked flow: no statistics, entropy, spurious check */
	VI_DEMUX_RFC_UNTRACKED = 4,
	VI_DEMUX_RFC_PERCPU = 5,	/* the same with the per-CPU flow: no desc lock */
	VI_DEMUX_FLOOR = 6,		/* the calls and the counters alone, the list given */
	VI_DEMUX_CONTENDERS = 7
};

#define VI_DEMUX_PATTERNS_MAX 64

struct vi_demux_config {
	uint32_t contender;		/* enum vi_demux_contender */
	uint32_t simd;			/* enum vi_simd, for OURS */
	uint32_t pending;		/* flags set per scan, 0..2047 */
	uint32_t consecutive;		/* 1: relids 1..pending; 0: at random from seed */
	/* random sets of flags taken in turn, 1..VI_DEMUX_PATTERNS_MAX */
	uint32_t patterns;
	uint32_t scan_only;		/* 1: the demultiplexer alone, without the top level */
	uint64_t cold_bytes;		/* other memory to touch before each scan, 0: warm */
	uint64_t seed;
};

struct vi_demux_bench;

/*
 * A machine with all 2047 channels in ISR mode. EINVAL: a value is out of range; ENOMEM;
 * EOPNOTSUPP: vectors this CPU does not have.
 */
VI_MUST_CHECK int vi_demux_bench_create(const struct vi_demux_config *config,
					struct vi_demux_bench **out);
void vi_demux_bench_destroy(struct vi_demux_bench *b);
/* Time @scans scans. *ns: of all of them. Return: scans made. */
VI_MUST_CHECK int vi_demux_bench_run(struct vi_demux_bench *b, uint32_t scans, uint64_t *ns);
/*
 * Time @n locked instructions in a row: claiming a word costs one, and so does each lock of the
 * peers. EINVAL: none.
 */
VI_MUST_CHECK int vi_demux_bench_locked(uint32_t n, uint64_t *ns);
/* Compare every channel's count with what was raised. Return: how many differ. */
VI_MUST_CHECK int vi_demux_bench_verify(struct vi_demux_bench *b);
