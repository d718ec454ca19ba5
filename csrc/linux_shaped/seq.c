/* SPDX-License-Identifier: MIT */
/*
 * seq.c - clean-room twins of the kernel's way to print counters: peers to measure against, and an
 * oracle.
 *
 * Written from behaviour: a row first looks whether any CPU counted (which decides about nameless
 * rows), then prints cell by cell into a seq_file that may overflow at any call. Up to v6.12 a cell
 * is one formatted print, which reads its format again each time; since v6.13 it is one call that
 * knows width and base. Helpers live in other files of the kernel, so they are not inlined here
 * either.
 *
 * Owns nothing. Access rules: as fs/seq.c; counters are read one by one.
 */
#include "internals.h"

#include <stdarg.h>

#define NOINLINE __attribute__((noinline))

struct seq_file {
	char *buf;
	size_t size;
	size_t count;		/* size: it overflowed */
};

#define PAIR(t) #t "0" #t "1" #t "2" #t "3" #t "4" #t "5" #t "6" #t "7" #t "8" #t "9"
static const char pairs[201] =
	PAIR(0) PAIR(1) PAIR(2) PAIR(3) PAIR(4) PAIR(5) PAIR(6) PAIR(7) PAIR(8) PAIR(9);

/* Digits of v, least significant first, two at a time. Return: past the last. */
static NOINLINE char *put_dec(char *tmp, uint64_t v)
{
	while (v >= 100) {
		uint64_t q = v < UINT32_MAX ? (v * 1374389535ull) >> 37 : v / 100;
		const char *pair = &pairs[2 * (v - q * 100)];

		*tmp++ = pair[1];
		*tmp++ = pair[0];
		v = q;
	}
	*tmp++ = pairs[2 * v + 1];
	if (v >= 10)
		*tmp++ = pairs[2 * v];
	return tmp;
}

static void seq_overflow(struct seq_file *m)
{
	m->count = m->size;
}

static NOINLINE void seq_write(struct seq_file *m, const void *data, size_t len)
{
	if (m->count + len <= m->size) {
		memcpy(m->buf + m->count, data, len);
		m->count += len;
		return;
	}
	seq_overflow(m);
}

/* ---- one formatted print per cell ------------------------------------------------------------ */

enum spec_type { SPEC_TEXT, SPEC_UNSIGNED, SPEC_END };

struct spec {
	enum spec_type type;
	int width;
	bool left;
	bool zero;
};

/* Read the next piece of a format: text up to a '%', or one conversion. Return: its length. */
static NOINLINE int decode_spec(const char *fmt, struct spec *spec)
{
	const char *p = fmt;

	spec->type = SPEC_TEXT;
	for (; *p; p++)
		if (*p == '%')
			break;
	if (p != fmt || !*p) {
		if (p == fmt)
			spec->type = SPEC_END;
		return (int)(p - fmt);
	}
	spec->left = false;
	spec->zero = false;
	spec->width = 0;
	for (p++;; p++) {
		if (*p == '-')
			spec->left = true;
		else if (*p == '0')
			spec->zero = true;
		else
			break;
	}
	while (*p >= '0' && *p <= '9')
		spec->width = spec->width * 10 + (*p++ - '0');
	switch (*p) {
	case 'u':
		spec->type = SPEC_UNSIGNED;
		break;
	default:
		spec->type = SPEC_TEXT;	/* "%%" and what is unknown print themselves */
		break;
	}
	return (int)(p + 1 - fmt);
}

/*
 * Every character is checked against the end, so that the length is right even when the text does
 * not fit.
 */
static NOINLINE char *number(char *out, char *end, uint64_t v, struct spec spec)
{
	char tmp[24];
	int digits = (int)(put_dec(tmp, v) - tmp);
	int pad = spec.width - digits;

	if (!spec.left) {
		while (pad-- > 0) {
			if (out < end)
				*out = spec.zero ? '0' : ' ';
			out++;
		}
	}
	while (digits--) {
		if (out < end)
			*out = tmp[digits];
		out++;
	}
	while (pad-- > 0) {
		if (out < end)
			*out = ' ';
		out++;
	}
	return out;
}

static NOINLINE size_t format(char *buf, size_t size, const char *fmt, va_list args)
{
	char *out = buf, *end = buf + size;
	struct spec spec;

	for (;;) {
		const char *piece = fmt;
		int len = decode_spec(fmt, &spec);

		fmt += len;
		switch (spec.type) {
		case SPEC_TEXT:
			if (out < end)
				memcpy(out, piece,
				       end - out < len ? (size_t)(end - out) : (size_t)len);
			out += len;
			break;
		case SPEC_UNSIGNED:
			out = number(out, end, va_arg(args, unsigned int), spec);
			break;
		case SPEC_END:
			if (out < end)
				*out = '\0';
			return (size_t)(out - buf);
		}
	}
}

static NOINLINE void seq_vprintf(struct seq_file *m, const char *fmt, va_list args)
{
	if (m->count < m->size) {
		size_t len = format(m->buf + m->count, m->size - m->count, fmt, args);

		if (m->count + len < m->size) {
			m->count += len;
			return;
		}
	}
	seq_overflow(m);
}

static NOINLINE __attribute__((format(printf, 2, 3)))
void seq_printf(struct seq_file *m, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	seq_vprintf(m, fmt, args);
	va_end(args);
}

/* ---- one decimal call per cell --------------------------------------------------------------- */

static NOINLINE size_t num_to_str(char *buf, size_t size, uint64_t v, uint32_t width)
{
	char tmp[24];
	size_t len, at;

	if (v <= 9) {
		tmp[0] = (char)('0' + v);
		len = 1;
	} else {
		len = (size_t)(put_dec(tmp, v) - tmp);
	}
	if (len > size || width > size)
		return 0;
	at = width > len ? width - len : 0;
	for (size_t i = 0; i < at; i++)
		buf[i] = ' ';
	for (size_t i = 0; i < len; i++)
		buf[at + i] = tmp[len - 1 - i];
	return at + len;
}

static NOINLINE void seq_put_decimal(struct seq_file *m, const char *delimiter, uint64_t v,
				     uint32_t width)
{
	size_t len;

	if (m->count + 2 >= m->size)
		goto overflow;
	len = strlen(delimiter);
	if (m->count + len >= m->size)
		goto overflow;
	memcpy(m->buf + m->count, delimiter, len);
	m->count += len;
	if (m->count + 1 >= m->size)
		goto overflow;
	len = num_to_str(m->buf + m->count, m->size - m->count, v, width);
	if (!len)
		goto overflow;
	m->count += len;
	return;
overflow:
	seq_overflow(m);
}

/* ---- the table ------------------------------------------------------------------------------- */

static uint32_t counter(const struct vi_seq_table *t, const struct vi_seq_row *row, uint32_t i)
{
	uint64_t cpu = t->index ? t->index[i] : i;

	return vi_load_relaxed(row->counts + cpu * row->stride);
}

/*
 * Did any CPU count? The kernel asks before every row; here whoever made the table has decided
 * which rows are shown, so that only the cost of asking is left.
 */
static NOINLINE void any_count(const struct vi_seq_table *t, const struct vi_seq_row *row)
{
	uint32_t any = 0;

	for (uint32_t i = 0; i < row->cells; i++)
		any |= counter(t, row, i);
	__asm__ volatile("" : : "r"(any));
}

static void show_cells_printf(struct seq_file *m, const struct vi_seq_table *t,
			      const struct vi_seq_row *row)
{
	for (uint32_t i = 0; i < row->cells; i++) {
		if (row->style == VI_SEQ_LEADING)
			seq_printf(m, " %10u", counter(t, row, i));
		else
			seq_printf(m, "%10u ", counter(t, row, i));
	}
}

static void show_cells_decimal(struct seq_file *m, const struct vi_seq_table *t,
			       const struct vi_seq_row *row)
{
	for (uint32_t i = 0; i < row->cells; i++) {
		seq_put_decimal(m, row->style == VI_SEQ_LEADING || i ? " " : "", counter(t, row, i),
				10);
		if (row->style == VI_SEQ_TRAILING && i + 1 == row->cells)
			seq_write(m, " ", 1);
	}
}

static void show_row(struct seq_file *m, const struct vi_seq_table *t, const struct vi_seq_row *row,
		     uint32_t how)
{
	const char *text = (const char *)t->text + row->text_off;

	any_count(t, row);
	seq_write(m, text, row->prefix_len);
	if (how == VI_SEQ_PRINTF)
		show_cells_printf(m, t, row);
	else
		show_cells_decimal(m, t, row);
	seq_write(m, text + row->prefix_len, row->suffix_len);
}

/**
 * vi_linux_seq_render - render a table as the kernel does
 * @t: the table
 * @how: VI_SEQ_PRINTF or VI_SEQ_PUT_DECIMAL
 * @buf: where the text goes
 * @size: bytes at @buf
 *
 * Context: any thread.
 * Return: bytes written; -ENOSPC when @size is less than vi_seq_size(), -EINVAL for a bad table or
 * @how.
 */
int64_t vi_linux_seq_render(const struct vi_seq_table *t, uint32_t how, void *buf, uint64_t size)
{
	struct seq_file m = { .buf = buf, .size = size };
	int64_t bytes = vi_seq_size(t);

	if (bytes < 0)
		return bytes;
	if (how != VI_SEQ_PRINTF && how != VI_SEQ_PUT_DECIMAL)
		return -EINVAL;
	if ((uint64_t)bytes > size)
		return -ENOSPC;
	for (uint32_t i = 0; i < t->nr_rows; i++)
		show_row(&m, t, &t->rows[i], how);
	return (int64_t)m.count;
}
