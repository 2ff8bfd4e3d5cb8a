# Keys of the steering program's maps, and its near slots (steer.h). Part of _xsk.pyx.

cdef int put_addr(uint32_t *to, int af, bytes addr) except -1:
    if len(addr) != {4: 4, 6: 16}.get(af):
        raise ValueError(f"{addr!r} is no address of family {af}")
    memcpy(to, <const char *>addr, len(addr))
    return 0


cdef int prefix_key(steer_prefix *key, int af, bytes addr, int length) except -1:
    """IPv4 as ::ffff:a.b.c.d."""
    memset(key, 0, sizeof(steer_prefix))
    if af == 4:
        key.addr[2] = <uint32_t>htons(0xffff) << 16
        put_addr(key.addr + 3, af, addr)
        key.len = 96 + length
    else:
        put_addr(key.addr, af, addr)
        key.len = length
    return 0


cdef tuple prefix_of(bytes addr, int length):
    """(af, address, length) of such a key."""
    if addr[:12] == MAPPED:
        return 4, addr[12:], length - 96
    return 6, addr, length


cdef int port_key(steer_port6 *key, int af, bytes addr, uint16_t port, uint8_t proto) except -1:
    """A key of vips6, or, in its beginning, of vips4."""
    cdef uint64_t vip
    put_addr(key.addr, af, addr)
    if af == 4:
        vip = steer.STEER_VIP4(key.addr[0], htons(port), proto)
        memcpy(key, &vip, sizeof(vip))
    else:
        key.port = steer.STEER_PORT(htons(port), proto)
    return 0


cdef int tunnel_key(steer_tunnel *key, int af, bytes near, bytes far, uint8_t proto, uint16_t port) except -1:
    """near empty: a real server's, `far`; far empty: from anywhere."""
    memset(key, 0, sizeof(steer_tunnel))
    key.what = steer.STEER_TUNNEL(af, proto, htons(port))
    if near:
        put_addr(key.near_, af, near)
        key.what |= steer.STEER_ENDS_HERE
    if far or not near:
        put_addr(key.far_, af, far)
    return 0


cdef void keep_near(uint64_t *slot, dict entries, key, entry):
    """One of the entries of this slot's hash, `entry` being that of `key` (0: none any more), is in the slot."""
    if entry:
        entries[key] = entry
    else:
        entries.pop(key, None)
    slot[0] = <uint64_t>next(iter(entries.values()), 0)      # one store: the program never sees half of it


cdef bint is_settings(int fd):
    """Whether the map is as large as this build's settings: what is mapped here."""
    cdef bpf_map_info info
    cdef uint32_t length = sizeof(info)
    memset(&info, 0, sizeof(info))
    return (bpf_obj_get_info_by_fd(fd, &info, &length) == 0 and info.type == BPF_MAP_TYPE_ARRAY
            and info.value_size == sizeof(steer_settings))
