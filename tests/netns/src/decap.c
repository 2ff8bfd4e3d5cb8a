// SPDX-License-Identifier: Apache-2.0
// The other end of an IPIP, GRE or GUE tunnel, for a kernel without the devices: raw sockets, UDP sockets, and a TUN device for what
// was inside. Packets whose tunnel headers are not as they must be are left out. The opposite of encap.py.
//
//     decap NAME [PORT]       makes the TUN device NAME, brings it up by `ip`, prints "ready", serves until it is killed; PORT: GUE's
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SOCKETS = 8, BATCH = 64, ROOM = 8 << 20 };

#ifndef UDP_NO_CHECK6_RX
#define UDP_NO_CHECK6_RX 102
#endif

struct end {
    int fd, family, protocol;
};

struct inner {          // len 0: nothing that may pass
    const uint8_t *data;
    size_t len;
};

static const struct inner NOTHING;

// RFC 1071, folded and inverted; 0 over data that has its own
static uint16_t checksum(const uint8_t *data, size_t len)
{
    uint64_t sum = 0;
    size_t i;
    for (i = 0; i + 1 < len; i += 2)
        sum += data[i] << 8 | data[i + 1];
    if (i < len)
        sum += data[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return ~sum;
}

static int version(const uint8_t *data, size_t len)
{
    return len ? data[0] >> 4 : 0;
}

static struct inner from_gre(const uint8_t *data, size_t len)
{
    if (len < 8 || data[1] || (data[0] != 0 && data[0] != 0x80) || (data[0] && checksum(data, len)))
        return NOTHING;
    size_t head = data[0] ? 8 : 4;
    int type = data[2] << 8 | data[3], want = type == 0x0800 ? 4 : type == 0x86dd ? 6 : -1;
    return version(data + head, len - head) == want ? (struct inner){data + head, len - head} : NOTHING;
}

static struct inner from_gue(const uint8_t *data, size_t len)
{
    if (len < 4 || data[0] || data[2] || data[3])
        return NOTHING;
    int want = data[1] == IPPROTO_IPIP ? 4 : data[1] == IPPROTO_IPV6 ? 6 : -1;
    return version(data + 4, len - 4) == want ? (struct inner){data + 4, len - 4} : NOTHING;
}

static struct inner unwrapped(const struct end *e, const uint8_t *data, size_t len)
{
    if (e->family == AF_INET && e->protocol != IPPROTO_UDP) { // raw IPv4 sockets show the header
        size_t head = (data[0] & 15) * 4;
        if (len < head)
            return NOTHING;
        data += head;
        len -= head;
    }
    if (e->protocol == IPPROTO_GRE)
        return from_gre(data, len);
    if (e->protocol == IPPROTO_UDP)
        return from_gue(data, len);
    return version(data, len) == (e->protocol == IPPROTO_IPIP ? 4 : 6) ? (struct inner){data, len} : NOTHING;
}

static int open_tun(const char *name)
{
    struct ifreq r = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    char command[64];
    int fd = open("/dev/net/tun", O_RDWR);
    snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", name);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &r))
        err(1, "/dev/net/tun");
    snprintf(command, sizeof(command), "ip link set %s up", r.ifr_name);
    if (system(command))
        errx(1, "%s", command);
    return fd;
}

static int bound(int family, int port)
{
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int one = 1, fd = socket(family, SOCK_DGRAM, 0);
    if (family == AF_INET6) {
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
        setsockopt(fd, IPPROTO_UDP, UDP_NO_CHECK6_RX, &one, sizeof(one));
    }
    if (bind(fd, family == AF_INET6 ? (void *)&six : (void *)&four, family == AF_INET6 ? sizeof(six) : sizeof(four)))
        err(1, "port %d", port);
    return fd;
}

static int open_ends(struct end *ends, int port)
{
    static const int families[] = {AF_INET, AF_INET6}, protocols[] = {IPPROTO_IPIP, IPPROTO_IPV6, IPPROTO_GRE, IPPROTO_UDP};
    int n = 0, room = ROOM;
    for (int f = 0; f < 2; f++)
        for (int p = 0; p < 4; p++) {
            if (protocols[p] == IPPROTO_UDP && !port)
                continue;
            struct end *e = ends + n++;
            e->family = families[f];
            e->protocol = protocols[p];
            e->fd = protocols[p] == IPPROTO_UDP ? bound(families[f], port) : socket(families[f], SOCK_RAW, protocols[p]);
            if (e->fd < 0 || setsockopt(e->fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)))
                err(1, "socket");
        }
    return n;
}

int main(int argc, char **argv)
{
    static uint8_t buffer[65536];
    struct end ends[SOCKETS];
    struct epoll_event ready[SOCKETS];
    if (argc < 2)
        errx(2, "decap NAME [PORT]");
    int tun = open_tun(argv[1]), poll = epoll_create1(0), n = open_ends(ends, argc > 2 ? atoi(argv[2]) : 0);
    for (int i = 0; i < n; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = ends + i};
        if (epoll_ctl(poll, EPOLL_CTL_ADD, ends[i].fd, &event))
            err(1, "epoll");
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        n = epoll_wait(poll, ready, SOCKETS, -1);
        for (int i = 0; i < n; i++)
            for (int k = 0; k < BATCH; k++) {
                const struct end *e = ready[i].data.ptr;
                ssize_t len = recv(e->fd, buffer, sizeof(buffer), MSG_DONTWAIT);
                if (len <= 0)
                    break;
                struct inner inner = unwrapped(e, buffer, len);
                if (inner.len && write(tun, inner.data, inner.len) < 0 && errno != EINVAL && errno != EIO)
                    err(1, "tun");
            }
    }
}
