# The steering program: load, attach, its maps. Part of _xsk.pyx.

cdef tuple MAPS = ("xsks", "ifaces", "vips", "vip_addrs", "lips", "counters", "settings")
ACTIONS = ("pass", "redirect", "drop")          # in the order of enum steer_action

cdef int put_addr(uint8_t *to, int af, bytes addr) except -1:
    if len(addr) != {4: 4, 6: 16}.get(af):
        raise ValueError(f"{addr!r} is no address of family {af}")
    memset(to, 0, 16)
    memcpy(to, <const char *>addr, len(addr))
    return 0


cdef bytes get_addr(const uint8_t *addr, int af):
    return addr[:4 if af == 4 else 16]


cdef class Program:
    """The loaded program, its maps and attachments; each a descriptor, owned by this object until `close`.

    An attachment is a bpf_link, alive as long as any process has a copy of its descriptor: a daemon that
    dies with all its workers leaves nothing attached. `fds` and `adopt` pass everything to a successor.
    """
    cdef dict _fds              # "prog", "map:NAME", "link:IFINDEX" -> descriptor
    cdef dict _served           # (af, addr) -> {(port, proto)}: what is in vips, so that vip_addrs follows

    @staticmethod
    def load(*, uint32_t services=4096, uint32_t lips=1024):
        """Load the program that travels in the package, with room for so many services and LIPs."""
        cdef Program self = Program.__new__(Program)
        cdef bytes elf = (importlib.resources.files("lbd.xdp") / "steer.bpf.o").read_bytes()
        cdef bpf_object *obj = bpf_object__open_mem(<const char *>elf, len(elf), NULL)
        cdef uint32_t key = steer.STEER_SETTING_VERSION, version = steer.STEER_VERSION
        cdef int code
        self._fds, self._served = {}, {}
        if obj == NULL:
            libbpf_failed(errno, "reading the XDP program")
        try:
            for name, size in (("vips", services), ("vip_addrs", services), ("lips", lips)):
                bpf_map__set_max_entries(bpf_object__find_map_by_name(obj, name.encode()), max(size, 1))
            code = bpf_object__load(obj)
            if code != 0:
                libbpf_failed(-code, "loading the XDP program")
            for name in MAPS:
                code = bpf_map__fd(bpf_object__find_map_by_name(obj, name.encode()))
                self._fds[f"map:{name}"] = os.dup(code)
            self._fds["prog"] = os.dup(bpf_program__fd(bpf_object__find_program_by_name(obj, "steer")))
            self.update("settings", &key, &version)
        except BaseException:
            self.close()
            raise
        finally:
            bpf_object__close(obj)
        return self

    @staticmethod
    def adopt(dict fds not None):
        """Take over the descriptors that a predecessor's `fds` named. XdpError if they are incomplete or of
        another version; they stay the caller's then."""
        cdef Program self = Program.__new__(Program)
        cdef uint32_t key = steer.STEER_SETTING_VERSION, version = 0
        missing = [name for name in ("prog", *(f"map:{m}" for m in MAPS)) if name not in fds]
        if missing:
            raise XdpError(E.EINVAL, "taking over the XDP program", f"{', '.join(missing)} not handed over")
        if bpf_map_lookup_elem(fds["map:settings"], &key, &version) != 0 or version != steer.STEER_VERSION:
            raise XdpError(E.EPROTO, f"taking over the XDP program of version {version}",
                           f"this lbd has version {steer.STEER_VERSION}: stop lbd, then start it")
        self._fds, self._served = dict(fds), {}
        for af, addr, port, proto in self.services():
            self._served.setdefault((af, addr), set()).add((port, proto))
        return self

    @property
    def fds(self):
        return dict(self._fds)

    def close(self):
        """Close this process's descriptors; what other processes hold lives on. May be repeated."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    # ---- attachment ----------------------------------------------------------------------------------------

    def attach(self, int ifindex, str ifname, str mode="native"):
        """Attach to an interface; returns the link's descriptor, which is in `fds` too."""
        cdef bpf_link_create_opts opts
        cdef int fd
        if f"link:{ifindex}" in self._fds:
            raise ValueError(f"already attached to {ifname}")
        memset(&opts, 0, sizeof(opts))
        opts.sz = sizeof(opts)
        opts.flags = {"native": XDP_FLAGS_DRV_MODE, "generic": XDP_FLAGS_SKB_MODE}[mode]
        fd = bpf_link_create(self._fds["prog"], ifindex, BPF_XDP, &opts)
        if fd < 0:
            libbpf_failed(-fd, f"attaching to {ifname}", attach_remedy(-fd, ifindex, ifname, mode))
        self._fds[f"link:{ifindex}"] = fd
        return fd

    def attached(self):
        """{ifindex: link descriptor} of what is attached in fact: not where the interface has gone, or where
        somebody detached the link."""
        cdef bpf_link_info info
        cdef uint32_t length
        found = {}
        for name, fd in self._fds.items():
            if name.startswith("link:"):
                memset(&info, 0, sizeof(info))
                length = sizeof(info)
                if bpf_obj_get_info_by_fd(fd, &info, &length) == 0 and info.xdp.ifindex != 0:
                    found[info.xdp.ifindex] = fd
        return found

    def detach(self, int ifindex):
        """For all processes, whoever holds a copy of the link. Harmless where nothing is attached."""
        fd = self._fds.pop(f"link:{ifindex}", None)
        if fd is not None:
            bpf_link_detach(fd)         # fails only if the interface has gone
            os.close(fd)

    # ---- maps ----------------------------------------------------------------------------------------------

    cdef int update(self, str name, const void *key, const void *value) except -1:
        cdef int code = bpf_map_update_elem(self._fds["map:" + name], key, value, BPF_ANY)
        if code != 0:
            libbpf_failed(-code, f"writing the XDP program's map {name}",
                          "it is full: [tables] services is too small" if code == -E.E2BIG else "")
        return 0

    cdef int delete(self, str name, const void *key) except -1:
        cdef int code = bpf_map_delete_elem(self._fds["map:" + name], key)
        if code != 0 and code != -E.ENOENT:
            libbpf_failed(-code, f"deleting from the XDP program's map {name}")
        return 0

    def set_iface(self, int ifindex, uint32_t iface):
        """Packets of this interface go to the sockets of lbd's interface number `iface`."""
        cdef steer_iface value
        if iface >= steer.STEER_IFACES:
            raise ValueError(f"interface number {iface} is not below {steer.STEER_IFACES}")
        value.base, value.flags = iface * steer.STEER_QUEUES, 0
        self.update("ifaces", &ifindex, &value)

    def del_iface(self, int ifindex):
        self.delete("ifaces", &ifindex)

    def ifaces(self):
        """{ifindex: interface number}"""
        cdef int key = 0, following = 0
        cdef steer_iface value
        found = {}
        code = bpf_map_get_next_key(self._fds["map:ifaces"], NULL, &following)
        while code == 0:
            key = following
            if bpf_map_lookup_elem(self._fds["map:ifaces"], &key, &value) == 0:
                found[key] = value.base // steer.STEER_QUEUES
            code = bpf_map_get_next_key(self._fds["map:ifaces"], &key, &following)
        return found

    cdef uint32_t xsk_key(self, uint32_t iface, uint32_t queue) except? 0xffffffff:
        if iface >= steer.STEER_IFACES or queue >= steer.STEER_QUEUES:
            raise ValueError(f"interface {iface} queue {queue}: at most {steer.STEER_IFACES} interfaces and "
                             f"{steer.STEER_QUEUES} queues each are served")
        return iface * steer.STEER_QUEUES + queue

    def set_socket(self, uint32_t iface, uint32_t queue, int fd):
        """A socket leaves the map by itself when it is closed. The kernel does not let entries be read."""
        cdef uint32_t key = self.xsk_key(iface, queue)
        self.update("xsks", &key, &fd)

    def clear_socket(self, uint32_t iface, uint32_t queue):
        cdef uint32_t key = self.xsk_key(iface, queue)
        self.delete("xsks", &key)

    cdef int put_protocols(self, int af, bytes addr) except -1:
        """vip_addrs of one address, by what _served has."""
        cdef steer_addr key
        cdef uint32_t protocols = 0
        memset(&key, 0, sizeof(key))
        put_addr(key.addr, af, addr)
        key.af = af
        for _, proto in self._served.get((af, addr), ()):
            protocols |= 1 << <uint32_t>proto
        if protocols:
            return self.update("vip_addrs", &key, &protocols)
        return self.delete("vip_addrs", &key)

    def set_service(self, int af, bytes addr not None, uint16_t port, uint8_t proto, uint32_t number=0):
        """Packets to this address and port are lbd's from now on."""
        cdef steer_vip key
        put_addr(key.addr, af, addr)
        key.port, key.proto, key.af = htons(port), proto, af
        self.update("vips", &key, &number)
        self._served.setdefault((af, addr), set()).add((port, proto))
        self.put_protocols(af, addr)

    def del_service(self, int af, bytes addr not None, uint16_t port, uint8_t proto):
        cdef steer_vip key
        put_addr(key.addr, af, addr)
        key.port, key.proto, key.af = htons(port), proto, af
        self.delete("vips", &key)
        self._served.get((af, addr), set()).discard((port, proto))
        self.put_protocols(af, addr)

    def services(self):
        """{(af, addr, port, proto): number}, as the map has it."""
        cdef steer_vip key, following
        cdef uint32_t number
        found = {}
        code = bpf_map_get_next_key(self._fds["map:vips"], NULL, &following)
        while code == 0:
            key = following
            if bpf_map_lookup_elem(self._fds["map:vips"], &key, &number) == 0:
                found[key.af, get_addr(key.addr, key.af), ntohs(key.port), key.proto] = number
            code = bpf_map_get_next_key(self._fds["map:vips"], &key, &following)
        return found

    def set_lip(self, int af, bytes addr not None, uint16_t lo, uint16_t hi):
        """Packets to these ports of a LIP are lbd's from now on; its other ports stay the kernel's."""
        cdef steer_addr key
        cdef steer_ports ports
        if not 0 < lo <= hi:
            raise ValueError(f"{lo}-{hi} is no range of ports")
        memset(&key, 0, sizeof(key))
        put_addr(key.addr, af, addr)
        key.af = af
        ports.lo, ports.hi = lo, hi
        self.update("lips", &key, &ports)

    def del_lip(self, int af, bytes addr not None):
        cdef steer_addr key
        memset(&key, 0, sizeof(key))
        put_addr(key.addr, af, addr)
        key.af = af
        self.delete("lips", &key)

    def lips(self):
        """{(af, addr): (lo, hi)}, as the map has it."""
        cdef steer_addr key, following
        cdef steer_ports ports
        found = {}
        code = bpf_map_get_next_key(self._fds["map:lips"], NULL, &following)
        while code == 0:
            key = following
            if bpf_map_lookup_elem(self._fds["map:lips"], &key, &ports) == 0:
                found[key.af, get_addr(key.addr, key.af)] = (ports.lo, ports.hi)
            code = bpf_map_get_next_key(self._fds["map:lips"], &key, &following)
        return found

    def counters(self):
        """{interface number: {action: packets}} since the program was loaded, for those in `ifaces`."""
        cdef int cpus = libbpf_num_possible_cpus()
        cdef uint32_t key
        cdef uint64_t total
        cdef int i
        cdef uint64_t *each = <uint64_t *>malloc(cpus * sizeof(uint64_t))
        if each == NULL:
            raise MemoryError
        found = {}
        try:
            for iface in sorted(set(self.ifaces().values())):
                found[iface] = {}
                for action, name in enumerate(ACTIONS):
                    key = iface * steer.STEER_ACTIONS + action
                    total = 0
                    if bpf_map_lookup_elem(self._fds["map:counters"], &key, each) == 0:
                        for i in range(cpus):
                            total += each[i]
                    found[iface][name] = total
        finally:
            free(each)
        return found


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
        return (f"the driver of {ifname} refuses XDP as it is set up: often the MTU is too large, or queues "
                'are too few; the kernel log may say; attach = "generic" works with any')
    if code == E.ENODEV:
        return f"is there no interface {ifname} any more?"
    return ""
