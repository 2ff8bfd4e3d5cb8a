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

static __always_inline __u64 bump(__u32 which)
{
	__u64 *v = bpf_map_lookup_elem(&counters, &which);

	return v ? (*v)++ : 0;
}

/* Sum of LEN bytes (a constant, even) as 16-bit words, folded. */
static __always_inline __u16 sum(const void *from, int len, __u32 s)
{
	const __u16 *w = from;

	for (int i = 0; i < len / 2; i++)
		s += w[i];
	s = (s & 0xffff) + (s >> 16);
	return (s & 0xffff) + (s >> 16);
}

/* Count and drop. Only IPv4 UDP to the expected port counts: neighbour discovery is not a result. One packet
 * in SAMPLE is put in its slot of time, for all of them, and has its checksums verified, so that a forwarder that
 * is fast and wrong shows. */
SEC("xdp") int sink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);
	struct udphdr *udp = (void *)(ip + 1);

	if (data + FRAME > end || ((struct ethhdr *)data)->h_proto != bpf_htons(ETH_P_IP) ||
	    ip->protocol != IPPROTO_UDP || udp->dest != cfg.sink_port)
		return XDP_PASS;
	if (bump(COUNT_SINK) % SAMPLE == 0) {
		__u32 pseudo = bpf_htons(IPPROTO_UDP) + (__u32)udp->len;
		__u64 now = bpf_ktime_get_ns(), *slot;

		if (!first_ns)
			first_ns = now;
		__u32 at = (now - first_ns) / SLOT_NS;

		slot = bpf_map_lookup_elem(&slots, &at);
		if (slot)
			__sync_fetch_and_add(slot, SAMPLE);

		/* RFC 768: the pseudo-header's addresses are the last 8 bytes of the IPv4 header */
		if (sum(ip, sizeof(*ip), 0) != 0xffff ||
		    (udp->check && sum(&ip->saddr, 8 + FRAME - 34, pseudo) != 0xffff))
			bump(COUNT_BAD);
	}
	return XDP_DROP;
}

/* Live frames: vary source port and the low source address bits over cfg.flows flows, both checksums right.
 * NB: the page pool hands frames back as the last user left them (a NAT has changed addresses and TTL), so the
 * whole header is written anew each time. */
static __u64 next_ps;

SEC("xdp") int gen(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);
	struct udphdr *udp = (void *)(ip + 1);
	__u64 *w = data;

	if (data + FRAME > end)
		return XDP_DROP;
	if (cfg.gap_ps) {
		__u64 now = bpf_ktime_get_ns() * 1000;

		if (now < next_ps)
			return XDP_DROP;
		next_ps = now - next_ps > 50000000ULL ? now : next_ps + cfg.gap_ps; /* catches up on 50 us at most */
	}
	__u32 n = bump(COUNT_GEN) % cfg.flows;
	__u16 low = bpf_htons((n >> 14) + 1), port = bpf_htons(1024 + (n & 0x3fff));

	for (int i = 0; i < HEADER_WORDS; i++)
		w[i] = cfg.header[i];
	((__u16 *)&ip->saddr)[1] = low;
	udp->source = port;
	ip->check = ~sum(&low, 2, cfg.ip_sum);
	udp->check = ~sum(&low, 2, cfg.udp_sum + port);
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
