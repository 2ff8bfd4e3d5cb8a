/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of vethbench share: options, the BPF object, AF_XDP ports, time. */
#ifndef BENCH_H
#define BENCH_H
#include <linux/if_xdp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <bpf/libbpf.h>
#include <xdp/xsk.h>

#include "veth.h"

struct options {
	const char *in, *out;            /* interfaces */
	unsigned char in_mac[6];         /* fwd: the station behind `in`; gen: destination of the frames */
	unsigned char out_mac[6];        /* fwd: the station behind `out` */
	uint32_t source, destination;    /* gen: addresses, network order */
	uint16_t port;                   /* gen, ping: destination port; sink: the port that counts; echo: its own */
	int seconds, batch, budget, flows, ring, frames, cpu;
	uint16_t size[MIX];              /* gen: frame sizes, repeated in this order */
	int sizes;                       /* how many: MIX is a multiple of it */
	double rate;                     /* gen, ping: packets per second; gen: 0 = no limit */
	bool sleeps;                     /* fwd: poll() when idle instead of spinning */
	bool complete;                   /* fwd: complete partial checksums */
};

extern volatile sig_atomic_t stopped;

double now(void);
void die(const char *what);                           /* message with errno, exit 1 */
struct bpf_object *load(const char *program, const struct config *cfg);
void attach(struct bpf_object *o, const char *program, const char *interface);
void own_mac(unsigned char *mac, const char *interface);
int map_fd(struct bpf_object *o, const char *map);
uint64_t counter(struct bpf_object *o, uint32_t which);

int run_gen(const struct options *o);
int run_sink(const struct options *o);
int run_fwd(const struct options *o);
int run_ping(const struct options *o);
int run_echo(const struct options *o);
#endif
