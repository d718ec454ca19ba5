/* SPDX-License-Identifier: MIT */
/*
 * test_seq.c - the renderers against snprintf() on random tables, at every vector width of this
 * CPU; the cell reader against strtoull(); counters that change while they are rendered. Stands
 * alone, for the sanitizers: cc tests/c/test_seq.c csrc/fs/seq.c csrc/fs/seq_x86.c csrc/fs/scan.c
 * csrc/linux_shaped/seq.c -lpthread
 */
#include "internals.h"

#include <pthread.h>
#include <stdio.h>

#define ROWS_MAX 70
#define CPUS_MAX 80
#define TEXT_MAX 40
#define GUARD 64

#define CHECK(cond) do { if (!(cond)) { \
	fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond); exit(1); } } while (0)

static uint64_t next_random(uint64_t *seed)
{
	uint64_t z = *seed += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

static uint32_t below(uint64_t *seed, uint32_t n)
{
	return (uint32_t)(next_random(seed) % n);
}

/* Zero half of the time, else a number of random length, often one of the borders. */
static uint32_t random_count(uint64_t *seed, uint32_t density)
{
	static const uint32_t border[] = { 1,	      9,	 10,	     99,
					   100,	      9999,	 10000,	     99999999,
					   100000000, 999999999, 1000000000, 4294967295u };

	if (below(seed, 100) >= density)
		return 0;
	if (below(seed, 3) == 0)
		return border[below(seed, sizeof(border) / sizeof(border[0]))];
	return (uint32_t)(next_random(seed) >> (32 + below(seed, 32)));
}

struct fixture {
	struct vi_seq_table table;
	struct vi_seq_row row[ROWS_MAX];
	char text[ROWS_MAX * TEXT_MAX];
	uint32_t index[CPUS_MAX];
	/* exactly as large as needed: the address sanitizer sees one more */
	uint32_t *counts;
};

/*
 * Rows as a machine makes them: counters of one CPU side by side, CPUs a stride apart, some rows
 * apart.
 */
static void make_live(struct fixture *f, uint64_t *seed, uint32_t cpus, uint32_t online)
{
	uint32_t rows = 1 + below(seed, ROWS_MAX), stride = 2 * rows + below(seed, 5);
	uint32_t density = below(seed, 3) * 50, used = 0, column[ROWS_MAX] = { 0 };
	size_t counters;

	for (uint32_t c = 0, k = 0; c < cpus && k < online; c++)
		if (below(seed, cpus - c) < online - k)
			f->index[k++] = c;
	for (uint32_t r = 1; r < rows; r++)
		column[r] = column[r - 1] + (below(seed, 8) ? 1 : 2);
	counters = (size_t)(cpus - 1) * stride + column[rows - 1] + 1;
	f->counts = malloc(counters * sizeof(uint32_t));
	CHECK(f->counts);
	for (size_t i = 0; i < counters; i++)
		f->counts[i] = random_count(seed, density);
	for (uint32_t r = 0; r < rows; r++) {
		struct vi_seq_row *row = &f->row[r];

		row->counts = f->counts + column[r];
		row->stride = below(seed, 15) ? stride : 0;
		row->cells = below(seed, 20) ? online : below(seed, 2);
		row->style = below(seed, 2);
		row->prefix_len = below(seed, 8);
		row->suffix_len = 1 + below(seed, TEXT_MAX - 8);
		row->text_off = used;
		for (uint32_t i = 0; i < row->prefix_len + row->suffix_len; i++)
			f->text[used++] = (char)('a' + below(seed, 26));
	}
	f->table = (struct vi_seq_table){ .rows = f->row,
					  .nr_rows = rows,
					  .text = f->text,
					  .text_len = used,
					  .index = f->index,
					  .nr_index = online };
}

/* The same rows as a saved file has them: the cells of a row side by side, no index. */
static void make_saved(struct fixture *f, uint64_t *seed, uint32_t cpus, uint32_t online)
{
	size_t cells = 0;

	make_live(f, seed, cpus, online);
	free(f->counts);
	for (uint32_t r = 0; r < f->table.nr_rows; r++)
		cells += f->row[r].cells;
	f->counts = malloc((cells + 1) * sizeof(uint32_t));
	CHECK(f->counts);
	cells = 0;
	for (uint32_t r = 0; r < f->table.nr_rows; r++) {
		f->row[r].counts = f->counts + cells;
		f->row[r].stride = 1;
		for (uint32_t c = 0; c < f->row[r].cells; c++)
			f->counts[cells++] = random_count(seed, 50);
	}
	f->table.index = NULL;
	f->table.nr_index = 0;
}

static size_t expected(const struct fixture *f, char *out, size_t size)
{
	size_t n = 0;

	for (uint32_t r = 0; r < f->table.nr_rows; r++) {
		const struct vi_seq_row *row = &f->row[r];
		const char *text = f->text + row->text_off;

		n += (size_t)snprintf(out + n, size - n, "%.*s", (int)row->prefix_len, text);
		for (uint32_t c = 0; c < row->cells; c++) {
			uint32_t cpu = f->table.index ? f->index[c] : c;

			uint32_t v = row->counts[(size_t)cpu * row->stride];

			n += (size_t)snprintf(out + n, size - n,
					      row->style == VI_SEQ_LEADING ? " %10u" : "%10u ", v);
		}
		text += row->prefix_len;
		n += (size_t)snprintf(out + n, size - n, "%.*s", (int)row->suffix_len, text);
	}
	return n;
}

static void check_bytes(const char *want, size_t n, const char *got, int64_t result)
{
	CHECK(result == (int64_t)n);
	CHECK(!memcmp(want, got, n));
	for (size_t i = 0; i < GUARD; i++)
		CHECK((unsigned char)got[n + i] == 0xa5);
}

static void check_table(const struct fixture *f)
{
	static const uint32_t simd[] = { VI_SIMD_SCALAR, VI_SIMD_AVX2, VI_SIMD_AVX512,
					 VI_SIMD_BEST };
	size_t size = ROWS_MAX * (TEXT_MAX + CPUS_MAX * VI_SEQ_CELL) + 1, n;
	char *want = malloc(size), *got = malloc(size + GUARD);

	CHECK(want && got);
	n = expected(f, want, size);
	CHECK(vi_seq_size(&f->table) == (int64_t)n);
	for (size_t i = 0; i < sizeof(simd) / sizeof(simd[0]); i++) {
		int64_t result;

		memset(got, 0xa5, n + GUARD);
		CHECK(n == 0 || vi_seq_render(&f->table, VI_SIMD_BEST, got, n - 1) == -ENOSPC);
		CHECK((unsigned char)got[0] == 0xa5);
		result = vi_seq_render(&f->table, simd[i], got, n);
		if (result == -EOPNOTSUPP && (simd[i] == VI_SIMD_AVX2 || simd[i] == VI_SIMD_AVX512))
			continue;	/* not on this CPU */
		check_bytes(want, n, got, result);
	}
	for (uint32_t how = VI_SEQ_PRINTF; how <= VI_SEQ_PUT_DECIMAL; how++) {
		memset(got, 0xa5, n + GUARD);
		check_bytes(want, n, got, vi_linux_seq_render(&f->table, how, got, n));
	}
	free(want);
	free(got);
}

static void test_random_tables(uint64_t seed, uint32_t rounds)
{
	struct fixture *f = calloc(1, sizeof(*f));

	CHECK(f);
	for (uint32_t i = 0; i < rounds; i++) {
		uint32_t cpus = 1 + below(&seed, i % 4 ? 20 : CPUS_MAX),
			 online = 1 + below(&seed, cpus);

		if (i & 1)
			make_live(f, &seed, cpus, online);
		else
			make_saved(f, &seed, cpus, online);
		check_table(f);
		free(f->counts);
	}
	free(f);
}

static void test_bad_tables(void)
{
	uint32_t counts[2] = { 1, 2 }, index[2] = { 0, 1 };
	struct vi_seq_row good = { .counts = counts, .stride = 1, .cells = 2, .prefix_len = 1,
				   .suffix_len = 1 };
	struct vi_seq_row row = good;
	struct vi_seq_table t = { .rows = &row, .nr_rows = 1, .text = ":\n", .text_len = 2 };
	char buf[64];

	CHECK(vi_seq_size(&t) == 24);
	CHECK(vi_seq_render(&t, 3, buf, sizeof(buf)) == -EINVAL);
	CHECK(vi_linux_seq_render(&t, VI_SEQ_MEMSET, buf, sizeof(buf)) == -EINVAL);
	CHECK(vi_linux_seq_render(&t, VI_SEQ_PRINTF, buf, 23) == -ENOSPC);
	row.suffix_len = 2;
	CHECK(vi_seq_size(&t) == -EINVAL);
	row = good;
	row.text_off = UINT64_MAX;
	CHECK(vi_seq_size(&t) == -EINVAL);
	row = good;
	row.counts = NULL;
	CHECK(vi_seq_render(&t, VI_SIMD_BEST, buf, sizeof(buf)) == -EINVAL);
	row = good;
	row.suffix_len = 0;
	CHECK(vi_seq_size(&t) == -EINVAL);
	row = good;
	row.style = VI_SEQ_TRAILING + 1;
	CHECK(vi_seq_size(&t) == -EINVAL);
	row = good;
	row.cells = VI_SEQ_CELLS_MAX + 1;
	CHECK(vi_seq_size(&t) == -EINVAL);
	row = good;
	t.index = index;
	t.nr_index = 1;
	CHECK(vi_linux_seq_render(&t, VI_SEQ_PRINTF, buf, sizeof(buf)) == -EINVAL);
	t.nr_index = 2;
	CHECK(vi_seq_size(&t) == 24);
}

static void check_scan(const char *text, uint32_t style, int cells, const uint32_t *values)
{
	size_t len = strlen(text);
	char *exact = malloc(len ? len : 1);	/* no byte past the end may be read */
	uint32_t got[4] = { 0 };

	CHECK(exact);
	memcpy(exact, text, len);
	CHECK(vi_seq_scan(exact, len, style, 4, got) == cells);
	for (int i = 0; i < cells; i++)
		CHECK(got[i] == values[i]);
	free(exact);
}

static void test_scan(uint64_t seed)
{
	uint32_t max[] = { 4294967295u }, two[] = { 0, 123456789 }, one[] = { 7 };

	check_scan(" 4294967295", VI_SEQ_LEADING, 1, max);
	check_scan(" 4294967296", VI_SEQ_LEADING, 0, NULL);
	check_scan(" 9999999999", VI_SEQ_LEADING, 0, NULL);
	check_scan("          0  123456789  x", VI_SEQ_LEADING, 2, two);
	check_scan("         0  123456789 ", VI_SEQ_TRAILING, 2, two);
	check_scan("          7x", VI_SEQ_LEADING, 0, NULL);
	check_scan("          7          ", VI_SEQ_LEADING, 1, one);
	check_scan("          7         7", VI_SEQ_LEADING, 1, one);
	check_scan("         07", VI_SEQ_LEADING, 0, NULL);
	check_scan(" 0000000007", VI_SEQ_LEADING, 0, NULL);
	check_scan("  012345678", VI_SEQ_LEADING, 0, NULL);
	check_scan("        7 7", VI_SEQ_LEADING, 0, NULL);
	check_scan("           ", VI_SEQ_LEADING, 0, NULL);
	check_scan("       -123", VI_SEQ_LEADING, 0, NULL);
	check_scan("", VI_SEQ_LEADING, 0, NULL);
	CHECK(vi_seq_scan("", 0, VI_SEQ_TRAILING + 1, 1, max) == -EINVAL);
	for (int i = 0; i < 20000; i++) {
		uint32_t value = random_count(&seed, 90), got;
		char text[16];

		snprintf(text, sizeof(text), " %10u", value);
		CHECK(vi_seq_scan(text, 11, VI_SEQ_LEADING, 1, &got) == 1 && got == value);
		/* mostly no cell any more */
		text[1 + below(&seed, 10)] = (char)below(&seed, 256);
		if (vi_seq_scan(text, 11, VI_SEQ_LEADING, 1, &got) == 1) {
			char again[16];

			snprintf(again, sizeof(again), " %10u", got);
			CHECK(!memcmp(text, again, 11));
		}
	}
}

struct writer {
	uint32_t *counts;
	uint32_t n;
	uint32_t stop;
};

static void *count_up(void *arg)
{
	struct writer *w = arg;

	while (!__atomic_load_n(&w->stop, __ATOMIC_RELAXED))
		for (uint32_t i = 0; i < w->n; i++) {
			uint32_t v = __atomic_load_n(&w->counts[i], __ATOMIC_RELAXED);

			__atomic_store_n(&w->counts[i], v + 1, __ATOMIC_RELAXED);
		}
	return NULL;
}

/* Counters that only grow never read lower in a later rendering, whatever the vector width. */
static void test_live_counters(uint32_t simd)
{
	enum { CPUS = 24, IRQS = 20 };
	struct fixture *f = calloc(1, sizeof(*f));
	uint32_t counts[CPUS * IRQS] = { 0 }, before[CPUS * IRQS] = { 0 };
	struct writer w = { .counts = counts, .n = CPUS * IRQS };
	char buf[IRQS * (CPUS * VI_SEQ_CELL + 2)];
	pthread_t thread;

	CHECK(f);
	for (uint32_t c = 0; c < CPUS; c++)
		f->index[c] = c;
	for (uint32_t i = 0; i < IRQS; i++)
		f->row[i] = (struct vi_seq_row){ .counts = counts + i,
						 .stride = IRQS,
						 .cells = CPUS,
						 .prefix_len = 1,
						 .suffix_len = 1 };
	f->table = (struct vi_seq_table){ .rows = f->row,
					  .nr_rows = IRQS,
					  .text = ":\n",
					  .text_len = 2,
					  .index = f->index,
					  .nr_index = CPUS };
	CHECK(!pthread_create(&thread, NULL, count_up, &w));
	for (int round = 0; round < 200; round++) {
		int64_t n = vi_seq_render(&f->table, simd, buf, sizeof(buf));

		if (n == -EOPNOTSUPP)
			break;
		CHECK(n == (int64_t)sizeof(buf));
		for (uint32_t i = 0; i < IRQS; i++) {
			uint32_t got[CPUS];
			const char *row = buf + i * (CPUS * VI_SEQ_CELL + 2);

			CHECK(vi_seq_scan(row + 1, CPUS * VI_SEQ_CELL, VI_SEQ_LEADING, CPUS, got) ==
			      CPUS);
			for (uint32_t c = 0; c < CPUS; c++) {
				CHECK(got[c] >= before[c * IRQS + i]);
				before[c * IRQS + i] = got[c];
			}
		}
	}
	__atomic_store_n(&w.stop, 1, __ATOMIC_RELAXED);
	CHECK(!pthread_join(thread, NULL));
	free(f);
}

int main(void)
{
	test_random_tables(1, 1200);
	test_bad_tables();
	test_scan(2);
	test_live_counters(VI_SIMD_SCALAR);
	test_live_counters(VI_SIMD_AVX2);
	test_live_counters(VI_SIMD_AVX512);
	puts("test_seq: ok");
	return 0;
}
