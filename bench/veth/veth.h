/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the XDP programs and the tool share. */
#ifndef VETH_H
#define VETH_H
#include <linux/types.h>

/* Frame sizes are without the FCS: 60 is 64 on the wire. */
#define FRAME_MIN 60
#define FRAME_MAX 1514
#define HEADER_WORDS 6  /* of 8 bytes: what the generator rewrites in each frame */
#define MIX 12          /* the generator's frame sizes repeat after so many packets */

#define SAMPLE 61       /* the sink looks closely at one packet in so many: prime, so that all flows and sizes come up */
#define SLOT_NS 100000000ull
#define SLOTS 600

enum { COUNT_GEN, COUNT_SINK, COUNT_BYTES, COUNT_BAD, COUNTERS };

struct config {
	/* of the frame; source port, lengths, checksums and low source address bits are 0 */
	__u64 header[HEADER_WORDS];
	__u64 gap_ps;               /* picoseconds between frames, 0 = as fast as it goes */
	__u32 ifindex[2];           /* where the generator sends; the forwarder's two interfaces */
	__u32 flows;
	__u32 ip_sum, udp_sum;      /* folded sums of that header, not complemented */
	__u16 size[MIX];            /* of the frames, in turn */
	__u16 sink_port;            /* network order */
	__u16 spare;
};
#endif
