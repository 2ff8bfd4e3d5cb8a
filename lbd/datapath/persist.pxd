# Persistence: a client's connections go to the real server that its first one got, as IPVS's templates have it. The template of
# (service, client network) lasts `persist` ms from the last connection opened by it, and longer while connections of it live: they
# are looked at every persist / 2, at most every minute. A real server of weight 0 keeps its clients; one that is down or gone
# doesn't, and neither does one that is another by now.
#
# A template has an owner among the workers, by a hash that no change of RSS touches. Who opens a connection (the owner of the flow)
# reads the template where it lies. Where there is none to go by, the first packet goes to the template's owner, with HAND_ASK in
# Engine.hand, and comes back with the real server that the owner chose, HAND_DEST: two hops more, for a client's first connection.
#
# Full set: an expired template makes room, or else the one that was renewed longest ago (counted).
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from lbd.datapath.compiler cimport lbd_ld64, lbd_likely, lbd_mum, lbd_prefetchw, lbd_scale, lbd_unlikely
from lbd.datapath.conn cimport ConnCommon, ConnTable, conn_side
from lbd.datapath.engine cimport Engine
from lbd.datapath.flow cimport Tuple
from lbd.datapath.hdr cimport PROTO_UDP
from lbd.datapath.lookup cimport prefix_mask, svc_at
from lbd.datapath.pkt cimport Pkt
from lbd.datapath.quic cimport QUIC_NONE, quic_schedule
from lbd.datapath.reason cimport REASON_NONE, VERDICT_HANDOVER
from lbd.datapath.sched cimport pick_at_once, schedule, schedule_prefetch
from lbd.datapath.svc cimport (DEST_NONE, DEST_SORRY, DEST_UP, DEST_USED, SVC_EXPIRE_QUIESCENT, SVC_HASH_QID, SVC_NONE, SVC_PERSIST,
                               SVC_USED, Svc)
from lbd.datapath.template cimport *

cdef enum:
    HAND_ASK = 0x80000000       # Engine.hand: which real server? asked by the worker in bits 16..23
    HAND_DEST = 0x40000000      # the answer in bits 0..15; DEST_NONE: there is none
    PICK_ASKED = 0x10000        # instead of a real server: the packet is on its way to who knows
    LOOK_MAX = 60000            # ms between looks at a connection that may keep its template alive
    EXPIRE_SHARE = 256          # templates looked at per call of template_expire


cdef inline uint32_t tick_now(const Engine *e) noexcept nogil:
    return <uint32_t> (e.now_ns >> TICK_SHIFT)


cdef inline uint32_t ticks(uint32_t ms) noexcept nogil:
    """Rounded up: nothing ends early."""
    return <uint32_t> ((<uint64_t> ms * 1000000 + TICK_NS - 1) >> TICK_SHIFT)


cdef inline uint32_t look_ms(const Svc *s) noexcept nogil:
    """How often a connection says that it lives; a template that heard nothing twice as long has none."""
    cdef uint32_t half = s.persist // 2
    if half > LOOK_MAX:
        return LOOK_MAX
    return half if half else 1


# --- finding one -----------------------------------------------------------------------------------------------------

cdef inline uint64_t template_hash(const Engine *e, uint32_t svc, const uint8_t *net) noexcept nogil:
    """Low half: the set; high half: the owner."""
    cdef uint64_t h = lbd_mum(lbd_ld64(net) ^ e.hash_key[0], lbd_ld64(net + 8) ^ e.hash_key[1] ^ svc)
    return lbd_mum(h ^ e.hash_key[2], e.hash_key[3] ^ svc)


cdef inline uint32_t template_owner(const Engine *e, uint64_t h) noexcept nogil:
    return lbd_scale(<uint32_t> (h >> 32), e.workers)


cdef inline Template *template_set(const Engine *e, uint64_t h) noexcept nogil:
    cdef uint64_t first = <uint64_t> template_owner(e, h) * e.max_template
    return e.template + first + (<uint32_t> h & (e.max_template - 1) & ~<uint32_t> (WAYS - 1))


cdef inline uint32_t template_way(uint64_t h, uint32_t k) noexcept nogil:
    """Of a set's entries the one to be looked at k-th: first the two in the cache line that the hash says, which nearly all are in
    while the table is not crowded."""
    return ((<uint32_t> h & ~<uint32_t> 1) + k) & (WAYS - 1)


cdef inline void template_prefetch(const Engine *e, uint32_t svc, const Tuple *t) noexcept nogil:
    """The line that a client's template is in most probably."""
    cdef uint8_t net[16]
    cdef uint64_t h
    prefix_mask(net, t.saddr, e.svc[svc].persist_plen)
    h = template_hash(e, svc, net)
    lbd_prefetchw(template_set(e, h) + template_way(h, 0))


cdef inline bint template_is(const Template *m, uint32_t svc, const uint8_t *net) noexcept nogil:
    return m.svc == svc + 1 and lbd_ld64(m.net) == lbd_ld64(net) and lbd_ld64(m.net + 8) == lbd_ld64(net + 8)


cdef inline Template *template_find(const Engine *e, uint32_t svc, const uint8_t *net, uint64_t h) noexcept nogil:
    """Or NULL. Another worker's may change at any time."""
    cdef Template *first = template_set(e, h)
    cdef Template *m
    cdef uint32_t k
    for k in range(WAYS):
        m = first + template_way(h, k)
        if template_is(m, svc, net):
            return m
    return NULL


cdef inline bint template_lasts(const Engine *e, const Svc *s, uint32_t renewed, uint32_t alive) noexcept nogil:
    cdef uint32_t now = tick_now(e)
    if not s.flags & SVC_PERSIST or renewed < s.since:
        return False
    return renewed + ticks(s.persist) > now or alive + 2 * ticks(look_ms(s)) > now


cdef inline bint template_serves(const Engine *e, uint32_t svc, uint32_t dest, uint32_t renewed) noexcept nogil:
    """Does its real server take the client's next connection? One of weight 0 does, unless the service says otherwise."""
    if dest >= e.max_dest or (e.dest[dest].flags & (DEST_USED | DEST_UP)) != (DEST_USED | DEST_UP):
        return False
    if e.dest[dest].weight == 0 and e.svc[svc].flags & SVC_EXPIRE_QUIESCENT:
        return False
    return e.dest[dest].svc == svc and e.dest[dest].since <= renewed


cdef inline uint32_t template_read(const Engine *e, const Template *m, uint32_t svc, const uint8_t *net) noexcept nogil:
    """The real server to go by, or DEST_NONE."""
    cdef uint32_t dest, renewed, alive, seq = lbd_seq_begin(&m.seq)
    cdef bint same = template_is(m, svc, net)
    dest = m.dest
    renewed = lbd_word_load(&m.renewed)
    alive = lbd_word_load(&m.alive)
    if seq & 1 or not same or not lbd_seq_same(&m.seq, seq):
        return DEST_NONE
    if not template_lasts(e, e.svc + svc, renewed, alive) or not template_serves(e, svc, dest, renewed):
        return DEST_NONE
    return dest


cdef inline void template_renew(const Engine *e, Template *m) noexcept nogil:
    """NB: another worker's may have become another client's a moment ago: that one then lasts longer than it ought to."""
    lbd_word_store(&m.renewed, tick_now(e))
    lbd_word_store(&m.alive, tick_now(e))


# --- its owner's -----------------------------------------------------------------------------------------------------

cdef inline void template_count(Engine *e, const Template *m, int by) noexcept nogil:
    """Of its real server, as long as that is still the same."""
    if m.dest < e.max_dest and e.dest[m.dest].since <= m.renewed:
        e.dest_stat[m.dest].templates += by
    e.count.templates += by


cdef inline void template_free(Engine *e, Template *m) noexcept nogil:
    template_count(e, m, -1)
    lbd_seq_open(&m.seq)
    m.svc = 0
    lbd_seq_close(&m.seq)


cdef inline void template_write(Engine *e, Template *m, uint32_t svc, const uint8_t *net, uint32_t dest) noexcept nogil:
    if m.svc:
        template_free(e, m)
    lbd_seq_open(&m.seq)
    memcpy(m.net, net, 16)
    m.dest = dest
    template_renew(e, m)
    m.svc = svc + 1
    lbd_seq_close(&m.seq)
    template_count(e, m, 1)


cdef inline bint template_over(const Engine *e, const Template *m) noexcept nogil:
    """Of one that is there. One of an earlier lbd may be there before its service: that comes when the command ring, which has not
    room for all of a start, has had it."""
    cdef uint32_t svc = <uint32_t> m.svc - 1
    if svc >= e.max_svc:
        return True
    if not e.svc[svc].flags & SVC_USED:
        return e.svc[svc].gen != 0          # 0: no service ever had the number
    return not template_lasts(e, e.svc + svc, m.renewed, m.alive)


cdef inline Template *template_room(Engine *e, uint64_t h) noexcept nogil:
    """Of the hash's set: a free entry, or one that is over, or the one renewed longest ago."""
    cdef Template *first = template_set(e, h)
    cdef Template *oldest = first
    cdef Template *m
    cdef uint32_t k
    for k in range(WAYS):
        m = first + template_way(h, k)
        if m.svc == 0 or template_over(e, m):
            return m
        if m.renewed < oldest.renewed:
            oldest = m
    e.count.templates_evicted += 1
    return oldest


cdef inline uint32_t template_choose(Engine *e, uint32_t svc, const uint8_t *net, uint64_t h, const Tuple *t) noexcept nogil:
    """The client's real server: its template's, or a new one by the scheduler, which the template then has."""
    cdef Template *m = template_find(e, svc, net, h)
    cdef uint32_t dest = DEST_NONE
    if m != NULL:
        dest = template_read(e, m, svc, net)
    if dest != DEST_NONE:
        template_renew(e, m)
        return dest
    dest = schedule(e, e.svc + svc, t)
    if dest == DEST_NONE or e.dest[dest].flags & DEST_SORRY:
        return dest
    template_write(e, m if m != NULL else template_room(e, h), svc, net, dest)
    return dest


cdef inline void template_expire(Engine *e, uint32_t budget) noexcept nogil:
    """Frees what is over of this worker's own, a share at a time."""
    cdef Template *own
    cdef uint32_t _n
    if e.max_template == 0 or e.count.templates == 0:
        return
    own = e.template + <uint64_t> e.worker * e.max_template
    for _n in range(budget if budget < e.max_template else e.max_template):
        e.template_hand = (e.template_hand + 1) & (e.max_template - 1)
        if own[e.template_hand].svc and template_over(e, own + e.template_hand):
            template_free(e, own + e.template_hand)


cdef inline void template_recover(Engine *e) noexcept nogil:
    """What a predecessor left: counts; an entry that it was just writing is nobody's."""
    cdef Template *m = e.template + <uint64_t> e.worker * e.max_template
    cdef uint32_t i
    for i in range(e.max_dest):
        e.dest_stat[i].templates = 0
    e.count.templates = 0
    for i in range(e.max_template):
        if m[i].seq & 1:
            m[i].svc = 0
            lbd_seq_close(&m[i].seq)
        if m[i].svc:
            template_count(e, m + i, 1)


cdef inline bint template_put(const Engine *e, const Template *m, uint64_t h) noexcept nogil:
    """Where its owner looks for it, while nobody runs. In a full set those renewed last stay. False: it is not among these."""
    cdef Template *first = template_set(e, h)
    cdef Template *to = first + template_way(h, 0)
    cdef Template *other
    cdef uint32_t k
    for k in range(1, WAYS):
        other = first + template_way(h, k)
        if to.svc and (other.svc == 0 or other.renewed < to.renewed):
            to = other
    if to.svc and to.renewed >= m.renewed:
        return False
    memcpy(to, m, sizeof(Template))
    return True


cdef inline void template_carry(const Engine *e, const Template *old, uint64_t n) noexcept nogil:
    """The n of a host segment of before into the one of e (its workers, max_template, template, hash_key), for another number of
    workers. Nobody runs over either."""
    cdef uint64_t i
    for i in range(n):
        if old[i].svc and not old[i].seq & 1:
            template_put(e, old + i, template_hash(e, <uint32_t> old[i].svc - 1, old[i].net))


# --- whoever opens a connection --------------------------------------------------------------------------------------

cdef inline bint ask(Engine *e, Pkt *p, uint32_t i, uint32_t owner, uint32_t hand) noexcept nogil:
    e.hand[i] = hand
    p.verdict = VERDICT_HANDOVER
    p.reason = REASON_NONE
    p.owner = owner
    return True


cdef inline uint32_t told(const Engine *e, uint32_t svc, uint32_t hand) noexcept nogil:
    """The template's owner has chosen; whether the real server is up is its judgement. DEST_NONE: it has none, or one that this
    worker has not heard of yet."""
    cdef uint32_t dest = hand & 0xffff
    if dest >= e.max_dest or not e.dest[dest].flags & DEST_USED or e.dest[dest].svc != svc:
        return DEST_NONE
    return dest


cdef inline uint32_t persist_pick(Engine *e, Pkt *p, uint32_t i, uint32_t svc, const Tuple *t) noexcept nogil:
    cdef Svc *s = e.svc + svc
    cdef uint8_t net[16]
    cdef uint64_t h
    cdef uint32_t dest = DEST_NONE, owner
    cdef Template *m
    if e.max_template == 0:
        return schedule(e, s, t)
    if e.hand[i] & HAND_DEST:
        dest = told(e, svc, e.hand[i])
        return schedule(e, s, t) if dest == DEST_NONE and e.hand[i] & 0xffff != DEST_NONE else dest
    prefix_mask(net, t.saddr, s.persist_plen)
    h = template_hash(e, svc, net)
    owner = template_owner(e, h)
    if owner == e.worker:
        return template_choose(e, svc, net, h, t)
    m = template_find(e, svc, net, h)
    if m != NULL:
        dest = template_read(e, m, svc, net)
    if dest != DEST_NONE:
        template_renew(e, m)
        return dest
    e.count.templates_asked += 1
    ask(e, p, i, owner, HAND_ASK | e.worker << 16)
    return PICK_ASKED


cdef inline void dest_prefetch(Engine *e, uint32_t svc, const Tuple *t) noexcept nogil:
    """For dest_for."""
    if lbd_unlikely(e.svc[svc].flags & SVC_PERSIST) and e.max_template:
        template_prefetch(e, svc, t)
    else:
        schedule_prefetch(e, e.svc + svc, t)


cdef inline uint32_t dest_for(Engine *e, Pkt *p, uint32_t i, uint32_t svc, const Tuple *t) noexcept nogil:
    """A real server for a new connection of this service, DEST_NONE, or PICK_ASKED: the verdict is set. i: the packet's place in
    the burst. What a QUIC connection id says comes before what the client's address does."""
    cdef Svc *s = e.svc + svc
    cdef uint32_t dest = DEST_NONE
    if lbd_likely(s.quic == QUIC_NONE and not s.flags & (SVC_HASH_QID | SVC_PERSIST)):
        dest = pick_at_once(e, s, t)
    if lbd_likely(dest != DEST_NONE):
        return dest
    return dest_kept(e, p, i, svc, t)


cdef inline uint32_t dest_kept(Engine *e, Pkt *p, uint32_t i, uint32_t svc, const Tuple *t) noexcept nogil:
    cdef Svc *s = e.svc + svc
    if (s.quic != QUIC_NONE or s.flags & SVC_HASH_QID) and p.proto == PROTO_UDP:
        return quic_schedule(e, p, svc, t)
    if s.flags & SVC_PERSIST:
        return persist_pick(e, p, i, svc, t)
    return schedule(e, s, t)


cdef inline void persist_answer(Engine *e, Pkt *p, uint32_t i, const Tuple *t, int af) noexcept nogil:
    """Another worker asks which real server this packet's client has."""
    cdef uint32_t svc = svc_at(e, t.daddr, t.dport, t.proto, af), asker = (e.hand[i] >> 16) & 0xff, dest = DEST_NONE
    cdef uint8_t net[16]
    if svc != SVC_NONE and e.svc[svc].flags & SVC_PERSIST and e.max_template:
        prefix_mask(net, t.saddr, e.svc[svc].persist_plen)
        dest = template_choose(e, svc, net, template_hash(e, svc, net), t)
    elif svc != SVC_NONE:                   # this worker has not heard of the persistence yet
        dest = schedule(e, e.svc + svc, t)
    ask(e, p, i, asker, HAND_DEST | dest)


# --- connections that keep theirs alive ------------------------------------------------------------------------------

cdef inline uint32_t persist_look(const Engine *e, const ConnCommon *c, uint32_t left) noexcept nogil:
    """When a connection's timer, which has `left` ms, should look at it next."""
    cdef uint32_t look
    if c.svc == SVC_NONE or not e.svc[c.svc].flags & SVC_PERSIST:
        return left
    look = look_ms(e.svc + c.svc)
    return look if look < left else left


cdef inline void persist_alive(const Engine *e, ConnTable *tab, uint32_t i, const ConnCommon *c, int af) noexcept nogil:
    """This connection lives, and so does its client's template, if it is of the same real server."""
    cdef uint8_t addr[16]
    cdef uint8_t net[16]
    cdef Template *m
    if c.svc == SVC_NONE or not e.svc[c.svc].flags & SVC_PERSIST or e.max_template == 0:
        return
    memset(addr, 0, 16)
    memcpy(addr, conn_side(tab, i, 0, af), 4 if af == 4 else 16)
    prefix_mask(net, addr, e.svc[c.svc].persist_plen)
    m = template_find(e, c.svc, net, template_hash(e, c.svc, net))
    if m != NULL and m.dest == c.dest:
        lbd_word_store(&m.alive, tick_now(e))
