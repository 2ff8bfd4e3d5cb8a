/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Maps of steer.bpf.c, and what it looks up there: is an end of a packet (address, port, protocol) lbd's?
 *
 * The end is the destination, or the source of what an ICMP error quotes; for is_source4, is_source6 the other one: real
 * servers of mode nat answer to clients' own addresses. What SNAT rules are for goes by both (is_snat). Ports are in
 * network order, as the keys have them. Keys and values: steer.h. Included by steer.bpf.c alone, after libbpf's headers.
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
MAP(source_addrs, BPF_MAP_TYPE_HASH, STEER_SOURCES, struct steer_addr, __u32);
MAP(passed, BPF_MAP_TYPE_LRU_HASH, STEER_PASSED, struct steer_datagram, __u32);
/* filled where there are SNAT rules alone: memory as needed */
#define MAP_GROWING(name, kind, size, key_type, value_type) \
	struct {                                            \
		__uint(type, kind);                         \
		__uint(max_entries, size);                  \
		__type(key, key_type);                      \
		__type(value, value_type);                  \
		__uint(map_flags, BPF_F_NO_PREALLOC);       \
	} name SEC(".maps")

MAP_GROWING(macs, BPF_MAP_TYPE_HASH, STEER_MACS, __u64, __u32);
MAP_GROWING(locals, BPF_MAP_TYPE_HASH, STEER_LOCALS, struct in6_addr, __u32);
MAP_GROWING(snat_src, BPF_MAP_TYPE_LPM_TRIE, STEER_PREFIXES, struct steer_prefix, __u64);
MAP_GROWING(snat_dst, BPF_MAP_TYPE_LPM_TRIE, STEER_PREFIXES, struct steer_prefix, __u64);
MAP(tunnels, BPF_MAP_TYPE_HASH, STEER_TUNNELS, struct steer_tunnel, __u32);
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

	if (near == vip)
		return true;
	if (near && bpf_map_lookup_elem(&vips4, &vip))
		return true;
	if (!settings.any_vips)
		return false;
	vip = STEER_VIP4(addr, 0, proto);
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
	if (bpf_map_lookup_elem(&vips6, &vip))
		return true;
	if (!settings.any_vips)
		return false;
	vip.port = STEER_PORT(0, proto);
	return bpf_map_lookup_elem(&vips6, &vip);
}

static __always_inline bool is_source4(__u32 addr, __u16 port, __u8 proto)
{
	__u64 end = STEER_VIP4(addr, port, proto);

	if (!settings.sources)
		return false;
	if (bpf_map_lookup_elem(&sources4, &end))
		return true;
	if (!settings.any_sources)
		return false;
	end = STEER_VIP4(addr, 0, proto);
	return bpf_map_lookup_elem(&sources4, &end);
}

static __always_inline bool is_source6(const __u32 *addr, __u16 port, __u8 proto)
{
	struct steer_port6 end = {
		.addr = { addr[0], addr[1], addr[2], addr[3] },
		.port = STEER_PORT(port, proto),
	};

	if (!settings.sources)
		return false;
	if (bpf_map_lookup_elem(&sources6, &end))
		return true;
	if (!settings.any_sources)
		return false;
	end.port = STEER_PORT(0, proto);
	return bpf_map_lookup_elem(&sources6, &end);
}

struct snat_ends {               /* of a packet, or of the one that would answer a quoted one; IPv4 as ::ffff:a.b.c.d */
	__u32 src[4];
	__u32 dst[4];
	__u32 proto;             /* STEER_TCP … */
	__u32 iface;
};

/* Can it be somebody's beyond a router? As snat_leaves of snat.pxd. */
static __always_inline bool leaves(const __u32 *dst)
{
	__u8 first = bpf_ntohl(dst[3]) >> 24;

	if (!dst[0] && !dst[1])
		return dst[2] == bpf_htonl(0xffff) && first && first != 127 && first < 224;
	return (dst[0] & bpf_htonl(0xff000000)) != bpf_htonl(0xff000000) &&
	       (dst[0] & bpf_htonl(0xffc00000)) != bpf_htonl(0xfe800000);
}

static __always_inline bool is_for(__u32 iface, __u64 mac)
{
	__u64 key = STEER_MAC_AT(iface, mac);

	return mac == settings.mac[iface] || bpf_map_lookup_elem(&macs, &key);
}

/* Is an SNAT rule for it? All that a rule asks for is asked here, but for the interface of the way out. */
static __always_inline bool snat_wants(struct xdp_md *ctx, const struct snat_ends *e)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 rules = settings.snat, *some;
	struct steer_prefix key = { .len = 128 };

	if (!rules || e->proto >= STEER_PROTOS || e->iface >= STEER_IFACES || data + 14 > end)
		return false;
	rules &= settings.snat_proto[e->proto] & settings.snat_iface[e->iface];
	if (!rules || !is_for(e->iface, STEER_MAC(*(__u64 *)data)))
		return false;
	__builtin_memcpy(key.addr, e->src, 16);
	some = bpf_map_lookup_elem(&snat_src, &key);
	if (!some || !(rules & *some) || !leaves(e->dst))
		return false;
	rules &= *some;
	__builtin_memcpy(key.addr, e->dst, 16);
	if (!(rules & settings.snat_all)) {
		some = bpf_map_lookup_elem(&snat_dst, &key);
		if (!some || !(rules & *some))
			return false;
	}
	return !bpf_map_lookup_elem(&locals, key.addr);
}

__noinline int is_snat(struct xdp_md *ctx, struct snat_ends *e)
{
	return e && snat_wants(ctx, e);
}

static __always_inline __u32 snat_proto(__u8 proto)
{
	if (proto == IPPROTO_TCP)
		return STEER_TCP;
	if (proto == IPPROTO_UDP)
		return STEER_UDP;
	return proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6 ? STEER_ICMP : STEER_PROTOS;
}

static __always_inline bool is_snat4(struct xdp_md *ctx, __u32 iface, __u32 src, __u32 dst, __u8 proto)
{
	struct snat_ends e = {
		.src = { 0, 0, bpf_htonl(0xffff), src },
		.dst = { 0, 0, bpf_htonl(0xffff), dst },
		.proto = snat_proto(proto),
		.iface = iface,
	};

	return is_snat(ctx, &e);
}

static __always_inline bool is_snat6(struct xdp_md *ctx, __u32 iface, const __u32 *src, const __u32 *dst, __u8 proto)
{
	struct snat_ends e = {
		.src = { src[0], src[1], src[2], src[3] },
		.dst = { dst[0], dst[1], dst[2], dst[3] },
		.proto = snat_proto(proto),
		.iface = iface,
	};

	return is_snat(ctx, &e);
}

static __always_inline bool is_tunnel_proto(__u8 proto)
{
	return proto == IPPROTO_IPIP || proto == IPPROTO_IPV6 || proto == IPPROTO_GRE;
}

/* Does lbd wrap packets for this address so? */
static __always_inline bool is_wrapped_for(const __u32 *server, __u32 what)
{
	struct steer_tunnel key = {
		.far = { server[0], server[1], server[2], server[3] },
		.what = what,
	};

	return bpf_map_lookup_elem(&tunnels, &key);
}

static __always_inline bool ends_here(const __u32 *local, const __u32 *remote, __u32 what)
{
	struct steer_tunnel key = {
		.near = { local[0], local[1], local[2], local[3] },
		.far = { remote[0], remote[1], remote[2], remote[3] },
		.what = what | STEER_ENDS_HERE,
	};

	if (bpf_map_lookup_elem(&tunnels, &key))
		return true;
	__builtin_memset(key.far, 0, sizeof(key.far));
	return bpf_map_lookup_elem(&tunnels, &key);
}

#endif
