# Command builders: one function for each Op of command.pxd, each returns the 128 bytes of a Cmd. Part of
# _shm.pyx.
#
# Pure; all values absolute, so that a worker may apply a command twice. What can't be is refused here
# (ValueError), so that a worker's EVT_BAD_COMMAND means a bug. Addresses are bytes in network order, ports
# ints in host order.


cdef object bounded(str name, object value, uint64_t low, uint64_t high):
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer in {low}..{high}, not {value!r}")
    return value


cdef int put_bytes(uint8_t *to, str name, object value, Py_ssize_t size) except -1:
    cdef bytes raw
    if not isinstance(value, (bytes, bytearray)) or len(value) != size:
        raise ValueError(f"{name} must be {size} bytes, not {value!r}")
    raw = bytes(value)
    memcpy(to, PyBytes_AS_STRING(raw), size)
    return 0


cdef int put_addr(uint8_t *to, object af, object addr) except -1:
    """IPv4 into the first 4 bytes of 16, the rest stays 0."""
    if af != 4 and af != 6:
        raise ValueError(f"af must be 4 or 6, not {af!r}")
    return put_bytes(to, "addr", addr, 16 if af == 6 else 4)


cdef int put_prefix(c_cmd.CmdRoute *r, object af, object prefix, object plen) except -1:
    """A prefix with a bit set behind its length would lie in the table under a key that no lookup makes."""
    cdef int bit
    put_addr(r.prefix, af, prefix)
    r.af = af
    r.plen = bounded("plen", plen, 0, 128 if af == 6 else 32)
    for bit in range(r.plen, 128):
        if r.prefix[bit >> 3] & (0x80 >> (bit & 7)):
            raise ValueError(f"prefix {prefix!r} has bits set beyond its length {plen}")
    return 0


cdef bytes finish(int op, object number, object gen, int flags, const void *body, size_t size):
    cdef c_cmd.Cmd cmd
    memset(&cmd, 0, sizeof(cmd))
    cmd.op = op
    cmd.flags = flags
    cmd.id = number
    cmd.gen = bounded("gen", gen, 0, 0xffffffff)
    if size > sizeof(cmd.body):
        raise AssertionError("a command body has 112 bytes")
    if body != NULL:
        memcpy(cmd.body, body, size)
    return (<const char *>&cmd)[:sizeof(cmd)]


cdef object number16(object number):
    """Numbers of services, real servers and LIPs; 0xffff means none."""
    return bounded("id", number, 0, 0xfffe)


def nop(gen):
    return finish(c_cmd.CMD_NOP, 0, gen, 0, NULL, 0)


def svc_set(id, gen, *, af, addr, port, proto, sched, flags=0, table_off=0, table_len=0,
            timeout_established=0, timeout_fin=0, timeout_udp=0, sorry=None, mode=c_svc.MODE_FULLNAT, source4=bytes(4),
            source6=bytes(16), quic=0, quic_len=0, quic_config=0, persist=0, persist_plen=0, target=0, fresh=False):
    """port 0: any that no other service of the address has. With SVC_ALIAS it is a further address of service `target`.
    source4, source6: outer source addresses of its tunnels; zeros: lbd's choice."""
    cdef c_cmd.CmdSvc b
    memset(&b, 0, sizeof(b))
    put_addr(b.vaddr, af, addr)
    b.af = af
    b.vport = htons(bounded("port", port, 0, 65535))
    if proto not in (6, 17, 132, 1 if af == 4 else 58):
        raise ValueError(f"proto must be 6 (TCP), 17 (UDP), 132 (SCTP), 1 (ICMP, IPv4) or 58 (ICMP, IPv6), not {proto!r}")
    if proto in (1, 58) and port != 0:
        raise ValueError(f"a service of ICMP has port 0, not {port!r}")
    b.proto = proto
    b.sched = bounded("sched", sched, c_svc.SCHED_SEQ, c_svc.SCHED_COUNT - 1)
    if mode not in (c_svc.MODE_FULLNAT, c_svc.MODE_NAT, c_svc.MODE_DR, c_svc.MODE_TUNNEL):
        raise ValueError(f"mode {mode!r} is none of MODE_FULLNAT, MODE_NAT, MODE_DR and MODE_TUNNEL")
    b.mode = mode
    b.flags = bounded("flags", flags, 0, 0xffff)
    if b.flags & ~(c_svc.SVC_HASH_PORT | c_svc.SVC_LEAST_WEIGHTED | c_svc.SVC_HASH_FALLBACK | c_svc.SVC_PERSIST
                   | c_svc.SVC_ALIAS | c_svc.SVC_ONE_PACKET | c_svc.SVC_EXPIRE_NODEST | c_svc.SVC_EXPIRE_QUIESCENT
                   | c_svc.SVC_HASH_QID):
        raise ValueError(f"flags {flags:#x}: there is a bit in it that may not be set")
    b.table_off = bounded("table_off", table_off, 0, 0xffffffff)
    b.table_len = bounded("table_len", table_len, 0, 0xffffffff)
    b.timeout_established = bounded("timeout_established", timeout_established, 0, 0xffffffff)
    b.timeout_fin = bounded("timeout_fin", timeout_fin, 0, 0xffffffff)
    b.timeout_udp = bounded("timeout_udp", timeout_udp, 0, 0xffffffff)
    b.sorry = 0 if sorry is None else bounded("sorry", sorry, 0, 0xfffe) + 1
    put_bytes(b.source4, "source4", source4, 4)
    put_bytes(b.source6, "source6", source6, 16)
    b.quic = bounded("quic", quic, c_quic.QUIC_NONE, c_quic.QUIC_FORMS - 1)
    b.quic_len = bounded("quic_len", quic_len, 1 if quic in (c_quic.QUIC_LB, c_quic.QUIC_DPVS) else 0, 8)
    b.quic_config = bounded("quic_config", quic_config, 0, 6)
    b.persist = bounded("persist", persist, 1 if b.flags & c_svc.SVC_PERSIST else 0, 0xffffffff)
    b.persist_plen = bounded("persist_plen", persist_plen, 0, 128 if af == 6 else 32)
    b.target = bounded("target", target, 0, 0xfffe)
    return finish(c_cmd.CMD_SVC_SET, number16(id), gen, c_cmd.CMD_FRESH if fresh else 0, &b, sizeof(b))


def snat_set(id, gen, *, digest, af, protocols, order, pool, sources, dests=0, ifin=c_svc.SNAT_ANY, ifout=c_svc.SNAT_ANY, table_off,
             timeout_established=0, fresh=False):
    """pool, sources, dests: how many of each its part of the arena, at table_off, has (snat.pxd)."""
    cdef c_cmd.CmdSnat b
    memset(&b, 0, sizeof(b))
    put_bytes(b.digest, "digest", digest, 16)
    if af != 4 and af != 6:
        raise ValueError(f"af must be 4 or 6, not {af!r}")
    b.af = af
    b.protocols = bounded("protocols", protocols, 1, c_svc.SNAT_TCP | c_svc.SNAT_UDP | c_svc.SNAT_ICMP)
    for name, iface in (("ifin", ifin), ("ifout", ifout)):
        if iface != c_svc.SNAT_ANY:
            bounded(name, iface, 0, c_pkt.IFACE_MAX - 1)
    b.ifin = ifin
    b.ifout = ifout
    b.order = bounded("order", order, 0, 0xffff)
    b.pool = bounded("pool", pool, 1, 0xffff)
    b.sources = bounded("sources", sources, 1, 0xffff)
    b.dests = bounded("dests", dests, 0, 0xffff)
    b.table_off = bounded("table_off", table_off, 0, 0xffffffff)
    b.timeout_established = bounded("timeout_established", timeout_established, 0, 0xffffffff)
    return finish(c_cmd.CMD_SNAT_SET, number16(id), gen, c_cmd.CMD_FRESH if fresh else 0, &b, sizeof(b))


def svc_del(id, gen):
    return finish(c_cmd.CMD_SVC_DEL, number16(id), gen, 0, NULL, 0)


def dest_set(id, gen, *, af, addr, port, svc, weight=1, up=True, flags=0, tunnel=c_svc.TUNNEL_IPIP, tunnel_port=0, quic_id=None,
             upper=0, lower=0, fresh=False):
    """port 0: the one that the client's packets are for. flags: DEST_SORRY, DEST_END, DEST_RESET; tunnel: a kind (TUNNEL_IPIP,
    TUNNEL_GRE, TUNNEL_GUE), TUNNEL_CSUM with it for the latter two; tunnel_port: GUE's. upper, lower: thresholds of connections,
    0 for none."""
    cdef c_cmd.CmdDest b
    memset(&b, 0, sizeof(b))
    put_addr(b.addr, af, addr)
    b.af = af
    b.port = htons(bounded("port", port, 0, 65535))
    b.flags = bounded("flags", flags, 0, 0xff)
    if b.flags & ~(c_svc.DEST_SORRY | c_svc.DEST_END | c_svc.DEST_RESET):
        raise ValueError(f"flags {flags:#x}: only DEST_SORRY, DEST_END and DEST_RESET may be set")
    if up:
        b.flags |= c_svc.DEST_UP
    b.svc = bounded("svc", svc, 0, 0xfffe)
    b.weight = bounded("weight", weight, 0, 0xffff)
    b.tunnel = bounded("tunnel", tunnel, 0, c_svc.TUNNEL_GUE | c_svc.TUNNEL_CSUM)
    if b.tunnel & c_svc.TUNNEL_KIND > c_svc.TUNNEL_GUE or b.tunnel == c_svc.TUNNEL_CSUM:
        raise ValueError(f"tunnel {tunnel!r} is none of TUNNEL_IPIP, TUNNEL_GRE and TUNNEL_GUE, the latter two with TUNNEL_CSUM")
    b.tunnel_port = htons(bounded("tunnel_port", tunnel_port, 1 if b.tunnel & c_svc.TUNNEL_KIND == c_svc.TUNNEL_GUE else 0, 65535))
    if quic_id is not None:
        b.quic = 1
        b.quic_id = bounded("quic_id", quic_id, 0, 0xffffffffffffffff)
    b.upper = bounded("upper", upper, 0, 0xffffffff)
    b.lower = bounded("lower", lower, 0, b.upper)
    return finish(c_cmd.CMD_DEST_SET, number16(id), gen, c_cmd.CMD_FRESH if fresh else 0, &b, sizeof(b))


def dest_del(id, gen):
    return finish(c_cmd.CMD_DEST_DEL, number16(id), gen, 0, NULL, 0)


def lip_set(id, gen, *, af, addr, port_lo, port_hi, snat=False, fresh=False):
    """snat: of SNAT pools."""
    cdef c_cmd.CmdLip b
    memset(&b, 0, sizeof(b))
    put_addr(b.addr, af, addr)
    b.af = af
    b.flags = c_svc.LIP_SNAT if snat else 0
    b.port_lo = bounded("port_lo", port_lo, 1, 65535)
    b.port_hi = bounded("port_hi", port_hi, port_lo, 65535)
    return finish(c_cmd.CMD_LIP_SET, number16(id), gen, c_cmd.CMD_FRESH if fresh else 0, &b, sizeof(b))


def lip_del(id, gen):
    return finish(c_cmd.CMD_LIP_DEL, number16(id), gen, 0, NULL, 0)


cdef uint64_t tag_bits(object tags) except? 0xffffffffffffffff:
    """Tags as one word (link.pxd): VLAN id, outer id << 16, protocols << 32."""
    return bounded("tags", tags, 0, 0x3ffffffff)


def iface_set(id, gen, *, mac, mtu, ifindex, flags=c_neigh.IFACE_UP, addr4=bytes(4), addr6=bytes(16), lower=0, tags=0,
              policy=c_neigh.BOND_NONE, members=(), of=None):
    """lower, tags: of a VLAN device, whose number is IFACE_MAX or more. policy, members: of a bond, with the numbers of the ports
    that it sends by. of: the interface that a port, a bond's slave, receives for."""
    cdef c_cmd.CmdIface b
    cdef uint64_t word = tag_bits(tags)
    cdef int i
    memset(&b, 0, sizeof(b))
    b.lower = bounded("lower", lower, 0, c_pkt.IFACE_MAX - 1)
    b.vlan, b.outer, b.tpid = word & 0xffff, word >> 16 & 0xffff, word >> 32
    b.policy = bounded("policy", policy, c_neigh.BOND_NONE, c_neigh.BOND_L34)
    b.member_n = bounded("members", len(members), 0, c_neigh.MEMBER_MAX)
    for i in range(b.member_n):
        b.member[i] = bounded("member", members[i], 0, c_pkt.IFACE_MAX - 1)
    b.of = 0 if of is None else bounded("of", of, 0, c_pkt.IFACE_MAX - 1) + 1
    put_bytes(b.mac, "mac", mac, 6)
    b.mtu = bounded("mtu", mtu, 68, 65535)
    b.ifindex = bounded("ifindex", ifindex, 0, 0x7fffffff)
    b.flags = bounded("flags", flags, 0, 0xffff)
    if b.flags & ~(c_neigh.IFACE_UP | c_neigh.IFACE_PARTIAL | c_neigh.IFACE_ZERO_COPY | c_neigh.IFACE_COMPLETES):
        raise ValueError(f"flags {flags:#x}: only IFACE_UP, _PARTIAL, _ZERO_COPY and _COMPLETES may be set")
    put_bytes(b.addr4, "addr4", addr4, 4)
    put_bytes(b.addr6, "addr6", addr6, 16)
    return finish(c_cmd.CMD_IFACE_SET, bounded("id", id, 0, c_neigh.LINK_MAX - 1), gen, 0, &b, sizeof(b))


def iface_del(id, gen):
    return finish(c_cmd.CMD_IFACE_DEL, bounded("id", id, 0, c_neigh.LINK_MAX - 1), gen, 0, NULL, 0)


cdef bytes neigh(int op, object gen, object af, object addr, object iface, object mac, object tags):
    cdef c_cmd.CmdNeigh b
    cdef uint64_t word = tag_bits(tags)
    memset(&b, 0, sizeof(b))
    put_addr(b.addr, af, addr)
    b.af = af
    b.iface = bounded("iface", iface, 0, c_pkt.IFACE_MAX - 1)
    b.vlan, b.outer, b.tpid = word & 0xffff, word >> 16 & 0xffff, word >> 32
    if mac is not None:
        put_bytes(b.mac, "mac", mac, 6)
        b.valid = 1
    return finish(op, 0, gen, b.valid, &b, sizeof(b))


def neigh_set(gen, *, iface, af, addr, mac=None, tags=0):
    """mac None: the next hop is in use, but its link-layer address is not known (any more)."""
    return neigh(c_cmd.CMD_NEIGH_SET, gen, af, addr, iface, mac, tags)


def neigh_del(gen, *, iface, af, addr, tags=0):
    return neigh(c_cmd.CMD_NEIGH_DEL, gen, af, addr, iface, None, tags)


def route_set(gen, *, af, prefix, plen, iface, gateway=None, metric=0, tags=0):
    """gateway None: the destinations are on the link. tags: of the way out, 0 for none."""
    cdef c_cmd.CmdRoute b
    cdef uint64_t word = tag_bits(tags)
    memset(&b, 0, sizeof(b))
    put_prefix(&b, af, prefix, plen)
    if gateway is None:
        b.flags = c_fib.ROUTE_ONLINK
    else:
        put_addr(b.gateway, af, gateway)
    b.iface = bounded("iface", iface, 0, c_pkt.IFACE_MAX - 1)
    b.metric = bounded("metric", metric, 0, 0xffffffff)
    b.vlan, b.outer, b.tpid = word & 0xffff, word >> 16 & 0xffff, word >> 32
    return finish(c_cmd.CMD_ROUTE_SET, 0, gen, 0, &b, sizeof(b))


def route_del(gen, *, af, prefix, plen):
    cdef c_cmd.CmdRoute b
    memset(&b, 0, sizeof(b))
    put_prefix(&b, af, prefix, plen)
    return finish(c_cmd.CMD_ROUTE_DEL, 0, gen, 0, &b, sizeof(b))


cdef bytes tunnel_end(int op, object gen, object af, object kind, object local, object remote):
    cdef c_cmd.CmdTunnel b
    memset(&b, 0, sizeof(b))
    put_addr(b.local, af, local)
    if remote:
        put_addr(b.remote, af, remote)
    b.af = af
    b.kind = bounded("kind", kind, c_svc.TUNNEL_IPIP, c_svc.TUNNEL_GRE)
    return finish(op, 0, gen, 0, &b, sizeof(b))


def tunnel_set(gen, *, af, kind, local, remote=b""):
    """A tunnel that ends here, from `remote`, or from anywhere."""
    return tunnel_end(c_cmd.CMD_TUNNEL_SET, gen, af, kind, local, remote)


def tunnel_del(gen, *, af, kind, local, remote=b""):
    return tunnel_end(c_cmd.CMD_TUNNEL_DEL, gen, af, kind, local, remote)


def setting(id, value, gen):
    cdef c_cmd.CmdValue b
    b.value = bounded("value", value, 0, 0xffffffffffffffff)
    return finish(c_cmd.CMD_SETTING, bounded("id", id, 0, 31), gen, 0, &b, sizeof(b))


def sweep(kind, gen):
    """Deletes every record of that kind that no command of this generation or a later one has set."""
    return finish(c_cmd.CMD_SWEEP, bounded("kind", kind, c_cmd.SWEEP_SVC, c_cmd.SWEEP_TUNNEL), gen, 0, NULL, 0)


def owner(gen):
    """After HostSegment.set_owner."""
    return finish(c_cmd.CMD_OWNER, 0, gen, 0, NULL, 0)


def capture(gen, *, points=0, snaplen=c_lay.CAPTURE_SLOT, svc=c_svc.SVC_NONE):
    """points 0 ends it."""
    cdef c_cmd.CmdCapture b
    memset(&b, 0, sizeof(b))
    b.points = bounded("points", points, 0, c_cmd.CAPTURE_RX | c_cmd.CAPTURE_TX | c_cmd.CAPTURE_DROP)
    b.snaplen = min(bounded("snaplen", snaplen, 0, 0xffffffff), c_lay.CAPTURE_SLOT - sizeof(CaptureHead))
    b.svc = bounded("svc", svc, 0, 0xffff)
    return finish(c_cmd.CMD_CAPTURE, 0, gen, 0, &b, sizeof(b))


def port_gone(id, gen):
    """After the last copy of the last of its sockets was closed."""
    return finish(c_cmd.CMD_PORT_GONE, bounded("id", id, 0, c_pkt.IFACE_MAX - 1), gen, 0, NULL, 0)


def stop(gen):
    return finish(c_cmd.CMD_STOP, 0, gen, 0, NULL, 0)


def command_head(bytes cmd not None):
    """(op, flags, id, gen) of a built command."""
    cdef c_cmd.Cmd c
    if len(cmd) != sizeof(c):
        raise ValueError(f"a command has {sizeof(c)} bytes, not {len(cmd)}")
    memcpy(&c, PyBytes_AS_STRING(cmd), sizeof(c))
    return (c.op, c.flags, c.id, c.gen)
