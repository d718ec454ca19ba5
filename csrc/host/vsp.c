/* SPDX-License-Identifier: MIT */
/*
 * vsp.c - the host's half of a channel: it writes into the in ring and signals the VP that the
 * guest has named.
 *
 * One thread at a time per VSP; the guest may run at once on any other. It meets the guest in the
 * ring and in HvSignalEvent only.
 */
#include "internals.h"

struct vi_vsp {
	struct vi_machine *m;
	uint32_t relid;
	uint32_t target;
	uint32_t sint;			/* where the guest is interrupted, and by which flag */
	uint32_t flag;
	uint64_t sequence;
	struct vi_ring_writer in;
	struct vi_ring_reader out;
	struct vi_vsp_stats stats;
	uint32_t drains;		/* vi_drive() reads the out ring */
	uint32_t template_len;
	uint8_t template[VI_VSP_TEMPLATE_MAX];
	uint64_t payload[VI_RING_PAYLOAD_MAX / 8 + 1];
};

int vi_vsp_create(struct vi_machine *m, uint32_t relid, const struct vi_ring_mem *in,
		  const struct vi_ring_mem *out, struct vi_vsp **result)
{
	struct vi_vsp *vsp;
	int error;

	if (relid < VI_RELID_MIN || relid > VI_RELID_MAX)
		return -EINVAL;
	vsp = calloc(1, sizeof(*vsp));
	if (!vsp)
		return -ENOMEM;
	vsp->m = m;
	vsp->relid = relid;
	vsp->sint = VI_SINT_VMBUS;
	vsp->flag = relid;
	error = vi_ring_writer_init(&vsp->in, in, VI_RING_STRICT);
	if (error == 0)
		error = vi_ring_reader_init(&vsp->out, out, VI_RING_STRICT, NULL, 0);
	if (error < 0) {
		free(vsp);
		return error;
	}
	*result = vsp;
	return 0;
}

uint64_t vi_vsp_state_bytes(void)
{
	return offsetof(struct vi_vsp, payload);
}

void vi_vsp_destroy(struct vi_vsp *vsp)
{
	free(vsp);
}

int vi_vsp_set_target(struct vi_vsp *vsp, uint32_t cpu)
{
	if (cpu >= vsp->m->nr_cpus && cpu != VI_VP_NONE)
		return -EINVAL;
	vi_store(&vsp->target, cpu);
	return 0;
}

int vi_vsp_set_interrupt(struct vi_vsp *vsp, uint32_t sint, uint32_t flag)
{
	if (sint == 0 || sint >= VI_SINTS || flag >= VI_SINT_FLAGS)
		return -EINVAL;
	vsp->sint = sint;
	vsp->flag = flag;
	return 0;
}

int vi_vsp_signal(struct vi_vsp *vsp)
{
	uint32_t target = vi_load(&vsp->target);
	int edge;

	if (target == VI_VP_NONE) {
		/* the guest has opened the channel without interrupts */
		vi_trace(vsp->m, VI_TRACE_HOST_SIGNAL, target, vsp->relid, 0);
		return 0;
	}
	edge = vi_synic_signal(vsp->m, target, vsp->sint, vsp->flag);
	vsp->stats.signals++;
	if (edge == 1)
		vsp->stats.edges++;
	else if (edge < 0)
		vsp->stats.dropped_signals++;
	vi_trace(vsp->m, VI_TRACE_HOST_SIGNAL, target, vsp->relid, edge);
	return edge;
}

/* Lay the template over the front of the payload. Return: the sum of all words, anew. */
static uint64_t begin_with_template(struct vi_vsp *vsp, uint32_t len)
{
	uint64_t sum = 0;

	memcpy(vsp->payload, vsp->template, vsp->template_len);
	for (uint32_t i = 0; i < (len + 7) / 8; i++)
		sum += vsp->payload[i];
	return sum;
}

/*
 * Fill the payload with words that tell packets apart. Return: what a reader's tally will add for
 * it.
 */
static uint64_t make_payload(struct vi_vsp *vsp, uint32_t len)
{
	uint32_t words = len / 8, rest = len % 8;
	uint64_t sum = 0, word = vsp->sequence * 0x9e3779b97f4a7c15u + vsp->relid;

	for (uint32_t i = 0; i < words; i++, word += 0x100000001b3u) {
		vsp->payload[i] = word;
		sum += word;
	}
	if (rest) {
		vsp->payload[words] = word & ((1ull << rest * 8) - 1);
		sum += vsp->payload[words];
	}
	return vsp->template_len ? begin_with_template(vsp, len) : sum;
}

int64_t vi_vsp_send(struct vi_vsp *vsp, uint64_t packets, uint32_t payload)
{
	uint64_t sent;
	int error = 0, published, wanted = 0;

	if (payload > VI_RING_PAYLOAD_MAX)
		return -EMSGSIZE;
	if (payload < vsp->template_len)
		payload = vsp->template_len;
	for (sent = 0; sent < packets; sent++) {
		uint64_t sum = make_payload(vsp, payload);
		struct vi_packet_out packet = {
			.type = VI_PKT_DATA_INBAND,
			.len = payload,
			.trans_id = vsp->sequence,
			.payload = vsp->payload,
		};

		error = vi_ring_put(&vsp->in, &packet);
		if (error == 0) {
			vsp->stats.packets++;
			vsp->stats.bytes += (payload + 7) & ~7u;
			vsp->stats.checksum += sum + vsp->sequence;
			vsp->sequence++;
		}
		vi_trace(vsp->m, VI_TRACE_RING_PUT, vsp->target, vsp->relid, error);
		if (error < 0)
			break;
	}
	if (error == -EAGAIN)
		vsp->stats.full++;
	else if (error < 0 && sent == 0)
		return error;
	published = vi_ring_publish(&vsp->in);
	vi_trace(vsp->m, VI_TRACE_RING_PUBLISH, vsp->target, vsp->relid, published);
	if (published) {
		wanted = vi_ring_must_signal(&vsp->in);
		vi_trace(vsp->m, VI_TRACE_RING_DECIDE, vsp->target, vsp->relid, wanted);
	}
	if (wanted && vi_vsp_signal(vsp) == -EINVAL)
		/* a SynIC that is off loses the signal instead, and the stats say so */
		return -EINVAL;
	return (int64_t)sent;
}

int vi_vsp_set_template(struct vi_vsp *vsp, const void *bytes, uint32_t len)
{
	if (len > VI_VSP_TEMPLATE_MAX || (len && !bytes))
		return -EINVAL;
	if (len)
		memcpy(vsp->template, bytes, len);
	vsp->template_len = len;
	return 0;
}

void vi_vsp_set_drains(struct vi_vsp *vsp, uint32_t on)
{
	vsp->drains = on != 0;
}

/*
 * Nothing of what the guest wrote is used but lengths that were checked, so that views will do.
 * Empty is empty only when it was seen after a close, as in vi_ring_drain().
 */
int64_t vi_vsp_drain(struct vi_vsp *vsp)
{
	int64_t packets = 0, before;
	struct vi_packet p;
	int ret, signal = 0;

	do {
		before = packets;
		for (ret = vi_ring_first_view(&vsp->out, &p); ret > 0;
		     ret = vi_ring_next_view(&vsp->out, &p)) {
			packets++;
			vsp->stats.responses++;
			vsp->stats.response_bytes += p.payload_len;
		}
		signal |= vi_ring_close(&vsp->out);
	} while (ret == 0 && packets != before);
	/* a SynIC that is off loses the signal, and the stats say so */
	if (signal && vi_vsp_signal(vsp) == -EINVAL)
		return -EINVAL;
	return ret < 0 ? ret : packets;
}

void vi_vsp_get_stats(const struct vi_vsp *vsp, struct vi_vsp_stats *out)
{
	*out = vsp->stats;
}

struct vi_ring_writer *vi_vsp_in(struct vi_vsp *vsp)
{
	return &vsp->in;
}

struct vi_ring_reader *vi_vsp_out(struct vi_vsp *vsp)
{
	return &vsp->out;
}

/* ---- bulk traffic ---------------------------------------------------------------------------- */

/* Run the CPU that was signalled, and the one that its handler may run on instead, until idle. */
static int64_t settle_target(struct vi_machine *m, const struct vi_vsp *vsp)
{
	int64_t vectors = vi_settle_cpu(m, vsp->target), more;

	if (!m->redirect || vectors < 0 || vsp->sint != VI_SINT_VMBUS)
		return vectors;
	more = vi_settle_cpu(m, vi_load_relaxed(&m->slot[vsp->flag].owner));
	return more < 0 ? more : vectors + more;
}

/* Send one burst and run its target until idle. Return: vectors taken. */
static int64_t deliver(struct vi_machine *m, const struct vi_traffic *t)
{
	uint64_t left = t->packets, dropped = t->vsp->stats.dropped_signals;
	int64_t vectors = 0, taken;

	while (left) {
		int64_t sent = vi_vsp_send(t->vsp, left, t->payload);

		if (sent < 0)
			return sent;
		if (t->vsp->target == VI_VP_NONE)
			return -ENXIO;
		if (t->vsp->stats.dropped_signals != dropped)
			return -ENXIO;
		taken = settle_target(m, t->vsp);
		if (taken < 0)
			return taken;
		vectors += taken;
		if (t->vsp->drains) {
			int64_t answers = vi_vsp_drain(t->vsp);

			if (answers < 0)
				return answers;
		}
		if (sent == 0 && vi_ring_bytes_to_read(t->vsp->in.hdr, t->vsp->in.data_size))
			return -EAGAIN;		/* nobody reads */
		left -= (uint64_t)sent;
	}
	return vectors;
}

int64_t vi_drive(struct vi_machine *m, const struct vi_traffic *traffic, uint32_t n, uint64_t seed)
{
	uint64_t total = 0, *left;
	int64_t vectors = 0;

	for (uint32_t i = 0; i < n; i++) {
		if (!traffic[i].packets)
			return -EINVAL;
		total += traffic[i].interrupts;
	}
	left = malloc((size_t)n * sizeof(*left) + 1);
	if (!left)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++)
		left[i] = traffic[i].interrupts;
	for (; total; total--) {
		uint64_t pick = vi_random(&seed) % total;
		uint32_t i = 0;
		int64_t taken;

		while (pick >= left[i])
			pick -= left[i++];
		taken = deliver(m, &traffic[i]);
		if (taken < 0) {
			vectors = taken;
			break;
		}
		left[i]--;
		vectors += taken;
	}
	free(left);
	return vectors;
}
