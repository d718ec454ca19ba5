/* SPDX-License-Identifier: MIT */
/*
 * ring_buffer.c - the steps of drivers/hv/ring_buffer.c, v6.10, written from their description
 * (vmbus.md 1.8 to 1.11).
 *
 * A peer to measure against: the same steps in the same order, the same locked instructions (one
 * lock and two full fences per packet written, one fence per close), one call of memcpy per piece,
 * every index fetched from the shared page each time, every packet copied out. Its instruction
 * count per packet is checked against performance.md 3.1.
 *
 * Access rules: the lock serialises writers; one reader.
 */
#include "linux_shaped/ring_buffer.h"

#define noinline __attribute__((noinline))

struct vi_lx_piece {
	const void *base;
	uint32_t len;
};

/* virt_mb(): a locked read-modify-write of the stack, as on x86 */
static inline void virt_mb(void)
{
	uint32_t word = 0;

	__atomic_fetch_or(&word, 0, __ATOMIC_SEQ_CST);
}

static inline void ring_lock(struct vi_lx_ring *ring)
{
	uint32_t unlocked = 0;

	while (!__atomic_compare_exchange_n(&ring->lock, &unlocked, 1, false, __ATOMIC_ACQUIRE,
					    __ATOMIC_RELAXED))
		unlocked = 0;
}

static inline void ring_unlock(struct vi_lx_ring *ring)
{
	__atomic_store_n(&ring->lock, 0, __ATOMIC_RELEASE);
}

static inline uint32_t index_of(const uint32_t *index)
{
	return __atomic_load_n(index, __ATOMIC_SEQ_CST);
}

static inline uint32_t bytes_to_write(const struct vi_lx_ring *ring)
{
	const uint32_t read = index_of(&ring->hdr->read_index),
		       write = index_of(&ring->hdr->write_index);

	return write >= read ? ring->data_size - (write - read) : read - write;
}

static noinline uint32_t copy_to_ring(const struct vi_lx_ring *ring, uint32_t at, const void *src,
				      uint32_t len)
{
	memcpy(ring->data + at, src, len);
	at += len;
	if (at >= ring->data_size)
		at -= ring->data_size;
	return at;
}

static inline int signal_on_write(struct vi_lx_ring *ring, uint32_t old_write)
{
	virt_mb();
	if (index_of(&ring->hdr->interrupt_mask))
		return 0;
	if (old_write != index_of(&ring->hdr->read_index))
		return 0;
	ring->intr_out_empty++;
	return 1;
}

static noinline int ring_write(struct vi_lx_ring *ring, const struct vi_lx_piece *pieces,
			       uint32_t n)
{
	uint32_t i, avail, at, old_write, total = VI_PKT_TRAILER;
	uint64_t trailer;

	if (__atomic_load_n(&ring->rescind, __ATOMIC_RELAXED))
		return -ENODEV;
	for (i = 0; i < n; i++)
		total += pieces[i].len;
	ring_lock(ring);
	avail = bytes_to_write(ring);
	if (avail <= total) {
		ring->out_full_total++;
		if (!ring->out_full_flag) {
			ring->out_full_first++;
			ring->out_full_flag = 1;
		}
		ring_unlock(ring);
		return -EAGAIN;
	}
	ring->out_full_flag = 0;
	at = index_of(&ring->hdr->write_index);
	old_write = at;
	for (i = 0; i < n; i++)
		at = copy_to_ring(ring, at, pieces[i].base, pieces[i].len);
	trailer = (uint64_t)old_write << 32;
	at = copy_to_ring(ring, at, &trailer, sizeof(trailer));
	virt_mb();
	__atomic_store_n(&ring->hdr->write_index, at, __ATOMIC_RELEASE);
	ring_unlock(ring);
	i = (uint32_t)signal_on_write(ring, old_write);
	if (__atomic_load_n(&ring->rescind, __ATOMIC_RELAXED))
		return -ENODEV;
	return (int)i;
}

/**
 * vi_lx_ring_init - one end of a ring
 * @ring: filled in
 * @mem: the ring
 * @pkt_buffer: copy buffer of the reading end, NULL for the writing end
 * @size: its bytes
 */
void vi_lx_ring_init(struct vi_lx_ring *ring, const struct vi_ring_mem *mem, void *pkt_buffer,
		     uint32_t size)
{
	*ring = (struct vi_lx_ring){
		.hdr = mem->hdr,
		.data = mem->data,
		.data_size = mem->data_size,
		.priv_read_index = mem->hdr->read_index,
		.pkt_buffer = pkt_buffer,
		.pkt_buffer_size = size,
	};
}

/**
 * vi_lx_sendpacket - in-band data in three pieces: descriptor, payload, padding (vmbus_sendpacket)
 * @ring: writing end
 * @payload: @len bytes
 * @len: any number that fits
 * @trans_id: request id
 * @flags: 0 or VI_PKT_FLAG_COMPLETION
 *
 * Return: 1 the reader must be signalled, 0 not; -EAGAIN without room; -ENODEV after a rescind.
 */
int vi_lx_sendpacket(struct vi_lx_ring *ring, const void *payload, uint32_t len, uint64_t trans_id,
		     uint16_t flags)
{
	const uint32_t packet_len = VI_PKT_DESC + len, aligned = (packet_len + 7) & ~7u;
	const struct vi_lx_desc desc = {
		.type = VI_PKT_DATA_INBAND,
		.offset8 = VI_PKT_DESC / 8,
		.len8 = (uint16_t)(aligned / 8),
		.flags = flags,
		.trans_id = trans_id,
	};
	const uint64_t zeroes = 0;
	const struct vi_lx_piece pieces[3] = {
		{ &desc, VI_PKT_DESC }, { payload, len }, { &zeroes, aligned - packet_len },
	};

	return ring_write(ring, pieces, 3);
}

static inline uint32_t iter_avail(const struct vi_lx_ring *ring)
{
	const uint32_t read = ring->priv_read_index,
		       write = __atomic_load_n(&ring->hdr->write_index, __ATOMIC_ACQUIRE);

	return write >= read ? write - read : ring->data_size - read + write;
}

/**
 * vi_lx_pkt_iter_first - copy the first unread packet out
 * @ring: reading end
 *
 * Return: the packet in the copy buffer, lengths mended to what was copied; NULL when there is
 * none.
 */
struct vi_lx_desc *vi_lx_pkt_iter_first(struct vi_lx_ring *ring)
{
	struct vi_lx_desc *copy = (struct vi_lx_desc *)(void *)ring->pkt_buffer;
	const struct vi_lx_desc *desc;
	uint32_t avail = iter_avail(ring), len, offset;

	if (avail < VI_PKT_DESC)
		return NULL;
	if (avail > ring->pkt_buffer_size)
		avail = ring->pkt_buffer_size;
	desc = (const struct vi_lx_desc *)(const void *)(ring->data + ring->priv_read_index);
	len = __atomic_load_n(&desc->len8, __ATOMIC_RELAXED) * 8u;
	offset = __atomic_load_n(&desc->offset8, __ATOMIC_RELAXED) * 8u;
	if (len < VI_PKT_DESC || len > avail)
		len = avail;
	if (offset < VI_PKT_DESC || offset > len)
		offset = VI_PKT_DESC;
	memcpy(copy, desc, len);
	copy->len8 = (uint16_t)(len / 8);
	copy->offset8 = (uint16_t)(offset / 8);
	return copy;
}

/**
 * vi_lx_pkt_iter_skip - step over a packet
 * @ring: reading end
 * @desc: the packet that vi_lx_pkt_iter_first() or vi_lx_pkt_iter_next() returned
 */
void vi_lx_pkt_iter_skip(struct vi_lx_ring *ring, const struct vi_lx_desc *desc)
{
	ring->priv_read_index += desc->len8 * 8u + VI_PKT_TRAILER;
	if (ring->priv_read_index >= ring->data_size)
		ring->priv_read_index -= ring->data_size;
}

/**
 * vi_lx_pkt_iter_next - step over a packet and copy the next one out
 * @ring: reading end
 * @desc: the packet before it
 *
 * Return: as vi_lx_pkt_iter_first().
 */
struct vi_lx_desc *vi_lx_pkt_iter_next(struct vi_lx_ring *ring, const struct vi_lx_desc *desc)
{
	vi_lx_pkt_iter_skip(ring, desc);
	return vi_lx_pkt_iter_first(ring);
}

/**
 * vi_lx_pkt_iter_close - give the room back, decide about a signal to the writer
 * @ring: reading end
 *
 * Return: 1 the writer must be signalled, 0 not.
 */
int vi_lx_pkt_iter_close(struct vi_lx_ring *ring)
{
	const uint32_t start = index_of(&ring->hdr->read_index);
	uint32_t pending, now, given;

	__atomic_store_n(&ring->hdr->read_index, ring->priv_read_index, __ATOMIC_RELEASE);
	if (!(__atomic_load_n(&ring->hdr->feature_bits, __ATOMIC_RELAXED) &
	      VI_RING_FEAT_PENDING_SEND_SZ))
		return 0;
	virt_mb();
	pending = index_of(&ring->hdr->pending_send_sz);
	if (!pending)
		return 0;
	now = bytes_to_write(ring);
	given = ring->priv_read_index >= start ? ring->priv_read_index - start :
						 ring->data_size - start + ring->priv_read_index;
	if (now - given > pending || now <= pending)
		return 0;
	ring->intr_in_full++;
	return 1;
}
