/* SPDX-License-Identifier: MIT */
/*
 * seq_x86.c - the renderer's cells and fetches with AVX2 and AVX-512.
 *
 * Owns nothing; only seq.c calls it. Stores end exactly where the cells end.
 *
 * Access rules: counters may be written while they are read here. A vector load takes up to sixteen
 * neighbours at once; x86 moves each aligned 32-bit lane whole, which C cannot say and the thread
 * sanitizer cannot see, hence RACY_LOADS. A lane past the rows of a block is masked out and never
 * read.
 */
#include "seq_inline.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define RACY_LOADS __attribute__((no_sanitize("thread")))
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi")))

/* ---- AVX2: four cells at a time -------------------------------------------------------------- */

/* The digits of each lane < 10^8, as vi_seq_digits() makes them. */
static AVX2 VI_ALWAYS_INLINE __m256i digits_avx2(__m256i n)
{
	__m256i hi = _mm256_srli_epi64(_mm256_mul_epu32(n, _mm256_set1_epi64x(109951163)), 40);
	__m256i lo = _mm256_sub_epi64(n, _mm256_mul_epu32(hi, _mm256_set1_epi64x(10000)));
	__m256i x = _mm256_or_si256(hi, _mm256_slli_epi64(lo, 32));
	__m256i q = _mm256_srli_epi16(_mm256_mulhi_epu16(x, _mm256_set1_epi16(5243)), 3);
	__m256i r = _mm256_sub_epi16(x, _mm256_mullo_epi16(q, _mm256_set1_epi16(100)));
	__m256i y = _mm256_or_si256(q, _mm256_slli_epi32(r, 16));
	__m256i t = _mm256_mulhi_epu16(y, _mm256_set1_epi16(6554));
	__m256i u = _mm256_sub_epi16(y, _mm256_mullo_epi16(t, _mm256_set1_epi16(10)));

	return _mm256_or_si256(t, _mm256_slli_epi16(u, 8));
}

/* vi_seq_chars() of each lane; lanes of ones in full keep their leading zeros. */
static AVX2 VI_ALWAYS_INLINE __m256i chars_avx2(__m256i z, __m256i full)
{
	__m256i first = _mm256_or_si256(_mm256_or_si256(z, full), _mm256_set1_epi64x(1ll << 56));
	__m256i below = _mm256_andnot_si256(first, _mm256_add_epi64(first, _mm256_set1_epi64x(-1)));
	__m256i blank = _mm256_and_si256(below, _mm256_set1_epi8(0x10));

	return _mm256_xor_si256(_mm256_or_si256(z, _mm256_set1_epi8('0')), blank);
}

/*
 * Two cells are 22 bytes, stored as bytes 0-15 and 6-21 of them: where those come from in two lanes
 * of eight characters, and in two lanes that begin with the two digits above. What comes from
 * nowhere becomes a blank.
 */
#define TWICE_AVX2(...) _mm256_setr_epi8(__VA_ARGS__, __VA_ARGS__)
#define HEAD TWICE_AVX2(-1, -1, 0, 1, 2, 3, 4, 5, 6, 7, -1, -1, -1, 8, 9, 10)
#define TAIL TWICE_AVX2(4, 5, 6, 7, -1, -1, -1, 8, 9, 10, 11, 12, 13, 14, 15, -1)
#define TOP_HEAD TWICE_AVX2(0, 1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 8, 9, -1, -1, -1)
#define TOP_TAIL TWICE_AVX2(-1, -1, -1, -1, -1, 8, 9, -1, -1, -1, -1, -1, -1, -1, -1, -1)

static AVX2 VI_ALWAYS_INLINE void store_four_avx2(uint8_t *out, __m256i head, __m256i tail)
{
	head = _mm256_or_si256(head, _mm256_set1_epi8(' '));
	tail = _mm256_or_si256(tail, _mm256_set1_epi8(' '));
	_mm_storeu_si128((__m128i *)(void *)out, _mm256_castsi256_si128(head));
	_mm_storeu_si128((__m128i *)(void *)(out + 6), _mm256_castsi256_si128(tail));
	_mm_storeu_si128((__m128i *)(void *)(out + 22), _mm256_extracti128_si256(head, 1));
	_mm_storeu_si128((__m128i *)(void *)(out + 28), _mm256_extracti128_si256(tail, 1));
}

/*
 * Four cells of which one has nine or ten digits: split off the two upper ones, 2^57 / 10^8 rounded
 * up.
 */
static AVX2 void put_four_large_avx2(uint8_t *out, __m256i n)
{
	const __m256i none = _mm256_setzero_si256();
	__m256i top = _mm256_srli_epi64(_mm256_mul_epu32(n, _mm256_set1_epi64x(1441151881)), 57);
	__m256i low =
		_mm256_sub_epi64(n, _mm256_mul_epu32(top, _mm256_set1_epi64x(VI_SEQ_EIGHT_DIGITS)));
	__m256i full = _mm256_cmpgt_epi64(top, none);
	__m256i tens = _mm256_srli_epi64(_mm256_mul_epu32(top, _mm256_set1_epi64x(205)), 11);
	__m256i units = _mm256_sub_epi64(top, _mm256_mul_epu32(tens, _mm256_set1_epi64x(10)));
	__m256i ten = _mm256_and_si256(_mm256_cmpgt_epi64(tens, none), _mm256_set1_epi64x('0'));
	__m256i digit = _mm256_or_si256(units, _mm256_set1_epi64x('0'));
	__m256i unit = _mm256_and_si256(full, _mm256_slli_epi64(digit, 8));
	__m256i two = _mm256_or_si256(_mm256_or_si256(tens, ten), unit);
	__m256i chars = chars_avx2(digits_avx2(low), full);
	__m256i head = _mm256_or_si256(_mm256_shuffle_epi8(chars, HEAD),
				       _mm256_shuffle_epi8(two, TOP_HEAD));
	__m256i tail = _mm256_or_si256(_mm256_shuffle_epi8(chars, TAIL),
				       _mm256_shuffle_epi8(two, TOP_TAIL));

	store_four_avx2(out, head, tail);
}

static AVX2 VI_ALWAYS_INLINE void put_four_avx2(uint8_t *out, __m128i v)
{
	__m128i most = _mm_set1_epi32(VI_SEQ_EIGHT_DIGITS - 1);
	__m256i n = _mm256_cvtepu32_epi64(v), chars;

	if (unlikely(_mm_movemask_epi8(_mm_cmpeq_epi32(_mm_min_epu32(v, most), v)) != 0xffff)) {
		put_four_large_avx2(out, n);
		return;
	}
	chars = chars_avx2(digits_avx2(n), _mm256_setzero_si256());
	store_four_avx2(out, _mm256_shuffle_epi8(chars, HEAD), _mm256_shuffle_epi8(chars, TAIL));
}

static AVX2 RACY_LOADS VI_ALWAYS_INLINE bool eight_zeros_avx2(const uint32_t *v)
{
	__m256i eight = _mm256_loadu_si256((const __m256i *)(const void *)v);

	return _mm256_testz_si256(eight, eight);
}

static AVX2 VI_ALWAYS_INLINE void put_eight_zeros_avx2(uint8_t *out)
{
	const __m256i *zeros = (const __m256i *)(const void *)vi_seq_zeros;

	_mm256_storeu_si256((__m256i *)(void *)out, _mm256_loadu_si256(zeros));
	_mm256_storeu_si256((__m256i *)(void *)(out + 32), _mm256_loadu_si256(zeros + 1));
	_mm256_storeu_si256((__m256i *)(void *)(out + 56),
			    _mm256_loadu_si256((const __m256i *)(const void *)(vi_seq_zeros + 56)));
}

static AVX2 VI_ALWAYS_INLINE void put_zeros_avx2(uint8_t *out)
{
	put_eight_zeros_avx2(out);
	put_eight_zeros_avx2(out + 8 * VI_SEQ_CELL);
}

static AVX2 RACY_LOADS void put_cells_avx2(uint8_t *out, const uint32_t *v, uint32_t n)
{
	while (n >= 4) {
		uint32_t step = 4;

		if (n >= 8 && eight_zeros_avx2(v)) {
			put_eight_zeros_avx2(out);
			step = 8;
		} else {
			put_four_avx2(out, _mm_loadu_si128((const __m128i *)(const void *)v));
		}
		out += step * VI_SEQ_CELL;
		v += step;
		n -= step;
	}
	for (; n; n--, v++, out += VI_SEQ_CELL)
		vi_seq_put_cell(out, vi_load_relaxed(v));
}

/* Transpose eight columns by eight rows: 32-bit pairs, 64-bit pairs, then the two 128-bit lanes. */
static AVX2 VI_ALWAYS_INLINE void transpose_avx2(const __m256i r[8], uint32_t (*to)[VI_SEQ_TILE])
{
	__m256i a[8], b[8];

#pragma GCC unroll 8
	for (int i = 0; i < 8; i += 2) {
		a[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
		a[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
	}
#pragma GCC unroll 8
	for (int i = 0; i < 8; i += 4) {
		b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
		b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
		b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
		b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
	}
#pragma GCC unroll 8
	for (int i = 0; i < 4; i++) {
		__m256i low = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
		__m256i high = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);

		_mm256_store_si256((__m256i *)(void *)to[i], low);
		_mm256_store_si256((__m256i *)(void *)to[i + 4], high);
	}
}

static AVX2 RACY_LOADS uint32_t fetch_avx2(const struct vi_seq_table *t,
					   const struct vi_seq_row *row, uint32_t nr, uint32_t col,
					   uint32_t nc, struct vi_seq_tile *tile)
{
	const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
		      none = _mm256_setzero_si256();
	uint32_t busy = 0;

	if (nr < 3)
		return vi_seq_fetch(t, row, nr, col, nc, tile);
	for (uint32_t r = 0; r < nr; r += 8) {
		__m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(nr - r)), lane),
			any = none;

		for (uint32_t c = 0; c < nc; c += 8) {
			__m256i v[8];

#pragma GCC unroll 8
			for (uint32_t i = 0; i < 8; i++) {
				const uint32_t *at =
					vi_seq_at(t, row, c + i < nc ? col + c + i : col) + r;

				vi_seq_prefetch_next(at);
				v[i] = _mm256_maskload_epi32((const int *)at, mask);
				any = _mm256_or_si256(any, v[i]);
			}
			transpose_avx2(v, (uint32_t (*)[VI_SEQ_TILE])(void *)&tile->cell[r][c]);
		}
		any = _mm256_cmpeq_epi32(any, none);
		busy |= (~(uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(any)) & 0xff) << r;
	}
	return busy;
}

static AVX2 void put_block_avx2(const struct vi_seq_table *t, const struct vi_seq_row *row,
				uint32_t nr, uint8_t *out)
{
	vi_seq_put_block(t, row, nr, out, put_cells_avx2, put_zeros_avx2, fetch_avx2);
}

/* ---- AVX-512 with VBMI: eight cells at a time ------------------------------------------------ */

/* The digits of each lane < 10^8, as vi_seq_digits() makes them. */
static AVX512 VI_ALWAYS_INLINE __m512i digits_avx512(__m512i n)
{
	__m512i hi = _mm512_srli_epi64(_mm512_mul_epu32(n, _mm512_set1_epi64(109951163)), 40);
	__m512i lo = _mm512_sub_epi64(n, _mm512_mul_epu32(hi, _mm512_set1_epi64(10000)));
	__m512i x = _mm512_or_si512(hi, _mm512_slli_epi64(lo, 32));
	__m512i q = _mm512_srli_epi16(_mm512_mulhi_epu16(x, _mm512_set1_epi16(5243)), 3);
	__m512i r = _mm512_sub_epi16(x, _mm512_mullo_epi16(q, _mm512_set1_epi16(100)));
	__m512i y = _mm512_or_si512(q, _mm512_slli_epi32(r, 16));
	__m512i t = _mm512_mulhi_epu16(y, _mm512_set1_epi16(6554));
	__m512i u = _mm512_sub_epi16(y, _mm512_mullo_epi16(t, _mm512_set1_epi16(10)));

	return _mm512_or_si512(t, _mm512_slli_epi16(u, 8));
}

/* vi_seq_chars() of each lane; lanes of ones in full keep their leading zeros. */
static AVX512 VI_ALWAYS_INLINE __m512i chars_avx512(__m512i z, __m512i full)
{
	__m512i first = _mm512_or_si512(_mm512_or_si512(z, full), _mm512_set1_epi64(1ll << 56));
	__m512i below = _mm512_andnot_si512(first, _mm512_add_epi64(first, _mm512_set1_epi64(-1)));
	__m512i blank = _mm512_and_si512(below, _mm512_set1_epi8(0x10));

	return _mm512_xor_si512(_mm512_or_si512(z, _mm512_set1_epi8('0')), blank);
}

/*
 * Where the 88 bytes of eight cells come from: bytes 2-9 of a cell from its eight characters, its
 * other three from a second vector (indices from 64 on) whose lanes hold the two digits above them
 * and a blank.
 */
#define CELL(c)                                                                                  \
	64 + 8 * (c), 65 + 8 * (c), 8 * (c), 8 * (c) + 1, 8 * (c) + 2, 8 * (c) + 3, 8 * (c) + 4, \
		8 * (c) + 5, 8 * (c) + 6, 8 * (c) + 7, 66 + 8 * (c)
static const uint8_t spread[128] VI_ALIGNED = {
	CELL(0), CELL(1), CELL(2), CELL(3), CELL(4), CELL(5), CELL(6), CELL(7)
};

/*
 * What stands beside the eight characters: the blank after them, and top, the digits before them.
 */
static AVX512 VI_ALWAYS_INLINE __m512i beside_avx512(__m512i top)
{
	__m512i tens = _mm512_srli_epi64(_mm512_mul_epu32(top, _mm512_set1_epi64(205)), 11);
	__m512i units = _mm512_sub_epi64(top, _mm512_mul_epu32(tens, _mm512_set1_epi64(10)));
	__m512i out = _mm512_set1_epi64(0x202020),
		ten = _mm512_or_si512(tens, _mm512_set1_epi64(0x10));
	__m512i unit = _mm512_slli_epi64(_mm512_or_si512(units, _mm512_set1_epi64(0x10)), 8);

	out = _mm512_mask_or_epi64(out, _mm512_test_epi64_mask(tens, tens), out, ten);
	return _mm512_mask_or_epi64(out, _mm512_test_epi64_mask(top, top), out, unit);
}

/* Store n cells, one to eight: three plain stores, or two masked ones. */
static AVX512 VI_ALWAYS_INLINE void store_cells_avx512(uint8_t *out, __m512i chars, __m512i beside,
						       uint32_t n)
{
	__m512i low = _mm512_permutex2var_epi8(chars, _mm512_load_si512(spread), beside);
	__m512i high = _mm512_permutex2var_epi8(chars, _mm512_load_si512(spread + 64), beside);
	__m256i last = _mm512_castsi512_si256(high);
	uint32_t bytes = n * VI_SEQ_CELL;

	if (likely(n == 8)) {
		_mm512_storeu_si512(out, low);
		_mm_storeu_si128((__m128i *)(void *)(out + 64), _mm256_castsi256_si128(last));
		_mm_storel_epi64((__m128i *)(void *)(out + 80), _mm256_extracti128_si256(last, 1));
		return;
	}
	_mm512_mask_storeu_epi8(out, bytes < 64 ? (1ull << bytes) - 1 : ~0ull, low);
	if (bytes > 64)
		_mm512_mask_storeu_epi8(out + 64, (1ull << (bytes - 64)) - 1, high);
}

/*
 * Cells of which one has nine or ten digits: split off the two upper ones, 2^57 / 10^8 rounded up.
 */
static AVX512 void put_large_avx512(uint8_t *out, __m512i v, uint32_t n)
{
	__m512i top = _mm512_srli_epi64(_mm512_mul_epu32(v, _mm512_set1_epi64(1441151881)), 57);
	__m512i low =
		_mm512_sub_epi64(v, _mm512_mul_epu32(top, _mm512_set1_epi64(VI_SEQ_EIGHT_DIGITS)));
	__m512i full = _mm512_maskz_set1_epi64(_mm512_test_epi64_mask(top, top), -1);

	store_cells_avx512(out, chars_avx512(digits_avx512(low), full), beside_avx512(top), n);
}

static AVX512 VI_ALWAYS_INLINE void put_eight_zeros_avx512(uint8_t *out)
{
	_mm512_storeu_si512(out, _mm512_loadu_si512(vi_seq_zeros));
	_mm256_storeu_si256((__m256i *)(void *)(out + 56),
			    _mm256_loadu_si256((const __m256i *)(const void *)(vi_seq_zeros + 56)));
}

static AVX512 RACY_LOADS VI_ALWAYS_INLINE void
put_up_to_eight_avx512(uint8_t *out, const uint32_t *from, uint32_t n)
{
	__m512i v =
		_mm512_cvtepu32_epi64(_mm256_maskz_loadu_epi32((__mmask8)((1u << n) - 1), from));

	if (n == 8 && !_mm512_test_epi64_mask(v, v))
		put_eight_zeros_avx512(out);
	else if (unlikely(_mm512_cmpge_epu64_mask(v, _mm512_set1_epi64(VI_SEQ_EIGHT_DIGITS))))
		put_large_avx512(out, v, n);
	else
		store_cells_avx512(out, chars_avx512(digits_avx512(v), _mm512_setzero_si512()),
				   _mm512_set1_epi64(0x202020), n);
}

static AVX512 VI_ALWAYS_INLINE void put_zeros_avx512(uint8_t *out)
{
	_mm512_storeu_si512(out, _mm512_loadu_si512(vi_seq_zeros));
	_mm512_storeu_si512(out + 64, _mm512_loadu_si512(vi_seq_zeros + 64));
	_mm512_storeu_si512(out + 112, _mm512_loadu_si512(vi_seq_zeros + 112));
}

static AVX512 RACY_LOADS void put_cells_avx512(uint8_t *out, const uint32_t *v, uint32_t n)
{
	while (n) {
		uint32_t step = n < 8 ? n : 8;

		if (n >= VI_SEQ_TILE) {
			__m512i all = _mm512_loadu_si512(v);

			if (!_mm512_test_epi32_mask(all, all))
				step = VI_SEQ_TILE;
		}
		if (step == VI_SEQ_TILE)
			put_zeros_avx512(out);
		else
			put_up_to_eight_avx512(out, v, step);
		out += step * VI_SEQ_CELL;
		v += step;
		n -= step;
	}
}

/*
 * Transpose sixteen columns by sixteen rows: 32-bit pairs, 64-bit pairs, then the four 128-bit
 * lanes.
 */
static AVX512 VI_ALWAYS_INLINE void transpose_avx512(const __m512i r[16], struct vi_seq_tile *tile)
{
	__m512i a[16], b[16];

#pragma GCC unroll 16
	for (int i = 0; i < 16; i += 2) {
		a[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
		a[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
	}
#pragma GCC unroll 16
	for (int i = 0; i < 16; i += 4) {
		b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
		b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
		b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
		b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
	}
#pragma GCC unroll 16
	for (int i = 0; i < 4; i++) {
		__m512i even_0 = _mm512_shuffle_i32x4(b[i], b[4 + i], 0x88);
		__m512i even_1 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0x88);
		__m512i odd_0 = _mm512_shuffle_i32x4(b[i], b[4 + i], 0xdd);
		__m512i odd_1 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0xdd);

		_mm512_store_si512(tile->cell[i], _mm512_shuffle_i32x4(even_0, even_1, 0x88));
		_mm512_store_si512(tile->cell[4 + i], _mm512_shuffle_i32x4(odd_0, odd_1, 0x88));
		_mm512_store_si512(tile->cell[8 + i], _mm512_shuffle_i32x4(even_0, even_1, 0xdd));
		_mm512_store_si512(tile->cell[12 + i], _mm512_shuffle_i32x4(odd_0, odd_1, 0xdd));
	}
}

static AVX512 RACY_LOADS uint32_t fetch_avx512(const struct vi_seq_table *t,
					       const struct vi_seq_row *row, uint32_t nr,
					       uint32_t col, uint32_t nc, struct vi_seq_tile *tile)
{
	__mmask16 rows = (__mmask16)((1u << nr) - 1);
	__m512i v[16], any = _mm512_setzero_si512();
	uint32_t busy;

	if (nr < 3)
		return vi_seq_fetch(t, row, nr, col, nc, tile);
#pragma GCC unroll 16
	for (uint32_t i = 0; i < 16; i++) {
		const uint32_t *at = vi_seq_at(t, row, i < nc ? col + i : col);

		v[i] = _mm512_maskz_loadu_epi32(rows, at);
		vi_seq_prefetch_next(at);
		any = _mm512_or_si512(any, v[i]);
	}
	busy = _mm512_test_epi32_mask(any, any);
	if (busy)
		transpose_avx512(v, tile);
	return busy;
}

static AVX512 void put_block_avx512(const struct vi_seq_table *t, const struct vi_seq_row *row,
				    uint32_t nr, uint8_t *out)
{
	vi_seq_put_block(t, row, nr, out, put_cells_avx512, put_zeros_avx512, fetch_avx512);
}
#endif /* __x86_64__ */

/**
 * vi_seq_block_x86 - the block renderer of a vector level
 * @simd: VI_SIMD_AVX2, VI_SIMD_AVX512 (which means VBMI's byte permutes as well) or VI_SIMD_BEST
 *
 * Context: any thread.
 * Return: the renderer, NULL when this CPU lacks the vectors.
 */
vi_seq_block_t vi_seq_block_x86(uint32_t simd)
{
#if defined(__x86_64__)
	if (simd != VI_SIMD_AVX2 && __builtin_cpu_supports("avx512vbmi") &&
	    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
		return put_block_avx512;
	if (simd != VI_SIMD_AVX512 && __builtin_cpu_supports("avx2"))
		return put_block_avx2;
#endif
	(void)simd;
	return NULL;
}
