/* SPDX-License-Identifier: MIT */
/*
 * vmbusirq_api.h - the one interface between the C data plane and Python.
 *
 * Read by the C compiler (through internals.h) and by cffi (through build_core.py), so that nothing is declared twice. Plain C:
 * no #include, no #if, no inline; integer #defines only. VI_MUST_CHECK is the one attribute, and build_core.py removes it.
 *
 * Every function that can fail returns 0 or a count, or -Exxx. Outputs come last. Nothing prints, nothing keeps state outside
 * the objects that the caller made.
 *
 * Threads: functions marked [cpu] may run on one thread per virtual CPU at once, functions marked [any] on any thread; all others
 * belong to the thread that owns the machine.
 */

/* ---- limits (the only place that names them) ------------------------------------------------------------------------------ */

#define VI_CPUS_MAX 2048	/* virtual CPUs of one machine */
#define VI_RELID_MIN 1
#define VI_RELID_MAX 2047	/* channel ids; flag 0 is the pre-2.4 doorbell */
#define VI_RELIDS 2048		/* slots of the VMBus irqdomain (RFC patch 07) */
#define VI_SINTS 16		/* synthetic interrupt sources per CPU (TLFS 11.3) */
#define VI_SINT_FLAGS 2048	/* event flags per SINT (TLFS 11.8) */
#define VI_SINT_WORDS 32	/* the same in 64-bit words */
#define VI_SINT_VMBUS 2		/* VMBUS_MESSAGE_SINT */
#define VI_MSG_PAYLOAD 240	/* bytes of payload in a message slot (TLFS 11.7) */
#define VI_PAGE 4096
#define VI_IRQS_MAX 65536	/* descriptors of one machine */
#define VI_ACTIONS_MAX 64	/* actions on one IRQ */
#define VI_RING_PAYLOAD_MAX 524248	/* 8 * 65535 - 16, rounded down to 8: what len8 can say */

/* ---- enums ---------------------------------------------------------------------------------------------------------------- */

/* How a scan finds, claims and runs flags. */
enum vi_engine {
	VI_ENGINE_FAST = 0,	/* one exchange per 64 flags, 64-byte slots, no lock per interrupt */
	VI_ENGINE_LINUX = 1	/* v6.10's own steps: bit by bit, desc lock, IN_PROGRESS, entropy sample */
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
	VI_IRQ_DEFERRED = 256	/* internal: a stub has accounted, or will account, for this arrival */
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

/* Callbacks a chip may have, as bits of vi_irq_chip.ops and as the op passed to vi_irq_chip.call. */
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
	VI_CHIP_EOI_IF_HANDLED = 2,	/* IRQCHIP_EOI_IF_HANDLED: no eoi for an arrival that was not run */
	VI_CHIP_ONESHOT_SAFE = 32	/* IRQCHIP_ONESHOT_SAFE */
};

/* irq_desc state (IRQD_*; bit numbers of include/linux/irq.h v6.10). */
enum vi_irqd {
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
	VI_IRQD_SINGLE_TARGET = 0x1000000
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

/* Per-CPU architecture counters: the x86 rows of /proc/interrupts, in their order (arch/x86/kernel/irq.c v6.10). */
enum vi_arch_row {
	VI_ROW_NMI, VI_ROW_LOC, VI_ROW_SPU, VI_ROW_PMI, VI_ROW_IWI, VI_ROW_RTR, VI_ROW_PLT, VI_ROW_RES, VI_ROW_CAL, VI_ROW_TLB,
	VI_ROW_TRM, VI_ROW_THR, VI_ROW_DFR, VI_ROW_MCE, VI_ROW_MCP, VI_ROW_HYP, VI_ROW_HRE, VI_ROW_HVS, VI_ROW_PIN, VI_ROW_NPI,
	VI_ROW_PIW, VI_ROW_PMN,
	VI_ARCH_ROWS
};
#define VI_ARCH_STRIDE 32	/* uint32_t per CPU in vi_counters.arch */

/* Softirq vectors, in the order of /proc/softirqs (include/linux/interrupt.h v6.10). */
enum vi_softirq {
	VI_SOFTIRQ_HI, VI_SOFTIRQ_TIMER, VI_SOFTIRQ_NET_TX, VI_SOFTIRQ_NET_RX, VI_SOFTIRQ_BLOCK, VI_SOFTIRQ_IRQ_POLL,
	VI_SOFTIRQ_TASKLET, VI_SOFTIRQ_SCHED, VI_SOFTIRQ_HRTIMER, VI_SOFTIRQ_RCU,
	VI_SOFTIRQS
};
#define VI_SOFTIRQ_STRIDE 16	/* uint32_t per CPU in vi_counters.softirq */

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

/* ---- opaque and shared objects -------------------------------------------------------------------------------------------- */

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

/* A message slot of the SynIC message page (TLFS 11.7; size at 4 and flags at 5, as every implementation has it). */
struct vi_message {
	uint32_t type;
	uint8_t payload_size;
	uint8_t flags;			/* bit 0: another message waits */
	uint16_t reserved;
	uint64_t origin;
	uint8_t payload[240];
};

/* What an interrupt controller can do (struct irq_chip). call may be NULL: then the callbacks in ops exist and do nothing. */
struct vi_irq_chip {
	uint32_t ops;			/* enum vi_chip_op bits: which callbacks exist */
	uint32_t flags;			/* enum vi_chip_flag bits */
	void (*call)(struct vi_cpu *cpu, uint32_t irq, uint32_t op);
};

/* One handler on an IRQ (struct irqaction, 128 bytes on x86-64). */
struct vi_irqaction {
	vi_handler_t handler;
	void *dev_id;
	void **percpu_dev_id;		/* one cookie per CPU: percpu_devid, demux and nostat flows only */
	struct vi_irqaction *next;
	uint32_t irq;
	uint32_t flags;			/* enum vi_irqf bits */
	uint32_t batched;		/* collect this IRQ in a scan, call vi_py_batch once */
	uint32_t id;			/* the caller's number for it */
	uint64_t reserved[10];
};

/*
 * One Linux IRQ. Size and the cache lines touched per interrupt are those of the kernel's irq_desc on x86-64 (448 bytes: lines 0, 1
 * and 2), so that the linux engine costs what the kernel costs. The fast engine does not touch it in its hot loop.
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
	uint64_t line1[3];
	/* line 2: the lock and the accounting under it */
	uint32_t lock;
	uint32_t tot_count;
	uint32_t irq_count;		/* spurious: arrivals since the first unhandled one */
	uint32_t irqs_unhandled;
	uint64_t last_unhandled_ms;	/* machine time in milliseconds, 0 = never */
	uint32_t running_cpu;		/* who set IN_PROGRESS */
	uint32_t slow_users;		/* CPUs on the locked path: the fast slot stays a stub meanwhile */
	uint32_t replay;		/* 1: an arrival while running elsewhere is replayed, 0: dropped as in v6.10 */
	uint32_t visible;		/* 0: backs a channel without an IRQ (design legacy), no sum counts it */
	uint32_t nr_actions;
	uint32_t threads_handled;
	uint64_t line2[1];
	uint64_t *percpu_enabled;	/* percpu_devid: one bit per CPU */
	uint64_t line3[31];
};

/* Where the counters live. All are written by the data plane and may be read at any time. */
struct vi_counters {
	uint32_t *irq;			/* [cpu * irq_stride + irq] */
	uint32_t irq_stride;
	uint32_t *arch;			/* [cpu * VI_ARCH_STRIDE + enum vi_arch_row] */
	uint32_t *softirq;		/* [cpu * VI_SOFTIRQ_STRIDE + enum vi_softirq] */
	uint64_t *irqs_sum;		/* [cpu * 8] */
	uint32_t *irq_err_count;	/* ERR (x86) and Err (arm64) */
	uint32_t *irq_mis_count;	/* MIS */
};

/* Things that went by without an interrupt being counted, since the machine was made. */
struct vi_lost {
	uint64_t unmapped;		/* flag of a relid that has no IRQ: consumed, silent */
	uint64_t flag_zero;		/* flag 0: consumed, ignored */
	uint64_t rescinded;		/* channel is being taken away */
	uint64_t no_callback;		/* counted on its IRQ, but nobody to call */
	uint64_t in_progress;		/* dropped by the simple flow while running elsewhere (linux engine) */
};

/* ---- machine -------------------------------------------------------------------------------------------------------------- */

struct vi_config {
	uint32_t nr_cpus;		/* possible CPUs, 1..VI_CPUS_MAX */
	uint32_t nr_irqs_max;		/* descriptors, 1..VI_IRQS_MAX */
	uint32_t engine;		/* enum vi_engine */
	uint32_t simd;			/* enum vi_simd */
	uint32_t arch;			/* enum vi_arch */
	uint32_t hyp_count;		/* enum vi_hyp_count */
	uint32_t channel_irqs;		/* 0: channels have no Linux IRQ (design legacy) */
	uint32_t message_irq;		/* IRQ of control messages, 0: they belong to the top level */
	uint64_t seed;
};

/* Make a machine. EINVAL: a count or enum out of range; EOPNOTSUPP: vectors this CPU does not have; ENOMEM. */
VI_MUST_CHECK int vi_machine_create(const struct vi_config *config, struct vi_machine **out);
void vi_machine_destroy(struct vi_machine *m);
void vi_machine_counters(struct vi_machine *m, struct vi_counters *out);
void vi_machine_lost(struct vi_machine *m, struct vi_lost *out);
void vi_machine_set_time(struct vi_machine *m, uint64_t time_ms);
void vi_machine_set_message_irq(struct vi_machine *m, uint32_t irq);
struct vi_cpu *vi_machine_cpu(struct vi_machine *m, uint32_t cpu);	/* NULL past the last */
uint32_t vi_cpu_id(const struct vi_cpu *cpu);
void *vi_cpu_owner(const struct vi_cpu *cpu);	/* what vi_machine_set_owner() stored: a Python handle */
void vi_machine_set_owner(struct vi_machine *m, void *owner);

/* Widest vectors of this CPU (enum vi_simd). [any] */
uint32_t vi_simd_best(void);

/* Take one pending vector of @cpu with its softirqs. Return: 1 taken, 0 nothing pending or CPU off. [cpu] */
int vi_vcpu_run(struct vi_machine *m, uint32_t cpu);
/* Run every CPU until nothing is deliverable. Return: vectors taken. */
int64_t vi_machine_settle(struct vi_machine *m);
/* 1 while a vector or softirq of @cpu runs. [any] */
uint32_t vi_vcpu_in_interrupt(struct vi_machine *m, uint32_t cpu);

/* ---- irq/: descriptors, domain, flow handlers ----------------------------------------------------------------------------- */

/* The descriptor of @irq, NULL past the table or when it is not allocated. */
struct vi_irq_desc *vi_irq_to_desc(struct vi_machine *m, uint32_t irq);
/* Allocate descriptor @irq with kernel defaults (depth 1, DISABLED and MASKED, bad flow). EEXIST, EINVAL. */
VI_MUST_CHECK int vi_irq_alloc_desc(struct vi_machine *m, uint32_t irq);
/* Free it: counters of the row return to 0, irqs_sum keeps what it had. EBUSY: an action is left. */
VI_MUST_CHECK int vi_irq_free_desc(struct vi_machine *m, uint32_t irq);
/* Set chip and flow handler (irq_set_chip_and_handler). @chip must outlive the descriptor; NULL: no_irq_chip. */
VI_MUST_CHECK int vi_irq_set_chip_and_flow(struct vi_machine *m, uint32_t irq, const struct vi_irq_chip *chip, uint32_t flow);
/* Change settings and the state bits that follow them (irq_modify_status). */
VI_MUST_CHECK int vi_irq_modify_settings(struct vi_machine *m, uint32_t irq, uint32_t clear, uint32_t set);
/* Set and clear IRQD state bits under the descriptor lock. */
VI_MUST_CHECK int vi_irq_modify_state(struct vi_machine *m, uint32_t irq, uint32_t clear, uint32_t set);
/* Append @action to the chain; @action must live until it was removed. First action: core state is reset as in __setup_irq. */
VI_MUST_CHECK int vi_irq_add_action(struct vi_machine *m, uint32_t irq, struct vi_irqaction *action);
/* Take @action out of the chain and wait until no CPU runs it. ENOENT; EDEADLK from inside an interrupt. */
VI_MUST_CHECK int vi_irq_remove_action(struct vi_machine *m, uint32_t irq, struct vi_irqaction *action);
/* depth 0, enable, STARTED, replay what came before (irq_startup). */
VI_MUST_CHECK int vi_irq_startup(struct vi_machine *m, uint32_t irq, uint32_t resend);
VI_MUST_CHECK int vi_irq_shutdown(struct vi_machine *m, uint32_t irq);
/* disable_irq_nosync. Return: the new depth. */
VI_MUST_CHECK int vi_irq_disable(struct vi_machine *m, uint32_t irq);
/* enable_irq. Return: the new depth, or -EPERM for an unbalanced enable (nothing changes; the caller warns). */
VI_MUST_CHECK int vi_irq_enable(struct vi_machine *m, uint32_t irq);
/* Wait until no CPU runs a handler of @irq (synchronize_irq). EDEADLK from inside an interrupt. */
VI_MUST_CHECK int vi_irq_synchronize(struct vi_machine *m, uint32_t irq);
/* enable_percpu_irq, disable_percpu_irq for @cpu. */
VI_MUST_CHECK int vi_irq_percpu_enable(struct vi_machine *m, uint32_t irq, uint32_t cpu, uint32_t on);
/* Let the flow handler of @irq run on @cpu (generic_handle_irq). EINVAL without descriptor. [cpu] */
VI_MUST_CHECK int vi_generic_handle_irq(struct vi_machine *m, uint32_t cpu, uint32_t irq);

/* Linear domain: bind @hwirq to @irq (revmap), or @irq 0 to unbind. ERANGE: hwirq past the domain; EBUSY: bound. */
VI_MUST_CHECK int vi_domain_map(struct vi_machine *m, uint32_t hwirq, uint32_t irq);
VI_MUST_CHECK int vi_domain_unmap(struct vi_machine *m, uint32_t hwirq);
/* The IRQ of @hwirq, 0 when unmapped (irq_find_mapping). [any] */
uint32_t vi_domain_find(struct vi_machine *m, uint32_t hwirq);
/* The CPU whose scans run this IRQ without a lock. Any other CPU takes the locked path. */
VI_MUST_CHECK int vi_irq_set_owner_cpu(struct vi_machine *m, uint32_t irq, uint32_t cpu);
/* Let the flow handler behind @hwirq run on @cpu (generic_handle_domain_irq). EINVAL when unmapped. [cpu] */
VI_MUST_CHECK int vi_generic_handle_domain_irq(struct vi_machine *m, uint32_t cpu, uint32_t hwirq);

/* ---- hyperv/: SynIC event flags and message slots ------------------------------------------------------------------------- */

/* Switch a CPU's SynIC on or off (what hv_synic_init and hv_synic_cleanup do to SCONTROL, SIMP, SIEFP and SINT2). */
VI_MUST_CHECK int vi_synic_enable(struct vi_machine *m, uint32_t cpu, uint32_t on);
/*
 * Set event flag @flag of @sint on @cpu. Return: 1 newly set (the SINT's vector was requested), 0 it was set already.
 * EINVAL: CPU, SINT or flag does not exist; ENXIO: that SynIC is off, the flag is untouched. [any]
 */
VI_MUST_CHECK int vi_synic_signal(struct vi_machine *m, uint32_t cpu, uint32_t sint, uint32_t flag);
/*
 * Put a message into the slot of @sint on @cpu. EAGAIN: the slot is busy, its pending bit is now set, try again after EOM;
 * EMSGSIZE: more than VI_MSG_PAYLOAD bytes; EINVAL, ENXIO as above. [any]
 */
VI_MUST_CHECK int vi_synic_post(struct vi_machine *m, uint32_t cpu, uint32_t sint, uint32_t type, const void *payload, uint32_t size);
/* EOM writes of @cpu so far: a host that has messages waiting looks at it. [any] */
uint64_t vi_synic_eom_count(struct vi_machine *m, uint32_t cpu);
/* The event flags of one SINT: VI_SINT_WORDS 64-bit words; and the message slot. NULL for a bad CPU or SINT. */
uint64_t *vi_synic_flags(struct vi_machine *m, uint32_t cpu, uint32_t sint);
struct vi_message *vi_synic_slot(struct vi_machine *m, uint32_t cpu, uint32_t sint);
/* Sub-steps of a scan, for who explores orders: claim one word (exchange with 0); run one claimed relid. [cpu] */
uint64_t vi_scan_claim_word(struct vi_machine *m, uint32_t cpu, uint32_t word);
VI_MUST_CHECK int vi_scan_dispatch(struct vi_machine *m, uint32_t cpu, uint32_t relid);
/* A whole scan of SINT2 without entry or message check. Return: flags claimed. [cpu] */
int vi_scan(struct vi_machine *m, uint32_t cpu);

/* ---- wire/: the ring (vmbus.md 1) ------------------------------------------------------------------------------------------ */
/* (ring section) */

/* ---- fs/: counters to text ------------------------------------------------------------------------------------------------- */
/* (seq section) */
