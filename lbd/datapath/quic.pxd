# QUIC by its connection ids: a packet from a new address and port goes to the real server that its connection lives on, if the
# destination connection id names that server. It is asked when the connection table knows nothing: established packets pay nothing.
#
# Initial and 0-RTT packets carry an id that the client made up: they are scheduled. All others carry one that a server issued, and
# tell which one by a form that is configured for the service:
#   QUIC_LB      draft-ietf-quic-load-balancers, unencrypted: 3 bits of configuration, 5 of length; the server's id; the rest
#   QUIC_KATRAN  2 bits of version: 1 two bytes' worth of id from there on, 2 three bytes after the first, 3 four
#   QUIC_DPVS    a byte; then, in half bytes: 3 bits address length - 1, 1 bit "port follows", address, port, the rest
# The id of a real server is a number of up to 8 bytes; for QUIC_DPVS it is the end of its address. What no server is found by is
# scheduled, and counted.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from lbd.datapath.compiler cimport lbd_bswap16, lbd_bswap32, lbd_ld16, lbd_ld32, lbd_mum
from lbd.datapath.engine cimport Engine, QUIC_HASH
from lbd.datapath.flow cimport Tuple
from lbd.datapath.hdr cimport UdpHdr
from lbd.datapath.pkt cimport Pkt
from lbd.datapath.sched cimport schedule
from lbd.datapath.svc cimport Dest, DEST_NONE, DEST_UP, DEST_USED, SVC_HASH_QID, Svc

cdef enum QuicForm:             # Svc.quic
    QUIC_NONE = 0
    QUIC_LB = 1
    QUIC_KATRAN = 2
    QUIC_DPVS = 3
    QUIC_FORMS = 4

cdef enum:
    CID_MAX = 20
    CID_HASHED = 8              # bytes that SVC_HASH_QID goes by: of a short header one can't know where the id ends
    KATRAN_MIN = 8
    DPVS_MIN = 7
    QUIC_V2 = 0x6b3343cf        # RFC 9369: other numbers for the same types

cdef struct Cid:
    const uint8_t *at
    uint32_t len                # short header: what there is, CID_MAX at most
    bint made_up                # by the client


# --- reading ---------------------------------------------------------------------------------------------------------

cdef inline bint cid_read(const Pkt *p, Cid *cid) noexcept nogil:
    """The destination connection id (RFC 8999). False: a datagram too short for one, or no QUIC."""
    cdef const uint8_t *d = p.data + p.l4 + sizeof(UdpHdr)
    cdef uint32_t n = lbd_bswap16((<const UdpHdr *> (p.data + p.l4)).len)
    cdef uint32_t type, here = p.l3 + p.l3_len - p.l4        # of a first fragment less than the datagram
    n = (n if n < here else here) - sizeof(UdpHdr)
    if n < 2:
        return False
    if not d[0] & 0x80:
        cid.at = d + 1
        cid.len = n - 1 if n <= CID_MAX else <uint32_t> CID_MAX
        cid.made_up = False
        return True
    if n < 6 or d[5] > CID_MAX or n < 6 + <uint32_t> d[5]:
        return False
    cid.at = d + 6
    cid.len = d[5]
    type = d[0] >> 4 & 3
    if lbd_bswap32(lbd_ld32(d + 1)) == QUIC_V2:
        type = (type - 1) & 3
    cid.made_up = type < 2
    return True


cdef inline uint64_t be_number(const uint8_t *at, uint32_t n) noexcept nogil:
    cdef uint64_t v = 0
    cdef uint32_t i
    for i in range(n):
        v = v << 8 | at[i]
    return v


cdef inline bint id_katran(const uint8_t *cid, uint64_t *id) noexcept nogil:
    cdef uint32_t version = cid[0] >> 6
    if version == 0:
        return False
    if version == 1:
        id[0] = (<uint64_t> (cid[0] & 0x3f) << 10) | (<uint32_t> cid[1] << 2) | (cid[2] >> 6)
    else:
        id[0] = be_number(cid + 1, version + 1)
    return True


cdef inline bint id_dpvs(const uint8_t *cid, uint32_t len, uint32_t id_len, uint64_t *id, uint16_t *port) noexcept nogil:
    """The last id_len bytes of its address, of which the id may hold more."""
    cdef uint32_t i, alen = (cid[1] >> 5) + 1
    cdef uint32_t all = alen + (2 if cid[1] & 0x10 else 0)
    cdef uint8_t shifted[10]
    if 2 + all > len or alen < id_len:
        return False
    for i in range(all):
        shifted[i] = <uint8_t> (cid[1 + i] << 4) | cid[2 + i] >> 4
    id[0] = be_number(shifted + alen - id_len, id_len)
    if cid[1] & 0x10:
        memcpy(port, shifted + alen, 2)
    return True


cdef inline bint server_id(const Svc *s, const Cid *cid, uint64_t *id, uint16_t *port) noexcept nogil:
    """port (network order): 0 where the form has none. False: not of the form."""
    port[0] = 0
    if s.quic == QUIC_LB:
        if cid.len < 1 + <uint32_t> s.quic_len or cid.at[0] >> 5 != s.quic_config:
            return False
        id[0] = be_number(cid.at + 1, s.quic_len)
        return True
    if s.quic == QUIC_KATRAN:
        return cid.len >= KATRAN_MIN and id_katran(cid.at, id)
    return cid.len >= DPVS_MIN and id_dpvs(cid.at, cid.len, s.quic_len, id, port)


# --- real servers by their ids ---------------------------------------------------------------------------------------

cdef inline uint32_t quic_bucket(uint32_t svc, uint64_t id) noexcept nogil:
    return <uint32_t> lbd_mum(id ^ 0x9e3779b97f4a7c15ULL, svc ^ 0xc2b2ae3d27d4eb4fULL) & (QUIC_HASH - 1)


cdef inline void quic_hash_in(Engine *e, uint32_t dest) noexcept nogil:
    cdef Dest *d = e.dest + dest
    cdef uint32_t *head = e.quic_hash + quic_bucket(d.svc, d.quic_id)
    if d.quic:
        d.quic_next = head[0]
        head[0] = dest + 1


cdef inline void quic_unhash(Engine *e, uint32_t dest) noexcept nogil:
    cdef Dest *d = e.dest + dest
    cdef uint32_t *p = e.quic_hash + quic_bucket(d.svc, d.quic_id)
    while d.quic and p[0]:
        if p[0] == dest + 1:
            p[0] = d.quic_next
            return
        p = &e.dest[p[0] - 1].quic_next


cdef inline uint32_t quic_dest(const Engine *e, uint32_t svc, uint64_t id, uint16_t port) noexcept nogil:
    """DEST_NONE: no real server of the service has this id and is up. One with weight 0 keeps its connections."""
    cdef uint32_t n = e.quic_hash[quic_bucket(svc, id)]
    cdef const Dest *d
    while n:
        d = e.dest + (n - 1)
        if d.svc == svc and d.quic_id == id and (port == 0 or d.port == port):
            return n - 1 if (d.flags & (DEST_USED | DEST_UP)) == (DEST_USED | DEST_UP) else <uint32_t> DEST_NONE
        n = d.quic_next
    return DEST_NONE


# --- scheduling ------------------------------------------------------------------------------------------------------

cdef inline uint32_t quic_schedule(Engine *e, const Pkt *p, uint32_t svc, const Tuple *t) noexcept nogil:
    """A real server for a packet of a QUIC service that has no connection."""
    cdef Svc *s = e.svc + svc
    cdef Cid cid
    cdef Tuple by
    cdef uint64_t id = 0
    cdef uint16_t port = 0
    cdef uint32_t d
    if not cid_read(p, &cid):
        e.count.quic_no_id += 1
        return schedule(e, s, t)
    if s.quic != QUIC_NONE and not cid.made_up:
        if server_id(s, &cid, &id, &port):
            d = quic_dest(e, svc, id, port)
            if d != DEST_NONE:
                e.count.quic_by_id += 1
                return d
            e.count.quic_unknown += 1
        else:
            e.count.quic_no_id += 1
    if not s.flags & SVC_HASH_QID:
        return schedule(e, s, t)
    by = t[0]                                   # the id in the place of the client's address
    by.af = 6
    by.sport = 0
    memset(by.saddr, 0, 16)
    memcpy(by.saddr, cid.at, cid.len if cid.len < CID_HASHED else <uint32_t> CID_HASHED)
    return schedule(e, s, &by)
