// SPDX-License-Identifier: Apache-2.0
/*
 * steer: which packets are lbd's, and which stay the kernel's.
 *
 * A redirected packet can't be given back to the kernel, so little is decided here. Redirected are
 *   - TCP, UDP and SCTP to address and port of a service, or to any port of an address with a service of any;
 *   - TCP, UDP and SCTP to a local address (LIP), destination port within lbd's own range: health checks, SSH
 *     and BGP from or to the same address use other ports and stay the kernel's;
 *   - TCP, UDP and SCTP from address and port of a real server of mode nat;
 *   - ICMP echo requests to an address with a service of ICMP; to a local address echo answers whose identifier is within lbd's
 *     ports, if there is such a service of mode fullnat; echo answers from its real servers of mode nat;
 *   - later fragments, which show no port, to an address that carries a service of that protocol, or a LIP (ICMP: one that sends
 *     echo requests), or from the address of a real server of mode nat; unless the first one of their datagram passed: that is
 *     remembered;
 *   - ICMP and ICMPv6 errors that quote a packet of one of these, told by its source, or one that lbd has wrapped (IPIP, GRE,
 *     GUE), told by the real server that it was for;
 *   - IPIP and GRE to an address where a tunnel ends that lbd is to unpack, if any of these is inside;
 *   - what an SNAT rule is for: TCP, UDP and ICMP echo requests from its sources to its destinations, sent to this
 *     interface's own MAC, or that of a device above it, unless the destination is the host's; errors that quote an answer to such; to an address of
 *     its pool, echo answers whose identifier is within lbd's ports, and errors that quote an echo request from it.
 * Everything else passes, damaged and truncated packets too: the kernel drops those, and says so.
 * What is lbd's is never passed: the kernel owns the address and would answer RST. No socket, no packet.
 *
 * One or two VLAN tags; IPv4 options; at most STEER_EXT_MAX IPv6 extension headers. No GPL-only helper.
 *
 * Every packet of an interface pays for this, so TCP and UDP right behind an IP header of the usual length take a
 * short way. SCTP, fragments, options, extension headers, ICMP and what is truncated go the long way (`unusual`), which would
 * decide the same of the others. Costs: bench/README.md.
 *
 * Maps and lookups: steer_map.h; their writers: steer.h.
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
#include "steer_map.h"

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

enum { ECHO_NONE = 0, ECHO_REQUEST = 1, ECHO_ANSWER = 2 };

struct flow {                   /* of the packet, or of the one that an ICMP error quotes */
	struct steer_addr addr; /* destination; of a quoted packet the source */
	__u32 far[4];           /* the other one */
	__u32 at;               /* of the transport header, bytes into the frame */
	__u32 ident;            /* of a fragment */
	__u8 proto;
	__u8 fragment;
	__u8 later;             /* a fragment that is not the first: no ports */
	__u8 quoted;
	__u8 echo;              /* ICMP echo: ECHO_REQUEST, ECHO_ANSWER */
	__u16 id;               /* its identifier, network order */
	__u32 iface;
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

static __always_inline bool has_ports(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_SCTP;
}

static __always_inline bool parse_ipv4(struct xdp_md *ctx, struct flow *f)
{
	struct iphdr *ip = bytes(ctx, f->at, sizeof(*ip));

	if (!ip || ip->version != 4 || ip->ihl < 5)
		return false;
	__builtin_memcpy(f->addr.addr, f->quoted ? &ip->saddr : &ip->daddr, 4);
	__builtin_memcpy(f->far, f->quoted ? &ip->daddr : &ip->saddr, 4);
	f->addr.af = 4;
	f->proto = ip->protocol;
	f->fragment = (ip->frag_off & bpf_htons(0x3fff)) != 0; /* MF and offset */
	f->later = (ip->frag_off & bpf_htons(0x1fff)) != 0;
	f->ident = ip->id;
	f->at += ip->ihl * 4;
	return true;
}

static __always_inline bool parse_ipv6(struct xdp_md *ctx, struct flow *f)
{
	struct ipv6hdr *ip = bytes(ctx, f->at, sizeof(*ip));

	if (!ip || ip->version != 6)
		return false;
	__builtin_memcpy(f->addr.addr, f->quoted ? &ip->saddr : &ip->daddr, 16);
	__builtin_memcpy(f->far, f->quoted ? &ip->daddr : &ip->saddr, 16);
	f->addr.af = 6;
	f->proto = ip->nexthdr;
	f->at += sizeof(*ip);
#pragma unroll
	for (int i = 0; i < STEER_EXT_MAX; i++) {
		struct ext_hdr *h;
		__u32 *id;

		if (!is_ext(f->proto) || f->later)
			break;
		h = bytes(ctx, f->at, sizeof(*h));
		if (!h)
			return false;
		if (f->proto == IPPROTO_FRAGMENT) {
			f->fragment = (h->frag_off & bpf_htons(0xfff9)) != 0; /* offset and M */
			f->later = (h->frag_off & bpf_htons(0xfff8)) != 0;
			id = bytes(ctx, f->at + 4, 4);
			if (!id)
				return false;
			f->ident = *id;
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

/* A fragment without ports: lbd's if it can belong to any service or connection of the addresses. `any`: its protocol is not told. */
static __always_inline bool may_be_ours(struct flow *f, bool any)
{
	const __u8 echo = f->addr.af == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
	const __u32 all = STEER_BIT(IPPROTO_TCP) | STEER_BIT(IPPROTO_UDP) | STEER_BIT(IPPROTO_SCTP) | STEER_BIT(echo);
	struct steer_addr far = { .addr = { f->far[0], f->far[1], f->far[2], f->far[3] }, .af = f->addr.af };
	struct steer_ports *lip;
	__u32 protos, *served;

	if (is_ext(f->proto) || any)
		protos = all;
	else if (has_ports(f->proto) || f->proto == echo)
		protos = STEER_BIT(f->proto);
	else
		return false;
	served = bpf_map_lookup_elem(&vip_addrs, &f->addr);
	if (served && *served & protos)
		return true;
	served = settings.sources && !f->quoted ? bpf_map_lookup_elem(&source_addrs, &far) : NULL;
	if (served && *served & protos)
		return true;
	lip = f->addr.af == 4 ? bpf_map_lookup_elem(&lips4, f->addr.addr) : bpf_map_lookup_elem(&lips6, f->addr.addr);
	return lip && (protos != STEER_BIT(echo) || lip->echo);
}

/* ICMP echo that can be a flow of a service's or an SNAT rule's: sets f->echo. Of a later fragment nothing is known. */
static __always_inline bool is_echo(struct xdp_md *ctx, struct flow *f)
{
	const bool four = f->addr.af == 4;
	struct icmp_hdr *icmp;

	if (f->proto != (four ? IPPROTO_ICMP : IPPROTO_ICMPV6))
		return false;
	f->echo = ECHO_REQUEST;
	if (f->later)
		return true;
	icmp = bytes(ctx, f->at, sizeof(*icmp));
	if (!icmp || icmp->code)
		return false;
	f->id = (__u16)icmp->rest;
	if (icmp->type == (four ? 0 : 129))
		f->echo = ECHO_ANSWER;
	else if (icmp->type != (four ? 8 : 128))
		return false;
	return true;
}

/* An echo answer to an address that lbd sends requests from, or what quotes such a request. */
static __always_inline bool is_lip_echo(struct flow *f)
{
	struct steer_ports *lip;

	if (f->later || f->echo != (f->quoted ? ECHO_REQUEST : ECHO_ANSWER))
		return false;
	lip = f->addr.af == 4 ? bpf_map_lookup_elem(&lips4, f->addr.addr) : bpf_map_lookup_elem(&lips6, f->addr.addr);
	return lip && lip->echo && within(lip->lo, lip->hi, f->id);
}

/* Of a service of ICMP: a request to it, an answer to what lbd sent on, an error that quotes either's opposite. */
__noinline int is_service_echo(struct xdp_md *ctx, struct flow *f)
{
	if (!f || f->later || !is_echo(ctx, f))
		return false;
	if (f->echo == (f->quoted ? ECHO_ANSWER : ECHO_REQUEST))
		return f->addr.af == 4 ? is_ours4(f->addr.addr[0], 0, f->proto) : is_ours6(f->addr.addr, 0, f->proto);
	if (is_lip_echo(f))
		return true;
	return f->addr.af == 4 ? is_source4(f->far[0], 0, f->proto) : is_source6(f->far, 0, f->proto);
}

/* What neither ports nor addresses of lbd's show. A quoted packet is an answer to what the rule is for. */
__noinline int is_outbound(struct xdp_md *ctx, struct flow *f)
{
	struct snat_ends e = {};

	if (!f)
		return false;
	if (f->proto != IPPROTO_TCP && f->proto != IPPROTO_UDP) {
		if (!is_echo(ctx, f))
			return false;
		if (is_lip_echo(f))
			return true;
		if (f->echo != (f->quoted ? ECHO_ANSWER : ECHO_REQUEST))
			return false;
	}
	e.proto = snat_proto(f->proto);
	e.iface = f->iface;
	if (f->addr.af == 4) {
		e.src[2] = e.dst[2] = bpf_htonl(0xffff);
		e.src[3] = f->far[0];
		e.dst[3] = f->addr.addr[0];
	} else {
		__builtin_memcpy(e.src, f->far, 16);
		__builtin_memcpy(e.dst, f->addr.addr, 16);
	}
	return snat_wants(ctx, &e);
}

static __always_inline void datagram_of(struct flow *f, struct steer_datagram *d)
{
	__builtin_memcpy(&d->dst, &f->addr, sizeof(d->dst));
	__builtin_memcpy(d->src, f->far, sizeof(d->src));
	d->id = f->ident;
	d->proto = f->addr.af == 4 ? f->proto : 0;
}

/* Later fragments have to go where the first one went: here, if they could be taken for lbd's, to the kernel. */
__noinline int remember_passed(struct flow *f)
{
	struct steer_datagram d;
	__u32 one = 1;

	if (!f || !may_be_ours(f, f->addr.af == 6)) /* IPv6: the later ones may begin with options */
		return false;
	datagram_of(f, &d);
	return !bpf_map_update_elem(&passed, &d, &one, BPF_ANY);
}

/* A first fragment that is lbd's: the kernel's datagram that had its identification before (65,536 ago) is over. */
__noinline int forget_passed(struct flow *f)
{
	struct steer_datagram d;

	if (!f)
		return false;
	datagram_of(f, &d);
	return !bpf_map_delete_elem(&passed, &d);
}

__noinline int is_later_ours(struct flow *f)
{
	struct steer_datagram d;

	if (!f || !may_be_ours(f, false))
		return false;
	datagram_of(f, &d);
	return f->quoted || !bpf_map_lookup_elem(&passed, &d);
}

__noinline int is_ours(struct xdp_md *ctx, struct flow *f)
{
	__be16 *ports;
	__u16 port, far;

	if (!f)
		return false;
	if (f->later)
		return is_later_ours(f);
	if (!has_ports(f->proto))
		return false;
	ports = bytes(ctx, f->at, 4);
	if (!ports)
		return false;
	port = f->quoted ? ports[0] : ports[1];
	far = f->quoted ? ports[1] : ports[0];
	if (f->addr.af == 4)
		return is_ours4(f->addr.addr[0], port, f->proto) || is_source4(f->far[0], far, f->proto);
	return is_ours6(f->addr.addr, port, f->proto) || is_source6(f->far, far, f->proto);
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

/* Of a quoted packet: has lbd wrapped it for a real server? */
__noinline int is_wrapped(struct xdp_md *ctx, struct flow *f)
{
	__be16 *ports, port = 0;
	__u8 proto;

	if (!f || !settings.tunnels || f->later)
		return false;
	proto = f->proto == IPPROTO_IPV6 ? IPPROTO_IPIP : f->proto;
	if (proto == IPPROTO_UDP) {
		ports = bytes(ctx, f->at, 4);
		if (!ports)
			return false;
		port = ports[1];
	} else if (!is_tunnel_proto(proto)) {
		return false;
	}
	return is_wrapped_for(f->far, STEER_TUNNEL(f->addr.af, proto, port));
}

/* A packet in a tunnel: if that ends here, on to the inner IP header, whose family is returned. 0: the kernel's. */
__noinline int unpack(struct xdp_md *ctx, struct flow *f)
{
	__be16 *gre;
	__u32 at;
	int af;

	if (!f || !settings.tunnels || f->fragment)
		return 0;
	if (!ends_here(f->addr.addr, f->far, STEER_TUNNEL(f->addr.af, f->proto == IPPROTO_IPV6 ? IPPROTO_IPIP : f->proto, 0)))
		return 0;
	at = f->at;
	af = f->proto == IPPROTO_IPIP ? 4 : 6;
	if (f->proto == IPPROTO_GRE) {
		gre = bytes(ctx, at, 4);
		if (!gre || (gre[0] & ~bpf_htons(0x8000)))    /* a key or sequence numbers: another tunnel */
			return 0;
		if (gre[1] != bpf_htons(ETH_P_IP) && gre[1] != bpf_htons(ETH_P_IPV6))
			return 0;
		at += gre[0] ? 8 : 4;
		af = gre[1] == bpf_htons(ETH_P_IP) ? 4 : 6;
	}
	__builtin_memset(f, 0, sizeof(*f));
	f->at = at;
	f->iface = STEER_IFACES;        /* no interface: what is inside is no SNAT rule's */
	return af;
}

/* The long way, for all packets. `at`: of the IP header. */
__noinline int unusual(struct xdp_md *ctx, __u32 at, __u32 af, __u32 iface)
{
	struct flow f = { .at = at, .iface = iface };
	bool ours;

	if (!parse_ip(ctx, &f, af))
		return false;
	if (is_tunnel_proto(f.proto)) {
		af = unpack(ctx, &f);
		if (!af || !parse_ip(ctx, &f, af))
			return false;
	}
	if (is_icmp_error(ctx, &f)) {
		f.quoted = true;
		f.at += sizeof(struct icmp_hdr);
		if (!parse_ip(ctx, &f, af))
			return false;
		if (is_wrapped(ctx, &f))
			return true;
	}
	ours = is_ours(ctx, &f) || (settings.echo && is_service_echo(ctx, &f)) || (settings.snat && is_outbound(ctx, &f));
	if (f.fragment && !f.later && !f.quoted) {
		if (ours)
			forget_passed(&f);
		else
			remember_passed(&f);
	}
	return ours;
}

/* What most packets begin with, behind their tags: header and ports, in one test of the frame's length. */
struct plain4 {
	struct iphdr ip;
	__be16 sport, dport;
};

struct plain6 {
	struct ipv6hdr ip;
	__be16 sport, dport;
};

static __always_inline bool wants(struct xdp_md *ctx, __u32 iface)
{
	void *p = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end, *start = p;
	__be16 proto;

	if (p + ETH_HLEN > end)
		return false;
	proto = *(__be16 *)(p + 2 * ETH_ALEN); /* struct ethhdr is packed: it would be read by bytes */
	p += ETH_HLEN;
#pragma unroll
	for (int i = 0; i < STEER_VLAN_MAX; i++) {
		struct vlan_tag *tag = p;

		if (proto != bpf_htons(ETH_P_8021Q) && proto != bpf_htons(ETH_P_8021AD))
			break;
		if (p + sizeof(*tag) > end)
			return false;
		proto = tag->proto;
		p += sizeof(*tag);
	}
	if (proto == bpf_htons(ETH_P_IP)) {
		struct plain4 *h = p;

		if (p + sizeof(*h) <= end && *(__u8 *)p == 0x45 && !(h->ip.frag_off & bpf_htons(0x3fff)) &&
		    (h->ip.protocol == IPPROTO_TCP || h->ip.protocol == IPPROTO_UDP))
			return is_ours4(h->ip.daddr, h->dport, h->ip.protocol) ||
			       is_source4(h->ip.saddr, h->sport, h->ip.protocol) ||
			       (settings.snat && is_snat4(ctx, iface, h->ip.saddr, h->ip.daddr, h->ip.protocol));
		return unusual(ctx, p - start, 4, iface);
	}
	if (proto == bpf_htons(ETH_P_IPV6)) {
		struct plain6 *h = p;

		if (p + sizeof(*h) <= end && h->ip.version == 6 &&
		    (h->ip.nexthdr == IPPROTO_TCP || h->ip.nexthdr == IPPROTO_UDP))
			return is_ours6(h->ip.daddr.in6_u.u6_addr32, h->dport, h->ip.nexthdr) ||
			       is_source6(h->ip.saddr.in6_u.u6_addr32, h->sport, h->ip.nexthdr) ||
			       (settings.snat && is_snat6(ctx, iface, h->ip.saddr.in6_u.u6_addr32,
							  h->ip.daddr.in6_u.u6_addr32, h->ip.nexthdr));
		return unusual(ctx, p - start, 6, iface);
	}
	return false;
}

SEC("xdp")
int steer(struct xdp_md *ctx)
{
	__u32 ifindex = ctx->ingress_ifindex, queue = ctx->rx_queue_index, iface;
	struct steer_counts *n;

	for (iface = 0; iface < STEER_IFACES; iface++)
		if (settings.ifindex[iface] == ifindex)
			break;
	if (iface == STEER_IFACES)
		return XDP_PASS;
	n = bpf_map_lookup_elem(&counters, &iface);
	if (!n) /* never */
		return XDP_PASS;
	if (!wants(ctx, iface)) {
		n->pass++;
		return XDP_PASS;
	}
	if (queue < STEER_QUEUES &&
	    bpf_redirect_map(&xsks, iface * STEER_QUEUES + queue, XDP_DROP) == XDP_REDIRECT) {
		n->redirect++;
		return XDP_REDIRECT;
	}
	n->drop++;
	return XDP_DROP;
}

char _license[] SEC("license") = "Apache-2.0";
