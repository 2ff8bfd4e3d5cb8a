# The steering program: load, attach, its maps. Part of _xsk.pyx.

cdef tuple MAPS = ("xsks", "vips4", "vips6", "vip_addrs", "lips4", "lips6", "sources4", "sources6", "source_addrs",
                   "passed", "tunnels", "macs", "locals", "snat_src", "snat_dst", "counters", "settings")
cdef bytes MAPPED = bytes(10) + b"\xff\xff"       # IPv4 in 16 bytes
cdef tuple ECHO = (1, 58)                       # ICMP, ICMPv6


cdef class Program:
    """The loaded program, its maps and attachments; each a descriptor, owned by this object until `close`.

    An attachment is a bpf_link, alive as long as any process has a copy of its descriptor: a daemon that
    dies with all its workers leaves nothing attached. `fds` and `adopt` pass everything to a successor.
    """
    cdef dict _fds              # "prog", "map:NAME", "link:IFINDEX" -> descriptor
    cdef dict _served           # (af, addr) -> {(port, proto)}: what is in vips4 and vips6, so that vip_addrs follows
    cdef set _sources           # what is in sources4 and sources6, for its number
    cdef set _tunnels           # what is in tunnels, for its number
    cdef dict _answering        # the same as (af, addr) -> {(port, proto)}, so that source_addrs follows
    cdef steer_settings *_settings          # the program's own, mapped
    cdef object _near_vips4, _near_lips4    # slot -> {key: entry}, what has its hash: keep_near

    @staticmethod
    def load(*, uint32_t services=4096, uint32_t lips=1024, uint32_t sources=16384, uint32_t tunnels=16384,
             bint chains=False):
        """Load the program that travels in the package, with room for so many services, LIPs, NAT real servers, tunnels. chains: it
        may be given packets in several buffers, of which it sees the first."""
        cdef Program self = Program.__new__(Program)
        cdef bytes elf = (importlib.resources.files("lbd.xdp") / "steer.bpf.o").read_bytes()
        cdef bpf_object *obj = bpf_object__open_mem(<const char *>elf, len(elf), NULL)
        cdef int code
        self._fds, self._served = {}, {}
        if obj == NULL:
            libbpf_failed(errno, "reading the XDP program")
        try:
            for name, size in (("vips4", services), ("vips6", services), ("vip_addrs", services), ("lips4", lips),
                               ("lips6", lips), ("sources4", sources), ("sources6", sources), ("source_addrs", sources),
                               ("tunnels", tunnels)):
                bpf_map__set_max_entries(bpf_object__find_map_by_name(obj, name.encode()), max(size, 1))
            if chains:
                bpf_program__set_flags(bpf_object__find_program_by_name(obj, "steer"), BPF_F_XDP_HAS_FRAGS)
            code = bpf_object__load(obj)
            if code != 0:
                libbpf_failed(-code, "loading the XDP program")
            for name in MAPS:
                called = b".bss" if name == "settings" else name.encode()   # a global variable is in a map too
                code = bpf_map__fd(bpf_object__find_map_by_name(obj, called))
                self._fds[f"map:{name}"] = os.dup(code)
            self._fds["prog"] = os.dup(bpf_program__fd(bpf_object__find_program_by_name(obj, "steer")))
            self.map_settings()
            self._settings.version = steer.STEER_VERSION
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
        missing = [name for name in ("prog", *(f"map:{m}" for m in MAPS)) if name not in fds]
        if "map:settings" in fds and not is_settings(fds["map:settings"]):
            raise another_version()
        if missing:
            raise XdpError(E.EINVAL, "taking over the XDP program", f"{', '.join(missing)} not handed over")
        self._fds = dict(fds)
        try:
            self.map_settings()
            if self._settings.version != steer.STEER_VERSION:
                raise another_version()
            for af, addr, port, proto in self.services():
                self.note_service(af, addr, port, proto, True)
            for (af, addr), (lo, hi) in self.lips().items():
                self.note_lip(af, addr, lo, hi)
            for af, addr, port, proto in self.sources():
                self.note_source(af, addr, port, proto, True)
            self._tunnels = self.tunnels()
        except BaseException:
            self._fds.clear()
            self.close()
            raise
        return self

    cdef int map_settings(self) except -1:
        cdef void *at
        if not is_settings(self._fds["map:settings"]):
            raise XdpError(E.EPROTO, "reading the XDP program", "steer.bpf.o is of another version than this: make build")
        at = mmap(NULL, sizeof(steer_settings), PROT_READ | PROT_WRITE, MAP_SHARED, self._fds["map:settings"], 0)
        if at == MAP_FAILED:
            raise XdpError(errno, "mapping the XDP program's settings")
        self._settings = <steer_settings *>at
        self._served, self._near_vips4, self._near_lips4 = {}, defaultdict(dict), defaultdict(dict)
        self._sources, self._answering, self._tunnels = set(), {}, set()
        return 0

    @property
    def fds(self):
        return dict(self._fds)

    def close(self):
        """Close this process's descriptors; what other processes hold lives on. May be repeated."""
        if self._settings != NULL:
            munmap(self._settings, sizeof(steer_settings))
            self._settings = NULL
        while self._fds:
            os.close(self._fds.popitem()[1])

    def __dealloc__(self):
        if self._settings != NULL:
            munmap(self._settings, sizeof(steer_settings))

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

    def renew(self, int ifindex):
        """A veth runs no program on queues that came after it was attached (ethtool -L): there it is attached once more, and for an
        instant all packets of the interface are dropped rather than given to the kernel, which would answer those of services."""
        cdef bpf_insn drop[2]
        cdef bpf_prog_load_opts opts
        cdef int fd, code, link = self._fds[f"link:{ifindex}"]
        memset(drop, 0, sizeof(drop))
        memset(&opts, 0, sizeof(opts))
        drop[0].code, drop[0].imm = 0xb7, 1     # r0 = XDP_DROP
        drop[1].code = 0x95                     # exit
        opts.sz = sizeof(opts)
        opts.expected_attach_type = BPF_XDP     # as the program that it takes turns with
        opts.prog_flags = BPF_F_XDP_HAS_FRAGS
        fd = bpf_prog_load(BPF_PROG_TYPE_XDP, b"lbd_interim", b"GPL", drop, 2, &opts)
        if fd < 0:
            libbpf_failed(-fd, "loading an XDP program")
        code = bpf_link_update(link, fd, NULL)
        if code == 0:
            code = bpf_link_update(link, self._fds["prog"], NULL)
        os.close(fd)
        if code != 0:
            libbpf_failed(-code, f"attaching to interface {ifindex} once more")

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

    cdef steer_settings *settings(self) except NULL:
        if self._settings == NULL:
            raise ValueError("closed")
        return self._settings

    def set_iface(self, int ifindex, uint32_t iface):
        """Packets of this interface go to the sockets of lbd's interface number `iface`."""
        if iface >= steer.STEER_IFACES:
            raise ValueError(f"interface number {iface} is not below {steer.STEER_IFACES}")
        self.del_iface(ifindex)
        self.settings().ifindex[iface] = ifindex

    def del_iface(self, int ifindex):
        cdef int i
        for i in range(steer.STEER_IFACES):
            if self.settings().ifindex[i] == <uint32_t>ifindex:
                self._settings.ifindex[i] = 0

    def ifaces(self):
        """{ifindex: interface number}"""
        cdef steer_settings *s = self.settings()
        cdef int i
        return {s.ifindex[i]: i for i in range(steer.STEER_IFACES) if s.ifindex[i]}

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

    cdef int put_protocols(self, str name, int af, bytes addr, protos) except -1:
        """vip_addrs or source_addrs of one address."""
        cdef steer_addr key
        cdef uint32_t protocols = 0
        memset(&key, 0, sizeof(key))
        put_addr(key.addr, af, addr)
        key.af = af
        for proto in protos:
            protocols |= steer.STEER_BIT(proto)
        if protocols:
            return self.update(name, &key, &protocols)
        return self.delete(name, &key)

    cdef int put_service_protocols(self, int af, bytes addr) except -1:
        return self.put_protocols("vip_addrs", af, addr, {proto for _, proto in self._served.get((af, addr), ())})

    cdef int put_source_protocols(self, int af, bytes addr) except -1:
        return self.put_protocols("source_addrs", af, addr, {proto for _, proto in self._answering.get((af, addr), ())})

    cdef int note_source(self, int af, bytes addr, uint16_t port, uint8_t proto, bint there) except -1:
        at, end = (af, addr, port, proto), (port, proto)
        if there:
            self._sources.add(at)
            self._answering.setdefault((af, addr), set()).add(end)
        else:
            self._sources.discard(at)
            self._answering.get((af, addr), set()).discard(end)
        self.settings().sources = len(self._sources)
        if proto in ECHO:
            self.note_echo()
        elif port == 0:
            self._settings.any_sources = any(each[2] == 0 and each[3] not in ECHO for each in self._sources)
        return 0

    def set_service(self, int af, bytes addr not None, uint16_t port, uint8_t proto, uint32_t number=0):
        """Packets to this address and port are lbd's from now on."""
        cdef steer_port6 key
        port_key(&key, af, addr, port, proto)
        self.update("vips4" if af == 4 else "vips6", &key, &number)
        self.note_service(af, addr, port, proto, True)
        self.put_service_protocols(af, addr)

    def del_service(self, int af, bytes addr not None, uint16_t port, uint8_t proto):
        cdef steer_port6 key
        port_key(&key, af, addr, port, proto)
        self.delete("vips4" if af == 4 else "vips6", &key)
        self.note_service(af, addr, port, proto, False)
        self.put_service_protocols(af, addr)

    cdef int note_service(self, int af, bytes addr, uint16_t port, uint8_t proto, bint there) except -1:
        """What follows from an entry of vips4 or vips6, in this object and in the near slots."""
        cdef steer_port6 key
        cdef uint64_t vip
        cdef uint32_t slot
        ports = self._served.setdefault((af, addr), set())
        if there:
            ports.add((port, proto))
        else:
            ports.discard((port, proto))
        if proto in ECHO:
            self.note_echo()
        elif port == 0:
            self.settings().any_vips = any(end[0] == 0 and end[1] not in ECHO for ends in self._served.values() for end in ends)
        if af == 4:
            port_key(&key, af, addr, port, proto)
            memcpy(&vip, &key, sizeof(vip))
            slot = steer.STEER_SLOT(vip)
            keep_near(<uint64_t *> &self.settings().near_vips4[slot], self._near_vips4[slot], vip, vip if there else 0)
        return 0

    cdef int note_echo(self) except -1:
        ends = itertools.chain(*self._served.values(), *self._answering.values())
        self.settings().echo = any(proto in ECHO for _, proto in ends)
        return 0

    def services(self):
        """{(af, addr, port, proto): number}, as the maps have it."""
        return self.ends("vips")

    def set_source(self, int af, bytes addr not None, uint16_t port, uint8_t proto):
        """Packets from this address and port, a NAT real server's, are lbd's from now on."""
        cdef steer_port6 key
        cdef uint32_t one = 1
        port_key(&key, af, addr, port, proto)
        self.update("sources4" if af == 4 else "sources6", &key, &one)
        self.note_source(af, addr, port, proto, True)
        self.put_source_protocols(af, addr)

    def del_source(self, int af, bytes addr not None, uint16_t port, uint8_t proto):
        cdef steer_port6 key
        port_key(&key, af, addr, port, proto)
        self.delete("sources4" if af == 4 else "sources6", &key)
        self.note_source(af, addr, port, proto, False)
        self.put_source_protocols(af, addr)

    def sources(self):
        """{(af, addr, port, proto)}, as the maps have it."""
        return set(self.ends("sources"))

    def set_tunnel(self, int af, bytes near not None, bytes far not None, uint8_t proto, uint16_t port=0):
        """near empty: ICMP errors about what lbd wraps for the real server `far` are lbd's from now on. Else: what comes in the
        tunnel from `far` (empty: from anywhere) to `near`, if something of lbd's is inside. proto: 4 (and 41), 47, 17."""
        cdef steer_tunnel key
        cdef uint32_t one = 1
        tunnel_key(&key, af, near, far, proto, port)
        self.update("tunnels", &key, &one)
        self._tunnels.add((af, near, far, proto, port))
        self.settings().tunnels = len(self._tunnels)

    def del_tunnel(self, int af, bytes near not None, bytes far not None, uint8_t proto, uint16_t port=0):
        cdef steer_tunnel key
        tunnel_key(&key, af, near, far, proto, port)
        self.delete("tunnels", &key)
        self._tunnels.discard((af, near, far, proto, port))
        self.settings().tunnels = len(self._tunnels)

    def tunnels(self):
        """{(af, near, far, proto, port)}, as the map has it."""
        found = set()
        for key in self.entries("tunnels", sizeof(steer_tunnel), 4):
            what = int.from_bytes(key[32:], sys.byteorder)
            af = what >> 24 & 0x7f
            width = 4 if af == 4 else 16
            near = key[:width] if what & steer.STEER_ENDS_HERE else b""
            far = b"" if near and not any(key[16:32]) else key[16:16 + width]
            found.add((af, near, far, what >> 16 & 0xff, ntohs(what & 0xffff)))
        return found

    cdef dict ends(self, str name):
        """{(af, addr, port, proto): number} of a pair of maps."""
        found = {}
        for key, value in self.entries(name + "4", 8, 4).items():
            end = int.from_bytes(key, sys.byteorder)
            at = 4, (end >> 32).to_bytes(4, sys.byteorder), ntohs(end & 0xffff), end >> 16 & 0xffff
            found[at] = int.from_bytes(value, sys.byteorder)
        for key, value in self.entries(name + "6", 20, 4).items():
            port = int.from_bytes(key[16:], sys.byteorder)
            found[6, key[:16], ntohs(port & 0xffff), port >> 16] = int.from_bytes(value, sys.byteorder)
        return found

    cdef dict entries(self, str name, size_t key_bytes, size_t value_bytes):
        """{key: value} of a hash."""
        cdef int fd = self._fds["map:" + name]
        cdef uint8_t key[64]
        cdef uint8_t following[64]
        cdef uint8_t value[32]
        found = {}
        code = bpf_map_get_next_key(fd, NULL, following)
        while code == 0:
            memcpy(key, following, key_bytes)
            if bpf_map_lookup_elem(fd, key, value) == 0:
                found[key[:key_bytes]] = value[:value_bytes]
            code = bpf_map_get_next_key(fd, key, following)
        return found

    def set_lip(self, int af, bytes addr not None, uint16_t lo, uint16_t hi, bint echo=False):
        """Packets to these ports of a LIP are lbd's from now on; its other ports stay the kernel's. echo: answers with such an
        identifier, too."""
        cdef uint32_t key[4]
        cdef steer_ports ports
        if not 0 < lo <= hi:
            raise ValueError(f"{lo}-{hi} is no range of ports")
        put_addr(key, af, addr)
        self.widen(lo, hi)
        ports.lo, ports.hi, ports.echo, ports.zero = lo, hi, echo, 0
        self.update("lips4" if af == 4 else "lips6", key, &ports)
        self.note_lip(af, addr, lo, hi)

    cdef int widen(self, uint16_t lo, uint16_t hi) except -1:
        """Before a LIP gets these ports: lookups among LIPs are for ports that one has. It is never narrowed, which
        costs a lookup now and then and no decision."""
        cdef steer_settings *s = self.settings()
        if s.lip_hi == 0 or lo < s.lip_lo:
            s.lip_lo = lo
        if hi > s.lip_hi:
            s.lip_hi = hi
        return 0

    cdef int note_lip(self, int af, bytes addr, uint16_t lo, uint16_t hi) except -1:
        """The near slot of an entry of lips4; hi 0: there is none any more."""
        cdef uint32_t key[4]
        cdef uint32_t slot
        if af == 4:
            put_addr(key, af, addr)
            slot = steer.STEER_SLOT(<uint64_t>key[0] << 32)
            keep_near(<uint64_t *> &self.settings().near_lips4[slot], self._near_lips4[slot], addr,
                      steer.STEER_LIP4(key[0], lo, hi) if hi else 0)
        return 0

    def del_lip(self, int af, bytes addr not None):
        cdef uint32_t key[4]
        put_addr(key, af, addr)
        self.delete("lips4" if af == 4 else "lips6", key)
        self.note_lip(af, addr, 0, 0)

    def lips(self):
        """{(af, addr): (lo, hi)}, as the maps have it."""
        cdef steer_ports ports
        found = {}
        for af, name, width in ((4, "lips4", 4), (6, "lips6", 16)):
            for addr, value in self.entries(name, width, sizeof(ports)).items():
                memcpy(&ports, <const char *>value, sizeof(ports))
                found[af, addr] = (ports.lo, ports.hi)
        return found

    # ---- SNAT ----------------------------------------------------------------------------------------------

    def set_mac(self, uint32_t iface, bytes mac not None):
        """Of an interface, by lbd's number: SNAT is for packets sent to it."""
        if iface >= steer.STEER_IFACES or len(mac) != 6:
            raise ValueError(f"interface {iface}, MAC {mac!r}")
        self.settings().mac[iface] = int.from_bytes(mac, "little")

    def add_mac(self, uint32_t iface, bytes mac not None):
        """Of a device above an interface: SNAT is for packets sent to it, too."""
        cdef uint64_t key = self.mac_key(iface, mac)
        cdef uint32_t one = 1
        self.update("macs", &key, &one)

    def del_mac(self, uint32_t iface, bytes mac not None):
        cdef uint64_t key = self.mac_key(iface, mac)
        self.delete("macs", &key)

    def macs(self):
        """{(interface number, MAC)} that add_mac was told, as the map has it."""
        keys = (int.from_bytes(key, sys.byteorder) for key in self.entries("macs", 8, 4))
        return {(key >> 48, (key & 0xffffffffffff).to_bytes(6, "little")) for key in keys}

    cdef uint64_t mac_key(self, uint32_t iface, bytes mac) except? 0:
        if iface >= steer.STEER_IFACES or len(mac) != 6:
            raise ValueError(f"interface {iface}, MAC {mac!r}")
        return steer.STEER_MAC_AT(iface, int.from_bytes(mac, "little"))

    def set_local(self, int af, bytes addr not None):
        """The host's own: SNAT is not for packets to it."""
        cdef steer_prefix key
        cdef uint32_t one = 1
        prefix_key(&key, af, addr, 0)
        self.update("locals", key.addr, &one)

    def del_local(self, int af, bytes addr not None):
        cdef steer_prefix key
        prefix_key(&key, af, addr, 0)
        self.delete("locals", key.addr)

    def locals(self):
        """{(af, address)}, as the map has it."""
        return {prefix_of(key, 128)[:2] for key in self.entries("locals", 16, 4)}

    def set_prefix(self, str name not None, int af, bytes addr not None, int length, uint64_t rules):
        """name: snat_src or snat_dst. rules: a bit for each that covers the prefix."""
        cdef steer_prefix key
        prefix_key(&key, af, addr, length)
        self.update(name, &key, &rules)

    def del_prefix(self, str name not None, int af, bytes addr not None, int length):
        cdef steer_prefix key
        prefix_key(&key, af, addr, length)
        self.delete(name, &key)

    def prefixes(self, str name not None):
        """{(af, address, length): rules}, as the map has it."""
        return {prefix_of(key[4:], int.from_bytes(key[:4], sys.byteorder)): int.from_bytes(value, sys.byteorder)
                for key, value in self.entries(name, sizeof(steer_prefix), 8).items()}

    def set_snat(self, uint64_t rules, uint64_t everywhere, tuple protocols not None, tuple ifaces not None):
        """Bits of the rules in force; of those for every destination; by protocol (TCP, UDP, ICMP); by interface number.
        Bits are said what they mean before they are in force, and are out of force before that changes."""
        cdef steer_settings *s = self.settings()
        cdef int i
        if len(protocols) != steer.STEER_PROTOS or len(ifaces) != steer.STEER_IFACES:
            raise ValueError(f"{len(protocols)} protocols, {len(ifaces)} interfaces")
        s.snat &= rules
        s.snat_all = everywhere
        for i in range(steer.STEER_PROTOS):
            s.snat_proto[i] = protocols[i]
        for i in range(steer.STEER_IFACES):
            s.snat_iface[i] = ifaces[i]
        s.snat = rules

    def snat(self):
        """What set_snat was told last."""
        cdef steer_settings *s = self.settings()
        return (s.snat, s.snat_all, tuple([s.snat_proto[i] for i in range(steer.STEER_PROTOS)]),
                tuple([s.snat_iface[i] for i in range(steer.STEER_IFACES)]))

    def counters(self):
        """{interface number: {action: packets}} since the program was loaded, for those in `ifaces`."""
        cdef int cpus = libbpf_num_possible_cpus()
        cdef int i
        cdef uint32_t key
        cdef steer_counts total
        cdef steer_counts *each = <steer_counts *>malloc(cpus * sizeof(steer_counts))
        if each == NULL:
            raise MemoryError
        found = {}
        try:
            for key in sorted(self.ifaces().values()):
                memset(&total, 0, sizeof(total))
                if bpf_map_lookup_elem(self._fds["map:counters"], &key, each) == 0:
                    for i in range(cpus):
                        total.passed += each[i].passed
                        total.redirect += each[i].redirect
                        total.drop += each[i].drop
                found[key] = {"pass": total.passed, "redirect": total.redirect, "drop": total.drop}
        finally:
            free(each)
        return found
