/* SPDX-License-Identifier: MIT */
/*
 * util.c - hv_utils' answers to what a host asks all the time: is anybody there (heartbeat), what
 * time it is (timesync) (drivers/hv/hv_util.c v6.10; vmbus.md 1.16).
 *
 * The host is not trusted: only the private copy of its packet is looked at, and lengths that it
 * states are held against the bytes that came.
 */
#include "wire/ring_inline.h"

#define HEADERS (sizeof(struct vi_pipe_header) + sizeof(struct vi_ic_header))

_Static_assert(sizeof(struct vi_pipe_header) == 8, "vmbuspipe_hdr");
_Static_assert(sizeof(struct vi_ic_header) == 20, "icmsg_hdr");
_Static_assert(offsetof(struct vi_ic_header, type) == 4, "icmsgtype");
_Static_assert(offsetof(struct vi_ic_header, size) == 10, "icmsgsize");
_Static_assert(offsetof(struct vi_ic_header, status) == 12, "status");
_Static_assert(offsetof(struct vi_ic_header, transaction) == 16, "ictransaction_id");
_Static_assert(offsetof(struct vi_ic_header, flags) == 17, "icflags");
_Static_assert(sizeof(struct vi_ic_heartbeat) == 40, "heartbeat_msg_data");
_Static_assert(offsetof(struct vi_ic_timesync_ref, reserved) + 3 == VI_IC_TIMESYNC_REF,
	       "ictimesync_ref_data");

/*
 * What must follow the headers of a request that is answered here: of a heartbeat the number alone,
 * as in the kernel. Return: bytes; -1: it is not one of them.
 */
static int body_min(uint32_t type)
{
	switch (type) {
	case VI_IC_HEARTBEAT:
		return sizeof(uint64_t);
	case VI_IC_TIMESYNC:
		return VI_IC_TIMESYNC_REF;
	default:
		return -1;
	}
}

/* Return: enum vi_ic_type of a request that can be answered here; -1: any other, or nonsense. */
static int answerable(const struct vi_packet *p)
{
	struct vi_pipe_header pipe;
	struct vi_ic_header ic;
	int body;

	if (p->payload_len < HEADERS)
		return -1;
	memcpy(&pipe, p->payload, sizeof(pipe));
	memcpy(&ic, p->payload + sizeof(pipe), sizeof(ic));
	body = body_min(ic.type);
	if (body < 0 || pipe.msgsize > p->payload_len - sizeof(pipe) ||
	    pipe.msgsize < sizeof(ic) + (uint32_t)body)
		return -1;
	return ic.type;
}

/* Whether a packet has the shape of an IC message at all; bulk data of a test has not. */
bool vi_util_is_message(const struct vi_packet *p)
{
	struct vi_pipe_header pipe;

	if (p->payload_len < HEADERS)
		return false;
	memcpy(&pipe, p->payload, sizeof(pipe));
	return pipe.msgsize >= sizeof(struct vi_ic_header) &&
	       pipe.msgsize <= p->payload_len - sizeof(pipe);
}

static void add_one(uint8_t *seq_num)
{
	uint64_t n;

	memcpy(&n, seq_num, sizeof(n));
	n++;
	memcpy(seq_num, &n, sizeof(n));
}

/**
 * vi_util_answer() - answer a heartbeat or timesync request: the same bytes, marked as a response,
 * under the same transaction id; a full out ring loses the answer, as in the kernel
 * @ch: where it came from
 * @p: in-band packet, copied and checked; the copy becomes the answer
 * @tally: the request is added to what was read
 *
 * Context: the channel's callback.
 * Return: false: it is neither of them, or malformed, and nothing has happened.
 */
bool vi_util_answer(struct vi_channel *ch, const struct vi_packet *p, struct vi_ring_tally *tally)
{
	uint8_t *reply = ch->in.pkt_buffer + p->offset8 * 8u;
	const int type = answerable(p);
	int signal;

	if (type < 0)
		return false;
	vi_ring_add(tally, p);
	if (type == VI_IC_HEARTBEAT)
		add_one(reply + HEADERS + offsetof(struct vi_ic_heartbeat, seq_num));
	reply[sizeof(struct vi_pipe_header) + offsetof(struct vi_ic_header, flags)] =
		VI_IC_TRANSACTION | VI_IC_RESPONSE;
	signal = vi_ring_write(&ch->out, VI_PKT_DATA_INBAND, 0, p->trans_id, reply, p->payload_len);
	if (signal < 0) {
		ch->replies_dropped++;
		return true;
	}
	ch->replies++;
	vi_trace(ch->m, VI_TRACE_ANSWER, ch->target_cpu, ch->relid, signal);
	if (signal)
		vi_channel_setevent(ch);
	return true;
}
