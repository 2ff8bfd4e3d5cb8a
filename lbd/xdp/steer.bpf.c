// SPDX-License-Identifier: Apache-2.0
/*
 * steer: which packets are lbd's, and which stay the kernel's.
 *
 * A redirected packet can't be given back to the kernel, so little is decided here. Redirected are
 *   - TCP and UDP to address and port of a service;
 *   - TCP and UDP to a local address (LIP), destination port within lbd's own range: health checks, SSH and
 *     BGP from or to the same address use other ports and stay the kernel's;
 *   - later fragments, which show no port, to an address that carries a service of that protocol, or a LIP;
 *   - ICMP and ICMPv6 errors that quote a packet of one of these, told by its source.
 * Everything else passes, damaged and truncated packets too: the kernel drops those, and says so.
 * What is lbd's is never passed: the kernel owns the address and would answer RST. No socket, no packet.
 *
 * One or two VLAN tags; IPv4 options; at most STEER_EXT_MAX IPv6 extension headers. No GPL-only helper.
 * Maps and their writers: steer.h.
 */
#include <linux/bpf.h>
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "steer.h"

#define MAP(name, kind, size, key_type, value_type) \
	struct {                                    \
		__uint(type, kind);                 \
		__uint(max_entries, size);          \
		__type(key, key_type);              \
		__type(value, value_type);          \
	} name SEC(".maps")

MAP(xsks, BPF_MAP_TYPE_XSKMAP, STEER_XSKS, __u32, __u32);
MAP(ifaces, BPF_MAP_TYPE_HASH, STEER_IFACES, __u32, struct steer_iface);
MAP(vips, BPF_MAP_TYPE_HASH, STEER_VIPS, struct steer_vip, __u32);
MAP(vip_addrs, BPF_MAP_TYPE_HASH, STEER_VIPS, struct steer_addr, __u32);
MAP(lips, BPF_MAP_TYPE_HASH, STEER_LIPS, struct steer_addr, struct steer_ports);
MAP(counters, BPF_MAP_TYPE_PERCPU_ARRAY, STEER_IFACES * STEER_ACTIONS, __u32, __u64);
MAP(settings, BPF_MAP_TYPE_ARRAY, STEER_SETTINGS, __u32, __u32);

#define OFFSET_MAX 4000 /* an XDP frame without fragments is shorter */

struct vlan_tag {
	__be16 tci;
	__be16 proto;
};

/* linux/icmp.h drags in libc's headers, which clang has no bpf flavour of */
#define ICMP_DEST_UNREACH 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12

struct icmp_hdr {               /* ICMP and ICMPv6 alike */
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 rest;
};

struct ext_hdr { /* what the IPv6 extension headers have in common; RFC 8200 */
	__u8 next;
	__u8 len;
	__be16 frag_off; /* Fragment header alone */
};

struct flow {                   /* of the packet, or of the one that an ICMP error quotes */
	struct steer_addr addr; /* destination; of a quoted packet the source */
	__u32 at;               /* of the transport header, bytes into the frame */
	__u8 proto;
	__u8 fragment;
	__u8 later;             /* a fragment that is not the first: no ports */
	__u8 quoted;
};

/*
 * `len` bytes from offset `at` on, or NULL if the frame ends before. Offsets, not pointers, and functions
 * that are not static, since the verifier then proves each function once: 2,583 steps. Inlined, by pointers,
 * it gives up after a million, most of them in combinations of extension headers.
 */
static __always_inline void *bytes(struct xdp_md *ctx, __u32 at, __u32 len)
{
	void *p = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (at > OFFSET_MAX || p + at + len > end)
		return NULL;
	return p + at;
}

static __always_inline bool is_ext(__u8 proto)
{
	return proto == IPPROTO_HOPOPTS || proto == IPPROTO_ROUTING || proto == IPPROTO_DSTOPTS ||
	       proto == IPPROTO_FRAGMENT || proto == IPPROTO_AH;
}

static __always_inline bool parse_ipv4(struct xdp_md *ctx, struct flow *f)
{
	struct iphdr *ip = bytes(ctx, f->at, sizeof(*ip));

	if (!ip || ip->version != 4 || ip->ihl < 5)
		return false;
	__builtin_memcpy(f->addr.addr, f->quoted ? &ip->saddr : &ip->daddr, 4);
	f->addr.af = 4;
	f->proto = ip->protocol;
	f->fragment = (ip->frag_off & bpf_htons(0x3fff)) != 0; /* MF and offset */
	f->later = (ip->frag_off & bpf_htons(0x1fff)) != 0;
	f->at += ip->ihl * 4;
	return true;
}

static __always_inline bool parse_ipv6(struct xdp_md *ctx, struct flow *f)
{
	struct ipv6hdr *ip = bytes(ctx, f->at, sizeof(*ip));

	if (!ip || ip->version != 6)
		return false;
	__builtin_memcpy(f->addr.addr, f->quoted ? &ip->saddr : &ip->daddr, 16);
	f->addr.af = 6;
	f->proto = ip->nexthdr;
	f->at += sizeof(*ip);
#pragma unroll
	for (int i = 0; i < STEER_EXT_MAX; i++) {
		struct ext_hdr *h;

		if (!is_ext(f->proto) || f->later)
			break;
		h = bytes(ctx, f->at, sizeof(*h));
		if (!h)
			return false;
		if (f->proto == IPPROTO_FRAGMENT) {
			f->fragment = (h->frag_off & bpf_htons(0xfff9)) != 0; /* offset and M */
			f->later = (h->frag_off & bpf_htons(0xfff8)) != 0;
			f->at += 8;
		} else if (f->proto == IPPROTO_AH) {
			f->at += (h->len + 2) * 4;
		} else {
			f->at += (h->len + 1) * 8;
		}
		f->proto = h->next;
	}
	return true;
}

/* From the IP header at f->at on; leaves f->at at the transport header. */
__noinline int parse_ip(struct xdp_md *ctx, struct flow *f, __u32 af)
{
	if (!f)
		return false;
	return af == 4 ? parse_ipv4(ctx, f) : parse_ipv6(ctx, f);
}

/* A fragment without ports: lbd's if it can belong to any service or connection of the address. */
static __always_inline bool may_be_ours(struct flow *f)
{
	const __u32 tcp = 1 << IPPROTO_TCP, udp = 1 << IPPROTO_UDP;
	__u32 protos = 0, *served;

	if (f->proto == IPPROTO_TCP || is_ext(f->proto))
		protos |= tcp;
	if (f->proto == IPPROTO_UDP || is_ext(f->proto))
		protos |= udp;
	if (!protos)
		return false;
	served = bpf_map_lookup_elem(&vip_addrs, &f->addr);
	return (served && *served & protos) || bpf_map_lookup_elem(&lips, &f->addr);
}

__noinline int is_ours(struct xdp_md *ctx, struct flow *f)
{
	struct steer_vip vip = {};
	struct steer_ports *lip;
	__be16 *ports;
	__u16 port;

	if (!f)
		return false;
	if (f->later)
		return may_be_ours(f);
	if (f->proto != IPPROTO_TCP && f->proto != IPPROTO_UDP)
		return false;
	ports = bytes(ctx, f->at, 4);
	if (!ports)
		return false;
	__builtin_memcpy(vip.addr, f->addr.addr, 16);
	vip.port = f->quoted ? ports[0] : ports[1];
	vip.proto = f->proto;
	vip.af = f->addr.af;
	if (bpf_map_lookup_elem(&vips, &vip))
		return true;
	lip = bpf_map_lookup_elem(&lips, &f->addr);
	port = bpf_ntohs(vip.port);
	return lip && lip->lo <= port && port <= lip->hi;
}

/* If it is an ICMP error: on to the packet that it quotes, which both families put 8 bytes on. */
static __always_inline bool is_icmp_error(struct xdp_md *ctx, struct flow *f)
{
	struct icmp_hdr *icmp;

	if ((f->proto != IPPROTO_ICMP && f->proto != IPPROTO_ICMPV6) || f->fragment)
		return false;
	icmp = bytes(ctx, f->at, sizeof(*icmp));
	if (!icmp)
		return false;
	if (f->addr.af == 4)
		return f->proto == IPPROTO_ICMP && (icmp->type == ICMP_DEST_UNREACH ||
			icmp->type == ICMP_TIME_EXCEEDED || icmp->type == ICMP_PARAMETERPROB);
	return f->proto == IPPROTO_ICMPV6 &&
	       icmp->type >= ICMPV6_DEST_UNREACH && icmp->type <= ICMPV6_PARAMPROB;
}

static __always_inline bool wants(struct xdp_md *ctx)
{
	struct ethhdr *eth = bytes(ctx, 0, sizeof(*eth));
	struct flow f = { .at = sizeof(*eth) };
	__be16 proto;
	__u32 af;

	if (!eth)
		return false;
	proto = eth->h_proto;
#pragma unroll
	for (int i = 0; i < STEER_VLAN_MAX; i++) {
		struct vlan_tag *tag;

		if (proto != bpf_htons(ETH_P_8021Q) && proto != bpf_htons(ETH_P_8021AD))
			break;
		tag = bytes(ctx, f.at, sizeof(*tag));
		if (!tag)
			return false;
		proto = tag->proto;
		f.at += sizeof(*tag);
	}
	if (proto == bpf_htons(ETH_P_IP))
		af = 4;
	else if (proto == bpf_htons(ETH_P_IPV6))
		af = 6;
	else
		return false;
	if (!parse_ip(ctx, &f, af))
		return false;
	if (is_icmp_error(ctx, &f)) {
		f.quoted = true;
		f.at += sizeof(struct icmp_hdr);
		if (!parse_ip(ctx, &f, af))
			return false;
	}
	return is_ours(ctx, &f);
}

static __always_inline int count(__u32 base, enum steer_action action, int verdict)
{
	__u32 slot = base / STEER_QUEUES * STEER_ACTIONS + action;
	__u64 *n = bpf_map_lookup_elem(&counters, &slot);

	if (n)
		*n += 1;
	return verdict;
}

SEC("xdp")
int steer(struct xdp_md *ctx)
{
	__u32 ifindex = ctx->ingress_ifindex, queue = ctx->rx_queue_index;
	struct steer_iface *iface = bpf_map_lookup_elem(&ifaces, &ifindex);

	if (!iface)
		return XDP_PASS;
	if (!wants(ctx))
		return count(iface->base, STEER_PASS, XDP_PASS);
	if (queue < STEER_QUEUES && bpf_redirect_map(&xsks, iface->base + queue, XDP_DROP) == XDP_REDIRECT)
		return count(iface->base, STEER_REDIRECT, XDP_REDIRECT);
	return count(iface->base, STEER_DROP, XDP_DROP);
}

char _license[] SEC("license") = "Apache-2.0";
