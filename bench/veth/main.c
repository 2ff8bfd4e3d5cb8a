// SPDX-License-Identifier: Apache-2.0
//
// vethbench: the tools that lbd is measured with on veth.
//
//   vethbench gen  -i IF -d MAC -s SOURCE -D DESTINATION -p PORT -n FLOWS [-l SIZE,SIZE,...] [-r PPS]   UDP, made by XDP
//   vethbench sink -i IF -p PORT                             counts, drops
//   vethbench fwd  -i IF -o IF -d MAC -e MAC [-w] [-c]     bare AF_XDP forwarder
//   vethbench ping -D DESTINATION -p PORT -r PPS             round-trip times of UDP
//   vethbench echo -p PORT                                   answers it
//   all: -t SECONDS -C CPU; fwd: -b BATCH, -x BUDGET, -R RING, -F FRAMES; -w: poll() when idle, -c: complete checksums
//   sizes are of frames without the FCS: 60 to 1514, even, as many of them as divide 12
//
// All of them end by themselves after SECONDS, or on SIGINT and SIGTERM, and print one line of JSON at their
// end. `sink`, `fwd` and `echo` write "ready" to stderr when they are. What each does stands in its file.
#define _GNU_SOURCE
#include "bench.h"
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <errno.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

volatile sig_atomic_t stopped;

static void on_signal(int number)
{
	(void)number;
	stopped = 1;
}

double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

void die(const char *what)
{
	fprintf(stderr, "vethbench: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The compiled programs are part of this executable. */
__asm__(".section .rodata\n"
	".balign 8\n"
	"bpf_image: .incbin \"" BPF_OBJECT "\"\n"
	"bpf_image_end:\n"
	".previous\n");
extern const char bpf_image[], bpf_image_end[];

struct bpf_object *load(const char *program, const struct config *cfg)
{
	struct bpf_object *o = bpf_object__open_mem(bpf_image, bpf_image_end - bpf_image, NULL);
	struct bpf_program *p;
	struct bpf_map *m;

	if (!o)
		die("open the BPF object");
	bpf_object__for_each_program(p, o)
		bpf_program__set_autoload(p, !strcmp(bpf_program__name(p), program));
	bpf_object__for_each_map(m, o)
		if (strstr(bpf_map__name(m), ".rodata") && bpf_map__set_initial_value(m, cfg, sizeof *cfg))
			die("fill in the constants");
	if (bpf_object__load(o))
		die("load the BPF object");
	return o;
}

void attach(struct bpf_object *o, const char *program, const char *interface)
{
	LIBBPF_OPTS(bpf_link_create_opts, native, .flags = XDP_FLAGS_DRV_MODE);
	int fd = bpf_program__fd(bpf_object__find_program_by_name(o, program));

	if (bpf_link_create(fd, if_nametoindex(interface), BPF_XDP, &native) < 0)
		die(interface);	/* the link, its descriptor left open, ends with the process */
}

int map_fd(struct bpf_object *o, const char *map)
{
	return bpf_object__find_map_fd_by_name(o, map);
}

uint64_t counter(struct bpf_object *o, uint32_t which)
{
	int cpus = libbpf_num_possible_cpus();
	uint64_t value[cpus], total = 0;

	if (bpf_map_lookup_elem(map_fd(o, "counters"), &which, value))
		die("read a counter");
	for (int i = 0; i < cpus; i++)
		total += value[i];
	return total;
}

void own_mac(unsigned char *mac, const char *interface)
{
	struct ifreq r = {};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	strncpy(r.ifr_name, interface, sizeof r.ifr_name - 1);
	if (ioctl(fd, SIOCGIFHWADDR, &r))
		die(interface);
	memcpy(mac, r.ifr_hwaddr.sa_data, 6);
	close(fd);
}

static void parse_mac(unsigned char *mac, const char *text)
{
	unsigned x[6];

	if (sscanf(text, "%x:%x:%x:%x:%x:%x", x, x + 1, x + 2, x + 3, x + 4, x + 5) != 6) {
		errno = EINVAL;
		die(text);
	}
	for (int i = 0; i < 6; i++)
		mac[i] = x[i];
}

static void parse_sizes(struct options *o, const char *text)
{
	char *end;

	for (o->sizes = 0; o->sizes < MIX; text = end + 1) {
		long size = strtol(text, &end, 10);

		if (size < FRAME_MIN || size > FRAME_MAX || size % 2)
			break;
		o->size[o->sizes++] = size;
		if (!*end && MIX % o->sizes == 0)
			return;
	}
	errno = EINVAL;
	die("sizes");
}

static int usage(void)
{
	fprintf(stderr, "usage: vethbench gen|sink|fwd|ping|echo [-i IF] [-o IF] [-d MAC] [-e MAC] [-s ADDRESS] [-D ADDRESS]\n"
			"       [-p PORT] [-n FLOWS] [-l SIZES] [-r PPS] [-b BATCH] [-x BUDGET] [-R RING] [-F FRAMES] [-w] [-c]\n"
			"       [-t SECONDS] [-C CPU]\n");
	return 2;
}

int main(int argc, char **argv)
{
	struct options o = { .seconds = 10, .batch = 64, .budget = 64, .flows = 1, .ring = 2048, .frames = 8192, .cpu = -1,
			     .size = { FRAME_MIN }, .sizes = 1 };
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	int c;

	if (argc < 2)
		return usage();
	while ((c = getopt(argc - 1, argv + 1, "i:o:d:e:s:D:p:n:l:r:b:x:wct:C:R:F:")) != -1) switch (c) {
	case 'i': o.in = optarg; break;
	case 'o': o.out = optarg; break;
	case 'd': parse_mac(o.in_mac, optarg); break;
	case 'e': parse_mac(o.out_mac, optarg); break;
	case 's': o.source = inet_addr(optarg); break;
	case 'D': o.destination = inet_addr(optarg); break;
	case 'p': o.port = htons(atoi(optarg)); break;
	case 'n': o.flows = atoi(optarg); break;
	case 'l': parse_sizes(&o, optarg); break;
	case 'r': o.rate = atof(optarg); break;
	case 'b': o.batch = atoi(optarg); break;
	case 'x': o.budget = atoi(optarg); break;
	case 'w': o.sleeps = true; break;
	case 'c': o.complete = true; break;
	case 't': o.seconds = atoi(optarg); break;
	case 'C': o.cpu = atoi(optarg); break;
	case 'R': o.ring = atoi(optarg); break;
	case 'F': o.frames = atoi(optarg); break;
	default: return usage();
	}
	if ((o.in && !if_nametoindex(o.in)) || (o.out && !if_nametoindex(o.out)))
		return usage();
	if (o.cpu >= 0) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(o.cpu, &set);
		if (sched_setaffinity(0, sizeof set, &set))
			die("pin");
	}
	/* NB: not fatal: root without CAP_SYS_RESOURCE may not raise it, and needs it only above 8 MiB */
	setrlimit(RLIMIT_MEMLOCK, &unlimited);
	struct sigaction ends = { .sa_handler = on_signal };	/* no SA_RESTART: system calls are to return */
	sigaction(SIGINT, &ends, NULL);
	sigaction(SIGTERM, &ends, NULL);
	sigaction(SIGALRM, &ends, NULL);
	alarm(o.seconds);
	if (!strcmp(argv[1], "gen") && o.in)
		return run_gen(&o);
	if (!strcmp(argv[1], "sink") && o.in)
		return run_sink(&o);
	if (!strcmp(argv[1], "fwd") && o.in && o.out)
		return run_fwd(&o);
	if (!strcmp(argv[1], "ping") && o.rate > 0)
		return run_ping(&o);
	if (!strcmp(argv[1], "echo"))
		return run_echo(&o);
	return usage();
}
