# The host segment: what all workers read and the master writes. Part of _shm.pyx.

@cython.final
cdef class HostSegment(Mapping):
    cdef HostCtl *head
    cdef HostCtl lay                # the constant part, as checked

    @staticmethod
    def create(dict sizes not None):
        cdef HostSegment self = HostSegment.__new__(HostSegment)
        cdef Sizes s = sizes_struct(sizes)
        cdef HostCtl ctl
        cdef int fd, rc
        host_layout_compute(&s, &ctl)
        fd = new_memfd("lbd-host", ctl.bytes)
        try:
            self.map(fd, ctl.bytes, False)
            rc = host_init(self.base, self.size, &s)
            if rc != ATTACH_OK:
                raise SegmentError(f"host segment: {ATTACH_TEXT[rc]}")
            self.believe(0)
        except BaseException:
            self.unmap()
            self.fd = -1
            os.close(fd)
            raise
        return self

    @staticmethod
    def adopt(int fd, dict sizes=None, bint read_only=False):
        """As WorkerSegment.adopt."""
        cdef HostSegment self = HostSegment.__new__(HostSegment)
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
        cdef int rc = host_check(self.base, self.size, expected)
        if rc != ATTACH_OK:
            raise SegmentError(f"host segment {self.fd} can't be used: {ATTACH_TEXT[rc]}")
        self.head = <HostCtl *>self.base
        self.lay.sizes = self.head.sizes
        rc = host_layout_compute(&self.lay.sizes, &self.lay)
        if rc != ATTACH_OK or self.lay.bytes > self.size:
            raise SegmentError(f"host segment {self.fd} can't be used: {ATTACH_TEXT[ATTACH_OFFSETS]}")
        return 0

    @property
    def sizes(self):
        return dict(self.lay.sizes)

    def ctl(self):
        """All fields of the head but the padding; keys as bytes."""
        cdef HostCtl c
        self.mapped()
        lbd_load_words(&c, self.base, sizeof(HostCtl))
        plain = dict(c)
        del plain["spare"], plain["spare4"]
        plain["sizes"] = dict(plain["sizes"])
        plain["hash_key"] = (<const char *>c.hash_key)[:sizeof(c.hash_key)]
        at = c.epoch & 1
        plain["rss_key"] = (<const char *>c.rss_key)[64 * at:64 * at + 64]
        plain["rss_known"], plain["rss_udp_ports"] = c.rss_known[at], c.rss_udp_ports[at]
        return plain

    # -- scheduling tables -----------------------------------------------------------------------------------

    cdef uint32_t *slots(self, object off, object count) except NULL:
        self.mapped()
        bounded("off", off, 0, self.lay.sizes.arena)
        bounded("slots", count, 0, self.lay.sizes.arena - off)
        return <uint32_t *>(<uint8_t *>self.base + self.lay.off_arena) + <uint64_t>off

    def write_table(self, off, values):
        """Writes uint32 slots from `off` on, where no worker reads now: see lbd/master/arena.py."""
        cdef uint32_t *to = self.slots(off, len(values))
        cdef size_t i = 0
        cdef bytes raw
        self.writable()
        if isinstance(values, array) and values.typecode == "I":
            raw = values.tobytes()
            memcpy(to, PyBytes_AS_STRING(raw), len(raw))
            return
        for value in values:
            to[i] = value
            i += 1

    def read_table(self, off, n):
        cdef const uint32_t *at = self.slots(off, n)
        cdef size_t i
        return [at[i] for i in range(<size_t>n)]

    def copy_tables(self, HostSegment other not None):
        """All of another host segment's, with an arena of the same size."""
        self.writable()
        other.mapped()
        if self.lay.sizes.arena != other.lay.sizes.arena:
            raise ValueError(f"an arena of {other.lay.sizes.arena} slots does not fit one of {self.lay.sizes.arena}")
        memcpy(<uint8_t *>self.base + self.lay.off_arena, <uint8_t *>other.base + other.lay.off_arena,
               <uint64_t>self.lay.sizes.arena * sizeof(uint32_t))

    # -- persistence -----------------------------------------------------------------------------------------

    def templates(self, int limit):
        """Persistence templates, at most `limit`, as dicts; workers go on meanwhile: for listings."""
        cdef const c_tmpl.Template *m
        cdef c_tmpl.Template copy
        cdef uint64_t i, n = <uint64_t>self.lay.sizes.workers * self.lay.sizes.templates
        cdef uint32_t seq
        self.mapped()
        m = <const c_tmpl.Template *>(<uint8_t *>self.base + self.lay.off_template)
        out = []
        for i in range(n):
            if len(out) >= limit:
                break
            if m[i].svc == 0:
                continue
            seq = c_tmpl.lbd_seq_begin(&m[i].seq)
            memcpy(&copy, m + i, sizeof(copy))
            if seq & 1 or copy.svc == 0 or not c_tmpl.lbd_seq_same(&m[i].seq, seq):
                continue
            out.append({"worker": i // self.lay.sizes.templates, "svc": copy.svc - 1, "dest": copy.dest,
                        "net": (<const char *>copy.net)[:16], "renewed_ns": <uint64_t>copy.renewed << c_tmpl.TICK_SHIFT,
                        "alive_ns": <uint64_t>copy.alive << c_tmpl.TICK_SHIFT})
        return out

    # -- who owns a flow -------------------------------------------------------------------------------------

    def set_owner(self, workers, bint keep_previous=True, rss=None):
        """The worker of each bucket; the table in force becomes the previous. rss: (key, known, udp_ports), as of set_rss; None: as
        before. Then send CMD_OWNER: until a worker has read that, it goes by the epoch before, and may miss what lies with the
        owner by the one before that."""
        cdef uint8_t table[1024]
        cdef uint8_t *owner
        cdef size_t i
        cdef uint32_t at, now
        self.writable()
        if len(workers) != c_lay.OWNER_BUCKETS:
            raise ValueError(f"an owner table has {c_lay.OWNER_BUCKETS} buckets, not {len(workers)}")
        for i in range(c_lay.OWNER_BUCKETS):
            table[i] = bounded("owner", workers[i], 0, self.lay.sizes.workers - 1)
        owner = <uint8_t *>self.base + self.lay.off_owner
        now, at = self.head.epoch & 1, self.head.epoch + 1 & 1
        if rss is None:
            rss = (<const char *>self.head.rss_key)[64 * now:64 * now + 64], self.head.rss_known[now], self.head.rss_udp_ports[now]
        key, known, udp_ports = rss
        self.put_rss(at, key, known, udp_ports)
        memcpy(owner + at * c_lay.OWNER_BUCKETS, table, c_lay.OWNER_BUCKETS)
        lbd_store32(&self.head.owner_prev_valid, keep_previous and self.head.epoch > 0)
        lbd_store32(&self.head.epoch, self.head.epoch + 1)

    def set_taken(self):
        """The bits of taken.pxd tell all that there is of before this epoch."""
        self.writable()
        lbd_store32(&self.head.taken_epoch, self.head.epoch)

    def retire_previous(self):
        """No flow of the previous epoch is left: a miss need not ask there."""
        self.writable()
        lbd_store32(&self.head.owner_prev_valid, 0)

    def owners(self):
        """(table in force, previous table or None)"""
        cdef const uint8_t *owner
        self.mapped()
        owner = <const uint8_t *>self.base + self.lay.off_owner
        both = [list((<const char *>owner)[i * c_lay.OWNER_BUCKETS:(i + 1) * c_lay.OWNER_BUCKETS]) for i in range(2)]
        now = self.head.epoch & 1
        return both[now], both[1 - now] if self.head.owner_prev_valid else None

    # -- keys; before the first worker starts, or every hash in use would change -----------------------------

    def set_hash_key(self, key):
        """32 secret random bytes: the connection hash of this host."""
        self.writable()
        put_bytes(<uint8_t *>self.head.hash_key, "key", key, sizeof(self.head.hash_key))

    def set_rss(self, key, bint known, bint udp_ports):
        """The Toeplitz key of flow_owner, up to 64 bytes: the NIC's (`known`: its indirection table is the
        owner table, too), or random. Later on: set_owner."""
        self.writable()
        self.put_rss(self.head.epoch & 1, key, known, udp_ports)

    cdef int put_rss(self, uint32_t at, key, bint known, bint udp_ports) except -1:
        if len(key) > 64:
            raise ValueError(f"an RSS key has at most 64 bytes, not {len(key)}")
        put_bytes(self.head.rss_key + 64 * at, "key", bytes(key).ljust(64, b"\0"), 64)
        lbd_store32(&self.head.rss_udp_ports[at], udp_ports)
        lbd_store32(&self.head.rss_known[at], known)
        return 0

    def set_stopping(self, bint stopping):
        self.writable()
        lbd_store32(&self.head.stopping, stopping)
