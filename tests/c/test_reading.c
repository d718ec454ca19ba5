/* SPDX-License-Identifier: MIT */
/*
 * test_reading.c - the driver's own readers with somebody who looks: hosts that write nonsense, for
 * the address sanitizer; a host, two CPUs and a control plane at once, for the thread sanitizer.
 *
 * 	test_reading [packets, default 200000]
 */
#include "wire/ring_inline.h"
#include "synic.h"

#include <stdio.h>
#include <time.h>

#define CHECK(cond) do { if (!(cond)) fail(#cond, __LINE__); } while (0)
#define CPUS 2
#define RELID 5
#define RING_BYTES (4096 * 3)
#define STUCK_SECONDS 60
#define NONSENSE_ROUNDS 3000

static void fail(const char *what, int line)
{
	fprintf(stderr, "test_reading.c:%d: %s\n", line, what);
	exit(1);
}

static uint64_t seconds(void)
{
	struct timespec t;

	CHECK(timespec_get(&t, TIME_UTC) == TIME_UTC);
	return (uint64_t)t.tv_sec;
}

/* ---- rig ------------------------------------------------------------------------------------- */

struct rig {
	struct vi_machine *m;
	struct vi_channel *ch;
	struct vi_vsp *vsp;
	struct vi_ring_mem in, out;
	/* what the hook got; it runs where the callback runs, one at a time */
	struct vi_ring_tally attended;
	uint64_t special;
	/* the threads */
	uint64_t total;
	uint64_t sent_special;
	uint64_t sent_checksum;
	uint32_t host_done;
	uint32_t stop;
};

/* Every byte that a packet points to is there. */
static void take_packet(struct vi_cpu *cpu, void *handle, const struct vi_packet *p)
{
	struct rig *rig = handle;
	uint32_t sum = 0;

	CHECK(vi_cpu_id(cpu) < CPUS);
	CHECK(p->offset8 >= VI_PKT_DESC / 8 && p->offset8 <= p->len8);
	CHECK(p->payload == p->desc + p->offset8 * 8u);
	CHECK(p->payload_len == (p->len8 - p->offset8) * 8u);
	CHECK(p->desc == vi_channel_in(rig->ch)->pkt_buffer);
	for (uint32_t i = 0; i < p->len8 * 8u; i++)
		sum += p->desc[i];
	CHECK(sum < UINT32_MAX);
	rig->special += vi_ring_special(p);
	vi_ring_add(&rig->attended, p);
}

static void open_rig(struct rig *rig, uint32_t engine, uint32_t mode, uint32_t callback)
{
	const struct vi_config config = {
		.nr_cpus = CPUS,
		.nr_irqs_max = 8,
		.engine = engine,
		.simd = VI_SIMD_BEST,
		.seed = 1,
	};
	const struct vi_hooks hooks = { .packet = take_packet };

	memset(rig, 0, sizeof(*rig));
	CHECK(vi_machine_create(&config, &rig->m) == 0);
	vi_machine_set_hooks(rig->m, &hooks);
	for (uint32_t c = 0; c < CPUS; c++)
		CHECK(switch_synic(rig->m, c, 1) == 0);
	CHECK(vi_ring_mem_create(RING_BYTES, &rig->in) == 0 &&
	      vi_ring_mem_create(RING_BYTES, &rig->out) == 0);
	CHECK(vi_channel_create(rig->m, RELID, mode, &rig->ch) == 0);
	CHECK(vi_channel_set_rings(rig->ch, &rig->in, &rig->out, 512) == 0);
	CHECK(vi_vsp_create(rig->m, RELID, &rig->in, &rig->out, &rig->vsp) == 0);
	CHECK(vi_channel_map(rig->ch, 0) == 0);
	CHECK(vi_channel_set_callback(rig->ch, callback, NULL, NULL) == 0);
}

static void close_rig(struct rig *rig)
{
	CHECK(vi_channel_set_callback(rig->ch, VI_CALLBACK_NONE, NULL, NULL) == 0);
	CHECK(vi_channel_unmap(rig->ch) == 0);
	vi_channel_destroy(rig->ch);
	vi_vsp_destroy(rig->vsp);
	vi_ring_mem_destroy(&rig->in);
	vi_ring_mem_destroy(&rig->out);
	vi_machine_destroy(rig->m);
}

static const struct kind {
	uint32_t mode, callback;
} kinds[] = {
	{ VI_CALL_ISR, VI_CALLBACK_DRAIN },	{ VI_CALL_BATCHED, VI_CALLBACK_DRAIN },
	{ VI_CALL_DIRECT, VI_CALLBACK_DRAIN },	{ VI_CALL_ISR, VI_CALLBACK_NAPI },
	{ VI_CALL_DIRECT, VI_CALLBACK_UTIL },	{ VI_CALL_BATCHED, VI_CALLBACK_UTIL },
	{ VI_CALL_ISR, VI_CALLBACK_UTIL },
};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

/* A heartbeat request as it lies in a packet. */
struct __attribute__((packed)) heartbeat {
	struct vi_pipe_header pipe;
	struct vi_ic_header ic;
	struct vi_ic_heartbeat body;
};

static struct heartbeat heartbeat(uint64_t seq_num)
{
	return (struct heartbeat){
		.pipe = { VI_PIPE_DATA, sizeof(struct heartbeat) - sizeof(struct vi_pipe_header) },
		.ic = {
			.type = VI_IC_HEARTBEAT,
			.size = sizeof(struct vi_ic_heartbeat),
			.flags = VI_IC_TRANSACTION | VI_IC_REQUEST,
		},
		.body.seq_num = seq_num,
	};
}

/* ---- one thread ------------------------------------------------------------------------------ */

/* A ring full of anything, and of heartbeats whose lengths and types were drawn anew. */
static void nonsense(struct rig *rig, uint64_t *seed)
{
	for (uint32_t i = 0; i < rig->in.data_size; i += 8) {
		uint64_t word = vi_random(seed);

		/* mostly lengths that could be */
		if (word & 1)
			word &= 0x0001001f0003000f;
		vi_ring_store64(rig->in.data + i, word);
	}
	for (uint32_t i = 0; i < 32; i++) {
		const uint32_t at = (uint32_t)(vi_random(seed) % (rig->in.data_size / 8) * 8);
		struct heartbeat h = heartbeat(vi_random(seed));
		uint64_t dice = vi_random(seed);

		if (dice & 1)
			h.pipe.msgsize = (uint32_t)(vi_random(seed) >> (dice / 2 % 64));
		if (dice & 256)
			h.ic.type = (uint16_t)(dice / 512 % 9);
		vi_ring_store64(rig->in.data + at, 6 | 2 << 16 | (dice / 8192 % 16) << 32);
		memcpy(rig->in.data + at + VI_PKT_DESC, &h, sizeof(h));	/* mapped twice */
	}
	vi_store(&rig->in.hdr->write_index, (uint32_t)(vi_random(seed) % rig->in.data_size) & ~7u);
}

static void test_nonsense(uint32_t engine)
{
	uint64_t attended = 0, replies = 0, seed = 7;

	for (uint32_t k = 0; k < KINDS; k++) {
		struct vi_channel_stats got;
		struct rig rig;

		open_rig(&rig, engine, kinds[k].mode, kinds[k].callback);
		for (uint32_t i = 0; i < NONSENSE_ROUNDS / KINDS; i++) {
			CHECK(vi_channel_set_attention(rig.ch, i % 3, &rig) == 0);
			nonsense(&rig, &seed);
			CHECK(vi_synic_signal(rig.m, i % CPUS, VI_SINT_VMBUS, RELID) == 1);
			CHECK(vi_machine_settle(rig.m) > 0);
			CHECK(vi_vsp_drain(rig.vsp) >= 0);
		}
		vi_channel_get_stats(rig.ch, &got);
		CHECK(got.attended == rig.attended.packets);
		CHECK(got.packets > 0 && got.resyncs > 0);
		attended += got.attended;
		replies += got.replies;
		close_rig(&rig);
	}
	CHECK(attended > 0 && replies > 0);
}

/* Refused while it runs, and for a mode that is none. */
static void change_inside(struct vi_cpu *cpu, void *handle, const struct vi_packet *p)
{
	struct rig *rig = handle;

	(void)cpu;
	(void)p;
	rig->special++;
	CHECK(vi_channel_set_attention(rig->ch, VI_ATTENTION_NONE, NULL) == -EDEADLK);
}

static void test_refusals(uint32_t engine)
{
	const struct vi_hooks hooks = { .packet = change_inside };
	struct rig rig;

	open_rig(&rig, engine, VI_CALL_ISR, VI_CALLBACK_DRAIN);
	vi_machine_set_hooks(rig.m, &hooks);
	CHECK(vi_channel_set_attention(rig.ch, VI_ATTENTION_ALL + 1, &rig) == -EINVAL);
	CHECK(vi_channel_set_attention(rig.ch, VI_ATTENTION_ALL, &rig) == 0);
	CHECK(vi_vsp_send(rig.vsp, 3, 8) == 3 && vi_machine_settle(rig.m) == 1);
	CHECK(rig.special == 3);
	close_rig(&rig);
}

/* ---- threads --------------------------------------------------------------------------------- */

struct vcpu {
	struct rig *rig;
	uint32_t id;
};

static void *run_vcpu(void *arg)
{
	struct vcpu *v = arg;

	while (!vi_load(&v->rig->stop))
		if (vi_vcpu_run(v->rig->m, v->id) == 0)
			sched_yield();
	return NULL;
}

static void send_special(struct rig *rig)
{
	const uint64_t word = rig->sent_special;
	uint64_t since = seconds();
	int signal;

	while ((signal = vi_ring_write(vi_vsp_in(rig->vsp), VI_PKT_COMP, 0, word, &word, 8)) ==
	       -EAGAIN) {
		CHECK(vi_vsp_drain(rig->vsp) >= 0);
		CHECK(vi_vsp_signal(rig->vsp) >= 0);
		CHECK(seconds() - since < STUCK_SECONDS);
		sched_yield();
	}
	CHECK(signal >= 0);
	if (signal)
		CHECK(vi_vsp_signal(rig->vsp) >= 0);
	rig->sent_special++;
	rig->sent_checksum += 2 * word;
}

static void *run_host(void *arg)
{
	struct rig *rig = arg;
	uint64_t seed = 2, since = seconds();

	for (uint64_t done = 0; done < rig->total;) {
		uint64_t dice = vi_random(&seed);
		int64_t sent = vi_vsp_send(rig->vsp, 1 + dice % 8, 0);

		CHECK(sent >= 0 && vi_vsp_drain(rig->vsp) >= 0);
		if (sent) {
			since = seconds();
		} else {
			CHECK(vi_vsp_signal(rig->vsp) >= 0);	/* the linux engine drops some */
			CHECK(seconds() - since < STUCK_SECONDS);
			sched_yield();
		}
		done += (uint64_t)sent;
		if (dice % 16 == 0)
			send_special(rig);
	}
	vi_store(&rig->host_done, 1);
	return NULL;
}

static void *run_control(void *arg)
{
	struct rig *rig = arg;
	uint64_t seed = 3;

	while (!vi_load(&rig->host_done)) {
		uint64_t dice = vi_random(&seed);

		CHECK(vi_channel_set_attention(rig->ch, (uint32_t)(dice % 3), rig) == 0);
		if (dice & 8) {
			CHECK(vi_channel_set_cpu(rig->ch, (uint32_t)(dice / 16 % CPUS)) == 0);
			CHECK(vi_vsp_set_target(rig->vsp, (uint32_t)(dice / 16 % CPUS)) == 0);
		}
		sched_yield();
	}
	return NULL;
}

/*
 * Each packet was added up once, those that somebody attended to as well; each answer was read or
 * found the ring full.
 */
static void check_account(struct rig *rig, const struct kind *kind)
{
	struct vi_channel_stats got;
	struct vi_vsp_stats sent;

	CHECK(vi_vsp_signal(rig->vsp) >= 0 && vi_machine_settle(rig->m) >= 0);
	CHECK(vi_vsp_drain(rig->vsp) >= 0);
	vi_channel_get_stats(rig->ch, &got);
	vi_vsp_get_stats(rig->vsp, &sent);
	CHECK(got.attended == rig->attended.packets && rig->special <= rig->sent_special);
	CHECK(got.packets == sent.packets + rig->sent_special);
	CHECK(got.bytes == sent.bytes + 8 * rig->sent_special);
	CHECK(got.checksum == sent.checksum + rig->sent_checksum);
	CHECK(got.resyncs == 0 && got.replies == sent.responses);
	CHECK(got.replies + got.replies_dropped <= sent.packets);
	CHECK(kind->callback == VI_CALLBACK_UTIL || got.replies == 0);
	CHECK(rig->in.hdr->interrupt_mask == 0);
}

static void test_threads(uint32_t engine, const struct kind *kind, uint64_t total)
{
	const struct heartbeat h = heartbeat(1);
	pthread_t vcpu[CPUS], host, control;
	struct vcpu v[CPUS];
	struct rig rig;

	open_rig(&rig, engine, kind->mode, kind->callback);
	rig.total = total;
	CHECK(vi_vsp_set_template(rig.vsp, &h, sizeof(h)) == 0);
	for (uint32_t c = 0; c < CPUS; c++) {
		v[c] = (struct vcpu){ .rig = &rig, .id = c };
		CHECK(pthread_create(&vcpu[c], NULL, run_vcpu, &v[c]) == 0);
	}
	CHECK(pthread_create(&host, NULL, run_host, &rig) == 0);
	CHECK(pthread_create(&control, NULL, run_control, &rig) == 0);
	CHECK(pthread_join(host, NULL) == 0 && pthread_join(control, NULL) == 0);
	vi_store(&rig.stop, 1);
	for (uint32_t c = 0; c < CPUS; c++)
		CHECK(pthread_join(vcpu[c], NULL) == 0);
	check_account(&rig, kind);
	close_rig(&rig);
}

int main(int argc, char **argv)
{
	const uint64_t total = argc > 1 ? strtoull(argv[1], NULL, 10) : 200000;

	for (uint32_t engine = VI_ENGINE_FAST; engine <= VI_ENGINE_LINUX; engine++) {
		test_nonsense(engine);
		test_refusals(engine);
		for (uint32_t k = 0; k < KINDS; k++)
			test_threads(engine, &kinds[k], total / (2 * KINDS));
	}
	printf("test_reading: ok\n");
	return 0;
}
