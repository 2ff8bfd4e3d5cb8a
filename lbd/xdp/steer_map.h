/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Maps of steer.bpf.c, and what it looks up there: is an end of a packet (address, port, protocol) lbd's?
 *
 * The end is the destination, or the source of what an ICMP error quotes; for is_source4, is_source6 the other one: real
 * servers of mode nat answer to clients' own addresses. Ports are in network order, as the keys have them. Keys and values: steer.h. Included by steer.bpf.c alone, after libbpf's headers.
 */
#ifndef LBD_STEER_MAP_H
#define LBD_STEER_MAP_H

#define MAP(name, kind, size, key_type, value_type) \
	struct {                                    \
		__uint(type, kind);                 \
		__uint(max_entries, size);          \
		__type(key, key_type);              \
		__type(value, value_type);          \
	} name SEC(".maps")

MAP(xsks, BPF_MAP_TYPE_XSKMAP, STEER_XSKS, __u32, __u32);
MAP(vips4, BPF_MAP_TYPE_HASH, STEER_VIPS, __u64, __u32);
MAP(vips6, BPF_MAP_TYPE_HASH, STEER_VIPS, struct steer_port6, __u32);
MAP(vip_addrs, BPF_MAP_TYPE_HASH, STEER_VIPS, struct steer_addr, __u32);
MAP(lips4, BPF_MAP_TYPE_HASH, STEER_LIPS, __u32, struct steer_ports);
MAP(lips6, BPF_MAP_TYPE_HASH, STEER_LIPS, struct in6_addr, struct steer_ports);
MAP(sources4, BPF_MAP_TYPE_HASH, STEER_SOURCES, __u64, __u32);
MAP(sources6, BPF_MAP_TYPE_HASH, STEER_SOURCES, struct steer_port6, __u32);
MAP(counters, BPF_MAP_TYPE_PERCPU_ARRAY, STEER_IFACES, __u32, struct steer_counts);

volatile struct steer_settings settings; /* volatile: written by the master */

static __always_inline bool within(__u16 lo, __u16 hi, __u16 port)
{
	port = bpf_ntohs(port);
	return lo <= port && port <= hi;
}

/*
 * Whether a service or a LIP is looked for first changes the cost alone, not the decision. A port that no LIP has is
 * not looked for among them; of the others most are answers of real servers.
 */
static __always_inline bool may_be_lips(__u16 port)
{
	return within(settings.lip_lo, settings.lip_hi, port);
}

static __always_inline bool is_vip4(__u32 addr, __u16 port, __u8 proto)
{
	__u64 vip = STEER_VIP4(addr, port, proto), near = settings.near_vips4[STEER_SLOT(vip)];

	if (near == vip || !near)
		return near;
	return bpf_map_lookup_elem(&vips4, &vip);
}

static __always_inline bool is_lip4(__u32 addr, __u16 port)
{
	__u64 near = settings.near_lips4[STEER_SLOT((__u64)addr << 32)];
	struct steer_ports *lip;

	if (!near)
		return false;
	if (near >> 32 == addr)
		return within(near, near >> 16, port);
	lip = bpf_map_lookup_elem(&lips4, &addr);
	return lip && within(lip->lo, lip->hi, port);
}

static __always_inline bool is_ours4(__u32 addr, __u16 port, __u8 proto)
{
	return (may_be_lips(port) && is_lip4(addr, port)) || is_vip4(addr, port, proto);
}

static __always_inline bool is_ours6(const __u32 *addr, __u16 port, __u8 proto)
{
	struct steer_port6 vip = {
		.addr = { addr[0], addr[1], addr[2], addr[3] },
		.port = STEER_PORT(port, proto),
	};

	if (may_be_lips(port)) {
		struct steer_ports *lip = bpf_map_lookup_elem(&lips6, vip.addr);

		if (lip && within(lip->lo, lip->hi, port))
			return true;
	}
	return bpf_map_lookup_elem(&vips6, &vip);
}

static __always_inline bool is_source4(__u32 addr, __u16 port, __u8 proto)
{
	__u64 end = STEER_VIP4(addr, port, proto);

	return settings.sources && bpf_map_lookup_elem(&sources4, &end);
}

static __always_inline bool is_source6(const __u32 *addr, __u16 port, __u8 proto)
{
	struct steer_port6 end = {
		.addr = { addr[0], addr[1], addr[2], addr[3] },
		.port = STEER_PORT(port, proto),
	};

	return settings.sources && bpf_map_lookup_elem(&sources6, &end);
}

#endif
