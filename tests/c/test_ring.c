/* SPDX-License-Identifier: MIT */
/*
 * test_ring.c - the ring by itself: layout, sizes, borders, signalling, a twin that must understand
 * it, and two threads that only talk through it.
 *
 * 	test_ring [packets]
 *
 * The two threads sleep and wake by the ring's own rules alone, so that a lost signal is a hang;
 * the alarm turns it into a failure. Prints one line per failed check and exits 1.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#include "linux_shaped/ring_buffer.h"
#include "wire/ring_inline.h"

#define STRESS_PACKETS 200000
#define STRESS_SECONDS_MAX 1800
#define STRESS_RING 20480	/* small enough to wrap and fill all the time */

static int failures;

#define CHECK(expected, actual) check(__LINE__, #actual, (long long)(expected), (long long)(actual))

static void check(int line, const char *what, long long expected, long long actual)
{
	if (expected == actual)
		return;
	failures++;
	fprintf(stderr, "test_ring.c:%d: %s is %lld, not %lld\n", line, what, actual, expected);
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static uint32_t word_at(const struct vi_ring_mem *mem, uint32_t at)
{
	uint32_t word;

	memcpy(&word, mem->data + at, sizeof(word));
	return word;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void memory_is_whole_pages_mapped_twice(void)
{
	static const uint32_t bad[] = {
		0, 1, 4095, 4096, 4097, 8191, 8193, 12289, VI_RING_BYTES_MAX + 4096, UINT32_MAX
	};
	struct vi_ring_mem mem;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		CHECK(-EINVAL, vi_ring_mem_create(bad[i], &mem));
		CHECK(true, mem.map == NULL);
	}
	CHECK(0, vi_ring_mem_create(VI_RING_BYTES_MIN, &mem));
	CHECK(VI_RING_BYTES_MIN, mem.bytes);
	CHECK(4096, mem.data_size);
	CHECK(true, (uint8_t *)mem.hdr + VI_RING_HDR == mem.data);
	CHECK(1, mem.hdr->feature_bits);
	CHECK(0, mem.hdr->write_index | mem.hdr->read_index | mem.hdr->interrupt_mask |
			 mem.hdr->pending_send_sz);
	mem.data[0] = 0x5a;
	mem.data[2 * 4096 - 1] = 0xa5;
	CHECK(0x5a, mem.data[4096]);
	CHECK(0xa5, mem.data[4095]);
	mem.hdr->interrupt_mask = 1;
	vi_ring_reset(&mem);
	CHECK(0, mem.hdr->interrupt_mask);
	vi_ring_mem_destroy(&mem);
	vi_ring_mem_destroy(&mem);
	CHECK(true, mem.map == NULL);
}

struct ring {
	struct vi_ring_mem mem;
	struct vi_ring_writer w;
	struct vi_ring_reader r;
	uint8_t buffer[65536];
};

static struct ring *open_ring(uint32_t bytes, uint32_t rules)
{
	struct ring *ring = malloc(sizeof(*ring));

	VI_BUG_ON(!ring);
	CHECK(0, vi_ring_mem_create(bytes, &ring->mem));
	CHECK(0, vi_ring_writer_init(&ring->w, &ring->mem, rules));
	CHECK(0,
	      vi_ring_reader_init(&ring->r, &ring->mem, rules, ring->buffer, sizeof(ring->buffer)));
	return ring;
}

static void close_ring(struct ring *ring)
{
	vi_ring_mem_destroy(&ring->mem);
	free(ring);
}

/* ---- one end after the other ----------------------------------------------------------------- */

static void sizes_are_those_of_the_check_values(void)
{
	struct ring *ring = open_ring(VI_RING_HDR + 12288, VI_RING_LINUX);
	const uint8_t payload[100] = { 1, 2, 3 };

	CHECK(1, vi_ring_write(&ring->w, VI_PKT_DATA_INBAND, 0, 0x1122334455667788, payload, 100));
	CHECK(128, ring->mem.hdr->write_index);
	CHECK(2 << 16 | 6, word_at(&ring->mem, 0));
	CHECK(15, word_at(&ring->mem, 4));
	CHECK(0x55667788, word_at(&ring->mem, 8));
	CHECK(0, word_at(&ring->mem, 116));
	CHECK(0, word_at(&ring->mem, 120));
	CHECK(0, word_at(&ring->mem, 124));
	CHECK(0, vi_ring_write(&ring->w, VI_PKT_COMP, 1, 0, NULL, 0));
	CHECK(152, ring->mem.hdr->write_index);
	CHECK(1 << 16 | 2, word_at(&ring->mem, 132));
	CHECK(0, word_at(&ring->mem, 144));
	CHECK(128, word_at(&ring->mem, 148));
	CHECK(152, vi_ring_bytes_to_read(ring->mem.hdr, 12288));
	CHECK(12288 - 152, vi_ring_bytes_to_write(ring->mem.hdr, 12288));
	close_ring(ring);
}

static void a_packet_must_leave_a_unit_free(void)
{
	struct ring *ring = open_ring(VI_RING_BYTES_MIN, VI_RING_LINUX);
	const uint8_t payload[4096] = { 0 };
	uint32_t actual;

	CHECK(-EAGAIN, vi_ring_write(&ring->w, VI_PKT_DATA_INBAND, 0, 0, payload, 4096 - 24));
	CHECK(1, ring->w.out_full_first);
	CHECK(1, vi_ring_write(&ring->w, VI_PKT_DATA_INBAND, 0, 0, payload, 4096 - 32));
	CHECK(-EAGAIN, vi_ring_write(&ring->w, VI_PKT_DATA_INBAND, 0, 0, NULL, 0));
	CHECK(-EAGAIN, vi_ring_write(&ring->w, VI_PKT_DATA_INBAND, 0, 0, NULL, 0));
	CHECK(2, ring->w.out_full_first);
	CHECK(3, ring->w.out_full_total);
	CHECK(-ENOBUFS, vi_ring_read(&ring->r, ring->buffer, 4063, false, &actual, NULL));
	CHECK(4064, actual);
	CHECK(0, vi_ring_read(&ring->r, ring->buffer, 4064, false, &actual, NULL));
	CHECK(1, vi_ring_write(&ring->w, VI_PKT_DATA_INBAND, 0, 0, payload, 4096 - 32));
	CHECK(8 * 510, ring->mem.hdr->write_index);
	close_ring(ring);
}

static void what_the_format_cannot_say_is_refused(void)
{
	struct ring *ring = open_ring(VI_RING_HDR + 1048576, VI_RING_LINUX);
	uint8_t *payload = calloc(1, VI_PKT_LEN_MAX);
	struct vi_packet_out gpa = { .type = VI_PKT_DATA_USING_GPA_DIRECT,
				     .flags = 1,
				     .payload = payload,
				     .desc_ext = payload };

	VI_BUG_ON(!payload);
	for (uint32_t type = 0; type < 16; type++)
		CHECK(type == VI_PKT_DATA_INBAND || type == VI_PKT_COMP ? 1 : -EINVAL, ({
			vi_ring_reset(&ring->mem);
			CHECK(0, vi_ring_writer_init(&ring->w, &ring->mem, VI_RING_LINUX));
			vi_ring_write(&ring->w, type, 0, 0, NULL, 0);
		}));
	CHECK(-EINVAL, vi_ring_write(&ring->w, VI_PKT_DATA_INBAND, 2, 0, NULL, 0));
	CHECK(-EINVAL, vi_ring_write(&ring->w, VI_PKT_DATA_INBAND | 65536, 0, 0, NULL, 0));
	CHECK(-EINVAL, vi_ring_write(&ring->w, VI_PKT_DATA_INBAND, 65536, 0, NULL, 0));
	CHECK(-EMSGSIZE,
	      vi_ring_write(&ring->w, VI_PKT_DATA_INBAND, 0, 0, payload, VI_PKT_LEN_MAX - 15));
	CHECK(-EMSGSIZE, vi_ring_write(&ring->w, VI_PKT_DATA_INBAND, 0, 0, payload, UINT32_MAX));
	CHECK(1, vi_ring_write(&ring->w, VI_PKT_DATA_INBAND, 0, 0, payload, VI_PKT_LEN_MAX - 16));
	CHECK(-EINVAL, vi_ring_write_packet(&ring->w, &gpa));
	gpa.desc_ext_len = 12;
	CHECK(-EINVAL, vi_ring_write_packet(&ring->w, &gpa));
	gpa.desc_ext_len = 1ull << 40;
	CHECK(-EMSGSIZE, vi_ring_write_packet(&ring->w, &gpa));
	gpa.desc_ext_len = 24;
	CHECK(0, vi_ring_write_packet(&ring->w, &gpa));
	CHECK(5 << 16 | 9, word_at(&ring->mem, ring->w.old_write));
	free(payload);
	close_ring(ring);
}

static void a_batch_is_published_and_signalled_once(void)
{
	struct ring *ring = open_ring(VI_RING_BYTES_MIN, VI_RING_LINUX);
	struct vi_packet_out packets[300];
	struct vi_ring_tally tally = { 0 };
	uint32_t accepted;

	for (uint32_t i = 0; i < 300; i++)
		packets[i] = (struct vi_packet_out){ .type = VI_PKT_DATA_INBAND, .trans_id = i };
	CHECK(0, vi_ring_write_batch(&ring->w, packets, 0, &accepted));
	CHECK(0, accepted);
	CHECK(0, ring->mem.hdr->write_index);
	CHECK(1, vi_ring_write_batch(&ring->w, packets, 3, &accepted));
	CHECK(3, accepted);
	CHECK(0, vi_ring_write_batch(&ring->w, packets, 300, &accepted));
	CHECK(4096 / 24 - 3, accepted);
	CHECK(-EAGAIN, vi_ring_write_batch(&ring->w, packets, 300, &accepted));
	CHECK(0, accepted);
	CHECK(1, ring->w.intr_out_empty);
	CHECK(0, vi_ring_drain(&ring->r, 1000, &tally));
	CHECK(4096 / 24, tally.packets);
	packets[1].type = 0;
	CHECK(1, vi_ring_write_batch(&ring->w, packets, 3, &accepted));
	CHECK(1, accepted);
	CHECK(-EINVAL, vi_ring_write_batch(&ring->w, packets + 1, 2, &accepted));
	close_ring(ring);
}

static void a_waiting_writer_is_signalled_once(void)
{
	struct ring *ring = open_ring(VI_RING_HDR + 16384, VI_RING_LINUX);
	uint8_t payload[4000] = { 0 };
	const int want[] = { 0, 1, 0, 0 };
	uint32_t actual;

	for (int i = 0; i < 4; i++)
		CHECK(i == 0, vi_ring_write(&ring->w, VI_PKT_DATA_INBAND, 0, 0, payload, 4000));
	CHECK(-EAGAIN, vi_ring_write(&ring->w, VI_PKT_DATA_INBAND, 0, 0, payload, 4000));
	CHECK(0, vi_ring_set_pending_send_size(&ring->w, 8048));
	for (int i = 0; i < 4; i++)
		CHECK(want[i],
		      vi_ring_read(&ring->r, payload, sizeof(payload), false, &actual, NULL));
	CHECK(1, ring->r.intr_in_full);
	close_ring(ring);
}

static void masked_readers_are_left_alone(void)
{
	struct ring *ring = open_ring(VI_RING_BYTES_MIN, VI_RING_STRICT);
	struct vi_ring_tally tally = { 0 };

	vi_ring_begin_read(&ring->r);
	CHECK(0, vi_ring_write(&ring->w, VI_PKT_DATA_INBAND, 0, 0, NULL, 0));
	CHECK(24, vi_ring_end_read(&ring->r));
	vi_ring_begin_read(&ring->r);
	CHECK(0, vi_ring_drain(&ring->r, 10, &tally));
	CHECK(0, vi_ring_end_read(&ring->r));
	CHECK(1, vi_ring_write(&ring->w, VI_PKT_DATA_INBAND, 0, 0, NULL, 0));
	close_ring(ring);
}

static void steps_and_whole_paths_do_the_same(void)
{
	struct ring *ring = open_ring(VI_RING_BYTES_MIN, VI_RING_LINUX);
	const struct vi_packet_out packet = { .type = VI_PKT_DATA_INBAND, .trans_id = 9 };
	struct vi_packet p;

	CHECK(0, vi_ring_publish(&ring->w));
	CHECK(0, vi_ring_must_signal(&ring->w));
	CHECK(0, vi_ring_put(&ring->w, &packet));
	CHECK(0, vi_ring_first(&ring->r, &p));
	CHECK(1, vi_ring_publish(&ring->w));
	CHECK(1, vi_ring_must_signal(&ring->w));
	CHECK(1, vi_ring_first(&ring->r, &p));
	CHECK(1, vi_ring_first_view(&ring->r, &p));
	CHECK(9, p.trans_id);
	CHECK(0, vi_ring_publish_read(&ring->r));
	vi_ring_skip(&ring->r);
	vi_ring_skip(&ring->r);
	CHECK(0, ring->mem.hdr->read_index);
	CHECK(1, vi_ring_publish_read(&ring->r));
	CHECK(24, ring->mem.hdr->read_index);
	CHECK(0, vi_ring_must_signal_writer(&ring->r));
	close_ring(ring);
}

/* ---- the Linux-shaped twin ------------------------------------------------------------------- */

static void the_twin_reads_what_we_write_and_writes_what_we_read(void)
{
	struct ring *ring = open_ring(VI_RING_HDR + 8192, VI_RING_LINUX);
	struct vi_lx_ring twin;
	uint8_t payload[700];
	uint64_t random = 1;

	for (uint32_t i = 0; i < sizeof(payload); i++)
		payload[i] = (uint8_t)mix(i);
	vi_lx_ring_init(&twin, &ring->mem, ring->buffer, sizeof(ring->buffer));
	for (uint64_t i = 0; i < 2000; i++) {
		const uint32_t len = (uint32_t)((random = mix(random)) % sizeof(payload));
		struct vi_lx_desc *desc;

		CHECK(1, vi_ring_write(&ring->w, VI_PKT_DATA_INBAND, 0, i, payload, len));
		desc = vi_lx_pkt_iter_first(&twin);
		VI_BUG_ON(!desc);
		CHECK(i, desc->trans_id);
		CHECK((len + 7) / 8, desc->len8 - desc->offset8);
		CHECK(0, memcmp(desc + 1, payload, len));
		CHECK(true, vi_lx_pkt_iter_next(&twin, desc) == NULL);
		CHECK(0, vi_lx_pkt_iter_close(&twin));
	}
	CHECK(0, vi_ring_reader_init(&ring->r, &ring->mem, VI_RING_STRICT, ring->buffer,
				     sizeof(ring->buffer)));
	for (uint64_t i = 0; i < 2000; i++) {
		const uint32_t len = (uint32_t)((random = mix(random)) % sizeof(payload));
		struct vi_packet p;

		CHECK(1, vi_lx_sendpacket(&twin, payload, len, i, 0));
		CHECK(1, vi_ring_first(&ring->r, &p));
		CHECK(i, p.trans_id);
		CHECK((len + 7) & ~7u, p.payload_len);
		CHECK(0, memcmp(p.payload, payload, len));
		CHECK(0, vi_ring_next(&ring->r, &p));
		CHECK(0, vi_ring_close(&ring->r));
	}
	close_ring(ring);
}

/* ---- two threads ----------------------------------------------------------------------------- */

struct stress {
	struct ring *ring;
	uint64_t packets;
	uint32_t reader_bell;	/* rung when the ring says that the reader must be signalled */
	uint32_t writer_bell;
	uint64_t reader_slept;
	uint64_t writer_slept;
	uint64_t bad;
};

static void sleep_until_rung(const uint32_t *bell, uint32_t seen)
{
	while (__atomic_load_n(bell, __ATOMIC_ACQUIRE) == seen)
		sched_yield();
}

/*
 * Mostly small, some of a page and more: length and content follow from the number of the packet.
 */
static uint32_t length_of(uint64_t id)
{
	const uint64_t x = mix(id);

	return (uint32_t)(x % 64 == 0 ? (x >> 8) % 6000 : (x >> 8) % 100);
}

static uint32_t fill(uint8_t *payload, uint64_t id)
{
	const uint32_t len = length_of(id);

	for (uint32_t i = 0; i < len; i += 8) {
		const uint64_t word = mix(id ^ i);

		memcpy(payload + i, &word, 8);
	}
	return len;
}

static bool intact(const struct vi_packet *p, uint64_t id)
{
	const uint32_t len = length_of(id);

	if (p->trans_id != id || p->type != VI_PKT_DATA_INBAND ||
	    p->payload_len != ((len + 7) & ~7u))
		return false;
	for (uint32_t i = 0; i < len; i += 8) {
		uint64_t word = mix(id ^ i);

		if (len - i < 8)
			word &= ~0ull >> 8 * (8 - (len - i));
		if (memcmp(p->payload + i, &word, 8))
			return false;
	}
	return true;
}

static void *stress_writer(void *arg)
{
	struct stress *s = arg;
	struct vi_ring_writer *w = &s->ring->w;
	static _Thread_local uint8_t payload[8][6008];
	struct vi_packet_out packets[8];
	uint64_t id = 0;
	uint32_t n, accepted, seen, needed;
	int ret;

	while (id < s->packets) {
		n = (uint32_t)(mix(~id) % 8) + 1;
		if (n > s->packets - id)
			n = (uint32_t)(s->packets - id);
		for (uint32_t i = 0; i < n; i++)
			packets[i] = (struct vi_packet_out){
				.type = VI_PKT_DATA_INBAND,
				.trans_id = id + i,
				.payload = payload[i],
				.len = fill(payload[i], id + i),
			};
		ret = vi_ring_write_batch(w, packets, n, &accepted);
		if (ret == -EAGAIN) {
			seen = __atomic_load_n(&s->writer_bell, __ATOMIC_ACQUIRE);
			needed = ((packets[0].len + 7) & ~7u) + VI_PKT_DESC + VI_PKT_TRAILER;
			CHECK(0, vi_ring_set_pending_send_size(w, needed));
			ret = vi_ring_write_batch(w, packets, n, &accepted);
			if (ret == -EAGAIN) {
				s->writer_slept++;
				sleep_until_rung(&s->writer_bell, seen);
				ret = vi_ring_write_batch(w, packets, n, &accepted);
			}
			CHECK(0, vi_ring_set_pending_send_size(w, 0));
		}
		if (ret < 0) {
			CHECK(0, ret);
			break;
		}
		id += accepted;
		if (ret == 1)
			__atomic_fetch_add(&s->reader_bell, 1, __ATOMIC_SEQ_CST);
	}
	return NULL;
}

/* Up to 64 packets, copied out and in place by turns. Return: packets read. */
static uint32_t stress_read(struct stress *s, uint64_t id)
{
	struct vi_ring_reader *r = &s->ring->r;
	const bool view = mix(id) & 1;
	struct vi_packet p;
	uint32_t n = 0;
	int ret = view ? vi_ring_first_view(r, &p) : vi_ring_first(r, &p);

	while (ret == 1) {
		s->bad += !intact(&p, id + n);
		if (++n == 64) {
			vi_ring_skip(r);
			break;
		}
		ret = view ? vi_ring_next_view(r, &p) : vi_ring_next(r, &p);
	}
	CHECK(true, ret >= 0);
	if (vi_ring_close(r))
		__atomic_fetch_add(&s->writer_bell, 1, __ATOMIC_SEQ_CST);
	return n;
}

static void stress_reader(struct stress *s)
{
	uint64_t id = 0;
	uint32_t n, seen;

	vi_ring_begin_read(&s->ring->r);
	while (id < s->packets) {
		seen = __atomic_load_n(&s->reader_bell, __ATOMIC_ACQUIRE);
		do {
			n = stress_read(s, id);
			id += n;
		} while (n);
		if (id < s->packets && !vi_ring_end_read(&s->ring->r)) {
			s->reader_slept++;
			sleep_until_rung(&s->reader_bell, seen);
		}
		vi_ring_begin_read(&s->ring->r);
	}
}

static void two_threads_lose_and_alter_nothing(uint64_t packets, uint32_t rules)
{
	struct stress s = { .ring = open_ring(STRESS_RING, rules), .packets = packets };
	pthread_t writer;

	CHECK(0, pthread_create(&writer, NULL, stress_writer, &s));
	stress_reader(&s);
	pthread_join(writer, NULL);
	CHECK(0, s.bad);
	CHECK(0, vi_ring_bytes_to_read(s.ring->mem.hdr, s.ring->mem.data_size));
	CHECK(true,
	      s.ring->w.intr_out_empty == s.reader_bell && s.ring->r.intr_in_full == s.writer_bell);
	printf("ring, %s rules: %llu packets; reader slept %llu times, writer %llu times\n",
	       rules == VI_RING_LINUX ? "linux" : "strict", (unsigned long long)packets,
	       (unsigned long long)s.reader_slept, (unsigned long long)s.writer_slept);
	close_ring(s.ring);
}

int main(int argc, char **argv)
{
	const uint64_t packets = argc > 1 ? strtoull(argv[1], NULL, 10) : STRESS_PACKETS;

	alarm(STRESS_SECONDS_MAX);
	memory_is_whole_pages_mapped_twice();
	sizes_are_those_of_the_check_values();
	a_packet_must_leave_a_unit_free();
	what_the_format_cannot_say_is_refused();
	a_batch_is_published_and_signalled_once();
	a_waiting_writer_is_signalled_once();
	masked_readers_are_left_alone();
	steps_and_whole_paths_do_the_same();
	the_twin_reads_what_we_write_and_writes_what_we_read();
	two_threads_lose_and_alter_nothing(packets - packets / 2, VI_RING_LINUX);
	two_threads_lose_and_alter_nothing(packets / 2, VI_RING_STRICT);
	return failures != 0;
}
