/* SPDX-License-Identifier: MIT */
/*
 * test_image.c - whatever happens after a machine was saved, restoring it takes it back.
 *
 * 	test_image [turns]
 *
 * Prints one line per failed check and exits 1.
 */
#include "machines.h"

#define TURNS 200

/* What the work above does not do: things that come and go. */
static void upheaval(struct rig *rig)
{
	const uint32_t i = draw(rig, CHANNELS), irq = 2 + draw(rig, 12), relid = 100 + draw(rig, 9);
	struct vi_channel *ch;

	switch (draw(rig, 6)) {
	case 0:
		if (!vi_irq_to_desc(rig->m, irq))
			CHECK(0, vi_irq_alloc_desc(rig->m, irq));
		CHECK(0, vi_irq_modify_settings(rig->m, irq, 0, VI_IRQ_PER_CPU_DEVID));
		CHECK(0, vi_irq_percpu_enable(rig->m, irq, draw(rig, CPUS), draw(rig, 2)));
		break;
	case 1:
		if (vi_irq_to_desc(rig->m, irq))
			CHECK(0, vi_irq_free_desc(rig->m, irq));
		break;
	case 2:
		if (vi_irq_to_desc(rig->m, irq) && !vi_domain_find(rig->m, relid))
			(void)!vi_domain_map(rig->m, relid, irq);
		break;
	case 3:
		CHECK(0, vi_channel_create(rig->m, 900 + draw(rig, 30), VI_CALL_DIRECT, &ch));
		CHECK(0, vi_channel_set_rings(ch, &rig->mem[i][0], &rig->mem[i][1], 64));
		if (draw(rig, 2))
			vi_channel_destroy(ch);
		break;
	case 4:
		CHECK(0, vi_channel_set_callback(rig->ch[i], VI_CALLBACK_NONE, NULL, NULL));
		CHECK(0, vi_channel_set_rings(rig->ch[i], &rig->mem[i][0], &rig->mem[i][1],
					      draw(rig, 2) ? 4096 : 128));
		break;
	default:
		(void)!vi_connect_event(rig->m, 200 + draw(rig, 40), draw(rig, 40));
		(void)!vi_disconnect_event(rig->m, 200 + draw(rig, 40));
	}
}

/* Run @cpu and save what that leaves. */
static void run_and_save(struct rig *rig, uint32_t cpu, struct snapshot *s)
{
	(void)!vi_vcpu_run(rig->m, cpu);
	save(rig, s);
}

/* The same bytes, and the same to come: nothing that counts is missing from the image. */
static void run_save_and_restore(const struct shape *shape, uint32_t turns)
{
	struct rig *rig = make_rig(shape);
	struct snapshot then, next, again, next_again;

	for (uint32_t turn = 0; turn < turns && !failures; turn++) {
		work(rig);
		if (turn % 2)
			upheaval(rig);
		save(rig, &then);
		run_and_save(rig, turn % CPUS, &next);
		for (uint32_t n = draw(rig, 40); n; n--) {
			upheaval(rig);
			work(rig);
			(void)!vi_vcpu_run(rig->m, draw(rig, CPUS));
		}
		restore(rig, &then);
		save(rig, &again);
		CHECK_SAME(&then, &again);
		run_and_save(rig, turn % CPUS, &next_again);
		CHECK_SAME(&next, &next_again);
		drop(&then);
		drop(&next);
		drop(&again);
		drop(&next_again);
		(void)!vi_vcpu_run(rig->m, draw(rig, CPUS));
	}
	drop_rig(rig);
}

static void refuse_images(void)
{
	struct rig *rig = make_rig(&shapes[0]), *other = make_rig(&shapes[0]);
	struct snapshot s;

	save(rig, &s);
	CHECK(-EINVAL, vi_machine_restore(other->m, s.image, s.bytes));
	CHECK(-EINVAL, vi_machine_restore(rig->m, s.image, s.bytes - 1));
	CHECK(-EINVAL, vi_machine_restore(rig->m, s.image, 8));
	CHECK(-EINVAL, vi_machine_restore(rig->m, NULL, s.bytes));
	s.image[0] ^= 1;
	CHECK(-EINVAL, vi_machine_restore(rig->m, s.image, s.bytes));
	drop(&s);
	drop_rig(rig);
	drop_rig(other);
}

int main(int argc, char **argv)
{
	uint32_t turns = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : TURNS;

	for (uint32_t i = 0; i < SHAPES; i += 2)
		run_save_and_restore(&shapes[i], turns);
	refuse_images();
	if (failures)
		fprintf(stderr, "test_image: %d checks failed\n", failures);
	return failures != 0;
}
