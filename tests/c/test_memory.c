/* SPDX-License-Identifier: MIT */
/*
 * test_memory.c - guest-physical memory, and rings that are mapped from its pages.
 *
 * Two threads share one ring through two mappings of scattered pages, so that the thread sanitizer
 * sees every access to either. Prints one line per failed check and exits 1.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internals.h"

#define MEMORY_PAGES 64
#define THREAD_PACKETS 20000
#define SECONDS_MAX 600

static int failures;

#define CHECK(expected, actual) check(__LINE__, #actual, (long long)(expected), (long long)(actual))

static void check(int line, const char *what, long long expected, long long actual)
{
	if (expected == actual)
		return;
	failures++;
	fprintf(stderr, "test_memory.c:%d: %s is %lld, not %lld\n", line, what, actual, expected);
}

/* Mappings of guest memory in this process: whole ones and pieces of rings. */
static int mappings(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[4096];
	int n = 0;

	VI_BUG_ON(!maps);
	while (fgets(line, sizeof(line), maps))
		n += strstr(line, "memfd:guest-memory") != NULL;
	fclose(maps);
	return n;
}

static struct vi_guest_mem make(uint64_t pages)
{
	struct vi_guest_mem mem;

	CHECK(0, vi_guest_mem_create(pages * VI_PAGE, &mem));
	VI_BUG_ON(!mem.base);
	return mem;
}

static uint8_t *page(const struct vi_guest_mem *mem, uint64_t pfn)
{
	return mem->base + pfn * VI_PAGE;
}

static long long kept_bytes(const struct vi_guest_mem *mem)
{
	struct stat file;

	VI_BUG_ON(fstat(mem->fd, &file));
	return (long long)file.st_blocks * 512;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void memory_is_whole_pages(void)
{
	static const uint64_t bad[] = {
		0, 1, 4095, 4097, VI_GUEST_MEM_MAX + VI_PAGE, 1ull << 63, UINT64_MAX, -4096ull
	};
	struct vi_guest_mem mem;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		CHECK(-EINVAL, vi_guest_mem_create(bad[i], &mem));
		CHECK(true, !mem.base && mem.fd == -1);
		vi_guest_mem_destroy(&mem);
	}
	mem = make(1);
	CHECK(VI_PAGE, mem.bytes);
	CHECK(FD_CLOEXEC, fcntl(mem.fd, F_GETFD));
	CHECK(-1, ftruncate(mem.fd, 0));
	CHECK(-1, ftruncate(mem.fd, 2 * VI_PAGE));
	vi_guest_mem_destroy(&mem);
	CHECK(true, !mem.base && mem.fd == -1);
	vi_guest_mem_destroy(&mem);
	CHECK(0, mappings());
}

static void a_missing_descriptor_is_emfile(void)
{
	struct rlimit before, none;
	struct vi_guest_mem mem;

	VI_BUG_ON(getrlimit(RLIMIT_NOFILE, &before));
	none = (struct rlimit){ .rlim_cur = 0, .rlim_max = before.rlim_max };
	VI_BUG_ON(setrlimit(RLIMIT_NOFILE, &none));
	CHECK(-EMFILE, vi_guest_mem_create(VI_PAGE, &mem));
	CHECK(true, !mem.base && mem.fd == -1);
	VI_BUG_ON(setrlimit(RLIMIT_NOFILE, &before));
}

static void dropped_pages_are_zero_and_cost_nothing(void)
{
	struct vi_guest_mem mem = make(MEMORY_PAGES);

	CHECK(0, kept_bytes(&mem));
	memset(mem.base, 0x5a, mem.bytes);
	CHECK(mem.bytes, kept_bytes(&mem));
	CHECK(0, vi_guest_mem_drop(&mem, 3, 2));
	CHECK(mem.bytes - 2 * VI_PAGE, kept_bytes(&mem));
	CHECK(0x5a, page(&mem, 3)[-1]);
	CHECK(0, page(&mem, 3)[0] | page(&mem, 5)[-1]);
	CHECK(0x5a, page(&mem, 5)[0]);
	CHECK(0, vi_guest_mem_drop(&mem, MEMORY_PAGES, 0));
	CHECK(-EFAULT, vi_guest_mem_drop(&mem, MEMORY_PAGES, 1));
	CHECK(-EFAULT, vi_guest_mem_drop(&mem, MEMORY_PAGES + 1, 0));
	CHECK(-EFAULT, vi_guest_mem_drop(&mem, MEMORY_PAGES - 1, 2));
	CHECK(-EFAULT, vi_guest_mem_drop(&mem, 1, UINT64_MAX));
	CHECK(-EFAULT, vi_guest_mem_drop(&mem, UINT64_MAX, 1));
	CHECK(0x5a, page(&mem, MEMORY_PAGES)[-1]);
	CHECK(0, vi_guest_mem_drop(&mem, 0, MEMORY_PAGES));
	CHECK(0, kept_bytes(&mem));
	vi_guest_mem_destroy(&mem);
}

/* ---- rings ----------------------------------------------------------------------------------- */

static const uint64_t scattered[] = { 9, 3, 60, 4, 5 };

static void a_ring_is_its_pages_with_the_data_twice(void)
{
	struct vi_guest_mem mem = make(MEMORY_PAGES);
	struct vi_ring_mem ring;

	for (uint32_t i = 0; i < 5; i++)
		page(&mem, scattered[i])[17] = (uint8_t)scattered[i];
	CHECK(0, vi_ring_mem_map(mem.fd, scattered, 5, &ring));
	CHECK(5 * VI_PAGE, ring.bytes);
	CHECK(4 * VI_PAGE, ring.data_size);
	CHECK(9, ((uint8_t *)ring.hdr)[17]);
	for (uint32_t i = 0; i < 8; i++)
		CHECK(scattered[1 + i % 4], ring.data[i * VI_PAGE + 17]);
	ring.data[8 * VI_PAGE - 1] = 0xa5;
	CHECK(0xa5, page(&mem, 6)[-1]);
	CHECK(0, ring.hdr->feature_bits);
	vi_ring_reset(&ring);
	CHECK(0, page(&mem, 9)[17]);
	CHECK(1, page(&mem, 9)[64]);
	/* memory, and 9 | 3 | 60 | 4,5 | 3 | 60 | 4,5 */
	CHECK(1 + 7, mappings());
	vi_guest_mem_destroy(&mem);
	ring.data[0] = 1;
	CHECK(7, mappings());
	vi_ring_mem_destroy(&ring);
	vi_ring_mem_destroy(&ring);
	CHECK(0, mappings());
}

static void what_cannot_be_a_ring_is_refused(void)
{
	static const uint64_t outside[] = {
		MEMORY_PAGES, MEMORY_PAGES + 1, 1ull << 51, 1ull << 52, 1ull << 63, UINT64_MAX
	};
	struct vi_guest_mem mem = make(MEMORY_PAGES);
	uint64_t pfns[] = { 0, 1, 2, MEMORY_PAGES - 1 };
	struct vi_ring_mem ring;

	CHECK(-EINVAL, vi_ring_mem_map(mem.fd, NULL, 0, &ring));
	CHECK(-EINVAL, vi_ring_mem_map(mem.fd, pfns, 1, &ring));
	CHECK(-EINVAL, vi_ring_mem_map(mem.fd, NULL, VI_RING_BYTES_MAX / VI_PAGE + 1, &ring));
	CHECK(-EINVAL, vi_ring_mem_map(mem.fd, NULL, UINT32_MAX, &ring));
	CHECK(-EBADF, vi_ring_mem_map(-1, pfns, 4, &ring));
	for (size_t i = 0; i < 4 * sizeof(outside) / sizeof(outside[0]); i++) {
		const uint64_t good = pfns[i % 4];

		pfns[i % 4] = outside[i / 4];
		CHECK(-EINVAL, vi_ring_mem_map(mem.fd, pfns, 4, &ring));
		CHECK(true, !ring.map && !ring.hdr && !ring.data_size);
		pfns[i % 4] = good;
	}
	CHECK(1, mappings());
	CHECK(0, vi_ring_mem_map(mem.fd, pfns, 4, &ring));
	vi_ring_mem_destroy(&ring);
	vi_guest_mem_destroy(&mem);
}

/* ---- two ends, two mappings, two threads ----------------------------------------------------- */

struct shared {
	struct vi_ring_mem guest, host;
};

static void *guest_main(void *arg)
{
	struct shared *s = arg;
	struct vi_ring_writer w;
	uint64_t payload[64];

	CHECK(0, vi_ring_writer_init(&w, &s->guest, VI_RING_STRICT));
	for (uint64_t id = 0; id < THREAD_PACKETS; id++) {
		const uint32_t words = (uint32_t)(id * 7 % 64);
		int ret;

		for (uint32_t i = 0; i < words; i++)
			payload[i] = id * 1000 + i;
		while ((ret = vi_ring_write(&w, VI_PKT_DATA_INBAND, 0, id, payload, 8 * words)) ==
		       -EAGAIN)
			sched_yield();
		VI_BUG_ON(ret < 0);
	}
	return NULL;
}

static bool intact(const struct vi_packet *p, uint64_t id)
{
	const uint32_t words = (uint32_t)(id * 7 % 64);
	uint64_t word;

	if (p->trans_id != id || p->payload_len != 8 * words)
		return false;
	for (uint32_t i = 0; i < words; i++) {
		memcpy(&word, p->payload + 8 * i, 8);
		if (word != id * 1000 + i)
			return false;
	}
	return true;
}

static void two_mappings_of_one_ring_lose_and_alter_nothing(void)
{
	struct vi_guest_mem mem = make(MEMORY_PAGES);
	struct vi_ring_reader r;
	struct vi_packet packet;
	struct shared s;
	uint8_t buffer[1024];
	uint64_t id = 0, bad = 0;
	pthread_t guest;
	int ret;

	CHECK(0, vi_ring_mem_map(mem.fd, scattered, 5, &s.guest));
	vi_ring_reset(&s.guest);
	CHECK(0, vi_ring_mem_map(mem.fd, scattered, 5, &s.host));
	CHECK(0, vi_ring_reader_init(&r, &s.host, VI_RING_STRICT, buffer, sizeof(buffer)));
	CHECK(0, pthread_create(&guest, NULL, guest_main, &s));
	while (id < THREAD_PACKETS) {
		for (ret = vi_ring_first(&r, &packet); ret > 0; ret = vi_ring_next(&r, &packet))
			bad += !intact(&packet, id++);
		VI_BUG_ON(ret < 0);
		vi_ring_close(&r);
		sched_yield();
	}
	pthread_join(guest, NULL);
	CHECK(0, bad);
	CHECK(0, vi_ring_bytes_to_read(s.guest.hdr, s.guest.data_size));
	vi_ring_mem_destroy(&s.guest);
	vi_ring_mem_destroy(&s.host);
	vi_guest_mem_destroy(&mem);
	CHECK(0, mappings());
}

int main(void)
{
	alarm(SECONDS_MAX);
	memory_is_whole_pages();
	a_missing_descriptor_is_emfile();
	dropped_pages_are_zero_and_cost_nothing();
	a_ring_is_its_pages_with_the_data_twice();
	what_cannot_be_a_ring_is_refused();
	two_mappings_of_one_ring_lose_and_alter_nothing();
	return failures != 0;
}
