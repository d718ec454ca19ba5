/* SPDX-License-Identifier: MIT */
/*
 * ring_buffer.c - memory of a VMBus ring, and its writing end (vmbus.md 1; drivers/hv/ring_buffer.c
 * v6.10, OpenVMM vmbus_ring).
 *
 * Owns the mappings and what the writer keeps to itself: its index, the reader's index as last
 * seen, counters. Knows neither guest nor host: either may hold either end, under Linux or strict
 * rules. What "signal" does is the caller's business; here it is decided.
 *
 * The data is mapped twice in a row, so that every copy runs past its end as if the ring were
 * straight (vmbus.md 1.3; hv_ringbuffer_init() does the same with vmap). A ring has a memfd of its
 * own, closed at once (a machine has up to 4094 rings, and mappings, unlike descriptors, are
 * plentiful), or consists of pages of a file that somebody else keeps: guest memory, in which guest
 * and host each map the same ring for themselves.
 *
 * Access rules: create, reset and destroy belong to the owner of both ends, while neither is at
 * work. One thread per end: the kernel serialises writers with the out ring's spinlock, here the
 * caller does. The peer is not trusted: under Linux rules nothing that it writes is refused, but no
 * index of its leads outside the two mappings.
 */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "wire/ring_inline.h"

/* ---- memory ---------------------------------------------------------------------------------- */

/*
 * Lay the memfd over the reservation: control page and data, then the data again.
 * @fd: @pad bytes, the control page, the data
 * @pad: what makes control page and padding one page of this machine, 0 where pages are 4 KiB
 */
static int vi_ring_map(uint8_t *base, int fd, size_t pad, size_t data_size)
{
	const int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_FIXED;
	const size_t front = pad + VI_RING_HDR;

	if (mmap(base, front + data_size, prot, flags, fd, 0) == MAP_FAILED)
		return -ENOMEM;
	if (mmap(base + front + data_size, data_size, prot, flags, fd, (off_t)front) == MAP_FAILED)
		return -ENOMEM;
	return 0;
}

/* Room for a ring's mappings, or NULL: what is laid over it goes away with one munmap(). */
static uint8_t *vi_ring_reservation(size_t map_bytes)
{
	void *base = mmap(NULL, map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			  -1, 0);

	return base == MAP_FAILED ? NULL : base;
}

/* Say where things are in a mapping that has @pad bytes, the control page, and the data twice. */
static void vi_ring_mem_fill(struct vi_ring_mem *out, uint8_t *base, size_t pad, size_t data_size)
{
	out->map = base;
	out->map_bytes = pad + VI_RING_HDR + 2 * data_size;
	out->hdr = (struct vi_ring_buffer *)(void *)(base + pad);
	out->data = base + pad + VI_RING_HDR;
	out->bytes = (uint32_t)(VI_RING_HDR + data_size);
	out->data_size = (uint32_t)data_size;
}

/**
 * vi_ring_mem_create - map a ring and reset it
 * @bytes: control page and data
 * @out: the mapping, or all zero on failure
 *
 * Context: any thread; @out belongs to the caller.
 * Return: 0; -EINVAL when @bytes is not whole pages, below VI_RING_BYTES_MIN or above
 * VI_RING_BYTES_MAX; -ENOMEM when the system has no memory, mapping or descriptor left.
 */
int vi_ring_mem_create(uint32_t bytes, struct vi_ring_mem *out)
{
	const size_t page = (size_t)sysconf(_SC_PAGESIZE);
	const size_t pad = page > VI_RING_HDR ? page - VI_RING_HDR : 0;
	const size_t data_size = bytes - VI_RING_HDR, file_bytes = pad + bytes,
		     map_bytes = file_bytes + data_size;
	uint8_t *base;
	int fd, ret;

	memset(out, 0, sizeof(*out));
	if (bytes < VI_RING_BYTES_MIN || bytes > VI_RING_BYTES_MAX || bytes % VI_PAGE ||
	    data_size % page)
		return -EINVAL;
	base = vi_ring_reservation(map_bytes);
	if (!base)
		return -ENOMEM;
	ret = -ENOMEM;
	fd = memfd_create("vmbus-ring", MFD_CLOEXEC);
	if (fd < 0)
		goto unmap;
	if (ftruncate(fd, (off_t)file_bytes) == 0)
		ret = vi_ring_map(base, fd, pad, data_size);
	close(fd);
	if (ret)
		goto unmap;
	vi_ring_mem_fill(out, base, pad, data_size);
	vi_ring_reset(out);
	return 0;
unmap:
	munmap(base, map_bytes);
	return ret;
}

/* Map @n pages of a file in a row; pages that are neighbours in the file too take one mapping. */
static int vi_ring_map_pages(uint8_t *base, int fd, const uint64_t *pfns, uint32_t n)
{
	const int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_FIXED;
	uint32_t run;

	for (uint32_t i = 0; i < n; i += run) {
		for (run = 1; i + run < n && pfns[i + run] == pfns[i] + run; run++)
			;
		if (mmap(base + (size_t)i * VI_PAGE, (size_t)run * VI_PAGE, prot, flags, fd,
			 (off_t)(pfns[i] * VI_PAGE)) == MAP_FAILED)
			return -ENOMEM;
	}
	return 0;
}

/* Whether every page lies in the file: beyond its end, the first access would be SIGBUS. */
static int vi_ring_check_pages(int fd, const uint64_t *pfns, uint32_t n)
{
	struct stat file;

	if (fstat(fd, &file))
		return -EBADF;
	for (uint32_t i = 0; i < n; i++)
		if (pfns[i] >= (uint64_t)file.st_size / VI_PAGE)
			return -EINVAL;
	return 0;
}

/**
 * vi_ring_mem_map - map a ring whose pages lie in a file, and leave it as it stands
 * @fd: the file; it may be closed afterwards and must never shrink
 * @pfns: its pages, counted in VI_PAGE: the control page, then the data in the order of the ring
 * @n: how many. A guest with larger pages leaves the rest of its header page out.
 * @out: the mapping, or all zero on failure
 *
 * A page may occur twice: the result makes no sense as a ring, but no index leads out of it.
 *
 * Context: any thread; @out belongs to the caller.
 * Return: 0; -EINVAL for fewer than 2 pages, more than VI_RING_BYTES_MAX bytes, or a page outside
 * the file; -EBADF when there is no such file; -EOPNOTSUPP where the system cannot map pages of
 * VI_PAGE; -ENOMEM when it has no memory or mapping left, or the file cannot be mapped.
 */
int vi_ring_mem_map(int fd, const uint64_t *pfns, uint32_t n, struct vi_ring_mem *out)
{
	const size_t data_size = (size_t)(n - 1) * VI_PAGE;
	uint8_t *base;
	int ret;

	memset(out, 0, sizeof(*out));
	if (n < VI_RING_BYTES_MIN / VI_PAGE || n > VI_RING_BYTES_MAX / VI_PAGE)
		return -EINVAL;
	if (sysconf(_SC_PAGESIZE) > VI_PAGE)
		return -EOPNOTSUPP;
	ret = vi_ring_check_pages(fd, pfns, n);
	if (ret)
		return ret;
	base = vi_ring_reservation(VI_RING_HDR + 2 * data_size);
	if (!base)
		return -ENOMEM;
	ret = vi_ring_map_pages(base, fd, pfns, n);
	if (!ret)
		ret = vi_ring_map_pages(base + VI_RING_HDR + data_size, fd, pfns + 1, n - 1);
	if (ret) {
		munmap(base, VI_RING_HDR + 2 * data_size);
		return ret;
	}
	vi_ring_mem_fill(out, base, 0, data_size);
	return 0;
}

/**
 * vi_ring_mem_destroy - unmap a ring
 * @mem: from vi_ring_mem_create() or vi_ring_mem_map(); all zero afterwards, and then a second call
 *       does nothing
 *
 * Context: no end of the ring is in use any more.
 */
void vi_ring_mem_destroy(struct vi_ring_mem *mem)
{
	if (mem->map)
		munmap(mem->map, mem->map_bytes);
	memset(mem, 0, sizeof(*mem));
}

/**
 * vi_ring_reset - zero the control page and promise pending_send_sz, as vmbus_open() leaves it
 * @mem: the ring
 *
 * Context: both ends are made anew afterwards.
 */
void vi_ring_reset(struct vi_ring_mem *mem)
{
	memset(mem->hdr, 0, VI_RING_HDR);
	mem->hdr->feature_bits = VI_RING_FEAT_PENDING_SEND_SZ;
}

/**
 * vi_ring_bytes_to_read - bytes between the shared indices
 * @hdr: control page
 * @data_size: bytes of data
 *
 * Context: any thread; a snapshot. Impossible indices give the number that the kernel's arithmetic
 * gives.
 */
uint32_t vi_ring_bytes_to_read(const struct vi_ring_buffer *hdr, uint32_t data_size)
{
	const uint32_t read = __atomic_load_n(&hdr->read_index, __ATOMIC_SEQ_CST);

	return vi_ring_used(data_size, read, __atomic_load_n(&hdr->write_index, __ATOMIC_SEQ_CST));
}

/**
 * vi_ring_bytes_to_write - bytes free between the shared indices; a packet needs fewer
 * @hdr: control page
 * @data_size: bytes of data
 *
 * Context: any thread; a snapshot. Impossible indices give the number that the kernel's arithmetic
 * gives.
 */
uint32_t vi_ring_bytes_to_write(const struct vi_ring_buffer *hdr, uint32_t data_size)
{
	const uint32_t read = __atomic_load_n(&hdr->read_index, __ATOMIC_SEQ_CST);

	return vi_ring_free(data_size, read, __atomic_load_n(&hdr->write_index, __ATOMIC_SEQ_CST));
}

/* ---- writer ---------------------------------------------------------------------------------- */

/**
 * vi_ring_writer_init - become the writing end
 * @w: filled in; counters start at 0
 * @mem: the ring, which must outlive @w
 * @rules: enum vi_ring_rules
 *
 * Context: no other writer is at work.
 * Return: 0; -EINVAL for unknown rules; -EIO when a shared index is impossible.
 */
int vi_ring_writer_init(struct vi_ring_writer *w, const struct vi_ring_mem *mem, uint32_t rules)
{
	const uint32_t write = __atomic_load_n(&mem->hdr->write_index, __ATOMIC_SEQ_CST);
	const uint32_t read = __atomic_load_n(&mem->hdr->read_index, __ATOMIC_SEQ_CST);

	if (rules > VI_RING_STRICT)
		return -EINVAL;
	if (!vi_ring_index_ok(mem->data_size, write) || !vi_ring_index_ok(mem->data_size, read))
		return -EIO;
	*w = (struct vi_ring_writer){
		.hdr = mem->hdr, .data = mem->data, .data_size = mem->data_size, .rules = rules,
		.write_index = write, .published = write, .old_write = write,
		.room = vi_ring_free(mem->data_size, read, write),
	};
	return 0;
}

/* Room for @total bytes by the reader's index of now, or why not. */
static int vi_ring_reserve(struct vi_ring_writer *w, uint32_t total)
{
	const uint32_t read = __atomic_load_n(&w->hdr->read_index, __ATOMIC_SEQ_CST);
	uint32_t room = vi_ring_free(w->data_size, read, w->write_index);

	if (w->rules == VI_RING_STRICT) {
		if (!w->error && !vi_ring_index_ok(w->data_size, read))
			w->error = VI_RING_BAD_INDEX;
		if (w->error)
			return -EIO;
	}
	/* Linux believes any read_index, but no ring has more room than data. */
	w->room = room < w->data_size ? room : w->data_size;
	if (total < w->room)
		return 0;
	w->out_full_total++;
	if (!w->out_full_flag) {
		w->out_full_first++;
		w->out_full_flag = 1;
	}
	return -EAGAIN;
}

/* Every packet that vi_ring_put_quick() leaves alone. */
static __attribute__((noinline)) int vi_ring_put_any(struct vi_ring_writer *w,
						     const struct vi_packet_out *p)
{
	const uint64_t ext_len = p->desc_ext_len;
	uint32_t offset, total;
	uint8_t *dst;
	int ret;

	if (!vi_ring_type_ok(p->type) || p->flags & ~VI_PKT_FLAG_COMPLETION)
		return -EINVAL;
	if (ext_len % 8 || VI_PKT_DESC + ext_len < vi_ring_offset_min(p->type))
		return -EINVAL;
	if (ext_len > VI_PKT_LEN_MAX - VI_PKT_DESC ||
	    p->len > VI_PKT_LEN_MAX - VI_PKT_DESC - ext_len)
		return -EMSGSIZE;
	offset = VI_PKT_DESC + (uint32_t)ext_len;
	total = ((offset + p->len + 7) & ~7u) + VI_PKT_TRAILER;
	if (w->rules == VI_RING_STRICT && total >= w->data_size - 8)
		return -EMSGSIZE;
	if (total >= w->room) {
		ret = vi_ring_reserve(w, total);
		if (ret)
			return ret;
	}
	dst = vi_ring_frame(w, p->type, p->flags, p->trans_id, offset, total);
	vi_ring_copy(dst + VI_PKT_DESC, p->desc_ext, (uint32_t)ext_len);
	vi_ring_copy(dst + offset, p->payload, p->len);
	return 0;
}

static inline int vi_ring_put_inline(struct vi_ring_writer *w, const struct vi_packet_out *p)
{
	const uint32_t most = VI_PKT_LEN_MAX - VI_PKT_DESC;

	if (likely(!p->desc_ext_len &&
		   vi_ring_put_quick(w, p->type, p->flags, p->trans_id, p->payload, p->len, most)))
		return 0;
	return vi_ring_put_any(w, p);
}

/**
 * vi_ring_put - copy a packet behind the last one, unpublished
 * @w: writing end
 * @packet: what to write
 *
 * Context: the writer's thread.
 * Return: 0, or an errno as vi_ring_write_packet().
 */
int vi_ring_put(struct vi_ring_writer *w, const struct vi_packet_out *packet)
{
	return vi_ring_put_inline(w, packet);
}

/**
 * vi_ring_publish - let the reader see what was put
 * @w: writing end
 *
 * Context: the writer's thread; a full barrier.
 * Return: 1 if there was anything to publish, 0 if not.
 */
int vi_ring_publish(struct vi_ring_writer *w)
{
	return vi_ring_publish_inline(w);
}

/**
 * vi_ring_must_signal - decide about the last publish (hv_signal_on_write, commit_write)
 * @w: writing end; intr_out_empty counts a 1
 *
 * Context: the writer's thread, once after each publish.
 * Return: 1 if the reader wants signals and had read all that there was before the publish.
 */
int vi_ring_must_signal(struct vi_ring_writer *w)
{
	return vi_ring_must_signal_inline(w);
}

/**
 * vi_ring_write_packet - write one packet (hv_ringbuffer_write)
 * @w: writing end
 * @packet: what to write
 *
 * Context: the writer's thread.
 * Return: 1 the reader must be signalled, 0 not. -EAGAIN without room (counted); -EINVAL for a type
 * or flag outside the format, page ranges missing or not whole words; -EMSGSIZE for more than len8
 * can say, and under strict rules for more than the ring can ever hold (Linux says -EAGAIN for
 * ever); -EIO under strict rules when the reader's index is impossible.
 */
int vi_ring_write_packet(struct vi_ring_writer *w, const struct vi_packet_out *packet)
{
	const int ret = vi_ring_put_inline(w, packet);

	if (unlikely(ret))
		return ret;
	vi_ring_publish_inline(w);
	return vi_ring_must_signal_inline(w);
}

/**
 * vi_ring_write - write one packet that has no page ranges
 * @w: writing end
 * @type: VI_PKT_DATA_INBAND or VI_PKT_COMP
 * @flags: 0 or VI_PKT_FLAG_COMPLETION
 * @trans_id: transaction id
 * @payload: @len bytes; zeroes pad them to a multiple of 8
 * @len: any number, 0 too
 *
 * Context: the writer's thread.
 * Return: as vi_ring_write_packet().
 */
int vi_ring_write(struct vi_ring_writer *w, uint32_t type, uint32_t flags, uint64_t trans_id,
		  const void *payload, uint32_t len)
{
	struct vi_packet_out packet;
	int ret;

	if (unlikely(!vi_ring_put_quick(w, type, flags, trans_id, payload, len,
					VI_COPY_INLINE_MAX))) {
		if (type > UINT16_MAX || flags > UINT16_MAX)
			return -EINVAL;
		packet = (struct vi_packet_out){
			.type = (uint16_t)type,
			.flags = (uint16_t)flags,
			.len = len,
			.trans_id = trans_id,
			.payload = payload,
		};
		ret = vi_ring_put_any(w, &packet);
		if (ret)
			return ret;
	}
	vi_ring_publish_inline(w);
	return vi_ring_must_signal_inline(w);
}

/**
 * vi_ring_write_batch - write packets until one is refused; one publish, one decision
 * @w: writing end
 * @packets: @n packets
 * @n: 0 is fine: nothing is published, nobody signalled
 * @accepted: how many went in
 *
 * Context: the writer's thread.
 * Return: as vi_ring_write_packet(); an errno only if the very first packet was refused.
 */
int vi_ring_write_batch(struct vi_ring_writer *w, const struct vi_packet_out *packets, uint32_t n,
			uint32_t *accepted)
{
	uint32_t i;
	int ret = 0;

	for (i = 0; i < n; i++) {
		ret = vi_ring_put_inline(w, &packets[i]);
		if (unlikely(ret))
			break;
	}
	*accepted = i;
	if (i == 0)
		return ret;
	vi_ring_publish_inline(w);
	return vi_ring_must_signal_inline(w);
}

/**
 * vi_ring_set_pending_send_size - ask for a signal when there is room
 * (set_channel_pending_send_size)
 * @w: writing end; a size other than 0 counts as a refused packet
 * @size: signal when more than this is free, 0: no longer
 *
 * Context: the writer's thread; a full barrier. Try to write once more afterwards: room that came
 * in between is not signalled.
 * Return: 0; under strict rules @size is rounded up to 8, and -EINVAL is more than the ring can
 * hold.
 */
int vi_ring_set_pending_send_size(struct vi_ring_writer *w, uint32_t size)
{
	if (w->rules == VI_RING_STRICT) {
		if (size > w->data_size - 8)
			return -EINVAL;
		size = (size + 7) & ~7u;
	}
	if (size) {
		w->out_full_total++;
		w->out_full_first += !w->out_full_flag;
	}
	w->out_full_flag = size != 0;
	__atomic_exchange_n(&w->hdr->pending_send_sz, size, __ATOMIC_SEQ_CST);
	return 0;
}
