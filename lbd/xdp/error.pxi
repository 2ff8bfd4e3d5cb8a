# One exception for everything that the kernel refuses: errno, the action that failed, a remedy. Part of
# _xsk.pyx.


class XdpError(OSError):
    """`str()` is one line: what failed, why, and what to do about it."""

    def __init__(self, int code, str action, str remedy=""):
        super().__init__(code, os.strerror(code))
        self.action = action
        self.remedy = remedy

    def __str__(self):
        return f"{self.action}: {self.strerror}" + (f": {self.remedy}" if self.remedy else "")


MEMLOCK = ("the frames exceed what may be locked: raise RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=infinity), "
           "or give CAP_IPC_LOCK")
NEED_RAW = "run as root, or give CAP_NET_RAW"
NEED_BPF = "run as root, or give CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"

log = logging.getLogger("lbd.xdp")

cdef extern from *:
    """
    #include <stdarg.h>
    #include <stdio.h>
    #include <bpf/libbpf.h>
    /* libbpf's complaints since the last look, the newest part; the GIL is the lock */
    static char lbd_said[8192];
    static size_t lbd_said_bytes;
    static int lbd_say(enum libbpf_print_level level, const char *format, va_list args)
    {
        char line[4096];
        int n = level == LIBBPF_WARN ? vsnprintf(line, sizeof(line), format, args) : 0;
        if (n >= (int)sizeof(line))
            n = sizeof(line) - 1;
        if (n > 0) {
            if (lbd_said_bytes + n > sizeof(lbd_said))
                lbd_said_bytes = 0;
            memcpy(lbd_said + lbd_said_bytes, line, n);
            lbd_said_bytes += n;
        }
        return n;
    }
    static void lbd_collect(void) { libbpf_set_print(lbd_say); }
    """
    void lbd_collect()
    char lbd_said[8192]
    size_t lbd_said_bytes

lbd_collect()


cdef int libbpf_failed(int code, str action, str remedy="") except -1:
    """Raises; what libbpf had to say goes to the log, where a verifier's answer may be long."""
    global lbd_said_bytes
    said = lbd_said[:lbd_said_bytes].decode(errors="replace").strip()
    lbd_said_bytes = 0
    if said:
        log.error("%s: libbpf: %s", action, said)
    raise XdpError(code, action, remedy or (NEED_BPF if code == E.EPERM else ""))


cdef object another_version():
    return XdpError(E.EPROTO, "taking over the XDP program of another version",
                    f"this lbd has version {steer.STEER_VERSION}: stop lbd, then start it")


def attach_remedy(int code, int ifindex, str ifname, str mode):
    """What to do about a refusal to attach, by what is on the interface already."""
    cdef uint32_t prog_id = 0
    cdef bpf_prog_info info
    cdef uint32_t length = sizeof(info)
    cdef int fd
    if code in (E.EBUSY, E.EEXIST) and bpf_xdp_query_id(ifindex, 0, &prog_id) == 0 and prog_id:
        name = "?"
        fd = bpf_prog_get_fd_by_id(prog_id)
        if fd >= 0:
            memset(&info, 0, sizeof(info))
            if bpf_obj_get_info_by_fd(fd, &info, &length) == 0:
                name = info.name.decode(errors="replace")
            os.close(fd)
        if name == "steer":
            return f"another lbd serves {ifname}: stop it first"
        return (f"{ifname} has the XDP program '{name}' (id {prog_id}): stop the program that it belongs to, "
                f"or: ip link set dev {ifname} xdp off")
    if code == E.EOPNOTSUPP and mode == "native":
        return f'the driver of {ifname} has no XDP: set attach = "generic"'
    if code in (E.EINVAL, E.ERANGE, E.ENOSPC, E.ENOMEM) and mode == "native":
        return (f"the driver of {ifname} refuses XDP as it is set up: often the MTU ({device_mtu(ifname)}) is too large (without "
                f"XDP multi-buffer drivers take 1500 to {LARGE_MTU}), or queues are too few; the kernel log may say; "
                'attach = "generic" works with any')
    if code == E.ENODEV:
        return f"is there no interface {ifname} any more?"
    return ""
