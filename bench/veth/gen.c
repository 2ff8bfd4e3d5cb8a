// SPDX-License-Identifier: Apache-2.0
//
// The generator and the counter.
//
// gen: BPF_PROG_RUN in live-frames mode: the kernel allocates pages, the XDP program of veth.bpf.c writes one
// frame each and redirects it. Some 7 Mpps on one core, where every way that allocates an skb per packet ends at
// one. NB: setting up and tearing down a run costs about 24 ms (an RCU grace period), so there is one endless run,
// which SIGALRM ends: many short ones read 2.3 times too low. NB: the receiving veth end needs NAPI (native XDP on
// it, or GRO), or all frames are dropped silently.
//
// sink: XDP on the last interface, counting and dropping; the cheapest receiver there is. Its report has a count per
// tenth of a second (the first, which isn't whole, as 0), kept by the program itself: whoever spins on this core at a
// real-time priority does not disturb it.
#include "bench.h"
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

static uint32_t sum(const void *from, int len)
{
	const uint16_t *w = from;
	uint32_t s = 0;

	for (; len > 1; len -= 2)
		s += *w++;
	while (s >> 16)
		s = (s & 0xffff) + (s >> 16);
	return s;
}

int run_gen(const struct options *o)
{
	unsigned char frame[FRAME_MAX] = {};
	uint32_t longest = FRAME_MIN;
	struct ethhdr *eth = (void *)frame;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	struct config cfg = { .flows = o->flows, .ifindex = { if_nametoindex(o->in) } };

	memcpy(eth->h_dest, o->in_mac, 6);
	own_mac(eth->h_source, o->in);
	eth->h_proto = htons(ETH_P_IP);
	ip->version = 4;
	ip->ihl = 5;
	ip->ttl = 64;
	ip->protocol = IPPROTO_UDP;
	ip->frag_off = htons(0x4000);
	ip->saddr = o->source & htonl(0xffff0000);
	ip->daddr = o->destination;
	udp->dest = o->port;
	cfg.ip_sum = sum(ip, sizeof *ip);
	cfg.udp_sum = sum(&ip->saddr, 8) + htons(IPPROTO_UDP) + sum(udp, sizeof *udp);	/* the payload is zeros */
	memcpy(cfg.header, frame, sizeof cfg.header);
	for (int i = 0; i < MIX; i++) {
		cfg.size[i] = o->size[i % o->sizes];
		if (cfg.size[i] > longest)
			longest = cfg.size[i];
	}
	if (o->rate > 0)
		cfg.gap_ps = 1e12 / o->rate;

	struct bpf_object *b = load("gen", &cfg);
	int fd = bpf_program__fd(bpf_object__find_program_by_name(b, "gen"));
	struct xdp_md ctx = { .data_end = longest };
	double start = now();

	while (!stopped) {
		LIBBPF_OPTS(bpf_test_run_opts, run, .data_in = frame, .data_size_in = longest, .ctx_in = &ctx,
			    .ctx_size_in = sizeof ctx, .repeat = 1 << 30, .batch_size = o->batch,
			    .flags = BPF_F_TEST_XDP_LIVE_FRAMES);
		if (bpf_prog_test_run_opts(fd, &run) && errno != EAGAIN && errno != EINTR)
			die("run the generator");
	}
	printf("{\"packets\": %lu, \"seconds\": %.3f}\n", counter(b, COUNT_GEN), now() - start);
	return 0;
}

int run_sink(const struct options *o)
{
	struct config cfg = { .sink_port = o->port };
	struct bpf_object *b = load("sink", &cfg);

	uint64_t count;

	attach(b, "sink", o->in);
	fprintf(stderr, "ready\n");
	while (!stopped)
		poll(NULL, 0, -1);
	printf("{\"packets\": %lu, \"bytes\": %lu, \"bad\": %lu, \"slots\": [0", counter(b, COUNT_SINK), counter(b, COUNT_BYTES),
	       counter(b, COUNT_BAD));
	for (uint32_t at = 1; at < SLOTS && !bpf_map_lookup_elem(map_fd(b, "slots"), &at, &count); at++)
		printf(", %lu", count);
	printf("]}\n");
	return 0;
}
