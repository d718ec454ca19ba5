/* SPDX-License-Identifier: MIT */
/*
 * ring_inline.h - the steps of the ring: index arithmetic, copy, publish, signal check, look at a packet, give room back.
 *
 * Every exported path of ring_buffer.c is composed of these, so that what is explored step by step is what runs at full speed.
 *
 * Access rules: write_index and pending_send_sz are stored by the writer alone, read_index and interrupt_mask by the reader alone.
 * Payload is plain memory, ordered by release of the one index and acquire of the other. Whoever stores one field and then
 * decides by another of the peer's (publish, then mask; read_index, then pending_send_sz; mask, then write_index; pending_send_sz,
 * then read_index) stores with a sequentially consistent exchange and loads sequentially consistently: one locked instruction per
 * step on x86, and a pair of such threads cannot both miss the other's store.
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

#define VI_COPY_INLINE_MAX 256	/* longer copies are libc's */

/* ---- copies ---------------------------------------------------------------------------------------------------------------- */

/* Blocks of 16 bytes and a last one that overlaps them; below 16 the same with halves. Exact at both ends. */
static inline void vi_ring_copy(uint8_t *dst, const uint8_t *src, uint32_t n)
{
	uint32_t i;

	if (n > VI_COPY_INLINE_MAX) {
		memcpy(dst, src, n);
	} else if (n >= 16) {
		for (i = 0; i < n - 16; i += 16)
			__builtin_memcpy(dst + i, src + i, 16);
		__builtin_memcpy(dst + n - 16, src + n - 16, 16);
	} else if (n >= 8) {
		uint64_t first, last;

		__builtin_memcpy(&first, src, 8);
		__builtin_memcpy(&last, src + n - 8, 8);
		__builtin_memcpy(dst, &first, 8);
		__builtin_memcpy(dst + n - 8, &last, 8);
	} else {
		for (i = 0; i < n; i++)
			dst[i] = src[i];
	}
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

/* ---- indices --------------------------------------------------------------------------------------------------------------- */

static inline uint32_t vi_ring_used(uint32_t data_size, uint32_t read, uint32_t write)
{
	return write >= read ? write - read : data_size - read + write;
}

/* Not reduced by one: an empty ring has all of its data free, and a packet must leave some of it so. */
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
	return type == VI_PKT_DATA_USING_XFER_PAGES || type == VI_PKT_DATA_USING_GPA_DIRECT ? VI_PKT_DESC + 8 : VI_PKT_DESC;
}

/* ---- writer ---------------------------------------------------------------------------------------------------------------- */

/* Make room for @total bytes, or say why not. The reader's index is fetched only when the remembered one is not enough. */
static inline int vi_ring_reserve(struct vi_ring_writer *w, uint32_t total)
{
	if (likely(vi_ring_free(w->data_size, w->read_index, w->write_index) > total && total < w->data_size))
		return 0;
	w->read_index = __atomic_load_n(&w->hdr->read_index, __ATOMIC_SEQ_CST);
	if (w->rules == VI_RING_STRICT) {
		if (total >= w->data_size - 8)
			return -EMSGSIZE;
		if (!vi_ring_index_ok(w->data_size, w->read_index))
			w->error = VI_RING_BAD_INDEX;
		if (w->error)
			return -EIO;
	}
	/* Linux believes any read_index; a packet larger than the ring must not be believed to fit. */
	if (vi_ring_free(w->data_size, w->read_index, w->write_index) > total && total < w->data_size)
		return 0;
	w->out_full_total++;
	if (!w->out_full_flag) {
		w->out_full_first++;
		w->out_full_flag = 1;
	}
	return -EAGAIN;
}

/* Copy one packet behind the last one. Nobody sees it before vi_ring_publish_inline(). */
static inline int vi_ring_put_inline(struct vi_ring_writer *w, const struct vi_packet_out *p)
{
	const uint64_t ext_len = p->desc_ext_len;
	uint32_t offset, len, at;
	uint8_t *dst;
	int ret;

	if (unlikely(!vi_ring_type_ok(p->type) || p->flags & ~VI_PKT_FLAG_COMPLETION))
		return -EINVAL;
	if (unlikely(ext_len % 8 || VI_PKT_DESC + ext_len < vi_ring_offset_min(p->type)))
		return -EINVAL;
	if (unlikely(ext_len > VI_PKT_LEN_MAX - VI_PKT_DESC || p->len > VI_PKT_LEN_MAX - VI_PKT_DESC - ext_len))
		return -EMSGSIZE;
	offset = VI_PKT_DESC + (uint32_t)ext_len;
	len = (offset + p->len + 7) & ~7u;
	ret = vi_ring_reserve(w, len + VI_PKT_TRAILER);
	if (unlikely(ret))
		return ret;
	at = w->write_index;
	dst = w->data + at;
	vi_ring_store64(dst + len - 8, 0);	/* the padding; what is not padding is overwritten below */
	vi_ring_store64(dst, p->type | offset / 8 << 16 | (uint64_t)(len / 8) << 32 | (uint64_t)p->flags << 48);
	vi_ring_store64(dst + 8, p->trans_id);
	if (ext_len)
		vi_ring_copy(dst + VI_PKT_DESC, p->desc_ext, (uint32_t)ext_len);
	vi_ring_copy(dst + offset, p->payload, p->len);
	vi_ring_store64(dst + len, (uint64_t)at << 32);
	w->write_index = vi_ring_advance(w->data_size, at, len + VI_PKT_TRAILER);
	w->out_full_flag = 0;
	return 0;
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

/* Signal only the reader that had drained all there was before this publish: it may be asleep, any other one is not. */
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

/* ---- reader ---------------------------------------------------------------------------------------------------------------- */

/*
 * Bytes from the private read index to the writer's index as last seen. Never more than fits beside one unit that stays free: a peer
 * that claims more must not lead the reader past the second mapping.
 */
static inline uint32_t vi_ring_avail(const struct vi_ring_reader *r)
{
	uint32_t avail = vi_ring_used(r->data_size, r->priv_read_index, r->write_index);

	return avail < r->data_size - 8 ? avail : r->data_size - 8;
}

static inline bool vi_ring_packet_ok(const struct vi_ring_reader *r, uint64_t head, uint32_t room)
{
	const uint32_t type = (uint16_t)head, flags = (uint32_t)(head >> 48);
	const uint32_t offset = (uint32_t)(head >> 16 & 0xffff) * 8, len = (uint32_t)(head >> 32 & 0xffff) * 8;

	if (offset < VI_PKT_DESC || offset > len || len > room)
		return false;
	if (r->rules == VI_RING_LINUX)
		return true;
	return vi_ring_type_ok(type) && offset >= vi_ring_offset_min(type) && !(flags & ~(uint32_t)VI_PKT_FLAG_COMPLETION) &&
	       type != VI_PKT_DATA_USING_GPA_DIRECT;
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

/* Signal only the writer whose wish this very close has fulfilled: before it there was not enough room, now there is more than enough. */
static inline int vi_ring_must_signal_writer_inline(struct vi_ring_reader *r)
{
	uint32_t pending, now, given;

	if (r->read_index == r->old_read)
		return 0;
	pending = __atomic_load_n(&r->hdr->pending_send_sz, __ATOMIC_SEQ_CST);
	if (likely(!pending))
		return 0;
	if (!(__atomic_load_n(&r->hdr->feature_bits, __ATOMIC_RELAXED) & VI_RING_FEAT_PENDING_SEND_SZ))
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

#endif
