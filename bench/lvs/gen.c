// SPDX-License-Identifier: Apache-2.0
//
// vmgen: bursts of UDP frames out of an AF_XDP socket in zero-copy mode, and how many instructions the CPU was busy for each.
//
//   vmgen DEV             then orders on stdin, an answer to each on stdout:
//     run CASE MAC DSTIP PORT FLOWS SMALL LARGE ROUNDS     → a line per burst: "through|aside SIZE BUSY", then "done SENT"
//     warm CASE MAC DSTIP PORT FLOWS                       → every flow once, then "done SENT"
//
// For the lab VM under --cpus 1 --icount 0, where a nanosecond is an instruction. A burst leaves with one doorbell, so that all of
// it is in the other NIC's ring before that NIC's interrupt is looked at: packets come as to a machine under full load. Then this
// process sleeps until the window is over. Meanwhile a child at SCHED_IDLE counts its turns: what the window had besides them is
// work, interrupts included, whoever did it; nothing needs to be known of how the kernel accounts for idle time.
//
// "through" goes to MAC and is forwarded. "aside" is the same burst to an address that the NIC at the other end filters out: the
// generator's own share and the window's, to be subtracted. Of two sizes, the fixed cost of a burst (interrupt, wake-up) cancels.
//
// Frames: 60 bytes, source 10.1.0.2 and up, UDP checksum, payload "LBDV", case, kind, number of the packet (network order).
// Build: make -C bench/vm
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <netinet/ether.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <xdp/xsk.h>

#define FRAMES 2048
#define SIZE XSK_UMEM__DEFAULT_FRAME_SIZE
#define LENGTH 60
#define WINDOW_NS 8000000	// room for bursts of 384 packets of 15,000 instructions
#define TURN 2			// instructions of the idle child's loop
#define LATE_WINDOWS 1000	// 8 s: some drivers take their link down when a program is attached

struct order {
	unsigned kind, flows;
	unsigned short number, port;
	struct in_addr to;
	unsigned char mac[6];
};

enum { WARM, THROUGH, ASIDE };

static unsigned char *area;
static struct xsk_umem *umem;
static struct xsk_socket *xsk;
static struct xsk_ring_prod fill, tx;
static struct xsk_ring_cons comp, rx;
static volatile unsigned long *turns;	// of the idle child
static unsigned next_frame, sent, flow;

static void die(const char *what, int code)
{
	fprintf(stderr, "vmgen: %s: %s\n", what, strerror(code));
	exit(1);
}

static unsigned long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ul + t.tv_nsec;
}

// -- what the CPU does when there is nothing to do ----------------------------------------------------------------------

static void start_soaker(void)
{
	struct sched_param idle = { 0 };

	turns = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (turns == MAP_FAILED)
		die("mmap", errno);
	if (fork())
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (sched_setscheduler(0, SCHED_IDLE, &idle))
		die("SCHED_IDLE", errno);
	asm volatile("1: incq (%0); jmp 1b" : : "r"(turns) : "memory");	// TURN instructions
}

// -- the socket ----------------------------------------------------------------------------------------------------------

static void open_socket(const char *dev)
{
	struct xsk_umem_config uc = { .fill_size = FRAMES, .comp_size = FRAMES, .frame_size = SIZE };
	struct xsk_socket_config sc = { .rx_size = 64, .tx_size = FRAMES, .xdp_flags = XDP_FLAGS_DRV_MODE,
					.bind_flags = XDP_ZEROCOPY };
	int code;

	area = mmap(NULL, (size_t)FRAMES * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (area == MAP_FAILED)
		die("mmap", errno);
	if ((code = xsk_umem__create(&umem, area, (size_t)FRAMES * SIZE, &fill, &comp, &uc)))
		die("xsk_umem__create", -code);
	if ((code = xsk_socket__create(&xsk, dev, 0, umem, &rx, &tx, &sc)))
		die("xsk_socket__create", -code);
}

static unsigned add(unsigned sum, const unsigned char *p, int length)
{
	for (int i = 0; i < length; i += 2)
		sum += p[i] << 8 | p[i + 1];
	return sum;
}

static void put_sum(unsigned char *at, unsigned sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~((sum & 0xffff) + (sum >> 16));
	at[0] = sum >> 8;
	at[1] = sum;
}

static void write_frame(unsigned char *p, const struct order *o)
{
	unsigned host = 2 + flow / 200, number = htonl(sent), port = htons(1024 + flow % 200), length = LENGTH - 34;
	unsigned short to = htons(o->port), number_of_case = htons(o->number), kind = htons(o->kind);

	memset(p, 0, LENGTH);
	memcpy(p, o->mac, 6);
	if (o->kind == ASIDE)
		p[5] ^= 0x40;
	memcpy(p + 6, "\x02\0\0\0\xc1\x01\x08\0\x45\0\0\x2e\0\0\0\0\x40\x11\0\0\x0a\x01", 22);
	p[28] = host >> 8;
	p[29] = host;
	memcpy(p + 30, &o->to, 4);
	put_sum(p + 24, add(0, p + 14, 20));
	memcpy(p + 34, &port, 2);
	memcpy(p + 36, &to, 2);
	p[39] = length;
	memcpy(p + 42, "LBDV", 4);
	memcpy(p + 46, &number_of_case, 2);
	memcpy(p + 48, &kind, 2);
	memcpy(p + 50, &number, 4);
	put_sum(p + 40, add(add(17 + length, p + 26, 8), p + 34, length));
	flow = (flow + 1) % o->flows;
	sent += o->kind != ASIDE;
}

static unsigned completed(void)
{
	unsigned index, n = xsk_ring_cons__peek(&comp, FRAMES, &index);

	xsk_ring_cons__release(&comp, n);
	return n;
}

static void kick(void)
{
	if (sendto(xsk_socket__fd(xsk), NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && errno != EAGAIN && errno != EBUSY && errno != ENETDOWN)
		die("sendto", errno);
}

// Returns what the CPU did within the window, ns; 0 if others kept it so busy that not all was sent in time.
static unsigned long burst(const struct order *o, unsigned n)
{
	struct timespec until;
	unsigned long start, end, idle;
	unsigned index, i;

	if (xsk_ring_prod__reserve(&tx, n, &index) != n)
		die("no room in the transmit ring", ENOSPC);
	for (i = 0; i < n; i++, next_frame = (next_frame + 1) % FRAMES) {
		write_frame(area + (size_t)next_frame * SIZE, o);
		*xsk_ring_prod__tx_desc(&tx, index + i) = (struct xdp_desc){ .addr = (__u64)next_frame * SIZE, .len = LENGTH };
	}
	xsk_ring_prod__submit(&tx, n);
	start = now();
	idle = *turns;
	kick();
	end = start + WINDOW_NS;
	until.tv_sec = end / 1000000000;
	until.tv_nsec = end % 1000000000;
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
	idle = *turns - idle;
	end = now();
	i = completed();
	if (i == n)
		return end - start - idle * TURN;
	for (int more = 0; i < n && more < LATE_WINDOWS; more++) {
		kick(); // one that came while the link was down is forgotten
		usleep(WINDOW_NS / 1000);
		i += completed();
	}
	if (i != n) {
		fprintf(stderr, "vmgen: %u of %u packets were sent\n", i, n);
		exit(1);
	}
	return 0;
}

// -- orders --------------------------------------------------------------------------------------------------------------

int main(int argc, char **argv)
{
	char line[256], what[8], mac[32], to[32];
	unsigned number, port, flows, small = 0, large = 0, rounds = 0;

	if (argc != 2 || !if_nametoindex(argv[1]))
		return fprintf(stderr, "vmgen: which device?\n"), 2;
	open_socket(argv[1]);
	start_soaker();
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		int words = sscanf(line, "%7s %u %31s %31s %u %u %u %u %u", what, &number, mac, to, &port, &flows, &small, &large,
				   &rounds);
		struct order o = { .number = number, .port = port, .flows = flows };

		if (words < 6 || !ether_aton(mac) || !inet_aton(to, &o.to) || large > FRAMES / 2 || !flows)
			return fprintf(stderr, "vmgen: bad order: %s", line), 2;
		memcpy(o.mac, ether_aton(mac), 6);
		sent = flow = 0;
		if (!strcmp(what, "warm")) {
			o.kind = WARM;
			while (sent < flows)
				burst(&o, flows - sent < 64 ? flows - sent : 64);
		}
		for (unsigned i = 0; !strcmp(what, "run") && i < 4 * rounds; i++) {
			unsigned size = i & 1 ? large : small;

			o.kind = i & 2 ? ASIDE : THROUGH;
			unsigned long busy = burst(&o, size);

			while (!busy)
				busy = burst(&o, size);
			printf("%s %u %lu\n", i & 2 ? "aside" : "through", size, busy);
		}
		printf("done %u\n", sent);
		fflush(stdout);
	}
	return 0;
}
