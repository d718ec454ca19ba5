/* SPDX-License-Identifier: MIT */
/*
 * scan.c - text back to counters: the cells of a /proc/interrupts that somebody saved.
 *
 * Owns nothing. The text is not trusted: every byte of a cell is looked at, no byte past the end is
 * read.
 */
#include "internals.h"

#define ONES 0x0101010101010101ull
#define DIGITS 10		/* of a cell; 4294967295 has ten */

static uint64_t load_le64(const uint8_t *in)
{
	uint64_t v;

	memcpy(&v, in, sizeof(v));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	v = __builtin_bswap64(v);
#endif
	return v;
}

/*
 * Eight digits, most significant in the lowest byte, to their value: double the width three times.
 */
static uint32_t value8(uint64_t chars)
{
	uint64_t z = chars - ONES * '0';

	z = (z * 10 + (z >> 8)) & 0x00ff00ff00ff00ffull;
	z = (z * 100 + (z >> 16)) & 0x0000ffff0000ffffull;
	return (uint32_t)(z * 10000 + (z >> 32));
}

static bool all_digits(uint64_t chars)
{
	return (chars & 0xf0 * ONES) == '0' * ONES &&
	       ((chars + 6 * ONES) & 0xf0 * ONES) == '0' * ONES;
}

/*
 * Ten characters to a number. Return: false unless they are blanks and then digits without leading
 * zeros.
 */
static bool scan_number(const uint8_t *in, uint32_t *value)
{
	uint64_t low = load_le64(in + 2), top;

	if (in[1] == ' ') {
		uint64_t other = low ^ ONES * ' ';
		uint32_t blanks = other ? (uint32_t)__builtin_ctzll(other) / 8 : 8;

		if (in[0] != ' ' || blanks == 8 || (in[2 + blanks] == '0' && blanks != 7))
			return false;
		low |= 0x10 * ONES & ((1ull << 8 * blanks) - 1);	/* a blank becomes a zero */
		*value = value8(low);
		return all_digits(low);
	}
	if (!all_digits(low) || in[1] < '0' || in[1] > '9' ||
	    (in[0] != ' ' && (in[0] < '1' || in[0] > '9')))
		return false;
	if (in[0] == ' ' && in[1] == '0')
		return false;
	top = (uint64_t)(in[1] - '0') + (in[0] == ' ' ? 0 : 10 * (uint64_t)(in[0] - '0'));
	top = top * 100000000 + value8(low);
	*value = (uint32_t)top;
	return top <= UINT32_MAX;
}

/**
 * vi_seq_scan - read cells back
 * @text: the first cell
 * @len: bytes at @text, to the end of the line
 * @style: enum vi_seq_style; the first cell of the trailing style has no blank before it
 * @max: room in @counts
 * @counts: where the numbers go
 *
 * Context: any thread.
 * Return: cells read; what follows is not a cell, or @max is reached. -EINVAL when @style does not
 * exist.
 */
int vi_seq_scan(const void *text, uint64_t len, uint32_t style, uint32_t max, uint32_t *counts)
{
	const uint8_t *in = text;
	uint64_t lead = style == VI_SEQ_LEADING;
	uint32_t n = 0;

	if (style > VI_SEQ_TRAILING)
		return -EINVAL;
	if (max > VI_SEQ_CELLS_MAX)
		max = VI_SEQ_CELLS_MAX;
	while (n < max && len >= lead + DIGITS) {
		if (lead && *in != ' ')
			break;
		if (len > lead + DIGITS && in[lead + DIGITS] != ' ')
			break;
		if (!scan_number(in + lead, &counts[n]))
			break;
		n++;
		in += lead + DIGITS;
		len -= lead + DIGITS;
		lead = 1;
	}
	return (int)n;
}
