/* SPDX-License-Identifier: MIT */
/*
 * test_synic.c - SINTs with real threads: of several that set one flag, one requests the interrupt
 * (synic.md 16, row 61); a message that races with the guest's freeing of its slot is in the slot
 * or announced, never stranded (row 42); a requested vector and an EOM are always noticed, whatever
 * else is going on.
 */
#include "internals.h"

#include <stdio.h>
#include <time.h>

#define CHECK(cond) do { if (!(cond)) fail(#cond, __LINE__); } while (0)
#define STUCK_SECONDS 60
#define SINT 4
#define VECTOR 0x51
#define ROUNDS 3000
#define SIGNALLERS 3
#define MESSAGES 20000
#define REQUESTS 50000

struct rig {
	struct vi_machine *m;
	uint32_t round;			/* the signallers may set the flag of this round */
	uint32_t arrived[SIGNALLERS];	/* the round that each has done */
	uint32_t answered;		/* EOMs of CPU 1 */
	uint32_t edges;
	uint32_t done;
};

struct signaller {
	struct rig *rig;
	uint32_t n;
};

static void fail(const char *what, int line)
{
	fprintf(stderr, "test_synic.c:%d: %s\n", line, what);
	exit(1);
}

static uint64_t seconds(void)
{
	struct timespec t;

	CHECK(timespec_get(&t, TIME_UTC) == TIME_UTC);
	return (uint64_t)t.tv_sec;
}

static struct rig make_rig(void)
{
	const struct vi_config config = {
		.nr_cpus = 2, .nr_irqs_max = 1, .engine = VI_ENGINE_FAST, .simd = VI_SIMD_SCALAR,
		.arch = VI_ARCH_X86, .hyp_count = VI_HYP_MESSAGE, .channel_irqs = 1,
	};
	struct rig rig = { 0 };

	CHECK(vi_machine_create(&config, &rig.m) == 0);
	for (uint32_t c = 0; c < 2; c++) {
		CHECK(vi_synic_set_control(rig.m, c, 1) == 0);
		CHECK(vi_synic_set_simp(rig.m, c, 0x1001) == 0);
		CHECK(vi_synic_set_siefp(rig.m, c, 0x2001) == 0);
		CHECK(vi_synic_set_sint(rig.m, c, SINT, VECTOR) == 0);
	}
	return rig;
}

static void wait_for(const uint32_t *value, uint32_t expected)
{
	uint64_t start = seconds();

	for (uint32_t spins = 0; vi_load(value) != expected; spins++) {
		sched_yield();
		CHECK(spins % 1024 || seconds() - start < STUCK_SECONDS);
	}
}

/* ---- row 61 ---------------------------------------------------------------------------------- */

static void *signal_rounds(void *data)
{
	struct signaller *me = data;
	struct rig *rig = me->rig;

	for (uint32_t round = 1; round <= ROUNDS; round++) {
		int edge;

		wait_for(&rig->round, round);
		edge = vi_synic_signal(rig->m, 0, SINT, round % VI_SINT_FLAGS);
		CHECK(edge == 0 || edge == 1);
		__atomic_fetch_add(&rig->edges, (uint32_t)edge, __ATOMIC_SEQ_CST);
		vi_store(&rig->arrived[me->n], round);
	}
	return NULL;
}

static void test_one_of_many_requests_the_interrupt(void)
{
	struct rig rig = make_rig();
	struct signaller signallers[SIGNALLERS];
	pthread_t threads[SIGNALLERS];

	for (uint32_t i = 0; i < SIGNALLERS; i++) {
		signallers[i] = (struct signaller){ &rig, i };
		CHECK(!pthread_create(&threads[i], NULL, signal_rounds, &signallers[i]));
	}
	for (uint32_t round = 1; round <= ROUNDS; round++) {
		uint64_t *words = vi_synic_flags(rig.m, 0, SINT);
		uint32_t flag = round % VI_SINT_FLAGS;

		vi_store(&rig.round, round);
		for (uint32_t i = 0; i < SIGNALLERS; i++)
			wait_for(&rig.arrived[i], round);
		CHECK(vi_load(&rig.edges) == round);
		CHECK(vi_lapic_clear(rig.m, 0, VECTOR) == 1);
		CHECK(vi_lapic_clear(rig.m, 0, VECTOR) == 0);
		__atomic_fetch_and(&words[flag / 64], ~(1ull << (flag % 64)), __ATOMIC_SEQ_CST);
	}
	for (uint32_t i = 0; i < SIGNALLERS; i++)
		CHECK(!pthread_join(threads[i], NULL));
	vi_machine_destroy(rig.m);
}

/* ---- row 42 ---------------------------------------------------------------------------------- */

/* The host: posts in order; after EAGAIN it does nothing until EOM was written. */
static void *post_all(void *data)
{
	struct rig *rig = data;
	uint64_t start = seconds();

	for (uint32_t n = 1; n <= MESSAGES;) {
		uint64_t eom = vi_synic_eom_count(rig->m, 1);
		int result = vi_synic_deposit(rig->m, 1, SINT, 1, 0, &n, sizeof(n), 0);

		if (result == 1) {
			n++;
			continue;
		}
		CHECK(result == -EAGAIN);
		while (vi_synic_eom_count(rig->m, 1) == eom) {
			sched_yield();
			CHECK(seconds() - start < STUCK_SECONDS);
		}
	}
	return NULL;
}

static void test_no_message_is_stranded(void)
{
	struct rig rig = make_rig();
	struct vi_message *slot = vi_synic_slot(rig.m, 1, SINT);
	pthread_t host;

	CHECK(!pthread_create(&host, NULL, post_all, &rig));
	for (uint32_t n = 1; n <= MESSAGES; n++) {
		uint64_t start = seconds();
		uint32_t got;

		while (vi_load(&slot->type) == VI_MSG_NONE) {
			sched_yield();
			CHECK(seconds() - start < STUCK_SECONDS);
		}
		CHECK(slot->payload_size == sizeof(got));
		memcpy(&got, slot->payload, sizeof(got));
		CHECK(got == n);
		CHECK(vi_synic_eom(rig.m, 1, SINT, 1) == 0);
	}
	CHECK(!pthread_join(host, NULL));
	vi_machine_destroy(rig.m);
}

/* ---- notices --------------------------------------------------------------------------------- */

/* As wait_for(), but on the CPU: what is tested are windows of a few instructions. */
static void spin_for(const struct rig *rig, const uint32_t *value, uint32_t expected)
{
	for (uint32_t spins = 1; vi_load(value) != expected && !vi_load(&rig->done); spins++)
		if (spins % (1u << 16) == 0)
			sched_yield();
}

static void *request_all(void *data)
{
	struct rig *rig = data;

	/* each again only when it was taken, so that none merges */
	for (uint32_t n = 1; n <= REQUESTS; n++) {
		CHECK(vi_lapic_request(rig->m, 1, VECTOR) == 1);
		spin_for(rig, &rig->arrived[1], n);
	}
	return NULL;
}

static void *write_eoms(void *data)
{
	struct rig *rig = data;

	for (uint32_t n = 1; n <= REQUESTS; n++) {
		CHECK(vi_synic_write_eom(rig->m, 1) == 0);
		spin_for(rig, &rig->answered, n);
	}
	return NULL;
}

/* Another CPU that leaves notices all the time. */
static void *make_noise(void *data)
{
	struct rig *rig = data;

	while (!vi_load(&rig->done)) {
		CHECK(vi_synic_write_eom(rig->m, 0) == 0);
		for (uint32_t i = 0; i < 50; i++)
			vi_cpu_relax();
	}
	return NULL;
}

/* The owner's turn, as hyperv/triggers.py has it: without a notice of a kind, no look for it. */
static void look(struct rig *rig)
{
	uint64_t cpus[VI_CPU_WORDS];
	uint32_t what = vi_take_notices(rig->m, cpus);

	if (!(what & (VI_NOTICE_EOM | VI_NOTICE_EOI | VI_NOTICE_VECTOR)) || !(cpus[0] & 2))
		return;
	vi_store(&rig->answered, (uint32_t)vi_synic_eom_count(rig->m, 1));
	if (what & VI_NOTICE_VECTOR && vi_lapic_clear(rig->m, 1, VECTOR) == 1)
		vi_store(&rig->arrived[1], rig->arrived[1] + 1);
}

/*
 * CPU 1 does something, each time only when the owner has answered to the time before. Meanwhile
 * notices come from CPU 0, or from the owner's own writes of registers.
 */
static void test_notices(void *(*does)(void *), bool registers)
{
	struct rig rig = make_rig();
	const uint32_t *answered = does == request_all ? &rig.arrived[1] : &rig.answered;
	uint64_t start = seconds();
	pthread_t threads[2];

	CHECK(!pthread_create(&threads[0], NULL, does, &rig));
	CHECK(registers || !pthread_create(&threads[1], NULL, make_noise, &rig));
	for (uint32_t turn = 1; vi_load(answered) < REQUESTS; turn++) {
		CHECK(turn % 1024 || seconds() - start < STUCK_SECONDS);
		if (registers)
			CHECK(vi_synic_set_sint(rig.m, 0, 5, 0x10062) == 0);
		look(&rig);
	}
	vi_store(&rig.done, 1);
	for (uint32_t i = 0; i < (registers ? 1 : 2); i++)
		CHECK(!pthread_join(threads[i], NULL));
	vi_machine_destroy(rig.m);
}

int main(void)
{
	test_one_of_many_requests_the_interrupt();
	test_no_message_is_stranded();
	test_notices(request_all, false);
	test_notices(request_all, true);
	test_notices(write_eoms, false);
	test_notices(write_eoms, true);
	printf("test_synic: passed\n");
	return 0;
}
