/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the XDP programs and the tool share. */
#ifndef VETH_H
#define VETH_H
#include <linux/types.h>

#define FRAME 60        /* bytes without the FCS: 64 on the wire */
#define HEADER_WORDS 6  /* of 8 bytes: what the generator rewrites in each frame */

#define SAMPLE 64       /* the sink looks closely at one packet in so many */
#define SLOT_NS 100000000ull
#define SLOTS 600

enum { COUNT_GEN, COUNT_SINK, COUNT_BAD, COUNTERS };

struct config {
	__u64 header[HEADER_WORDS]; /* of the frame; source port, checksums and low source address bits are 0 */
	__u64 gap_ps;               /* picoseconds between frames, 0 = as fast as it goes */
	__u32 ifindex[2];           /* where the generator sends; the forwarder's two interfaces */
	__u32 flows;
	__u32 ip_sum, udp_sum;      /* folded sums of that header, not complemented */
	__u16 sink_port;            /* network order */
	__u16 spare;
};
#endif
