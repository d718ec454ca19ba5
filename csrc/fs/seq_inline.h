/* SPDX-License-Identifier: MIT */
/*
 * seq_inline.h - one block of rows, for every vector width; shared by seq.c and seq_x86.c.
 *
 * A cell is always eleven bytes, so every byte of the output has a known place before the first
 * digit is made, rows of neighbouring counters are rendered together, and every store is exact:
 * nothing is written past a row that a later row, or somebody else's memory, would have to repair.
 */
#ifndef VMBUSIRQ_SEQ_INLINE_H
#define VMBUSIRQ_SEQ_INLINE_H

#include "internals.h"

#define VI_ALWAYS_INLINE inline __attribute__((always_inline))

#define VI_SEQ_TILE 16			/* rows and columns that are fetched together */
/* vectors make eight digits; larger cells are made one by one */
#define VI_SEQ_EIGHT_DIGITS 100000000u

/* Cells of one block of rows, row by row. */
struct vi_seq_tile {
	uint32_t cell[VI_SEQ_TILE][VI_SEQ_TILE];
} VI_ALIGNED;

/* Write n cells of the trailing style: VI_SEQ_CELL * n bytes, no more. */
typedef void (*vi_seq_cells_t)(uint8_t *out, const uint32_t *v, uint32_t n);
/* Write VI_SEQ_TILE cells of zero. */
typedef void (*vi_seq_zeros_t)(uint8_t *out);
/*
 * Fetch columns [col, col + nc) of nr rows of neighbouring counters. Return: a bit per row not all
 * 0.
 */
typedef uint32_t (*vi_seq_fetch_t)(const struct vi_seq_table *t, const struct vi_seq_row *row,
				   uint32_t nr, uint32_t col, uint32_t nc,
				   struct vi_seq_tile *tile);
/* Render nr rows that lie in one block. */
typedef void (*vi_seq_block_t)(const struct vi_seq_table *t, const struct vi_seq_row *row,
			       uint32_t nr, uint8_t *out);

/* seq.c */
extern const char vi_seq_zeros[VI_SEQ_TILE * VI_SEQ_CELL + 1];	/* VI_SEQ_TILE cells of zero */
uint32_t vi_seq_fetch(const struct vi_seq_table *t, const struct vi_seq_row *row, uint32_t nr,
		      uint32_t col, uint32_t nc, struct vi_seq_tile *tile);

/* seq_x86.c; NULL: this CPU lacks the vectors */
vi_seq_block_t vi_seq_block_x86(uint32_t simd);

static VI_ALWAYS_INLINE void vi_seq_store_le64(uint8_t *out, uint64_t v)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	v = __builtin_bswap64(v);
#endif
	memcpy(out, &v, sizeof(v));
}

/* The digits of v < 10^8, one per byte, most significant lowest: halve the width three times. */
static VI_ALWAYS_INLINE uint64_t vi_seq_digits(uint32_t v)
{
	uint64_t hi = v * 109951163ull >> 40;
	uint64_t x = hi | (v - hi * 10000) << 32;
	uint64_t q = (x * 5243 >> 19) & 0x0000007f0000007full;
	uint64_t y = q | (x - q * 100) << 16;
	uint64_t t = (y * 103 >> 10) & 0x000f000f000f000full;

	return t | (y - t * 10) << 8;
}

/*
 * Digits to characters. Bytes below the first non-zero digit become blanks; the last byte stays a
 * digit.
 */
static VI_ALWAYS_INLINE uint64_t vi_seq_chars(uint64_t z)
{
	uint64_t t = z | 1ull << 56;

	return (z | 0x3030303030303030ull) ^ (((t - 1) & ~t) & 0x1010101010101010ull);
}

/* One cell of the trailing style. */
static VI_ALWAYS_INLINE void vi_seq_put_cell(uint8_t *out, uint32_t v)
{
	out[0] = ' ';
	out[1] = ' ';
	if (v < VI_SEQ_EIGHT_DIGITS) {
		vi_seq_store_le64(out + 2, vi_seq_chars(vi_seq_digits(v)));
	} else {
		uint32_t top = v / VI_SEQ_EIGHT_DIGITS;

		if (top >= 10)
			out[0] = (uint8_t)('0' + top / 10);
		out[1] = (uint8_t)('0' + top % 10);
		vi_seq_store_le64(out + 2,
				  vi_seq_digits(v % VI_SEQ_EIGHT_DIGITS) | 0x3030303030303030ull);
	}
	out[10] = ' ';
}

static VI_ALWAYS_INLINE const uint32_t *vi_seq_at(const struct vi_seq_table *t,
						  const struct vi_seq_row *row, uint32_t col)
{
	return row->counts + (uint64_t)(t->index ? t->index[col] : col) * row->stride;
}

/*
 * The next block wants the next line of every CPU: more lines, at a wider pitch, than the hardware
 * follows. There may be no such line; then nothing happens.
 */
static VI_ALWAYS_INLINE void vi_seq_prefetch_next(const uint32_t *at)
{
	__builtin_prefetch((const void *)((uintptr_t)at + VI_SEQ_TILE * sizeof(*at)));
}

/* Counters that lie one after the other need no fetching. */
static VI_ALWAYS_INLINE bool vi_seq_contiguous(const struct vi_seq_table *t,
					       const struct vi_seq_row *row)
{
	return row->stride == 1 && !t->index;
}

/* Copy both ends of n to 2 * n bytes, which may overlap in the middle. */
static VI_ALWAYS_INLINE void vi_seq_copy_ends(uint8_t *out, const uint8_t *in, size_t len, size_t n)
{
	uint8_t head[16], tail[16];

	memcpy(head, in, n);
	memcpy(tail, in + len - n, n);
	memcpy(out, head, n);
	memcpy(out + len - n, tail, n);
}

/* Labels and names are short: a call to memcpy() would cost more than the copy. */
static VI_ALWAYS_INLINE void vi_seq_put_text(uint8_t *out, const struct vi_seq_table *t,
					     uint64_t off, uint32_t len)
{
	const uint8_t *in = (const uint8_t *)t->text + off;

	if (len > 32)
		memcpy(out, in, len);
	else if (len >= 16)
		vi_seq_copy_ends(out, in, len, 16);
	else if (len >= 8)
		vi_seq_copy_ends(out, in, len, 8);
	else if (len >= 4)
		vi_seq_copy_ends(out, in, len, 4);
	else
		while (len--)
			*out++ = *in++;
}

/*
 * The cells of a block whose counters are fetched tile by tile. at[r]: where row r goes on, moved
 * along.
 */
static VI_ALWAYS_INLINE void vi_seq_put_tiles(const struct vi_seq_table *t,
					      const struct vi_seq_row *row, uint32_t nr,
					      uint8_t *at[VI_SEQ_TILE], vi_seq_cells_t put_cells,
					      vi_seq_zeros_t put_zeros, vi_seq_fetch_t fetch)
{
	struct vi_seq_tile tile;

	for (uint32_t col = 0; col < row->cells; col += VI_SEQ_TILE) {
		uint32_t left = row->cells - col, nc = left < VI_SEQ_TILE ? left : VI_SEQ_TILE;
		uint32_t busy = fetch(t, row, nr, col, nc, &tile);

		for (uint32_t r = 0; r < nr; r++) {
			if (busy >> r & 1)
				put_cells(at[r], tile.cell[r], nc);
			else if (nc == VI_SEQ_TILE)
				put_zeros(at[r]);
			else
				memcpy(at[r], vi_seq_zeros, (size_t)nc * VI_SEQ_CELL);
			at[r] += (size_t)nc * VI_SEQ_CELL;
		}
	}
}

/*
 * Render one row of any kind, or up to VI_SEQ_TILE rows with as many cells whose counters lie side
 * by side. The suffixes come last: the leading style writes the blank after its last cell where the
 * suffix begins.
 */
static VI_ALWAYS_INLINE void vi_seq_put_block(const struct vi_seq_table *t,
					      const struct vi_seq_row *row, uint32_t nr,
					      uint8_t *out, vi_seq_cells_t put_cells,
					      vi_seq_zeros_t put_zeros, vi_seq_fetch_t fetch)
{
	uint8_t *at[VI_SEQ_TILE], *end[VI_SEQ_TILE];

	for (uint32_t r = 0; r < nr; r++) {
		vi_seq_put_text(out, t, row[r].text_off, row[r].prefix_len);
		at[r] = out + row[r].prefix_len;
		end[r] = at[r] + (size_t)row->cells * VI_SEQ_CELL;
		out = end[r] + row[r].suffix_len;
		if (row->cells && row[r].style == VI_SEQ_LEADING)
			*at[r]++ = ' ';
	}
	if (!row->cells)
		;
	else if (vi_seq_contiguous(t, row))
		put_cells(at[0], row->counts, row->cells);
	else
		vi_seq_put_tiles(t, row, nr, at, put_cells, put_zeros, fetch);
	for (uint32_t r = 0; r < nr; r++)
		vi_seq_put_text(end[r], t, row[r].text_off + row[r].prefix_len, row[r].suffix_len);
}

#endif
