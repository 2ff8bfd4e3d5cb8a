// SPDX-License-Identifier: Apache-2.0
//
// The bare AF_XDP forwarder: what a balancer over AF_XDP could reach at best on the same interfaces. One thread,
// one queue, two interfaces, one UMEM; TCP and UDP frames of either interface get new MAC addresses and leave by
// the other one. No tables, no parsing; with -c partial checksums (a local TCP stack's over veth) are completed by
// the kernel, asked for in transmit metadata, so that real TCP runs through it.
//
// Rings and socket are set up on the kernel's own interface: libxdp 1.3.1 knows no transmit metadata. Its inline
// ring functions serve as they are. References: kernel Documentation/networking/{af_xdp,xsk-tx-metadata}.rst.
#include "bench.h"
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

/* Newer than Debian 12's headers. */
#ifndef SOL_XDP
#define SOL_XDP 283
#endif
enum { UMEM_TX_METADATA_LEN = 1 << 2, MAX_TX_SKB_BUDGET = 9, TX_METADATA = 1 << 1, TXMD_CHECKSUM = 1 << 1 };
struct umem_reg { uint64_t addr, len; uint32_t chunk, headroom, flags, tx_metadata_len; };
struct tx_metadata { uint64_t flags; uint16_t csum_start, csum_offset; uint32_t spare; uint64_t completion; };
_Static_assert(sizeof(struct tx_metadata) == 24, "struct xsk_tx_metadata");

enum { CHUNK = 2048, IDLE_TURNS = 200, HUGE_PAGE = 2 << 20 };

struct port {
	int fd;
	struct xsk_ring_cons rx, completion;
	struct xsk_ring_prod tx, fill;
	unsigned char addresses[12];	/* Ethernet destination and source of what leaves here */
	uint32_t outstanding;
	uint64_t received, sent, kicks, full;
};

static unsigned char *area;
static uint64_t *free_frames;
static uint32_t free_count;
static uint32_t batch;

/* Both ring types of xsk.h have the same members. */
static void map_ring(int fd, struct xsk_ring_prod *r, const struct xdp_ring_offset *off, uint64_t page, uint32_t size,
		     size_t entry, bool producer)
{
	char *at = mmap(NULL, off->desc + size * entry, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, page);

	if (at == MAP_FAILED)
		die("map a ring");
	*r = (struct xsk_ring_prod){ .mask = size - 1, .size = size, .producer = (void *)(at + off->producer),
		.consumer = (void *)(at + off->consumer), .flags = (void *)(at + off->flags), .ring = at + off->desc,
		.cached_cons = producer ? size : 0 };
}

static void set(int fd, int option, const void *value, socklen_t len, const char *what)
{
	if (setsockopt(fd, SOL_XDP, option, value, len))
		die(what);
}

/* `shared`: the socket that owns the UMEM, or -1 if this is the first one. */
static void open_port(struct port *p, const char *interface, int shared, const struct options *o, const unsigned char *station)
{
	struct xdp_mmap_offsets off;
	socklen_t len = sizeof off;
	uint32_t ring = o->ring, fill = o->ring * 2;

	p->fd = socket(AF_XDP, SOCK_RAW, 0);
	if (p->fd < 0)
		die("socket(AF_XDP)");
	if (shared < 0) {
		struct umem_reg reg = { (uintptr_t)area, (uint64_t)o->frames * CHUNK, CHUNK, 0, 0, 0 };

		if (o->complete) {
			reg.flags = UMEM_TX_METADATA_LEN;
			reg.tx_metadata_len = sizeof(struct tx_metadata);
		}
		set(p->fd, XDP_UMEM_REG, &reg, sizeof reg, "register the UMEM");
	}
	set(p->fd, XDP_UMEM_FILL_RING, &fill, sizeof fill, "fill ring");
	set(p->fd, XDP_UMEM_COMPLETION_RING, &ring, sizeof ring, "completion ring");
	set(p->fd, XDP_RX_RING, &ring, sizeof ring, "receive ring");
	set(p->fd, XDP_TX_RING, &ring, sizeof ring, "transmit ring");
	if (getsockopt(p->fd, SOL_XDP, XDP_MMAP_OFFSETS, &off, &len))
		die("ring offsets");
	map_ring(p->fd, (void *)&p->rx, &off.rx, XDP_PGOFF_RX_RING, ring, sizeof(struct xdp_desc), false);
	map_ring(p->fd, &p->tx, &off.tx, XDP_PGOFF_TX_RING, ring, sizeof(struct xdp_desc), true);
	map_ring(p->fd, &p->fill, &off.fr, XDP_UMEM_PGOFF_FILL_RING, fill, sizeof(uint64_t), true);
	map_ring(p->fd, (void *)&p->completion, &off.cr, XDP_UMEM_PGOFF_COMPLETION_RING, ring, sizeof(uint64_t), false);

	struct sockaddr_xdp address = { .sxdp_family = AF_XDP, .sxdp_ifindex = if_nametoindex(interface),
		.sxdp_flags = shared < 0 ? XDP_COPY | XDP_USE_NEED_WAKEUP : XDP_SHARED_UMEM,
		.sxdp_shared_umem_fd = shared < 0 ? 0 : shared };
	/* a queue whose socket was closed a moment ago is busy until the kernel has really let go of it */
	for (int tries = 300; bind(p->fd, (void *)&address, sizeof address); poll(NULL, 0, 10))
		if (errno != EBUSY || !tries--)
			die("bind");
	/* Linux 6.17; without it sendto() stops at 32 descriptors */
	if (setsockopt(p->fd, SOL_XDP, MAX_TX_SKB_BUDGET, &o->budget, sizeof o->budget) && errno != ENOPROTOOPT)
		die("transmit budget");
	int size = 4 << 20;	/* bounds the skbs in flight: 212992 bytes otherwise */
	setsockopt(p->fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);

	memcpy(p->addresses, station, 6);
	own_mac(p->addresses + 6, interface);
}

static void refill(struct port *p)
{
	uint32_t at, n = xsk_prod_nb_free(&p->fill, batch);

	if (n < batch || free_count < batch)
		return;
	xsk_ring_prod__reserve(&p->fill, batch, &at);
	for (uint32_t i = 0; i < batch; i++)
		*xsk_ring_prod__fill_addr(&p->fill, at + i) = free_frames[--free_count];
	xsk_ring_prod__submit(&p->fill, batch);
}

static void reclaim(struct port *p)
{
	uint32_t at, n = xsk_ring_cons__peek(&p->completion, p->completion.size, &at);

	for (uint32_t i = 0; i < n; i++)
		free_frames[free_count++] = *xsk_ring_cons__comp_addr(&p->completion, at + i) & ~(CHUNK - 1ull);
	xsk_ring_cons__release(&p->completion, n);
	p->outstanding -= n;
}

/* Copy mode transmits inside this system call, and only there. */
static void kick(struct port *p)
{
	if (!p->outstanding || !xsk_ring_prod__needs_wakeup(&p->tx))
		return;
	p->kicks++;
	if (sendto(p->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && errno != EAGAIN && errno != EBUSY && errno != ENOBUFS)
		die("transmit");
}

/* The transport checksum of frame `b`, if it holds the pseudo-header's sum only: true, and where it is. */
static bool partial(const unsigned char *b, uint32_t len, uint16_t *start, uint16_t *offset)
{
	const struct iphdr *ip = (const void *)(b + ETH_HLEN);
	const struct ipv6hdr *ip6 = (const void *)(b + ETH_HLEN);
	const uint16_t *address, *check;
	uint32_t s, words, protocol;

	if (((const struct ethhdr *)b)->h_proto == htons(ETH_P_IP)) {
		*start = ETH_HLEN + ip->ihl * 4;
		protocol = ip->protocol;
		s = htons(ntohs(ip->tot_len) - ip->ihl * 4);
		address = (const void *)&ip->saddr;
		words = 4;
	} else {
		*start = ETH_HLEN + sizeof *ip6;
		protocol = ip6->nexthdr;
		s = ip6->payload_len;
		address = (const void *)&ip6->saddr;
		words = 16;
	}
	*offset = protocol == IPPROTO_TCP ? 16 : 6;
	if (*start + *offset + 2u > len)
		return false;
	check = (const void *)(b + *start + *offset);
	s += htons(protocol);
	while (words--)
		s += *address++;
	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return s == *check;
}

/* One burst from `in` to `out`; how many frames. */
static uint32_t forward(struct port *in, struct port *out, bool complete)
{
	uint32_t from, to, n;

	reclaim(out);
	refill(in);
	n = xsk_ring_cons__peek(&in->rx, batch, &from);
	if (!n) {
		kick(out);
		return 0;
	}
	while (xsk_ring_prod__reserve(&out->tx, n, &to) != n) {
		out->full++;
		kick(out);
		reclaim(out);
		if (stopped)
			return 0;
	}
	for (uint32_t i = 0; i < n; i++) {
		const struct xdp_desc *d = xsk_ring_cons__rx_desc(&in->rx, from + i);
		struct xdp_desc *t = xsk_ring_prod__tx_desc(&out->tx, to + i);
		unsigned char *b = area + d->addr;
		uint16_t start, offset;

		memcpy(b, out->addresses, sizeof out->addresses);
		*t = (struct xdp_desc){ .addr = d->addr, .len = d->len };
		if (complete && partial(b, d->len, &start, &offset)) {
			*(struct tx_metadata *)(b - sizeof(struct tx_metadata)) =
				(struct tx_metadata){ .flags = TXMD_CHECKSUM, .csum_start = start, .csum_offset = offset };
			t->options = TX_METADATA;
		}
	}
	xsk_ring_prod__submit(&out->tx, n);
	xsk_ring_cons__release(&in->rx, n);
	in->received += n;
	out->sent += n;
	out->outstanding += n;
	kick(out);
	return n;
}

static void report(const char *name, struct port *p)
{
	struct xdp_statistics s = {};
	socklen_t len = sizeof s;

	getsockopt(p->fd, SOL_XDP, XDP_STATISTICS, &s, &len);
	printf("\"%s\": {\"received\": %lu, \"sent\": %lu, \"kicks\": %lu, \"full\": %lu, \"rx_dropped\": %llu, "
	       "\"rx_ring_full\": %llu, \"fill_empty\": %llu, \"tx_invalid\": %llu}, ", name, p->received, p->sent, p->kicks,
	       p->full, s.rx_dropped, s.rx_ring_full, s.rx_fill_ring_empty_descs, s.tx_invalid_descs);
}

int run_fwd(const struct options *o)
{
	struct config cfg = { .ifindex = { if_nametoindex(o->in), if_nametoindex(o->out) } };
	struct bpf_object *b = load("steer", &cfg);
	struct port a = {}, z = {};
	struct rusage used;
	uint32_t idle = 0, key = 0;

	batch = o->batch;
	area = aligned_alloc(HUGE_PAGE, (size_t)o->frames * CHUNK);	/* whole huge pages: frames are a power of two */
	free_frames = malloc(o->frames * sizeof *free_frames);
	if (!area || !free_frames)
		die("allocate the UMEM");
	madvise(area, (size_t)o->frames * CHUNK, MADV_HUGEPAGE);	/* as lbd's */
	memset(area, 0, (size_t)o->frames * CHUNK);
	while (free_count < (uint32_t)o->frames) {
		free_frames[free_count] = (uint64_t)free_count * CHUNK;
		free_count++;
	}
	open_port(&a, o->in, -1, o, o->in_mac);
	open_port(&z, o->out, a.fd, o, o->out_mac);
	for (int i = 0; i < o->ring / o->batch; i++) {	/* half a fill ring each: half of the frames stays for transmission */
		refill(&a);
		refill(&z);
	}
	if (bpf_map_update_elem(map_fd(b, "sockets"), &key, &a.fd, 0) || (key++, bpf_map_update_elem(map_fd(b, "sockets"), &key, &z.fd, 0)))
		die("enter the sockets");
	attach(b, "steer", o->in);
	attach(b, "steer", o->out);
	fprintf(stderr, "ready\n");

	struct pollfd waits[2] = { { a.fd, POLLIN, 0 }, { z.fd, POLLIN, 0 } };
	while (!stopped) {
		if (forward(&a, &z, o->complete) + forward(&z, &a, o->complete))
			idle = 0;
		else if (o->sleeps && ++idle > IDLE_TURNS)
			poll(waits, 2, 100);
	}
	getrusage(RUSAGE_SELF, &used);
	printf("{");
	report("in", &a);
	report("out", &z);
	printf("\"user\": %.3f, \"system\": %.3f}\n", used.ru_utime.tv_sec + used.ru_utime.tv_usec * 1e-6,
	       used.ru_stime.tv_sec + used.ru_stime.tv_usec * 1e-6);
	return 0;
}
