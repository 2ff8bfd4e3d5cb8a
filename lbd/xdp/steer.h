/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What steer.bpf.c and its loader (_xsk.pyx) agree on: sizes, map keys and values. Included by both.
 *
 * Every map is written by the master alone; the program writes `counters`. A change of anything here raises
 * STEER_VERSION: a new master that takes over a running program checks it.
 *
 * Keys are short, and of one family each, since hashing and comparing them is most of what a packet costs. Ports
 * and addresses in them are in network order, as packets have them.
 */
#ifndef LBD_STEER_H
#define LBD_STEER_H

#include <linux/types.h>

enum {
	STEER_VERSION = 8,
	STEER_IFACES = 16,       /* interfaces at most; lbd's interface numbers are below it */
	STEER_QUEUES = 64,       /* of an interface, at most: xsks[interface number * STEER_QUEUES + queue] */
	STEER_XSKS = 1024,       /* STEER_IFACES * STEER_QUEUES */
	STEER_VIPS = 4096,       /* defaults, set before load to what the configuration asks for */
	STEER_LIPS = 1024,
	STEER_SOURCES = 16384,
	STEER_PASSED = 4096,     /* datagrams in fragments that are known to be the kernel's; the least used make way */
	STEER_PREFIXES = 65536,  /* of sources, of destinations of SNAT rules; they take memory as they come */
	STEER_LOCALS = 131072,   /* the host's own addresses, the same */
	STEER_TUNNELS = 16384,
	STEER_MACS = 4096,
	STEER_NEAR_BITS = 14,    /* slots of near_vips4, near_lips4: 2 to the power of it */
	STEER_NEAR = 1 << STEER_NEAR_BITS,
	STEER_EXT_MAX = 6,       /* IPv6 extension headers walked at most */
	STEER_VLAN_MAX = 2,
	STEER_PROTOS = 3,        /* of SNAT rules: */
	STEER_TCP = 0,
	STEER_UDP = 1,
	STEER_ICMP = 2,          /* echo */
};

/*
 * The program's global variable, in memory that the master maps (section .bss of the object): read without a call.
 *
 * A near slot holds one of the entries of vips4 (lips4) whose key has this hash, or 0 if there is none. So an entry that
 * is found there, or an empty slot, saves the lookup in the map; anything else in the slot does not.
 */
struct steer_settings {
	__u32 version;               /* STEER_VERSION */
	__u16 lip_lo, lip_hi;        /* no LIP has ports of lbd's outside of these; host order, inclusive; hi 0: no LIP */
	__u32 ifindex[STEER_IFACES]; /* by interface number; 0: none */
	__u32 sources;               /* entries of sources4 and sources6 together: 0 saves looking there */
	__u32 tunnels;               /* entries of tunnels: the same */
	__u64 snat;                  /* a bit for each SNAT rule that is in force; 0 saves all the rest of it */
	__u64 snat_all;              /* of those rules whose destination is everywhere */
	__u64 snat_proto[STEER_PROTOS]; /* of those that know the protocol */
	__u64 snat_iface[STEER_IFACES]; /* of those that know the interface */
	__u64 mac[STEER_IFACES];     /* by interface number, as STEER_MAC reads it; 0: not known. Others: map macs */
	__u16 any_vips;              /* 1: entries of vips4 or vips6, not of ICMP, have port 0, which stands for every one */
	__u16 any_sources;           /* the same of sources4 and sources6 */
	__u32 echo;                  /* 1: entries of vips4, vips6, sources4 or sources6 are of ICMP; 0 saves looking there */
	__u64 near_vips4[STEER_NEAR]; /* key of vips4 */
	__u64 near_lips4[STEER_NEAR]; /* STEER_LIP4(address, lo, hi) */
};

struct steer_counts {            /* counters: by interface number */
	__u64 pass;              /* not lbd's: to the kernel */
	__u64 redirect;          /* to the socket of the queue */
	__u64 drop;              /* lbd's, but no socket is there: a worker is missing */
};

/* Of ICMP (and ICMPv6), whose echo is a service's: port 0. */
struct steer_port6 {             /* key of vips6; the value is the service's number, for people */
	__u32 addr[4];
	__u32 port;              /* STEER_PORT(port, protocol) */
};

/* Words, not bytes: a word that was written in parts is slow to read. */
#define STEER_PORT(port, proto) ((__u32)(port) | (__u32)(proto) << 16)
#define STEER_BIT(proto) (1u << ((proto) & 31)) /* of those that lbd has, no two share one */
#define STEER_VIP4(addr, port, proto) ((__u64)(addr) << 32 | STEER_PORT(port, proto)) /* key of vips4 */
#define STEER_LIP4(addr, lo, hi) ((__u64)(addr) << 32 | (__u32)(hi) << 16 | (lo))

/*
 * Keys are the operator's, so a multiplication will do. The shift mixes address and port: without it 5 ports on each of
 * 400 neighbouring addresses have three times the collisions of random keys, with it fewer than those.
 */
#define STEER_SLOT(key) ((((key) ^ (key) >> 35) * 0x9e3779b97f4a7c15ULL) >> (64 - STEER_NEAR_BITS))

/* lips4, lips6: keyed by the address alone; sources4, sources6: keys as those of vips4 and vips6 */

/*
 * Key of tunnels: either a tunnel that ends here, by local and remote address (all 0: from anywhere), or a real server that
 * packets are wrapped for, by its address alone (far). IPv4 in the first word, the rest 0.
 */
struct steer_tunnel {
	__u32 near[4];
	__u32 far[4];
	__u32 what;              /* STEER_TUNNEL(family, protocol, port), and STEER_ENDS_HERE or not */
};

/* protocol: of the outer header, 4 for 41 too; port: UDP's, network order, else 0 */
#define STEER_TUNNEL(af, proto, port) ((__u32)(port) | (__u32)(proto) << 16 | (__u32)(af) << 24)
#define STEER_ENDS_HERE 0x80000000

struct steer_ports {             /* value of lips4, lips6: lbd's own ports of the address; host order, inclusive */
	__u16 lo;
	__u16 hi;
	__u16 echo;              /* 1: identifiers of ICMP echo, too: an SNAT pool's, or there are services of ICMP that send from it */
	__u16 zero;
};

/* The first six bytes of a frame, its receiver, of a little-endian word. */
#define STEER_MAC(word) ((word) & 0xffffffffffffULL)
/* Key of macs: what is sent to this one, and comes by this interface, is for a device above it (VLAN, bond). */
#define STEER_MAC_AT(iface, mac) ((__u64)(iface) << 48 | (mac))

/*
 * Key of snat_src and snat_dst, tries of the prefixes that rules name; the value has the bit of each rule that covers the
 * prefix, shorter ones included. IPv4 as ::ffff:a.b.c.d. Without the length, the key of `locals`.
 */
struct steer_prefix {
	__u32 len;
	__u32 addr[4];
};

/* key of vip_addrs and source_addrs: STEER_BIT of each protocol with a service, or a real server, there */
struct steer_addr {
	__u32 addr[4];           /* IPv4 in the first, the rest 0 */
	__u32 af;                /* 4 or 6 */
};

struct steer_datagram {          /* key of passed: what all its fragments have in common; the value means nothing */
	struct steer_addr dst;
	__u32 src[4];
	__u32 id;                /* network order; IPv4: 16 bits */
	__u32 proto;             /* IPv6: 0, fragments may tell different ones */
};

#endif
