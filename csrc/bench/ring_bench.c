/* SPDX-License-Identifier: MIT */
/*
 * ring_bench.c - timed loops over a ring: this core against its Linux-shaped twin and against bare
 * copies.
 *
 * Owns one ring of 512 KiB data that all contenders share (each starts at index 0, so none profits
 * from a warmer ring), a source and a sink. Readers touch the first 8 bytes of each payload. Every
 * run checks what arrived: the sum of the transaction ids and first words, and the last packet byte
 * by byte.
 *
 * Access rules: one run at a time per object; a pair run has its reading half on a thread of its
 * own that ends with the run.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "linux_shaped/ring_buffer.h"

#define VI_BENCH_DATA 524288
#define VI_BENCH_SPINS 4096	/* polls before a waiting thread offers its CPU */

/* The halves never share a cache line, or two threads would measure this struct. */
struct vi_ring_bench {
	struct vi_ring_mem mem;
	uint32_t payload;
	uint32_t batch;
	uint32_t sink_size;
	uint8_t *source;
	uint8_t *sink;
	uint64_t next_place;		/* of the bare copies */
	struct VI_ALIGNED {
		struct vi_ring_writer ring;
		struct vi_lx_ring lx;
		uint64_t next_id;
		struct vi_packet_out packets[VI_RING_BATCH];
	} out;
	struct VI_ALIGNED {
		struct vi_ring_reader ring;
		struct vi_lx_ring lx;
		uint64_t sum;		/* of ids and first words */
		uint64_t received;
		const uint8_t *last;	/* payload of the packet read last */
	} in;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/*
 * The word of a payload that readers touch; every buffer has 8 bytes, zeroes behind a shorter
 * payload.
 */
static inline uint64_t first_word(const uint8_t *payload)
{
	uint64_t word;

	__builtin_memcpy(&word, payload, 8);
	return word;
}

/* ---- writing halves: @n packets; Return: how many went in ------------------------------------ */

static uint32_t write_linux(struct vi_ring_bench *b, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++)
		if (vi_lx_sendpacket(&b->out.lx, b->source, b->payload, b->out.next_id + i, 0) < 0)
			break;
	b->out.next_id += i;
	return i;
}

static uint32_t write_single(struct vi_ring_bench *b, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++)
		if (vi_ring_write(&b->out.ring, VI_PKT_DATA_INBAND, 0, b->out.next_id + i,
				  b->source, b->payload) < 0)
			break;
	b->out.next_id += i;
	return i;
}

static uint32_t write_batch(struct vi_ring_bench *b, uint32_t n)
{
	uint32_t i, accepted;

	for (i = 0; i < n; i++)
		b->out.packets[i].trans_id = b->out.next_id + i;
	if (vi_ring_write_batch(&b->out.ring, b->out.packets, n, &accepted) < 0)
		return 0;
	b->out.next_id += accepted;
	return accepted;
}

/* ---- reading halves: up to a batch; Return: packets that came out ---------------------------- */

static inline void seen(struct vi_ring_bench *b, uint32_t n, uint64_t sum, const uint8_t *last)
{
	b->in.received += n;
	b->in.sum += sum;
	b->in.last = last;
}

static uint32_t read_linux(struct vi_ring_bench *b)
{
	const struct vi_lx_desc *desc;
	const uint8_t *payload = NULL;
	uint64_t sum = 0;
	uint32_t n = 0;

	for (desc = vi_lx_pkt_iter_first(&b->in.lx); desc;
	     desc = vi_lx_pkt_iter_next(&b->in.lx, desc)) {
		payload = (const uint8_t *)desc + desc->offset8 * 8u;
		sum += desc->trans_id + first_word(payload);
		if (++n == b->batch) {
			vi_lx_pkt_iter_skip(&b->in.lx, desc);
			break;
		}
	}
	if (n) {
		vi_lx_pkt_iter_close(&b->in.lx);
		seen(b, n, sum, payload);
	}
	return n;
}

static uint32_t read_copy(struct vi_ring_bench *b)
{
	struct vi_packet p;
	uint64_t sum = 0;
	uint32_t n = 0;
	int ret;

	for (ret = vi_ring_first(&b->in.ring, &p); ret > 0; ret = vi_ring_next(&b->in.ring, &p)) {
		sum += p.trans_id + first_word(p.payload);
		if (++n == b->batch) {
			vi_ring_skip(&b->in.ring);
			break;
		}
	}
	if (n) {
		vi_ring_close(&b->in.ring);
		seen(b, n, sum, p.payload);
	}
	return n;
}

static uint32_t read_view(struct vi_ring_bench *b)
{
	struct vi_packet p;
	uint64_t sum = 0;
	uint32_t n = 0;
	int ret;

	for (ret = vi_ring_first_view(&b->in.ring, &p); ret > 0;
	     ret = vi_ring_next_view(&b->in.ring, &p)) {
		sum += p.trans_id + first_word(p.payload);
		if (++n == b->batch) {
			vi_ring_skip(&b->in.ring);
			break;
		}
	}
	if (n) {
		seen(b, n, sum, p.payload);
		vi_ring_close(&b->in.ring);
	}
	return n;
}

/* ---- one thread ------------------------------------------------------------------------------ */

/* The limit: the payload copied in, then out, where a ring would have put it. */
static void copy_batch(struct vi_ring_bench *b)
{
	const uint32_t pitch = ((b->payload + 7) & ~7u) + VI_PKT_DESC + VI_PKT_TRAILER;
	uint64_t sum = 0;
	uint32_t i, at = (uint32_t)b->next_place;

	for (i = 0; i < b->batch; i++) {
		memcpy(b->mem.data + at + VI_PKT_DESC, b->source, b->payload);
		at = at + pitch >= VI_BENCH_DATA ? at + pitch - VI_BENCH_DATA : at + pitch;
	}
	at = (uint32_t)b->next_place;
	for (i = 0; i < b->batch; i++) {
		memcpy(b->sink, b->mem.data + at + VI_PKT_DESC, b->payload);
		sum += b->out.next_id++ + first_word(b->sink);
		at = at + pitch >= VI_BENCH_DATA ? at + pitch - VI_BENCH_DATA : at + pitch;
	}
	seen(b, b->batch, sum, b->sink);
	b->next_place = at;
}

static void move_batch(struct vi_ring_bench *b, uint32_t contender)
{
	switch (contender) {
	case VI_RING_BENCH_LINUX:
		write_linux(b, b->batch);
		read_linux(b);
		break;
	case VI_RING_BENCH_PACKET:
		write_single(b, b->batch);
		read_copy(b);
		break;
	case VI_RING_BENCH_BATCH:
		write_batch(b, b->batch);
		read_copy(b);
		break;
	case VI_RING_BENCH_VIEW:
		write_batch(b, b->batch);
		read_view(b);
		break;
	default:
		copy_batch(b);
		break;
	}
}

static int start(struct vi_ring_bench *b, uint32_t contender)
{
	int ret;

	if (contender >= VI_RING_CONTENDERS)
		return -EINVAL;
	vi_ring_reset(&b->mem);
	ret = vi_ring_writer_init(&b->out.ring, &b->mem, VI_RING_LINUX);
	if (ret)
		return ret;
	ret = vi_ring_reader_init(&b->in.ring, &b->mem, VI_RING_LINUX, b->sink, b->sink_size);
	if (ret)
		return ret;
	vi_lx_ring_init(&b->out.lx, &b->mem, NULL, 0);
	vi_lx_ring_init(&b->in.lx, &b->mem, b->sink, b->sink_size);
	memset(b->sink, 0, b->sink_size);
	b->out.next_id = 1;
	b->next_place = 0;
	b->in.sum = 0;
	b->in.received = 0;
	b->in.last = NULL;
	return 0;
}

static int verify(const struct vi_ring_bench *b, uint64_t packets)
{
	const uint64_t ids = packets * (packets + 1) / 2, words = packets * first_word(b->source);

	if (b->in.received != packets || b->in.sum != ids + words)
		return -EBADMSG;
	return memcmp(b->in.last, b->source, b->payload) ? -EBADMSG : 0;
}

/**
 * vi_ring_bench_create - memory for a workload
 * @payload: bytes per packet, 1 or more
 * @batch: packets written, then read
 * @out: the workload
 *
 * Return: 0; -EINVAL when payload or batch is empty, a batch is above VI_RING_BATCH or does not fit
 * the ring; -ENOMEM.
 */
int vi_ring_bench_create(uint32_t payload, uint32_t batch, struct vi_ring_bench **out)
{
	struct vi_ring_bench *b;
	uint32_t i;
	int ret;

	*out = NULL;
	if (payload == 0 || batch == 0 || batch > VI_RING_BATCH || payload > VI_BENCH_DATA / 2)
		return -EINVAL;
	if (batch * (((payload + 7) & ~7u) + VI_PKT_DESC + VI_PKT_TRAILER) >= VI_BENCH_DATA)
		return -EINVAL;
	b = aligned_alloc(VI_LINE, sizeof(*b));
	if (!b)
		return -ENOMEM;
	memset(b, 0, sizeof(*b));
	b->payload = payload;
	b->batch = batch;
	b->sink_size = (((payload + 7) & ~7u) + VI_PKT_DESC + 63) & ~63u;
	b->source = aligned_alloc(VI_LINE, b->sink_size);
	b->sink = aligned_alloc(VI_LINE, b->sink_size);
	ret = b->source && b->sink ? vi_ring_mem_create(VI_BENCH_DATA + VI_RING_HDR, &b->mem) :
				     -ENOMEM;
	if (ret) {
		vi_ring_bench_destroy(b);
		return ret;
	}
	memset(b->source, 0, b->sink_size);
	for (i = 0; i < payload; i++)
		b->source[i] = (uint8_t)(i * 31 + 7);
	for (i = 0; i < batch; i++)
		b->out.packets[i] = (struct vi_packet_out){ .type = VI_PKT_DATA_INBAND,
							    .len = payload,
							    .payload = b->source };
	*out = b;
	return 0;
}

/**
 * vi_ring_bench_destroy - free a workload
 * @b: from vi_ring_bench_create(), or NULL
 */
void vi_ring_bench_destroy(struct vi_ring_bench *b)
{
	if (!b)
		return;
	vi_ring_mem_destroy(&b->mem);
	free(b->source);
	free(b->sink);
	free(b);
}

/**
 * vi_ring_bench_run - move packets on this thread: write a batch, read it, again
 * @b: the workload
 * @contender: enum vi_ring_contender
 * @packets: rounded up to whole batches
 * @ns: time taken, check excluded
 *
 * Return: 0; -EINVAL for a contender that does not exist; -EBADMSG if a packet was lost or altered.
 */
int vi_ring_bench_run(struct vi_ring_bench *b, uint32_t contender, uint32_t packets, uint64_t *ns)
{
	const uint32_t batches = packets / b->batch + (packets % b->batch != 0);
	uint64_t begin;
	int ret = start(b, contender);

	*ns = 0;
	if (ret)
		return ret;
	begin = now_ns();
	for (uint32_t i = 0; i < batches; i++)
		move_batch(b, contender);
	*ns = now_ns() - begin;
	return batches ? verify(b, (uint64_t)batches * b->batch) : 0;
}

/* ---- two threads ----------------------------------------------------------------------------- */

struct vi_bench_half {
	struct vi_ring_bench *b;
	uint32_t contender;
	uint32_t cpu;
	uint64_t packets;
	uint32_t ready;		/* 1 polling, 2 could not be pinned */
	uint64_t end_ns;
};

static int pin(uint32_t cpu)
{
	cpu_set_t set;

	if (cpu >= CPU_SETSIZE)
		return EINVAL;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

static inline void wait_a_little(uint32_t *spins)
{
	if (++*spins % VI_BENCH_SPINS == 0)
		sched_yield();
#if defined(__x86_64__)
	__builtin_ia32_pause();
#endif
}

static void *reading_half(void *arg)
{
	struct vi_bench_half *half = arg;
	struct vi_ring_bench *b = half->b;
	uint32_t n, spins = 0;

	if (pin(half->cpu)) {
		__atomic_store_n(&half->ready, 2, __ATOMIC_RELEASE);
		return NULL;
	}
	__atomic_store_n(&half->ready, 1, __ATOMIC_RELEASE);
	while (b->in.received < half->packets) {
		if (half->contender == VI_RING_BENCH_LINUX)
			n = read_linux(b);
		else if (half->contender == VI_RING_BENCH_VIEW)
			n = read_view(b);
		else
			n = read_copy(b);
		if (n == 0)
			wait_a_little(&spins);
	}
	half->end_ns = now_ns();
	return NULL;
}

static void writing_half(struct vi_ring_bench *b, uint32_t contender, uint64_t packets)
{
	uint32_t n, spins = 0;

	while (b->out.next_id <= packets) {
		n = packets - b->out.next_id + 1 < b->batch ?
			    (uint32_t)(packets - b->out.next_id + 1) :
			    b->batch;
		if (contender == VI_RING_BENCH_LINUX)
			n = write_linux(b, n);
		else if (contender == VI_RING_BENCH_PACKET)
			n = write_single(b, n);
		else
			n = write_batch(b, n);
		if (n == 0)
			wait_a_little(&spins);
	}
}

static int run_pair(struct vi_ring_bench *b, struct vi_bench_half *half, uint64_t *ns)
{
	pthread_t thread;
	uint64_t begin;
	uint32_t ready, spins = 0;
	int ret = pthread_create(&thread, NULL, reading_half, half);

	if (ret)
		return -ret;
	while (!(ready = __atomic_load_n(&half->ready, __ATOMIC_ACQUIRE)))
		wait_a_little(&spins);
	begin = now_ns();
	if (ready == 1)
		writing_half(b, half->contender, half->packets);
	pthread_join(thread, NULL);
	if (ready != 1)
		return -EINVAL;
	*ns = half->end_ns - begin;
	return 0;
}

/**
 * vi_ring_bench_pair - move packets from this thread to another one
 * @b: the workload
 * @contender: any but VI_RING_BENCH_MEMCPY
 * @packets: at least this many
 * @cpu_writer: where this thread runs meanwhile
 * @cpu_reader: where the other one runs
 * @ns: from the first write to the last read
 *
 * Times of two threads say something about the placement of the two CPUs first: compare them inside
 * one round only.
 *
 * Return: 0; -EINVAL for a contender without two ends or a CPU that this process may not use;
 * -EBADMSG as vi_ring_bench_run(); errno of pthread_create().
 */
int vi_ring_bench_pair(struct vi_ring_bench *b, uint32_t contender, uint32_t packets,
		       uint32_t cpu_writer, uint32_t cpu_reader, uint64_t *ns)
{
	struct vi_bench_half half = { .b = b, .contender = contender, .cpu = cpu_reader };
	cpu_set_t before;
	int ret;

	*ns = 0;
	if (contender == VI_RING_BENCH_MEMCPY)
		return -EINVAL;
	ret = start(b, contender);
	if (ret)
		return ret;
	half.packets = ((uint64_t)packets + b->batch - 1) / b->batch * b->batch;
	if (half.packets == 0)
		return 0;
	ret = pthread_getaffinity_np(pthread_self(), sizeof(before), &before);
	if (ret)
		return -ret;
	ret = pin(cpu_writer);
	if (ret)
		return -ret;
	ret = run_pair(b, &half, ns);
	pthread_setaffinity_np(pthread_self(), sizeof(before), &before);
	if (ret)
		return ret;
	return verify(b, half.packets);
}
