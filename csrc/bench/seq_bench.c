/* SPDX-License-Identifier: MIT */
/*
 * seq_bench.c - timed loops around the renderers, so that no call from Python is in the figure.
 *
 * Owns nothing. Access rules: as fs/seq.c.
 */
#define _POSIX_C_SOURCE 199309L
#include "internals.h"

#include <time.h>

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int64_t render_once(const struct vi_seq_table *t, uint32_t how, uint32_t simd, void *buf,
			   uint64_t size)
{
	int64_t bytes;

	switch (how) {
	case VI_SEQ_OURS:
		return vi_seq_render(t, simd, buf, size);
	case VI_SEQ_MEMSET:
		bytes = vi_seq_size(t);
		if (bytes < 0)
			return bytes;
		if ((uint64_t)bytes > size)
			return -ENOSPC;
		memset(buf, ' ', (size_t)bytes);
		__asm__ volatile("" : : "r"(buf) : "memory");	/* the text counts as read */
		return bytes;
	default:
		return vi_linux_seq_render(t, how, buf, size);
	}
}

/**
 * vi_seq_bench - time one contender
 * @t: the table
 * @how: who renders (enum vi_seq_how)
 * @simd: widest vectors of VI_SEQ_OURS (enum vi_simd)
 * @repeat: renderings in a row
 * @buf: where the text goes; holds the last rendering afterwards
 * @size: bytes at @buf
 * @ns: time of all the renderings
 *
 * Context: any thread.
 * Return: bytes of one rendering; -EINVAL when @repeat is 0, else the contender's own error.
 */
int64_t vi_seq_bench(const struct vi_seq_table *t, uint32_t how, uint32_t simd, uint32_t repeat,
		     void *buf, uint64_t size, uint64_t *ns)
{
	int64_t bytes = -EINVAL;
	uint64_t start = now_ns();

	for (uint32_t i = 0; i < repeat; i++) {
		bytes = render_once(t, how, simd, buf, size);
		if (bytes < 0)
			return bytes;
	}
	*ns = now_ns() - start;
	return bytes;
}
