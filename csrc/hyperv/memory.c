/* SPDX-License-Identifier: MIT */
/*
 * memory.c - guest-physical memory of one partition: a sparse file, mapped once as a whole.
 *
 * Owns the file and the mapping, nothing else: who uses which page is its callers' business. A page
 * that was never touched costs nothing, so that a guest of many gigabytes fits a small machine. The
 * file stays open because rings are mapped from it page by page (wire/ring_buffer.c). It is sealed
 * against any change of size: a page that was inside when somebody mapped it stays inside, and no
 * later access can end in SIGBUS.
 *
 * Access rules: create and destroy belong to the owner; in between any thread reads and writes the
 * memory as guest and host do, that is with what order they need and no help from here.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internals.h"

/**
 * vi_guest_mem_create - make guest-physical memory that reads as zeroes
 * @bytes: its size; guest-physical addresses run from 0 to @bytes - 1
 * @out: the memory; all zero but for a descriptor of -1 on failure
 *
 * Context: any thread; @out belongs to the caller.
 * Return: 0; -EINVAL when @bytes is not whole pages of VI_PAGE, 0 or above VI_GUEST_MEM_MAX;
 * -EMFILE when the process has no descriptor left; -ENOMEM when the system has no memory or address
 * space left.
 */
int vi_guest_mem_create(uint64_t bytes, struct vi_guest_mem *out)
{
	const int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_NORESERVE;
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	void *base;
	int fd;

	*out = (struct vi_guest_mem){ .fd = -1 };
	if (!bytes || bytes % VI_PAGE || bytes > VI_GUEST_MEM_MAX)
		return -EINVAL;
	fd = memfd_create("guest-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return errno == EMFILE || errno == ENFILE ? -EMFILE : -ENOMEM;
	if (ftruncate(fd, (off_t)bytes) || fcntl(fd, F_ADD_SEALS, seals))
		goto close;
	base = mmap(NULL, bytes, prot, flags, fd, 0);
	if (base == MAP_FAILED)
		goto close;
	out->base = base;
	out->bytes = bytes;
	out->fd = fd;
	return 0;
close:
	close(fd);
	return -ENOMEM;
}

/**
 * vi_guest_mem_destroy - give the memory up
 * @mem: from vi_guest_mem_create(); nothing is left in it, and a second call does nothing
 *
 * Context: nobody uses an address in it any more. Rings that were mapped from its file keep their
 * pages.
 */
void vi_guest_mem_destroy(struct vi_guest_mem *mem)
{
	if (mem->base) {
		munmap(mem->base, mem->bytes);
		close(mem->fd);
	}
	*mem = (struct vi_guest_mem){ .fd = -1 };
}

/**
 * vi_guest_mem_drop - give the contents of pages back to the system; they read as zeroes again
 * @mem: the memory
 * @pfn: first page
 * @pages: how many; 0 is fine
 *
 * Whoever has the same pages mapped, as a ring has, sees zeroes too.
 *
 * Context: any thread.
 * Return: 0; -EFAULT when not all of them are inside; -ENOMEM when the system cannot.
 */
int vi_guest_mem_drop(const struct vi_guest_mem *mem, uint64_t pfn, uint64_t pages)
{
	const uint64_t all = mem->bytes / VI_PAGE;
	int ret;

	if (pfn > all || pages > all - pfn)
		return -EFAULT;
	if (!pages)
		return 0;
	do {
		ret = fallocate(mem->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				(off_t)(pfn * VI_PAGE), (off_t)(pages * VI_PAGE));
	} while (ret && errno == EINTR);
	return ret ? -ENOMEM : 0;
}
