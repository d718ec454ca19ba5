/* SPDX-License-Identifier: MIT */
/*
 * ring_reader.c - the reading end of a VMBus ring (vmbus.md 1.10 to 1.15; drivers/hv/ring_buffer.c
 * v6.10, OpenVMM vmbus_ring).
 *
 * Owns what the reader keeps to itself: the index that runs ahead of the shared one until close,
 * the writer's index as last seen, the copy buffer, counters.
 *
 * Access rules: one thread per end; the kernel calls a channel's callback on one CPU at a time. The
 * writer is not trusted: each word of a descriptor is fetched once, checked, and used from the
 * copy. Under Linux rules what is impossible is mended, under strict rules it fails the channel;
 * under both no index or length of the writer's leads outside the two mappings.
 */
#include "wire/ring_inline.h"

/* ---- reader: looking at a packet ------------------------------------------------------------- */

/**
 * vi_ring_reader_init - become the reading end
 * @r: filled in; counters start at 0
 * @mem: the ring, which must outlive @r
 * @rules: enum vi_ring_rules
 * @pkt_buffer: where packets are copied to before anyone looks at them (max_pkt_size of the
 *  channel); NULL: views only
 * @size: its bytes, at least VI_PKT_DESC; 0 with NULL
 *
 * Context: no other reader is at work.
 * Return: 0; -EINVAL for unknown rules or a buffer too small; -EIO when a shared index is
 * impossible.
 */
int vi_ring_reader_init(struct vi_ring_reader *r, const struct vi_ring_mem *mem, uint32_t rules,
			void *pkt_buffer, uint32_t size)
{
	const uint32_t write = __atomic_load_n(&mem->hdr->write_index, __ATOMIC_SEQ_CST);
	const uint32_t read = __atomic_load_n(&mem->hdr->read_index, __ATOMIC_SEQ_CST);

	if (rules > VI_RING_STRICT || (pkt_buffer ? size < VI_PKT_DESC : size != 0))
		return -EINVAL;
	if (!vi_ring_index_ok(mem->data_size, write) || !vi_ring_index_ok(mem->data_size, read))
		return -EIO;
	*r = (struct vi_ring_reader){
		.hdr = mem->hdr, .data = mem->data, .data_size = mem->data_size, .rules = rules,
		.priv_read_index = read, .read_index = read, .old_read = read,
		.pkt_buffer = pkt_buffer, .pkt_buffer_size = size,
	};
	return 0;
}

/*
 * The channel is failed: with an empty snapshot, every later look comes by vi_ring_refresh() and
 * ends there.
 */
static int vi_ring_fail(struct vi_ring_reader *r, uint32_t error)
{
	if (!r->error)
		r->error = error;
	r->avail = 0;
	return -EIO;
}

/*
 * Fetch the writer's index. More than fits beside one unit that stays free is cut: a peer that
 * claims it must not lead us past the second mapping. Linux would walk through what is stale for an
 * index that no packet ends at, for ever. Return: 0; -EIO under strict rules if the
 * index, or anything before, was impossible.
 */
static int vi_ring_refresh(struct vi_ring_reader *r)
{
	const uint32_t write = __atomic_load_n(&r->hdr->write_index, __ATOMIC_ACQUIRE);
	uint32_t avail = vi_ring_used(r->data_size, r->priv_read_index, write);

	if (unlikely(!vi_ring_index_ok(r->data_size, write) || r->error)) {
		if (r->rules == VI_RING_STRICT)
			return vi_ring_fail(r, VI_RING_BAD_INDEX);
		avail = 0;	/* no reading ever reaches it, so there is nothing to read */
	}
	r->avail = avail < r->data_size - 8 ? avail : r->data_size - 8;
	return 0;
}

/* A GPA direct descriptor carries its number of ranges at byte 20. */
static bool vi_ring_has_ranges(const uint8_t *desc)
{
	return vi_ring_load64(desc + VI_PKT_DESC) >> 32 != 0;
}

/*
 * Linux: replace impossible lengths by the nearest thing that can be read (hv_pkt_iter_first).
 * Return: the first word, mended.
 */
static uint64_t vi_ring_mend(uint64_t head, uint32_t room)
{
	uint32_t offset = (uint32_t)(head >> 16 & 0xffff) * 8,
		 len = (uint32_t)(head >> 32 & 0xffff) * 8;

	if (len < VI_PKT_DESC || len > room)
		len = room & ~7u;
	if (offset < VI_PKT_DESC || offset > len)
		offset = VI_PKT_DESC;
	return (head & 0xffff00000000ffff) | offset / 8 << 16 | (uint64_t)(len / 8) << 32;
}

/*
 * OpenVMM: the first thing wrong with a packet fails the channel; and its trailer must have been
 * published too. Return: 1, -EIO.
 */
static int vi_ring_judge(struct vi_ring_reader *r, uint64_t head)
{
	const uint32_t type = (uint16_t)head, flags = (uint32_t)(head >> 48);
	const uint32_t offset = (uint32_t)(head >> 16 & 0xffff) * 8,
		       len = (uint32_t)(head >> 32 & 0xffff) * 8;

	if (offset < VI_PKT_DESC)
		return vi_ring_fail(r, VI_RING_BAD_OFFSET);
	if (len < offset || len + VI_PKT_TRAILER > r->avail)
		return vi_ring_fail(r, VI_RING_BAD_LENGTH);
	if (flags & ~(uint32_t)VI_PKT_FLAG_COMPLETION)
		return vi_ring_fail(r, VI_RING_BAD_FLAGS);
	if (!vi_ring_type_ok(type))
		return vi_ring_fail(r, VI_RING_BAD_TYPE);
	if (offset < vi_ring_offset_min(type))
		return vi_ring_fail(r, VI_RING_BAD_OFFSET);
	if (type == VI_PKT_DATA_USING_GPA_DIRECT &&
	    !vi_ring_has_ranges(r->data + r->priv_read_index))
		return vi_ring_fail(r, VI_RING_BAD_RANGES);
	return 1;
}

/*
 * Look at the packet at the private index: fetch its descriptor once, check, hand out the copy.
 * @limit: bytes of packet that the caller can take: Linux cuts there, strict rules refuse
 * Return: 1; 0 when empty; -EIO, -ENOBUFS.
 */
static __attribute__((noinline)) int vi_ring_look(struct vi_ring_reader *r, uint32_t limit,
						  struct vi_packet *out)
{
	int ret = vi_ring_refresh(r);
	const uint8_t *at;
	uint64_t head;

	r->pkt_len = 0;
	if (ret)
		return ret;
	if (r->avail < VI_PKT_DESC)
		return r->avail && r->rules == VI_RING_STRICT ? vi_ring_fail(r, VI_RING_BAD_AVAIL) :
								0;
	if (limit < VI_PKT_DESC)
		return -ENOBUFS;
	head = vi_ring_load64(r->data + r->priv_read_index);
	if (r->rules == VI_RING_LINUX) {
		head = vi_ring_mend(head, r->avail < limit ? r->avail : limit);
	} else {
		ret = vi_ring_judge(r, head);
		if (ret < 0)
			return ret;
		if ((head >> 32 & 0xffff) * 8 > limit)
			return -ENOBUFS;
	}
	at = r->data + r->priv_read_index;
	vi_ring_hand_out(r, head, vi_ring_load64(at + 8), at, out);
	return 1;
}

static inline int vi_ring_first_view_inline(struct vi_ring_reader *r, struct vi_packet *out)
{
	const uint64_t head = vi_ring_glance(r);
	const uint8_t *at = r->data + r->priv_read_index;

	if (unlikely(!head))
		return vi_ring_look(r, VI_PKT_LEN_MAX, out);
	vi_ring_hand_out(r, head, vi_ring_load64(at + 8), at, out);
	return 1;
}

/*
 * Copy a packet, its descriptor as checked and not as it stands in the ring by now. Return: 1;
 * -EIO, strict, if the peer has taken the ranges back since they were looked at.
 */
static __attribute__((noinline)) int vi_ring_copy_out(struct vi_ring_reader *r, struct vi_packet *p,
						      uint8_t *dst)
{
	__builtin_memcpy(dst, p, VI_PKT_DESC);
	vi_ring_copy(dst + VI_PKT_DESC, p->desc + VI_PKT_DESC, p->len8 * 8u - VI_PKT_DESC);
	p->desc = dst;
	p->payload = dst + p->offset8 * 8u;
	if (r->rules == VI_RING_STRICT && p->type == VI_PKT_DATA_USING_GPA_DIRECT &&
	    !vi_ring_has_ranges(dst)) {
		r->pkt_len = 0;
		return vi_ring_fail(r, VI_RING_BAD_RANGES);
	}
	return 1;
}

static __attribute__((noinline)) int vi_ring_first_any(struct vi_ring_reader *r,
						       struct vi_packet *out)
{
	const int ret = vi_ring_look(r, r->pkt_buffer_size, out);

	return ret <= 0 ? ret : vi_ring_copy_out(r, out, r->pkt_buffer);
}

/*
 * Look, copy into pkt_buffer, point there. The quick way is for small packets in order and makes no
 * call.
 */
static inline int vi_ring_first_inline(struct vi_ring_reader *r, struct vi_packet *out)
{
	const uint64_t head = vi_ring_glance(r);
	const uint8_t *at = r->data + r->priv_read_index;
	const uint32_t len = (uint16_t)(head >> 32) * 8u;
	uint8_t *dst = r->pkt_buffer;
	uint64_t trans_id;

	if (unlikely(!head || len > r->pkt_buffer_size))
		return vi_ring_first_any(r, out);
	trans_id = vi_ring_load64(at + 8);
	if (len - VI_PKT_DESC > VI_COPY_INLINE_MAX) {
		vi_ring_hand_out(r, head, trans_id, at, out);
		return vi_ring_copy_out(r, out, dst);
	}
	vi_ring_hand_out(r, head, trans_id, dst, out);
	vi_ring_store64(dst, head);
	vi_ring_store64(dst + 8, trans_id);
	vi_ring_copy_small(dst + VI_PKT_DESC, at + VI_PKT_DESC, len - VI_PKT_DESC);
	return 1;
}

/* ---- reader: the iterator -------------------------------------------------------------------- */

/**
 * vi_ring_first - the first unread packet, copied out (hv_pkt_iter_first)
 * @r: reading end
 * @out: checked fields; pointers into pkt_buffer, good until the next call
 *
 * Context: the reader's thread.
 * Return: 1 and *out, 0 when empty. -ENOBUFS: the reader has no pkt_buffer, or (strict) the packet
 * is larger; Linux rules cut it to the buffer. -EIO: strict, see r->error; nothing is consumed, and
 * the reader stays failed.
 */
int vi_ring_first(struct vi_ring_reader *r, struct vi_packet *out)
{
	return vi_ring_first_inline(r, out);
}

/**
 * vi_ring_next - step over the packet handed out, then as vi_ring_first() (hv_pkt_iter_next)
 * @r: reading end; its shared index does not move before vi_ring_close()
 * @out: as vi_ring_first()
 *
 * Context: the reader's thread.
 * Return: as vi_ring_first().
 */
int vi_ring_next(struct vi_ring_reader *r, struct vi_packet *out)
{
	vi_ring_step(r);
	return vi_ring_first_inline(r, out);
}

/**
 * vi_ring_first_view - the first unread packet, left where it is
 * @r: reading end
 * @out: checked copies of the descriptor's fields; pointers into the ring, good until
 *  vi_ring_close()
 *
 * Only the fields in @out were checked, against one snapshot: a hostile peer may change what stands
 * behind the pointers at any time.
 *
 * Context: the reader's thread.
 * Return: as vi_ring_first(), never -ENOBUFS.
 */
int vi_ring_first_view(struct vi_ring_reader *r, struct vi_packet *out)
{
	return vi_ring_first_view_inline(r, out);
}

/**
 * vi_ring_next_view - step over the packet handed out, then as vi_ring_first_view()
 * @r: reading end
 * @out: as vi_ring_first_view()
 *
 * Context: the reader's thread.
 * Return: as vi_ring_first_view().
 */
int vi_ring_next_view(struct vi_ring_reader *r, struct vi_packet *out)
{
	vi_ring_step(r);
	return vi_ring_first_view_inline(r, out);
}

/**
 * vi_ring_skip - step over the packet handed out; no other is looked at
 * @r: reading end
 *
 * Context: the reader's thread.
 */
void vi_ring_skip(struct vi_ring_reader *r)
{
	vi_ring_step(r);
}

/**
 * vi_ring_publish_read - give the room of all packets stepped over back
 * @r: reading end
 *
 * Context: the reader's thread; a full barrier if anything moved.
 * Return: 1 if there was any, 0 if not.
 */
int vi_ring_publish_read(struct vi_ring_reader *r)
{
	return vi_ring_publish_read_inline(r);
}

/**
 * vi_ring_must_signal_writer - decide about the last vi_ring_publish_read() (flow control)
 * @r: reading end; intr_in_full counts a 1
 *
 * Context: the reader's thread. interrupt_mask plays no part.
 * Return: 1 if the writer waits for room, had not enough before, and has more than it asked for
 * now.
 */
int vi_ring_must_signal_writer(struct vi_ring_reader *r)
{
	return vi_ring_must_signal_writer_inline(r);
}

/**
 * vi_ring_close - give room back and decide about a signal (hv_pkt_iter_close)
 * @r: reading end
 *
 * Context: the reader's thread.
 * Return: 1 the writer must be signalled, 0 not.
 */
int vi_ring_close(struct vi_ring_reader *r)
{
	vi_ring_publish_read_inline(r);
	return vi_ring_must_signal_writer_inline(r);
}

/* ---- reader: whole packets ------------------------------------------------------------------- */

/**
 * vi_ring_read - read one packet into the caller's buffer (vmbus_recvpacket, vmbus_recvpacket_raw)
 * @r: reading end; under Linux rules pkt_buffer_size, unless 0, cuts larger packets as the kernel's
 *  copy buffer does
 * @buf: destination
 * @buflen: its bytes
 * @raw: descriptor and payload, not the payload alone
 * @actual: bytes of the packet, 0 when there is none (or an empty payload)
 * @trans_id: its transaction id, 0 when there is none; may be NULL
 *
 * Context: the reader's thread.
 * Return: 1 the writer must be signalled, 0 not. -EINVAL when @buflen is 0; -ENOBUFS when *actual
 * bytes are needed, nothing is consumed; -EIO as vi_ring_first().
 */
int vi_ring_read(struct vi_ring_reader *r, void *buf, uint32_t buflen, uint32_t raw,
		 uint32_t *actual, uint64_t *trans_id)
{
	const bool cut = r->rules == VI_RING_LINUX && r->pkt_buffer_size;
	struct vi_packet p;
	int ret;

	*actual = 0;
	if (trans_id)
		*trans_id = 0;
	if (buflen == 0)
		return -EINVAL;
	ret = vi_ring_look(r, cut ? r->pkt_buffer_size : VI_PKT_LEN_MAX, &p);
	if (ret <= 0)
		return ret;
	*actual = raw ? r->pkt_len : p.payload_len;
	if (trans_id)
		*trans_id = p.trans_id;
	if (*actual > buflen) {
		r->pkt_len = 0;
		return -ENOBUFS;
	}
	if (!raw)
		vi_ring_copy(buf, p.payload, p.payload_len);
	else if (vi_ring_copy_out(r, &p, buf) < 0)
		return -EIO;
	vi_ring_step(r);
	return vi_ring_close(r);
}

/* Something is left that no packet can be: a writer publishes whole ones. */
static bool less_than_a_packet(const struct vi_ring_reader *r)
{
	return r->avail != 0;
}

/* Go on where the writer stands, if it stands anywhere. */
static void resync(struct vi_ring_reader *r)
{
	uint32_t write_index = vi_load(&r->hdr->write_index);

	if (vi_ring_index_ok(r->data_size, write_index))
		r->priv_read_index = write_index;
}

/*
 * Compiled once without anybody who looks and once with: the plain drain tests nothing per packet
 * but what the ring itself needs.
 */
static inline __attribute__((always_inline)) int drain(struct vi_ring_reader *r, uint32_t budget,
							struct vi_ring_tally *tally,
							struct vi_ring_looker *looker)
{
	const uint32_t all = looker ? looker->all : 0;
	struct vi_packet p;
	uint32_t n = 0, unclosed = 0;
	bool broken = false;
	int ret = 0, signal = 0;

	while (n < budget && !broken) {
		ret = vi_ring_first_inline(r, &p);
		if (ret <= 0) {
			if (ret < 0 || !unclosed)
				break;
			signal |= vi_ring_close(r);
			unclosed = 0;
			continue;
		}
		if (looker && unlikely(all || vi_ring_special(&p)))
			looker->look(looker, &p, tally);
		else
			vi_ring_add(tally, &p);
		broken = r->pkt_len + VI_PKT_TRAILER > r->avail;
		vi_ring_step(r);
		n++;
		if (++unclosed == VI_RING_BATCH) {
			signal |= vi_ring_close(r);
			unclosed = 0;
			broken |= !vi_ring_index_ok(r->data_size,
						    vi_load_relaxed(&r->hdr->write_index));
		}
	}
	if (unlikely(broken || (ret == 0 && n < budget && less_than_a_packet(r)))) {
		tally->resyncs++;
		resync(r);
		return signal | vi_ring_close(r);
	}
	if (n == 0)
		return ret;
	return unclosed ? signal | vi_ring_close(r) : signal;
}

/**
 * vi_ring_drain - what a channel callback does: read all there is, look at every byte, give the
 * room back
 *
 * Empty is empty only when it was seen after a close: whoever wrote before it saw a ring that was
 * not empty, and did not signal.
 *
 * All there is, unless the packets make no sense any more: under Linux rules one that was cut (to
 * pkt_buffer, or for want of its trailer) leaves the reader in the middle of nowhere, sooner or
 * later past the writer's index, and reading on would not end. What is in the ring is then dropped
 * up to the writer's index, and counted in tally->resyncs. An index outside the data is never
 * reached at all: that ends this drain.
 *
 * @r: reading end with a pkt_buffer
 * @budget: packets at most; room is given back every VI_RING_BATCH of them
 * @tally: what was read is added
 *
 * Context: the reader's thread.
 * Return: 1 if a close wants the writer signalled, 0 if none. -EIO, -ENOBUFS as vi_ring_first(),
 * only if not one packet came before.
 */
int vi_ring_drain(struct vi_ring_reader *r, uint32_t budget, struct vi_ring_tally *tally)
{
	return drain(r, budget, tally, NULL);
}

/**
 * vi_ring_drain_with - vi_ring_drain() for a reader that wants to see packets itself
 * @r: reading end with a pkt_buffer
 * @budget: packets at most, seen ones among them
 * @tally: what was read is added, but for what the looker takes
 * @looker: its look() gets each special packet, or each packet, and adds it to the tally or does
 *  not. The packet is a checked copy, good until look() returns; look() must not touch the reader.
 *
 * Context: the reader's thread.
 * Return: as vi_ring_drain(); a packet that was looked at counts as one that came.
 */
int vi_ring_drain_with(struct vi_ring_reader *r, uint32_t budget, struct vi_ring_tally *tally,
		       struct vi_ring_looker *looker)
{
	return drain(r, budget, tally, looker);
}

/**
 * vi_ring_begin_read - no signals while we poll (hv_begin_read)
 * @r: reading end
 *
 * Context: the reader's thread; a full barrier.
 */
void vi_ring_begin_read(struct vi_ring_reader *r)
{
	__atomic_exchange_n(&r->hdr->interrupt_mask, 1, __ATOMIC_SEQ_CST);
}

/**
 * vi_ring_end_read - signals again, and did one go missing meanwhile (hv_end_read)
 * @r: reading end
 *
 * Context: the reader's thread; a full barrier between unmasking and looking.
 * Return: bytes published that were not given back by a close; not 0: begin again, nobody will
 * signal for them. 0 for an index that no reading ever reaches: beginning again would not end.
 */
uint32_t vi_ring_end_read(struct vi_ring_reader *r)
{
	vi_ring_unmask_inline(r);
	return vi_ring_raced_in_inline(r);
}

/** vi_ring_unmask - the first half of vi_ring_end_read() */
void vi_ring_unmask(struct vi_ring_reader *r)
{
	vi_ring_unmask_inline(r);
}

/** vi_ring_raced_in - the second half of vi_ring_end_read() */
uint32_t vi_ring_raced_in(const struct vi_ring_reader *r)
{
	return vi_ring_raced_in_inline(r);
}
