/* SPDX-License-Identifier: MIT */
/*
 * ring_inline.h - the steps of the ring: index arithmetic, copy, publish, signal check, look at a
 * packet, give room back.
 *
 * Every exported path of ring_buffer.c is composed of these, so that what is explored step by step
 * is what runs at full speed.
 *
 * Access rules: write_index and pending_send_sz are stored by the writer alone, read_index and
 * interrupt_mask by the reader alone. Payload is plain memory, ordered by release of the one index
 * and acquire of the other. Whoever stores one field and then decides by another of the peer's
 * (publish, then mask; read_index, then pending_send_sz; mask, then write_index; pending_send_sz,
 * then read_index) stores with a sequentially consistent exchange and loads sequentially
 * consistently: one locked instruction per step on x86, and a pair of such threads cannot both miss
 * the other's store.
 */
#ifndef VMBUSIRQ_RING_INLINE_H
#define VMBUSIRQ_RING_INLINE_H

#include "internals.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the ring is little-endian");
_Static_assert(sizeof(struct vi_ring_buffer) == VI_RING_HDR, "control page");
_Static_assert(offsetof(struct vi_ring_buffer, write_index) == 0, "write_index");
_Static_assert(offsetof(struct vi_ring_buffer, read_index) == 4, "read_index");
_Static_assert(offsetof(struct vi_ring_buffer, interrupt_mask) == 8, "interrupt_mask");
_Static_assert(offsetof(struct vi_ring_buffer, pending_send_sz) == 12, "pending_send_sz");
_Static_assert(offsetof(struct vi_ring_buffer, feature_bits) == 64, "feature_bits");
_Static_assert(offsetof(struct vi_ring_buffer, reserved3) == 4088, "signal counter");
_Static_assert(offsetof(struct vi_packet, flags) == 6 && offsetof(struct vi_packet, trans_id) == 8,
	       "begins as a descriptor does");

/* longer copies are libc's: a call, and with it the paths that make no call */
#define VI_COPY_INLINE_MAX 256

/* ---- copies ---------------------------------------------------------------------------------- */

/*
 * Up to VI_COPY_INLINE_MAX bytes: blocks from the front, and one that ends at the end. Reads and
 * writes nothing outside.
 */
static inline void vi_ring_copy_small(uint8_t *dst, const uint8_t *src, uint32_t n)
{
	if (n > 32) {
		if (n > 64) {
			for (uint32_t i = 0; i < n - 64; i += 64)
				__builtin_memcpy(dst + i, src + i, 64);
			__builtin_memcpy(dst + n - 64, src + n - 64, 64);
		} else {
			__builtin_memcpy(dst, src, 32);
			__builtin_memcpy(dst + n - 32, src + n - 32, 32);
		}
	} else if (n >= 16) {
		__builtin_memcpy(dst, src, 16);
		__builtin_memcpy(dst + n - 16, src + n - 16, 16);
	} else if (n >= 8) {
		__builtin_memcpy(dst, src, 8);
		__builtin_memcpy(dst + n - 8, src + n - 8, 8);
	} else if (n >= 4) {
		__builtin_memcpy(dst, src, 4);
		__builtin_memcpy(dst + n - 4, src + n - 4, 4);
	} else if (n) {
		dst[0] = src[0];
		dst[n / 2] = src[n / 2];
		dst[n - 1] = src[n - 1];
	}
}

static inline void vi_ring_copy(uint8_t *dst, const uint8_t *src, uint32_t n)
{
	if (n > VI_COPY_INLINE_MAX)
		memcpy(dst, src, n);
	else
		vi_ring_copy_small(dst, src, n);
}

static inline void vi_ring_store64(uint8_t *dst, uint64_t value)
{
	__builtin_memcpy(dst, &value, 8);
}

/* One fetch: a peer that changes the word afterwards changes nothing. @src is 8-aligned. */
static inline uint64_t vi_ring_load64(const uint8_t *src)
{
	return __atomic_load_n((const uint64_t *)(const void *)src, __ATOMIC_RELAXED);
}

/* ---- indices --------------------------------------------------------------------------------- */

static inline uint32_t vi_ring_used(uint32_t data_size, uint32_t read, uint32_t write)
{
	return write >= read ? write - read : data_size - read + write;
}

/*
 * Not reduced by one: an empty ring has all of its data free, and a packet must leave some of it
 * so.
 */
static inline uint32_t vi_ring_free(uint32_t data_size, uint32_t read, uint32_t write)
{
	return write >= read ? data_size - (write - read) : read - write;
}

static inline uint32_t vi_ring_advance(uint32_t data_size, uint32_t index, uint32_t bytes)
{
	index += bytes;
	return index >= data_size ? index - data_size : index;
}

static inline bool vi_ring_index_ok(uint32_t data_size, uint32_t index)
{
	return index < data_size && index % 8 == 0;
}

static inline bool vi_ring_type_ok(uint32_t type)
{
	const uint32_t known = 1u << VI_PKT_DATA_INBAND | 1u << VI_PKT_DATA_USING_XFER_PAGES |
			       1u << VI_PKT_DATA_USING_GPA_DIRECT | 1u << VI_PKT_COMP;

	return type < 32 && (known >> type & 1);
}

/* Descriptors that end with page ranges have at least their 8-byte header. */
static inline uint32_t vi_ring_offset_min(uint32_t type)
{
	return type == VI_PKT_DATA_USING_XFER_PAGES || type == VI_PKT_DATA_USING_GPA_DIRECT ?
		       VI_PKT_DESC + 8 :
		       VI_PKT_DESC;
}

/* ---- writer ---------------------------------------------------------------------------------- */

/*
 * Store a packet at the private index and move on: @offset bytes of descriptor, @total bytes in
 * all. The caller has copied the page ranges.
 */
static inline uint8_t *vi_ring_frame(struct vi_ring_writer *w, uint32_t type, uint32_t flags,
				     uint64_t trans_id, uint32_t offset, uint32_t total)
{
	const uint32_t at = w->write_index, len = total - VI_PKT_TRAILER;
	uint8_t *dst = w->data + at;

	/* the padding; what is not padding is overwritten */
	vi_ring_store64(dst + len - 8, 0);
	vi_ring_store64(dst, type | offset / 8 << 16 | (uint64_t)(len / 8) << 32 |
				     (uint64_t)flags << 48);
	vi_ring_store64(dst + 8, trans_id);
	vi_ring_store64(dst + len, (uint64_t)at << 32);
	w->write_index = vi_ring_advance(w->data_size, at, total);
	w->room -= total;
	w->out_full_flag = 0;
	return dst;
}

/*
 * A packet of at most @most bytes without page ranges, room for it known. Anything else, and
 * anything wrong: false, and nothing happened. A caller that makes calls anyway gives a large
 * @most, one that makes none VI_COPY_INLINE_MAX.
 */
static inline bool vi_ring_put_quick(struct vi_ring_writer *w, uint32_t type, uint32_t flags,
				     uint64_t trans_id, const uint8_t *payload, uint32_t len,
				     const uint32_t most)
{
	const uint32_t total = (VI_PKT_DESC + VI_PKT_TRAILER + 7 + len) & ~7u;
	uint8_t *dst;

	if (unlikely(len > most || total >= w->room))
		return false;
	if (most > VI_COPY_INLINE_MAX && unlikely(total >= w->data_size - 8))
		return false;	/* strict rules refuse what just fits an empty ring */
	if (unlikely((type != VI_PKT_DATA_INBAND && type != VI_PKT_COMP) ||
		     flags > VI_PKT_FLAG_COMPLETION))
		return false;
	dst = vi_ring_frame(w, type, flags, trans_id, VI_PKT_DESC, total);
	if (most > VI_COPY_INLINE_MAX)
		vi_ring_copy(dst + VI_PKT_DESC, payload, len);
	else
		vi_ring_copy_small(dst + VI_PKT_DESC, payload, len);
	return true;
}

static inline int vi_ring_publish_inline(struct vi_ring_writer *w)
{
	w->old_write = w->published;
	if (w->write_index == w->published)
		return 0;
	w->published = w->write_index;
	__atomic_exchange_n(&w->hdr->write_index, w->published, __ATOMIC_SEQ_CST);
	return 1;
}

/*
 * Signal only the reader that had drained all there was before this publish: it may be asleep, any
 * other one is not.
 */
static inline int vi_ring_must_signal_inline(struct vi_ring_writer *w)
{
	if (w->old_write == w->published)
		return 0;
	if (__atomic_load_n(&w->hdr->interrupt_mask, __ATOMIC_SEQ_CST))
		return 0;
	if (__atomic_load_n(&w->hdr->read_index, __ATOMIC_SEQ_CST) != w->old_write)
		return 0;
	w->intr_out_empty++;
	return 1;
}

/* ---- reader ---------------------------------------------------------------------------------- */

/*
 * The first word of the descriptor at the private index, if the snapshot has the packet with its
 * trailer and nothing is odd about it; 0 if it needs a second look, which no descriptor in order
 * is. Strict rules know the common types here.
 */
static inline uint64_t vi_ring_glance(const struct vi_ring_reader *r)
{
	const uint64_t strict_mask = 0xfffe00000000ffff;
	uint32_t offset8, len8;
	uint64_t head;

	if (unlikely(r->avail < VI_PKT_DESC))
		return 0;
	head = vi_ring_load64(r->data + r->priv_read_index);
	offset8 = (uint16_t)(head >> 16);
	len8 = (uint16_t)(head >> 32);
	if (unlikely(offset8 < VI_PKT_DESC / 8 || offset8 > len8 ||
		     len8 * 8 + VI_PKT_TRAILER > r->avail))
		return 0;
	if (r->rules != VI_RING_LINUX && (head & strict_mask) != VI_PKT_DATA_INBAND &&
	    (head & strict_mask) != VI_PKT_COMP)
		return 0;
	return head;
}

/* Hand out a packet that was checked: @head and @trans_id as fetched, the bytes at @desc. */
static inline void vi_ring_hand_out(struct vi_ring_reader *r, uint64_t head, uint64_t trans_id,
				    const uint8_t *desc, struct vi_packet *out)
{
	const uint32_t offset = (uint16_t)(head >> 16) * 8u, len = (uint16_t)(head >> 32) * 8u;

	r->pkt_len = len;
	__builtin_memcpy(out, &head, sizeof(head));
	out->trans_id = trans_id;
	out->desc = desc;
	out->payload = desc + offset;
	out->payload_len = len - offset;
}

/* Step over the packet handed out, if there is one. */
static inline void vi_ring_step(struct vi_ring_reader *r)
{
	const uint32_t total = r->pkt_len + VI_PKT_TRAILER;

	if (unlikely(!r->pkt_len))
		return;
	r->priv_read_index = vi_ring_advance(r->data_size, r->priv_read_index, total);
	/* a mended length may reach past the snapshot */
	r->avail = total < r->avail ? r->avail - total : 0;
	r->pkt_len = 0;
}

/* Two sums: an addition need not wait for the one before it. @len is a multiple of 8. */
static inline uint64_t vi_ring_sum(const uint8_t *payload, uint32_t len)
{
	uint64_t even = 0, odd = 0;
	uint32_t i;

	for (i = 0; i + 16 <= len; i += 16) {
		even += vi_ring_load64(payload + i);
		odd += vi_ring_load64(payload + i + 8);
	}
	return even + odd + (i < len ? vi_ring_load64(payload + i) : 0);
}

/* Add a packet that was copied out to what was read: every byte of it is looked at. */
static inline void vi_ring_add(struct vi_ring_tally *tally, const struct vi_packet *p)
{
	tally->packets++;
	tally->bytes += p->payload_len;
	tally->checksum += p->trans_id + vi_ring_sum(p->payload, p->payload_len);
}

/* Whether a packet is more than in-band data that nobody waits for. */
static inline bool vi_ring_special(const struct vi_packet *p)
{
	return p->type != VI_PKT_DATA_INBAND || p->flags;
}

/* Write the room back. Return: 1 if there was any. */
static inline int vi_ring_publish_read_inline(struct vi_ring_reader *r)
{
	r->old_read = r->read_index;
	if (r->priv_read_index == r->read_index)
		return 0;
	r->read_index = r->priv_read_index;
	__atomic_exchange_n(&r->hdr->read_index, r->read_index, __ATOMIC_SEQ_CST);
	return 1;
}

/*
 * Signal only the writer whose wish this very close has fulfilled: before it there was not enough
 * room, now there is more than enough.
 */
static inline int vi_ring_must_signal_writer_inline(struct vi_ring_reader *r)
{
	uint32_t pending, now, given;

	if (r->read_index == r->old_read)
		return 0;
	pending = __atomic_load_n(&r->hdr->pending_send_sz, __ATOMIC_SEQ_CST);
	if (likely(!pending))
		return 0;
	if (!(__atomic_load_n(&r->hdr->feature_bits, __ATOMIC_RELAXED) &
	      VI_RING_FEAT_PENDING_SEND_SZ))
		return 0;
	now = __atomic_load_n(&r->hdr->write_index, __ATOMIC_SEQ_CST);
	if (r->rules == VI_RING_STRICT) {
		pending &= ~7u;
		if (!pending || !vi_ring_index_ok(r->data_size, now))
			return 0;
	}
	now = vi_ring_free(r->data_size, r->read_index, now);
	given = vi_ring_used(r->data_size, r->old_read, r->read_index);
	if (now - given > pending || now <= pending)
		return 0;
	r->intr_in_full++;
	return 1;
}

static inline void vi_ring_unmask_inline(struct vi_ring_reader *r)
{
	__atomic_exchange_n(&r->hdr->interrupt_mask, 0, __ATOMIC_SEQ_CST);
}

/* Bytes that nobody will signal for; 0 for an index that no reading ever reaches. */
static inline uint32_t vi_ring_raced_in_inline(const struct vi_ring_reader *r)
{
	uint32_t write = __atomic_load_n(&r->hdr->write_index, __ATOMIC_SEQ_CST);

	return vi_ring_index_ok(r->data_size, write) ?
		       vi_ring_used(r->data_size, r->read_index, write) :
		       0;
}

#endif
