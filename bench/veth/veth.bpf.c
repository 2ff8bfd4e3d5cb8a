// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// The XDP programs of vethbench: the generator's body, the counting sink, and the steering of the bare
// forwarder. One set of constants (`cfg`, filled in before the load) and one map of counters serve all
// three; an object is loaded with only the program that is wanted.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "veth.h"

const volatile struct config cfg = {};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

/* What the sink saw in each tenth of a second, from its first packet on: rates need no process to run in time. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} slots SEC(".maps");
static __u64 first_ns;

static __always_inline __u64 bump(__u32 which, __u64 by)
{
	__u64 *v = bpf_map_lookup_elem(&counters, &which), old = 0;

	if (v) {
		old = *v;
		*v += by;
	}
	return old;
}

static __always_inline __u16 fold(__u64 s)
{
	s = (s & 0xffffffff) + (s >> 32);
	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return (s & 0xffff) + (s >> 16);
}

/* Sum of LEN bytes (a constant, even) as 16-bit words, folded. */
static __always_inline __u16 sum(const void *from, int len, __u64 s)
{
	const __u16 *w = from;

	for (int i = 0; i < len / 2; i++)
		s += w[i];
	return fold(s);
}

/* Sum of all from `at` to the frame's end, an even number of bytes, folded. */
static __always_inline __u16 sum_rest(const void *at, const void *end, __u64 s)
{
	for (int i = 0; i < FRAME_MAX / 4 && at + 4 <= end; i++, at += 4)
		s += *(const __u32 *)at;
	if (at + 2 <= end)
		s += *(const __u16 *)at;
	return fold(s);
}

/* Count and drop. Only IPv4 UDP to the expected port counts: neighbour discovery is not a result. One packet
 * in SAMPLE is put in its slot of time, for all of them, and has lengths and checksums verified, so that a forwarder
 * that is fast and wrong shows. */
SEC("xdp") int sink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);
	struct udphdr *udp = (void *)(ip + 1);

	if (data + FRAME_MIN > end || ((struct ethhdr *)data)->h_proto != bpf_htons(ETH_P_IP) ||
	    ip->protocol != IPPROTO_UDP || udp->dest != cfg.sink_port)
		return XDP_PASS;
	bump(COUNT_BYTES, end - data);
	if (bump(COUNT_SINK, 1) % SAMPLE == 0) {
		__u64 pseudo = bpf_htons(IPPROTO_UDP) + (__u64)udp->len, now = bpf_ktime_get_ns(), *slot;

		if (!first_ns)
			first_ns = now;
		__u32 at = (now - first_ns) / SLOT_NS;

		slot = bpf_map_lookup_elem(&slots, &at);
		if (slot)
			__sync_fetch_and_add(slot, SAMPLE);

		/* RFC 768: the pseudo-header's addresses are the last 8 bytes of the IPv4 header */
		pseudo = sum(&ip->saddr, 8, pseudo);
		if (bpf_ntohs(ip->tot_len) != end - (void *)ip || bpf_ntohs(udp->len) != end - (void *)udp ||
		    sum(ip, sizeof(*ip), 0) != 0xffff || (udp->check && sum_rest(udp, end, pseudo) != 0xffff))
			bump(COUNT_BAD, 1);
	}
	return XDP_DROP;
}

/* Live frames: vary source port and the low source address bits over cfg.flows flows, and the size over cfg.size, both
 * checksums right. NB: the page pool hands frames back as the last user left them (a NAT has changed addresses and
 * TTL), so the whole header is written anew each time; the payload nobody changes. */
static __u64 next_ps;

SEC("xdp") int gen(struct xdp_md *ctx)
{
	if (cfg.gap_ps) {
		__u64 now = bpf_ktime_get_ns() * 1000;

		if (now < next_ps)
			return XDP_DROP;
		next_ps = now - next_ps > 50000000ULL ? now : next_ps + cfg.gap_ps; /* catches up on 50 us at most */
	}
	__u32 count = bump(COUNT_GEN, 1), n = count % cfg.flows, turn = count % MIX;

	asm volatile("" : "+r"(turn)); /* the verifier doesn't see what the compiler knows of it */
	if (turn >= MIX)
		return XDP_DROP;
	__u16 low = bpf_htons((n >> 14) + 1), port = bpf_htons(1024 + (n & 0x3fff));
	int size = cfg.size[turn], cut = size - (int)(ctx->data_end - ctx->data);

	if (cut && bpf_xdp_adjust_tail(ctx, cut))
		return XDP_DROP;

	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);
	struct udphdr *udp = (void *)(ip + 1);
	__u64 *w = data;

	if (data + FRAME_MIN > end)
		return XDP_DROP;
	for (int i = 0; i < HEADER_WORDS; i++)
		w[i] = cfg.header[i];
	((__u16 *)&ip->saddr)[1] = low;
	ip->tot_len = bpf_htons(size - sizeof(struct ethhdr));
	udp->source = port;
	udp->len = bpf_htons(size - sizeof(struct ethhdr) - sizeof(*ip));
	ip->check = ~fold(cfg.ip_sum + low + ip->tot_len);
	udp->check = ~fold(cfg.udp_sum + low + port + 2 * udp->len); /* the length is in the pseudo-header, too */
	return bpf_redirect(cfg.ifindex[0], 0);
}

/* TCP and UDP of both families to the socket of the interface; the kernel keeps ARP, ND and ping. */
SEC("xdp") int steer(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct ipv6hdr *ip6 = (void *)(eth + 1);
	__u8 protocol;

	if ((void *)(eth + 1) > end)
		return XDP_PASS;
	if (eth->h_proto == bpf_htons(ETH_P_IP) && (void *)(ip + 1) <= end)
		protocol = ip->protocol;
	else if (eth->h_proto == bpf_htons(ETH_P_IPV6) && (void *)(ip6 + 1) <= end)
		protocol = ip6->nexthdr;
	else
		return XDP_PASS;
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return XDP_PASS;
	return bpf_redirect_map(&sockets, ctx->ingress_ifindex == cfg.ifindex[1], XDP_PASS);
}

char _license[] SEC("license") = "Dual BSD/GPL";
