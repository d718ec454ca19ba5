/* SPDX-License-Identifier: MIT */
/*
 * test_layout.c - the control messages and the monitor page as C lays them out: every size and
 * offset of vmbus.md 2.5, 2.7 and 2.8.
 *
 * The core carries control messages as bytes, so that nothing in csrc/ needs these structures; a
 * VMM or a driver in C does. tests/wire/ asserts the same numbers of the Python codec. All of it is
 * checked by the compiler.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define PACKED __attribute__((packed))
#define SIZE(type, bytes) \
	_Static_assert(sizeof(struct type) == (bytes), #type " has " #bytes " bytes")
#define AT(type, field, offset) \
	_Static_assert(offsetof(struct type, field) == (offset), #type "." #field " is at " #offset)

/* all of REQUESTOFFERS, ALLOFFERS_DELIVERED, UNLOAD, UNLOAD_RESPONSE, PAUSE, RESUME */
struct header {
	uint32_t msgtype, padding;
} PACKED;
SIZE(header, 8);
AT(header, padding, 4);

struct offer_channel {
	struct header header;
	uint8_t if_type[16], if_instance[16];
	uint64_t reserved[2];
	uint16_t chn_flags, mmio_megabytes;
	union {
		uint8_t user_def[120];
		struct {
			uint32_t pipe_mode;
			uint8_t pipe_user_def[116];
		};
	};
	uint16_t sub_channel_index, reserved2;
	uint32_t child_relid;
	uint8_t monitorid, monitor_allocated;
	uint16_t is_dedicated_interrupt;
	uint32_t connection_id;
} PACKED;
SIZE(offer_channel, 196);
AT(offer_channel, if_type, 8);
AT(offer_channel, if_instance, 24);
AT(offer_channel, chn_flags, 56);
AT(offer_channel, mmio_megabytes, 58);
AT(offer_channel, user_def, 60);
AT(offer_channel, pipe_user_def, 64);
AT(offer_channel, sub_channel_index, 180);
AT(offer_channel, child_relid, 184);
AT(offer_channel, monitorid, 188);
AT(offer_channel, monitor_allocated, 189);
AT(offer_channel, is_dedicated_interrupt, 190);
AT(offer_channel, connection_id, 192);

/* RESCIND_CHANNELOFFER, CLOSECHANNEL, RELID_RELEASED, CLOSE_RESERVED_RESPONSE */
struct relid_only {
	struct header header;
	uint32_t child_relid;
} PACKED;
SIZE(relid_only, 12);
AT(relid_only, child_relid, 8);

struct open_channel {
	struct header header;
	uint32_t child_relid, openid, gpadl, target_vp, downstream_page_offset;
	uint8_t userdata[120];
} PACKED;
SIZE(open_channel, 148);
AT(open_channel, openid, 12);
AT(open_channel, gpadl, 16);
AT(open_channel, target_vp, 20);
AT(open_channel, downstream_page_offset, 24);
AT(open_channel, userdata, 28);

struct open_channel_6_0 {
	struct open_channel open;
	uint32_t connection_id;
	uint16_t event_flag, flags;
} PACKED;
SIZE(open_channel_6_0, 156);
AT(open_channel_6_0, connection_id, 148);
AT(open_channel_6_0, event_flag, 152);
AT(open_channel_6_0, flags, 154);

struct open_result {
	struct header header;
	uint32_t child_relid, openid, status;
} PACKED;
SIZE(open_result, 20);
AT(open_result, openid, 12);
AT(open_result, status, 16);

struct gpadl_header {
	struct header header;
	uint32_t child_relid, gpadl;
	uint16_t range_buflen, rangecount;
	uint32_t byte_count, byte_offset;
	uint64_t pfn[];
} PACKED;
AT(gpadl_header, child_relid, 8);
AT(gpadl_header, gpadl, 12);
AT(gpadl_header, range_buflen, 16);
AT(gpadl_header, rangecount, 18);
AT(gpadl_header, byte_count, 20);
AT(gpadl_header, byte_offset, 24);
AT(gpadl_header, pfn, 28);
_Static_assert((240 - offsetof(struct gpadl_header, pfn)) / 8 == 26, "26 pages in the first");

struct gpadl_body {
	struct header header;
	uint32_t msgnumber, gpadl;
	uint64_t pfn[];
} PACKED;
AT(gpadl_body, msgnumber, 8);
AT(gpadl_body, gpadl, 12);
AT(gpadl_body, pfn, 16);
_Static_assert((240 - offsetof(struct gpadl_body, pfn)) / 8 == 28, "28 in each of the others");

struct gpadl_created {
	struct header header;
	uint32_t child_relid, gpadl, creation_status;
} PACKED;
SIZE(gpadl_created, 20);
AT(gpadl_created, gpadl, 12);
AT(gpadl_created, creation_status, 16);

struct gpadl_teardown {
	struct header header;
	uint32_t child_relid, gpadl;
} PACKED;
SIZE(gpadl_teardown, 16);
AT(gpadl_teardown, gpadl, 12);

struct gpadl_torndown {
	struct header header;
	uint32_t gpadl;
} PACKED;
SIZE(gpadl_torndown, 12);
AT(gpadl_torndown, gpadl, 8);

struct initiate_contact {
	struct header header;
	uint32_t version, target_vcpu;
	union {
		uint64_t interrupt_page;
		struct {
			uint8_t msg_sint, msg_vtl, reserved[2];
			uint32_t feature_flags;
		};
	};
	uint64_t monitor_page1, monitor_page2;
} PACKED;
SIZE(initiate_contact, 40);
AT(initiate_contact, version, 8);
AT(initiate_contact, target_vcpu, 12);
AT(initiate_contact, interrupt_page, 16);
AT(initiate_contact, msg_vtl, 17);
AT(initiate_contact, feature_flags, 20);
AT(initiate_contact, monitor_page1, 24);
AT(initiate_contact, monitor_page2, 32);

struct initiate_contact_6_0 {
	struct initiate_contact contact;
	uint8_t client_id[16];
} PACKED;
SIZE(initiate_contact_6_0, 56);
AT(initiate_contact_6_0, client_id, 40);

struct version_response {
	struct header header;
	uint8_t version_supported, connection_state;
	uint16_t padding;
	uint32_t msg_conn_id;
} PACKED;
SIZE(version_response, 16);
AT(version_response, connection_state, 9);
AT(version_response, msg_conn_id, 12);

struct version_response_6_0 {
	struct version_response response;
	uint32_t features, padding;
	uint64_t h2g_monitor_gpa, g2h_monitor_gpa;
} PACKED;
SIZE(version_response_6_0, 40);
AT(version_response_6_0, features, 16);
AT(version_response_6_0, padding, 20);
AT(version_response_6_0, h2g_monitor_gpa, 24);
AT(version_response_6_0, g2h_monitor_gpa, 32);

struct open_reserved {
	struct header header;
	uint32_t relid, target_vp, sint, gpadl, page_offset;
} PACKED;
SIZE(open_reserved, 28);
AT(open_reserved, sint, 16);
AT(open_reserved, gpadl, 20);
AT(open_reserved, page_offset, 24);

struct close_reserved {
	struct header header;
	uint32_t relid, target_vp, sint;
} PACKED;
SIZE(close_reserved, 20);
AT(close_reserved, target_vp, 12);
AT(close_reserved, sint, 16);

struct tl_connect_request {
	struct header header;
	uint8_t guest_endpoint_id[16], host_service_id[16];
} PACKED;
SIZE(tl_connect_request, 40);
AT(tl_connect_request, host_service_id, 24);

struct tl_connect_request_5_2 {
	struct tl_connect_request request;
	uint8_t silo_id[16];
} PACKED;
SIZE(tl_connect_request_5_2, 56);
AT(tl_connect_request_5_2, silo_id, 40);

struct tl_connect_result {
	struct header header;
	uint8_t guest_endpoint_id[16], host_service_id[16];
	int32_t status;
} PACKED;
SIZE(tl_connect_result, 44);
AT(tl_connect_result, status, 40);

struct modify_channel {
	struct header header;
	uint32_t child_relid, target_vp;
} PACKED;
SIZE(modify_channel, 16);
AT(modify_channel, target_vp, 12);

struct modify_channel_response {
	struct header header;
	uint32_t child_relid;
	int32_t status;
} PACKED;
SIZE(modify_channel_response, 16);
AT(modify_channel_response, status, 12);

struct modify_connection {
	struct header header;
	uint64_t monitor_page1, monitor_page2;
} PACKED;
SIZE(modify_connection, 24);
AT(modify_connection, monitor_page2, 16);

struct modify_connection_response {
	struct header header;
	uint8_t connection_state;
} PACKED;
SIZE(modify_connection_response, 9);

/* ---- the monitor page, 2.5 ------------------------------------------------------------------- */

struct monitor_page {
	uint32_t trigger_state, reserved1;
	struct {
		uint32_t pending, armed;
	} trigger_group[4];
	uint64_t reserved2[3];
	int32_t next_checktime[4][32];
	uint16_t latency[4][32];
	uint64_t reserved3[32];
	struct {
		uint32_t connection_id;
		uint16_t flag, reserved;
	} parameter[4][32];
	uint8_t reserved4[1984];
};
SIZE(monitor_page, 4096);
AT(monitor_page, trigger_group, 0x008);
AT(monitor_page, reserved2, 0x028);
AT(monitor_page, next_checktime, 0x040);
AT(monitor_page, latency, 0x240);
AT(monitor_page, reserved3, 0x340);
AT(monitor_page, parameter, 0x440);
AT(monitor_page, reserved4, 0x840);

int main(void)
{
	puts("test_layout: every message and the monitor page, as the compiler has checked them");
	return 0;
}
