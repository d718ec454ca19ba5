/* SPDX-License-Identifier: MIT */
/*
 * seq.c - counters to text: the rows of /proc/interrupts and /proc/softirqs.
 *
 * Owns nothing: rows, text, index and buffer belong to the caller, and one table may be rendered on
 * many threads at once.
 *
 * Access rules: counters may be written by their CPUs while they are read. A cell is made from one
 * load of an aligned uint32_t, which the scalar code does as a relaxed atomic load (seq_x86.c says
 * what vectors do). As in the kernel, a table is not a snapshot: each cell is as old as its own
 * load.
 */
#include "seq_inline.h"

#define ZERO_CELL "         0 "
#define ZERO_4 ZERO_CELL ZERO_CELL ZERO_CELL ZERO_CELL
_Static_assert(sizeof(ZERO_CELL) - 1 == VI_SEQ_CELL, "a cell is ten digits and a blank");

const char vi_seq_zeros[VI_SEQ_TILE * VI_SEQ_CELL + 1] = ZERO_4 ZERO_4 ZERO_4 ZERO_4;

static bool four_zeros(const uint32_t *v)
{
	return !(vi_load_relaxed(v) | vi_load_relaxed(v + 1) | vi_load_relaxed(v + 2) |
		 vi_load_relaxed(v + 3));
}

static void put_cells_scalar(uint8_t *out, const uint32_t *v, uint32_t n)
{
	while (n) {
		uint32_t step = 1;

		if (n >= 4 && four_zeros(v)) {
			memcpy(out, vi_seq_zeros, 4 * VI_SEQ_CELL);
			step = 4;
		} else {
			vi_seq_put_cell(out, vi_load_relaxed(v));
		}
		out += step * VI_SEQ_CELL;
		v += step;
		n -= step;
	}
}

/**
 * vi_seq_fetch - read a tile of counters one by one
 * @t: the table
 * @row: first of the rows; row r's counters lie r elements after its own
 * @nr: rows, up to VI_SEQ_TILE
 * @col: first column
 * @nc: columns, up to VI_SEQ_TILE
 * @tile: where the counters go
 *
 * Context: any thread.
 * Return: one bit per row that is not all zero.
 */
uint32_t vi_seq_fetch(const struct vi_seq_table *t, const struct vi_seq_row *row, uint32_t nr,
		      uint32_t col, uint32_t nc, struct vi_seq_tile *tile)
{
	uint32_t busy = 0;

	for (uint32_t c = 0; c < nc; c++) {
		const uint32_t *from = vi_seq_at(t, row, col + c);

		vi_seq_prefetch_next(from);
		for (uint32_t r = 0; r < nr; r++) {
			uint32_t v = vi_load_relaxed(from + r);

			tile->cell[r][c] = v;
			busy |= (uint32_t)(v != 0) << r;
		}
	}
	return busy;
}

static void put_zeros_scalar(uint8_t *out)
{
	memcpy(out, vi_seq_zeros, VI_SEQ_TILE * VI_SEQ_CELL);
}

static void put_block_scalar(const struct vi_seq_table *t, const struct vi_seq_row *row,
			     uint32_t nr, uint8_t *out)
{
	vi_seq_put_block(t, row, nr, out, put_cells_scalar, put_zeros_scalar, vi_seq_fetch);
}

static int check_row(const struct vi_seq_table *t, const struct vi_seq_row *row)
{
	uint64_t text = (uint64_t)row->prefix_len + row->suffix_len;

	if (row->text_off > t->text_len || text > t->text_len - row->text_off)
		return -EINVAL;
	if (!row->cells)
		return 0;
	if (!row->counts || !row->suffix_len || row->style > VI_SEQ_TRAILING)
		return -EINVAL;
	if (row->cells > VI_SEQ_CELLS_MAX || (t->index && row->cells > t->nr_index))
		return -EINVAL;
	return 0;
}

/**
 * vi_seq_size - bytes of a rendered table
 * @t: the table
 *
 * Exact: cells have one width, whatever the counters say.
 *
 * Context: any thread; reads no counter.
 * Return: the number of bytes, or -EINVAL when a row breaks the rules in vmbusirq_api.h.
 */
int64_t vi_seq_size(const struct vi_seq_table *t)
{
	uint64_t size = 0;

	for (uint32_t i = 0; i < t->nr_rows; i++) {
		const struct vi_seq_row *row = &t->rows[i];
		int err = check_row(t, row);

		if (err)
			return err;
		size += (uint64_t)row->prefix_len + row->suffix_len +
			(uint64_t)row->cells * VI_SEQ_CELL;
	}
	return (int64_t)size;
}

/*
 * Rows from row on, up to VI_SEQ_TILE, that one fetch can serve: neighbouring counters, as many
 * cells. Blocks end where cache lines end, so that no line is fetched for two of them.
 */
static uint32_t block_rows(const struct vi_seq_table *t, const struct vi_seq_row *row,
			   uint32_t left)
{
	uintptr_t first = (uintptr_t)row->counts / sizeof(*row->counts);
	uint32_t n = 1, most = VI_SEQ_TILE - (uint32_t)(first % VI_SEQ_TILE);

	if (!row->cells || !row->stride || vi_seq_contiguous(t, row))
		return 1;
	if (most > left)
		most = left;
	while (n < most && row[n].counts == row->counts + n && row[n].cells == row->cells &&
	       row[n].stride == row->stride)
		n++;
	return n;
}

static uint64_t block_bytes(const struct vi_seq_row *row, uint32_t nr)
{
	uint64_t bytes = (uint64_t)nr * row->cells * VI_SEQ_CELL;

	for (uint32_t r = 0; r < nr; r++)
		bytes += (uint64_t)row[r].prefix_len + row[r].suffix_len;
	return bytes;
}

static vi_seq_block_t block_renderer(uint32_t simd)
{
	vi_seq_block_t put = simd == VI_SIMD_SCALAR ? NULL : vi_seq_block_x86(simd);

	if (!put && (simd == VI_SIMD_SCALAR || simd == VI_SIMD_BEST))
		put = put_block_scalar;
	return put;
}

/**
 * vi_seq_render - render a table
 * @t: the table
 * @simd: widest vectors to use (enum vi_simd)
 * @buf: where the text goes
 * @size: bytes at @buf
 *
 * Context: any thread, several at once on one table; the counters may change meanwhile, rows, text
 * and index may not.
 * Return: bytes written, exactly vi_seq_size(); -ENOSPC when @size is less, -EOPNOTSUPP when this
 * CPU lacks @simd, -EINVAL.
 */
int64_t vi_seq_render(const struct vi_seq_table *t, uint32_t simd, void *buf, uint64_t size)
{
	int64_t bytes = vi_seq_size(t);
	uint8_t *out = buf;
	vi_seq_block_t put;

	if (simd > VI_SIMD_AVX512 && simd != VI_SIMD_BEST)
		return -EINVAL;
	put = block_renderer(simd);
	if (!put)
		return -EOPNOTSUPP;
	if (bytes < 0)
		return bytes;
	if ((uint64_t)bytes > size)
		return -ENOSPC;
	for (uint32_t i = 0; i < t->nr_rows;) {
		uint32_t nr = block_rows(t, &t->rows[i], t->nr_rows - i);

		put(t, &t->rows[i], nr, out);
		out += block_bytes(&t->rows[i], nr);
		i += nr;
	}
	return bytes;
}
