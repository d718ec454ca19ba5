/* SPDX-License-Identifier: MIT */
/*
 * ring_buffer.h - the ring as v6.10 runs it; for the benchmarks and their checks alone.
 */
#ifndef VMBUSIRQ_LINUX_SHAPED_RING_BUFFER_H
#define VMBUSIRQ_LINUX_SHAPED_RING_BUFFER_H

#include "internals.h"

/*
 * One end of a ring, as hv_ring_buffer_info has it: everything but the private read index and the
 * copy buffer is shared memory.
 */
struct vi_lx_ring {
	struct vi_ring_buffer *hdr;
	uint8_t *data;
	uint32_t data_size;
	uint32_t lock;
	uint32_t priv_read_index;
	uint32_t pkt_buffer_size;
	uint8_t *pkt_buffer;
	uint32_t rescind;
	uint32_t out_full_flag;
	uint64_t out_full_first;
	uint64_t out_full_total;
	uint64_t intr_out_empty;
	uint64_t intr_in_full;
};

/* Descriptor of a packet in the copy buffer. */
struct vi_lx_desc {
	uint16_t type;
	uint16_t offset8;
	uint16_t len8;
	uint16_t flags;
	uint64_t trans_id;
};

void vi_lx_ring_init(struct vi_lx_ring *ring, const struct vi_ring_mem *mem, void *pkt_buffer,
		     uint32_t size);
/* vmbus_sendpacket() of in-band data. Return: 1 signal, 0 none, -EAGAIN, -ENODEV. */
VI_MUST_CHECK int vi_lx_sendpacket(struct vi_lx_ring *ring, const void *payload, uint32_t len,
				   uint64_t trans_id, uint16_t flags);
/*
 * hv_pkt_iter_first(), _next(): the packet in the copy buffer or NULL; the step alone;
 * hv_pkt_iter_close(): 1 signal, 0 none.
 */
struct vi_lx_desc *vi_lx_pkt_iter_first(struct vi_lx_ring *ring);
struct vi_lx_desc *vi_lx_pkt_iter_next(struct vi_lx_ring *ring, const struct vi_lx_desc *desc);
void vi_lx_pkt_iter_skip(struct vi_lx_ring *ring, const struct vi_lx_desc *desc);
int vi_lx_pkt_iter_close(struct vi_lx_ring *ring);

#endif
