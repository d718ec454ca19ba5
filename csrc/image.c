/* SPDX-License-Identifier: MIT */
/*
 * image.c - all that changes in a machine, into one buffer and back in place, so that pointers into
 * the machine stay good.
 *
 * Whoever explores orders goes back to where it began thousands of times a second, so only what was
 * ever used is moved: descriptors, slots, channels and connections have a bit each that says so,
 * and what has none is as it was made. One walk serves all directions, so that they cannot differ.
 *
 * Not the machine's, and left to their owners: rings and guest memory with what lies in it (SynIC
 * pages, monitor pages, the interrupt page), the host's VSPs, actions and chips, and what handles
 * refer to. What is behind a pointer in the image must be there again when it is restored. Buffers
 * of the machine's own that come and go are kept, made or freed as needed: a channel's copy of a
 * packet, whose bytes mean nothing between two packets, and percpu_enabled.
 */
#include "internals.h"

#define IMAGE_MAGIC 0x76696d67u

struct header {
	uint32_t magic;
	uint32_t reserved;
	const struct vi_machine *m;
	uint64_t bytes;
};

void vi_image_move(struct vi_image *image, void *what, uint64_t bytes)
{
	if (image->how == VI_IMAGE_SAVE)
		memcpy(image->at, what, bytes);
	else if (image->how == VI_IMAGE_RESTORE)
		memcpy(what, image->at, bytes);
	if (image->how != VI_IMAGE_SIZE)
		image->at += bytes;
	image->bytes += bytes;
}

/**
 * vi_image_next() - the next bit that is set
 * @bit: where to begin; where it is
 * Return: false: there is none.
 */
bool vi_image_next(const uint64_t *words, uint32_t n, uint32_t *bit)
{
	uint32_t word = *bit / 64, end = (n + 63) / 64;
	uint64_t left;

	if (word >= end)
		return false;
	left = words[word] & (~0ull << (*bit % 64));
	while (!left) {
		if (++word >= end)
			return false;
		left = words[word];
	}
	*bit = word * 64 + (uint32_t)__builtin_ctzll(left);
	return true;
}

/*
 * Move a set of things that were used; before that, let @forget take back each that was first used
 * after the image was made.
 */
static void move_used(struct vi_image *image, struct vi_machine *m, uint64_t *used, uint32_t n,
		      void (*forget)(struct vi_machine *m, uint32_t i))
{
	const uint64_t *then = (const uint64_t *)(const void *)image->at;

	if (image->how == VI_IMAGE_RESTORE)
		for (uint32_t i = 0; vi_image_next(used, n, &i); i++)
			if (!(then[i / 64] >> (i % 64) & 1))
				forget(m, i);
	vi_image_move(image, used, (n + 63) / 64 * sizeof(*used));
}

/* ---- descriptors ----------------------------------------------------------------------------- */

static struct vi_irq_desc *desc_place(const struct vi_machine *m, uint32_t column)
{
	return &m->desc_pool[m->desc_place[column]];
}

static void forget_desc(struct vi_machine *m, uint32_t column)
{
	struct vi_irq_desc *desc = desc_place(m, column);

	free(desc->percpu_enabled);
	memset(desc, 0, sizeof(*desc));
	m->desc[column] = NULL;
}

/* Which CPUs it is enabled on: the buffer stays where it is, if there is one. */
static int move_percpu_enabled(struct vi_image *image, const struct vi_machine *m,
			       struct vi_irq_desc *desc)
{
	const uint64_t bytes = (m->nr_cpus + 63) / 64 * sizeof(uint64_t);
	uint64_t has = desc->percpu_enabled != NULL;

	vi_image_move(image, &has, sizeof(has));
	if (has && !desc->percpu_enabled)
		desc->percpu_enabled = calloc(1, bytes);
	if (!has && desc->percpu_enabled) {
		free(desc->percpu_enabled);
		desc->percpu_enabled = NULL;
	}
	if (has && !desc->percpu_enabled) {
		image->at += bytes;
		return -ENOMEM;
	}
	if (has)
		vi_image_move(image, desc->percpu_enabled, bytes);
	return 0;
}

static int move_descs(struct vi_image *image, struct vi_machine *m)
{
	int result = 0;

	move_used(image, m, m->desc_used, m->irq_columns, forget_desc);
	for (uint32_t i = 0; vi_image_next(m->desc_used, m->irq_columns, &i); i++) {
		struct vi_irq_desc *desc = desc_place(m, i);

		vi_image_move(image, desc, offsetof(struct vi_irq_desc, percpu_enabled));
		vi_image_move(image, desc->effective, (m->nr_cpus + 63) / 64 * sizeof(uint64_t));
		vi_image_move(image, &m->desc[i], sizeof(m->desc[i]));
		if (move_percpu_enabled(image, m, desc) < 0)
			result = -ENOMEM;
	}
	return result;
}

static void forget_slot(struct vi_machine *m, uint32_t hwirq)
{
	m->domain.revmap[hwirq] = NULL;
	vi_slot_init(m, hwirq);
}

static void move_slots(struct vi_image *image, struct vi_machine *m)
{
	move_used(image, m, m->slot_used, VI_DOMAIN_SIZE, forget_slot);
	for (uint32_t i = 0; vi_image_next(m->slot_used, VI_DOMAIN_SIZE, &i); i++) {
		vi_image_move(image, &m->slot[i], sizeof(m->slot[i]));
		vi_image_move(image, &m->domain.revmap[i], sizeof(m->domain.revmap[i]));
	}
}

/* ---- channels -------------------------------------------------------------------------------- */

static void unlist_channel(struct vi_machine *m, const struct vi_channel *ch)
{
	if (m->channel[ch->relid] == ch)
		m->channel[ch->relid] = NULL;
}

static void forget_channel(struct vi_machine *m, uint32_t place)
{
	struct vi_channel *ch = vi_channel_place(m, place);

	unlist_channel(m, ch);
	free(ch->in.pkt_buffer);
	memset(ch, 0, VI_CHANNEL_SLOT);
}

/* Where packets are copied to: a buffer of the size that it had. */
static int fit_buffer(struct vi_channel *ch, uint8_t *buffer, uint32_t size)
{
	const bool wanted = ch->in.pkt_buffer != NULL;

	if (!wanted || size != ch->in.pkt_buffer_size) {
		free(buffer);
		buffer = wanted ? malloc(ch->in.pkt_buffer_size) : NULL;
	}
	ch->in.pkt_buffer = buffer;
	return wanted && !buffer ? -ENOMEM : 0;
}

/* That there is a buffer is part of the image, where it lies is not. */
static int move_channel(struct vi_image *image, struct vi_machine *m, struct vi_channel *ch)
{
	uint8_t *buffer = ch->in.pkt_buffer;
	const uint32_t size = buffer ? ch->in.pkt_buffer_size : 0;
	uint8_t *const there = (uint8_t *)ch;
	uint64_t listed = ch->m && m->channel[ch->relid] == ch;
	int result = 0;

	if (image->how != VI_IMAGE_RESTORE && buffer)
		ch->in.pkt_buffer = there;
	vi_image_move(image, ch, sizeof(*ch));
	vi_image_move(image, &listed, sizeof(listed));
	if (image->how != VI_IMAGE_RESTORE) {
		ch->in.pkt_buffer = buffer;
		return 0;
	}
	result = fit_buffer(ch, buffer, size);
	if (listed)
		m->channel[ch->relid] = ch;
	return result;
}

static int move_channels(struct vi_image *image, struct vi_machine *m)
{
	int result = 0;

	move_used(image, m, m->channel_used, VI_RELIDS, forget_channel);
	if (image->how == VI_IMAGE_RESTORE)
		for (uint32_t i = 0; vi_image_next(m->channel_used, VI_RELIDS, &i); i++)
			unlist_channel(m, vi_channel_place(m, i));
	for (uint32_t i = 0; vi_image_next(m->channel_used, VI_RELIDS, &i); i++)
		if (move_channel(image, m, vi_channel_place(m, i)) < 0)
			result = -ENOMEM;
	return result;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static void move_cpus(struct vi_image *image, struct vi_machine *m)
{
	for (uint32_t c = 0; c < m->nr_cpus; c++)
		vi_image_move(image, &m->cpus[c], offsetof(struct vi_cpu, batch_irq));
	vi_image_move(image, m->synic_pages, (uint64_t)2 * VI_PAGE * m->nr_cpus);
}

static void move_counters(struct vi_image *image, struct vi_machine *m)
{
	const uint64_t n = m->nr_cpus;

	vi_image_move(image, m->irq_counts, n * m->irq_stride * sizeof(*m->irq_counts));
	vi_image_move(image, m->arch_counts, n * VI_ARCH_STRIDE * sizeof(*m->arch_counts));
	vi_image_move(image, m->softirq_counts, n * VI_SOFTIRQ_STRIDE * sizeof(*m->softirq_counts));
	vi_image_move(image, m->irqs_sums, n * VI_IRQS_SUM_STRIDE * sizeof(*m->irqs_sums));
	vi_image_move(image, m->resend, (m->irq_columns + 63) / 64 * sizeof(*m->resend));
}

/* The sets of what was used come before the machine itself, in which some of them lie. */
static int move_machine(struct vi_image *image, struct vi_machine *m)
{
	int result = move_descs(image, m);

	if (move_channels(image, m) < 0)
		result = -ENOMEM;
	move_slots(image, m);
	vi_connections_image(m, image);
	move_cpus(image, m);
	move_counters(image, m);
	vi_image_move(image, m, sizeof(*m));
	return result;
}

int64_t vi_machine_save(struct vi_machine *m, void *buffer, uint64_t size)
{
	struct vi_image image = { .how = VI_IMAGE_SIZE };
	struct header header = { .magic = IMAGE_MAGIC, .m = m };

	if (vi_inside_interrupt(m))
		return -EDEADLK;
	if (vi_any_stepped(m))
		return -EBUSY;
	(void)move_machine(&image, m);
	header.bytes = sizeof(header) + image.bytes;
	if (!buffer)
		return (int64_t)header.bytes;
	if (size < header.bytes)
		return -ENOSPC;
	memcpy(buffer, &header, sizeof(header));
	image = (struct vi_image){ .how = VI_IMAGE_SAVE,
				   .at = (uint8_t *)buffer + sizeof(header) };
	(void)move_machine(&image, m);
	return (int64_t)header.bytes;
}

int vi_machine_restore(struct vi_machine *m, const void *buffer, uint64_t size)
{
	struct vi_image image = { .how = VI_IMAGE_RESTORE };
	struct header header;

	if (vi_inside_interrupt(m))
		return -EDEADLK;
	if (!buffer || size < sizeof(header))
		return -EINVAL;
	memcpy(&header, buffer, sizeof(header));
	if (header.magic != IMAGE_MAGIC || header.m != m || size < header.bytes)
		return -EINVAL;
	image.at = (uint8_t *)(uintptr_t)buffer + sizeof(header);
	return move_machine(&image, m);
}
