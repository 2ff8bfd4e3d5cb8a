/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What steer.bpf.c and its loader (_xsk.pyx) agree on: sizes, map keys and values. Included by both.
 *
 * Every map is written by the master alone; the program writes `counters`. A change of anything here raises
 * STEER_VERSION: a new master that takes over a running program checks it (settings[STEER_SETTING_VERSION]).
 */
#ifndef LBD_STEER_H
#define LBD_STEER_H

#include <linux/types.h>

enum {
	STEER_VERSION = 1,
	STEER_IFACES = 16,       /* interfaces at most; lbd's interface numbers are below it */
	STEER_QUEUES = 64,       /* of an interface, at most: xsks[interface number * STEER_QUEUES + queue] */
	STEER_XSKS = 1024,       /* STEER_IFACES * STEER_QUEUES */
	STEER_VIPS = 4096,       /* defaults, set before load to what the configuration asks for */
	STEER_LIPS = 1024,
	STEER_EXT_MAX = 6,       /* IPv6 extension headers walked at most */
	STEER_VLAN_MAX = 2,
};

enum steer_setting {
	STEER_SETTING_VERSION,
	STEER_SETTINGS,
};

enum steer_action {              /* counters[interface number * STEER_ACTIONS + action] */
	STEER_PASS,              /* not lbd's: to the kernel */
	STEER_REDIRECT,          /* to the socket of the queue */
	STEER_DROP,              /* lbd's, but no socket is there: a worker is missing */
	STEER_ACTIONS,
};

struct steer_iface {             /* ifaces: by ifindex */
	__u32 base;              /* interface number * STEER_QUEUES */
	__u32 flags;             /* none yet */
};

struct steer_addr {              /* key of vip_addrs and lips */
	__u8 addr[16];           /* network order; IPv4 in the first four bytes, the rest 0 */
	__u8 af;                 /* 4 or 6 */
	__u8 zero[3];
};

struct steer_vip {               /* key of vips; the value is the service's number, for people */
	__u8 addr[16];
	__u16 port;              /* network order */
	__u8 proto;              /* 6 or 17 */
	__u8 af;
};

struct steer_ports {             /* lips: lbd's own ports of the address; host order, inclusive */
	__u16 lo;
	__u16 hi;
};

/* vip_addrs: 1 << protocol for each protocol that has a service on the address */

#endif
