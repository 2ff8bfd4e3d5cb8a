# A worker's segment as the master and readers of statistics see it. Part of _shm.pyx.

@cython.final
cdef class WorkerSegment(Mapping):
    cdef Ctl *head
    cdef Ctl lay                    # the constant part, as checked; never read from shared memory again
    cdef lbd_ring_end ends[4]       # by RingName
    cdef bint attached[4]
    cdef public int wake_fd         # the worker's eventfd, written if it sleeps when a command comes

    def __cinit__(self):
        self.wake_fd = -1

    @staticmethod
    def create(dict sizes not None, int worker, node=None):
        """node: NUMA node that it is to lie on, if that can be had. (Whoever maps it all first, a neighbour or the master,
        would have it on its own.)"""
        cdef WorkerSegment self = WorkerSegment.__new__(WorkerSegment)
        cdef Sizes s = sizes_struct(sizes)
        cdef Ctl ctl
        cdef int fd, rc
        bounded("worker", worker, 0, s.workers - 1)
        layout_compute(&s, &ctl)
        fd = new_memfd(f"lbd-worker-{worker}", ctl.bytes)
        try:
            self.map(fd, ctl.bytes, False)
            if node is not None:
                lbd_prefer_node(self.base, self.size, bounded("node", node, 0, 1023))
            rc = segment_init(self.base, self.size, &s, worker)
            if rc != ATTACH_OK:
                raise SegmentError(f"worker segment: {ATTACH_TEXT[rc]}")
            self.believe(0)
        except BaseException:
            self.unmap()
            self.fd = -1
            os.close(fd)
            raise
        return self

    @staticmethod
    def adopt(int fd, dict sizes=None, bint read_only=False):
        """Takes over the descriptor of a segment, which is closed with the object. `sizes`: what it must have
        been laid out for; None: whatever. On SegmentError the descriptor stays the caller's."""
        cdef WorkerSegment self = WorkerSegment.__new__(WorkerSegment)
        cdef Sizes s
        cdef uint32_t expected = 0
        if sizes is not None:
            s = sizes_struct(sizes)
            expected = layout_hash(&s)
        self.map_sealed(fd, read_only)
        try:
            self.believe(expected)
        except SegmentError:
            self.unmap()
            self.fd = -1
            raise
        return self

    cdef int believe(self, uint32_t expected) except -1:
        cdef int rc = segment_check(self.base, self.size, expected)
        if rc != ATTACH_OK:
            raise SegmentError(f"worker segment {self.fd} can't be used: {ATTACH_TEXT[rc]}")
        self.head = <Ctl *>self.base
        # NB: from the sizes again, not copied: the head may have changed since the check
        self.lay.sizes = self.head.sizes
        rc = layout_compute(&self.lay.sizes, &self.lay)
        if rc != ATTACH_OK or self.lay.bytes > self.size:
            raise SegmentError(f"worker segment {self.fd} can't be used: {ATTACH_TEXT[ATTACH_OFFSETS]}")
        return 0

    cdef uint8_t *at(self, uint64_t off) except NULL:
        self.mapped()
        return <uint8_t *>self.base + off

    # -- the head --------------------------------------------------------------------------------------------

    @property
    def sizes(self):
        return dict(self.lay.sizes)

    @property
    def worker(self):
        self.mapped()
        return self.head.worker

    @property
    def pid(self):
        self.mapped()
        return lbd_load32(&self.head.pid)

    @property
    def state(self):
        """WORKER_STARTING .. WORKER_STOPPED"""
        self.mapped()
        return lbd_load32(&self.head.state)

    @property
    def heartbeat_ns(self):
        """CLOCK_MONOTONIC of the loop's last turn; set by set_starting at a spawn."""
        self.mapped()
        return lbd_load64(&self.head.heartbeat_ns)

    @property
    def gen_applied(self):
        self.mapped()
        return lbd_load32(&self.head.gen_applied)

    @property
    def restarts(self):
        self.mapped()
        return lbd_load32(&self.head.restarts)

    def set_starting(self, uint64_t now_ns, bint again):
        """Before a spawn, when no worker holds the segment."""
        self.writable()
        lbd_store64(&self.head.heartbeat_ns, now_ns)
        lbd_store32(&self.head.pid, 0)
        lbd_store32(&self.head.state, c_lay.WORKER_STARTING)
        if again:
            lbd_store32(&self.head.restarts, self.head.restarts + 1)

    def ctl(self):
        """All fields of the head but the padding; `sizes` as a dict."""
        cdef Ctl c
        self.mapped()
        lbd_load_words(&c, self.base, sizeof(Ctl))
        plain = dict(c)
        del plain["spare"]
        plain["sizes"] = dict(plain["sizes"])
        return plain

    # -- statistics ------------------------------------------------------------------------------------------

    def counters(self):
        """Counters by name; `drops`, `verdicts`, `consumed`, `conns_expired` as dicts of their own."""
        cdef Counters c
        lbd_load_words(&c, self.at(self.lay.off_counters), sizeof(Counters))
        plain = dict(c)
        del plain["spare"]
        plain["drops"] = {name: c.drops[i] for i, name in enumerate(NAMES)}
        plain["consumed"] = {name: c.consumed[i] for i, name in enumerate(NAMES)}
        plain["verdicts"] = {name: c.verdicts[i] for i, name in enumerate(VERDICTS)}
        plain["conns_expired"] = {name: c.conns_expired[i] for i, name in enumerate(EXPIRE_REASONS)}
        return plain

    def queue(self, iface):
        """This worker's socket on that interface."""
        cdef QueueStat q
        cdef int i = bounded("iface", iface, 0, c_pkt.IFACE_MAX - 1)
        lbd_load_words(&q, self.at(self.lay.off_queue) + i * sizeof(QueueStat), sizeof(QueueStat))
        plain = dict(q)
        del plain["spare"]
        return plain

    def service_stats(self, id):
        """(number, conns, in_pkts, out_pkts, in_bytes, out_bytes, active, inactive)"""
        cdef uint32_t i = bounded("id", id, 0, self.lay.sizes.services - 1)
        return c_rec.svc_stat_tuple(i, <const c_svc.SvcStat *>self.at(self.lay.off_svc_stat) + i)

    def dest_stats(self, id):
        cdef uint32_t i = bounded("id", id, 0, self.lay.sizes.dests - 1)
        return c_rec.svc_stat_tuple(i, <const c_svc.SvcStat *>self.at(self.lay.off_dest_stat) + i)

    def dest_condition(self, id):
        """(persistence templates that this worker keeps for it, whether this worker takes it for overloaded)"""
        cdef uint32_t i = bounded("id", id, 0, self.lay.sizes.dests - 1)
        cdef const c_svc.SvcStat *stat = <const c_svc.SvcStat *>self.at(self.lay.off_dest_stat) + i
        cdef const c_svc.Dest *dest = <const c_svc.Dest *>self.at(self.lay.off_dest) + i
        return lbd_load32(&stat.templates), bool(dest.flags & c_svc.DEST_OVERLOAD)

    def dest_conditions(self):
        """(number, templates, overloaded) of every real server that has templates or a threshold."""
        cdef const c_svc.Dest *dest = <const c_svc.Dest *>self.at(self.lay.off_dest)
        cdef const c_svc.SvcStat *stat = <const c_svc.SvcStat *>self.at(self.lay.off_dest_stat)
        cdef uint32_t i
        return [(i, lbd_load32(&stat[i].templates), bool(dest[i].flags & c_svc.DEST_OVERLOAD))
                for i in range(self.lay.sizes.dests)
                if dest[i].flags & c_svc.DEST_USED and (stat[i].templates or dest[i].upper)]

    def lip_stats(self, id):
        """(number, conns, exhausted, in_use)"""
        cdef uint32_t i = bounded("id", id, 0, self.lay.sizes.lips - 1)
        return c_rec.lip_stat_tuple(i, <const c_svc.LipStat *>self.at(self.lay.off_lip_stat) + i)

    def service_stats_all(self):
        """service_stats of every service in use, in one go: 10,000 take a few milliseconds."""
        cdef const c_svc.Svc *svc = <const c_svc.Svc *>self.at(self.lay.off_svc)
        cdef const c_svc.SvcStat *stat = <const c_svc.SvcStat *>self.at(self.lay.off_svc_stat)
        cdef uint32_t i
        return [c_rec.svc_stat_tuple(i, stat + i) for i in range(self.lay.sizes.services)
                if svc[i].flags & c_svc.SVC_USED]

    def dest_stats_all(self):
        cdef const c_svc.Dest *dest = <const c_svc.Dest *>self.at(self.lay.off_dest)
        cdef const c_svc.SvcStat *stat = <const c_svc.SvcStat *>self.at(self.lay.off_dest_stat)
        cdef uint32_t i
        return [c_rec.svc_stat_tuple(i, stat + i) for i in range(self.lay.sizes.dests)
                if dest[i].flags & c_svc.DEST_USED]

    def lip_stats_all(self):
        cdef const c_svc.Lip *lip = <const c_svc.Lip *>self.at(self.lay.off_lip)
        cdef const c_svc.LipStat *stat = <const c_svc.LipStat *>self.at(self.lay.off_lip_stat)
        cdef uint32_t i
        return [c_rec.lip_stat_tuple(i, stat + i) for i in range(self.lay.sizes.lips) if lip[i].flags & 1]

    # -- what the worker was told, as it sees it -------------------------------------------------------------

    def services(self):
        cdef const c_svc.Svc *svc = <const c_svc.Svc *>self.at(self.lay.off_svc)
        cdef uint32_t i
        return [(i, c_rec.svc_dict(svc + i)) for i in range(self.lay.sizes.services)
                if svc[i].flags & c_svc.SVC_USED]

    def dests(self):
        cdef const c_svc.Dest *dest = <const c_svc.Dest *>self.at(self.lay.off_dest)
        cdef uint32_t i
        return [(i, c_rec.dest_dict(dest + i)) for i in range(self.lay.sizes.dests)
                if dest[i].flags & c_svc.DEST_USED]

    def lips(self):
        cdef const c_svc.Lip *lip = <const c_svc.Lip *>self.at(self.lay.off_lip)
        cdef uint32_t i
        return [(i, c_rec.lip_dict(lip + i)) for i in range(self.lay.sizes.lips) if lip[i].flags & 1]

    def tunnels(self):
        """Those that end here: (kind, local, remote, packets, octets, refused)"""
        cdef const c_tun.TunnelEnd *end = <const c_tun.TunnelEnd *>self.at(self.lay.off_tunnel)
        cdef uint32_t i
        return [c_rec.tunnel_tuple(end + i) for i in range(c_tun.TUNNEL_MAX) if end[i].used]

    def ifaces(self):
        cdef const c_neigh.Iface *iface = <const c_neigh.Iface *>self.at(self.lay.off_iface)
        cdef uint32_t i
        return [(i, c_rec.iface_dict(iface + i)) for i in range(c_neigh.LINK_MAX)
                if iface[i].flags & c_neigh.IFACE_USED]

    def neighbours(self):
        """Next hops (adjacencies); those learned from a client's packets have ADJ_LEARNED and no address."""
        cdef const c_neigh.Adj *adj = <const c_neigh.Adj *>self.at(self.lay.off_adj)
        cdef uint32_t i
        return [(i, c_rec.adj_dict(adj + i)) for i in range(c_neigh.ADJ_MAX)
                if adj[i].flags & c_neigh.ADJ_USED]

    def routes(self):
        cdef const c_fib.Route *route = <const c_fib.Route *>self.at(self.lay.off_route)
        cdef uint32_t i
        return [(i, c_rec.route_dict(route + i)) for i in range(c_fib.FIB_MAX)
                if route[i].flags & c_fib.ROUTE_USED]

    # -- rings -----------------------------------------------------------------------------------------------

    cdef lbd_ring_end *end(self, int name) except NULL:
        cdef uint64_t off
        cdef uint32_t entry, capacity
        cdef int rc
        if self.attached[name]:
            self.mapped()
            return &self.ends[name]
        self.writable()
        ring_shape(&self.lay, name, &off, &entry, &capacity)
        rc = lbd_ring_attach(&self.ends[name], self.at(off), lbd_ring_bytes(entry, capacity), entry,
                             name == RING_CMD)
        if rc == LBD_RING_OK and self.ends[name].capacity != capacity:
            rc = LBD_RING_CAPACITY
        if rc != LBD_RING_OK:
            self.refuse(name, f"its head is no ring's ({rc})")
        if name == RING_CMD:
            # a worker sleeps once for all that it waits for
            lbd_ring_wake_word(&self.ends[name], &self.head.sleeping)
        self.attached[name] = True
        return &self.ends[name]

    cdef int refuse(self, int name, object what) except -1:
        raise PeerGarbage(f"worker {self.head.worker} wrote garbage into the {RINGS[name]} ring: {what}")

    def reset_ring(self, str name not None):
        """Empties a ring. Only while its worker is known to be gone."""
        cdef int i = RINGS.index(name)
        cdef uint64_t off
        cdef uint32_t entry, capacity
        self.writable()
        ring_shape(&self.lay, i, &off, &entry, &capacity)
        self.attached[i] = False
        lbd_ring_init(self.at(off), entry, capacity)

    def push(self, bytes cmd not None):
        """Hands a command over and wakes the worker if it sleeps. False: the ring is full, try again."""
        cdef lbd_ring_end *end = self.end(RING_CMD)
        if len(cmd) != sizeof(c_cmd.Cmd):
            raise ValueError(f"a command has {sizeof(c_cmd.Cmd)} bytes, not {len(cmd)}")
        if lbd_ring_room(end, 1) == 0:
            if lbd_ring_garbage(end):
                self.refuse(RING_CMD, "an index out of range")
            lbd_ring_refuse(end, 1)
            return False
        lbd_ring_push(end, PyBytes_AS_STRING(cmd), 1)
        self.wake()
        return True

    def wake(self):
        """Full fence, then the eventfd if the worker sleeps: for whoever wrote something for it."""
        cdef lbd_ring_end *end = self.end(RING_CMD)
        # the first time after an attach always: the predecessor may have died before its write
        if self.wake_fd >= 0 and lbd_ring_must_wake(end):
            eventfd_write(self.wake_fd, 1)

    def pending(self):
        """How many commands the worker has not taken over yet. PeerGarbage if it claims what can't be."""
        cdef lbd_ring_end *end = self.end(RING_CMD)
        cdef uint32_t space = lbd_ring_space(end)
        if lbd_ring_garbage(end):
            self.refuse(RING_CMD, "an index out of range")
        return end.capacity - space

    def quiet(self):
        """No event and no packet for the host's own stack waits, and every command is taken over. In doubt False: who then
        looks at each ring is told."""
        cdef lbd_ring_end *end
        try:
            end = self.end(RING_CMD)
            if lbd_ring_space(end) != end.capacity or lbd_ring_garbage(end):
                return False
            return lbd_ring_idle(self.end(RING_EVT)) != 0 and lbd_ring_idle(self.end(RING_SLOW)) != 0
        except PeerGarbage:
            return False

    def pending_commands(self):
        """Copies of those commands, oldest first: what a new master finds under way."""
        cdef uint32_t count = self.pending()
        cdef lbd_ring_end *end = self.end(RING_CMD)
        cdef uint32_t i
        return [(<const char *>lbd_ring_slot(end, i - count))[:sizeof(c_cmd.Cmd)] for i in range(count)]

    def pop_events(self, int max=64):
        """Events, oldest first, as dicts."""
        cdef lbd_ring_end *end = self.end(RING_EVT)
        cdef Evt e
        cdef list out = []
        cdef int taken
        while len(out) < max:
            taken = lbd_ring_pop(end, &e, 1)
            if taken < 0:
                self.refuse(RING_EVT, "an index out of range")
            if taken == 0:
                break
            if e.op < c_lay.EVT_RUNNING or e.op > c_lay.EVT_PEER_RESET or e.iface >= c_pkt.IFACE_MAX \
                    or (e.af != 0 and e.af != 4 and e.af != 6):
                self.refuse(RING_EVT, f"event {e.op}, iface {e.iface}, family {e.af}")
            out.append(c_rec.evt_dict(&e))
        return out

    def pop_capture(self, int max=64):
        """Captured packets, oldest first: (head, bytes)."""
        return self.pop_packets(RING_CAPTURE, max)

    def pop_slow(self, int max=64):
        """Packets for the host's own stack: (head, bytes). Those of several records are whole."""
        return self.pop_packets(RING_SLOW, max)

    cdef list pop_packets(self, int name, int max):
        cdef lbd_ring_end *end = self.end(name)
        cdef uint8_t slot[2048]
        cdef CaptureHead *head = <CaptureHead *>slot
        cdef list out = []
        cdef int taken
        cdef bytes begun = b""      # of a packet that goes on in the next record: a worker publishes all of them at once
        while len(out) < max or begun:
            taken = lbd_ring_pop(end, slot, 1)
            if taken < 0:
                self.refuse(name, "an index out of range")
            if taken == 0:
                break
            if head.caplen > c_lay.CAPTURE_SLOT - sizeof(CaptureHead) or head.iface >= c_pkt.IFACE_MAX \
                    or len(begun) > PACKET_MAX:
                self.refuse(name, f"{head.caplen} bytes, iface {head.iface}")
            packet = begun + (<const char *>slot + sizeof(CaptureHead))[:head.caplen]
            begun = packet if head.more else b""
            if not head.more:
                out.append((c_rec.capture_dict(head) | {"caplen": len(packet)}, packet))
        return out

    def ring_stats(self):
        """{name: (records waiting, records ever refused because it was full)}, of shared words: unchecked."""
        cdef const lbd_ring *ring
        cdef uint64_t off
        cdef uint32_t entry, capacity
        cdef int i
        out = {}
        for i in range(RING_NAMES):
            ring_shape(&self.lay, i, &off, &entry, &capacity)
            ring = <const lbd_ring *>self.at(off)
            waiting = <uint32_t>(lbd_load32(&ring.prod) - lbd_load32(&ring.cons))
            out[RINGS[i]] = (min(waiting, capacity), lbd_load64(&ring.full))
        return out

    def broken_rings(self):
        """Names of rings whose head no end would accept. Only while the worker is known to be gone."""
        cdef lbd_ring_end end
        cdef uint64_t off
        cdef uint32_t entry, capacity
        cdef int i, rc
        broken = []
        for i in range(RING_NAMES):
            ring_shape(&self.lay, i, &off, &entry, &capacity)
            rc = lbd_ring_attach(&end, self.at(off), lbd_ring_bytes(entry, capacity), entry, False)
            if rc != LBD_RING_OK or end.capacity != capacity:
                broken.append(RINGS[i])
        return broken
