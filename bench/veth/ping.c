// SPDX-License-Identifier: Apache-2.0
//
// Round-trip times at a fixed rate, and the station that answers.
//
// ping: UDP datagrams of 64 bytes on the wire at moments fixed beforehand (a late one does not shift those after it),
// from one socket. A datagram carries its number; its round trip begins when it is handed to the kernel and ends when
// this process has it back, so the wakings of both stations are in it, the same for whoever forwards. The first tenth
// is sent and not counted: neighbours are resolved and connections made then. What is not back within a second after
// the last one was sent is lost.
//
// echo: sends each datagram back to whom it came from.
#define _GNU_SOURCE
#include "bench.h"
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PAYLOAD = FRAME_MIN - 14 - 20 - 8 };

static int64_t nanoseconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

/* Takes what has come back; how many datagrams. */
static uint32_t take(int fd, int64_t *sent, uint32_t total)
{
	char packet[PAYLOAD];
	uint32_t number, n = 0;

	while (recv(fd, packet, sizeof packet, MSG_DONTWAIT) == sizeof packet) {
		memcpy(&number, packet, sizeof number);
		if (number >= total || sent[number] <= 0)
			continue;	/* not ours, or twice */
		sent[number] -= nanoseconds();	/* negative from here on: the round trip */
		n++;
	}
	return n;
}

static void report(int64_t *rtt, uint32_t sent, uint32_t n)
{
	printf("{\"sent\": %u, \"received\": %u", sent, n);
	if (n) {
		qsort(rtt, n, sizeof *rtt, by_value);
		printf(", \"p50\": %.1f, \"p99\": %.1f, \"p999\": %.1f, \"max\": %.1f", rtt[n / 2] * 1e-3,
		       rtt[n * 99ull / 100] * 1e-3, rtt[n * 999ull / 1000] * 1e-3, rtt[n - 1] * 1e-3);
	}
	printf("}\n");
}

int run_ping(const struct options *o)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = o->port, .sin_addr.s_addr = o->destination };
	uint32_t total = o->rate * o->seconds, first = total / 10, number = 0, back = 0, n = 0;
	int64_t *sent = calloc(total, sizeof *sent), gap = 1e9 / o->rate, next = nanoseconds(), wait;
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	char packet[PAYLOAD] = {};

	alarm(o->seconds + 5);
	if (!sent || fd < 0 || connect(fd, (void *)&to, sizeof to))
		die("ping");
	while (!stopped && back < total && (wait = next - nanoseconds()) > (number < total ? INT64_MIN : 0)) {
		if (wait > 0) {
			struct pollfd p = { fd, POLLIN, 0 };
			struct timespec t = { wait / 1000000000, wait % 1000000000 };

			if (ppoll(&p, 1, &t, NULL) > 0)
				back += take(fd, sent, total);
			continue;
		}
		memcpy(packet, &number, sizeof number);
		sent[number] = nanoseconds();
		if (send(fd, packet, sizeof packet, 0) < 0 && errno != ECONNREFUSED && errno != ENOBUFS)
			die("send");
		next += ++number < total ? gap : 1000000000;
	}
	for (uint32_t i = first; i < number; i++)
		if (sent[i] < 0)
			sent[n++] = -sent[i];
	report(sent, number > first ? number - first : 0, n);
	return 0;
}

int run_echo(const struct options *o)
{
	struct sockaddr_in own = { .sin_family = AF_INET, .sin_port = o->port }, from;
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	unsigned long count = 0;
	char packet[2048];

	if (fd < 0 || bind(fd, (void *)&own, sizeof own))
		die("echo");
	fprintf(stderr, "ready\n");
	while (!stopped) {
		socklen_t len = sizeof from;
		ssize_t n = recvfrom(fd, packet, sizeof packet, 0, (void *)&from, &len);

		if (n > 0 && sendto(fd, packet, n, 0, (void *)&from, len) == n)
			count++;
	}
	printf("{\"packets\": %lu}\n", count);
	return 0;
}
