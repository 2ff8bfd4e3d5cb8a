# SPDX-License-Identifier: Apache-2.0
# Huge pages of 2 MiB behind the files that processes share (memfd, tmpfs).
#
# The kernel gives such a file huge pages on its own only where transparent_hugepage/shmem_enabled or the mount say so, and
# by default neither does. MADV_COLLAPSE (Linux 6.1; madvise(2)) asks for them range by range, whatever these say. A mapping
# shows a huge page as one only where its address and the offset in the file are alike modulo 2 MiB; otherwise the same
# memory takes a translation for each 4 KiB.
from libc.errno cimport EAGAIN, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint64_t, uintptr_t
from libc.string cimport memset
from posix.fcntl cimport posix_fallocate
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_NONE, mmap, munmap)

from lbd.shm.attach cimport PAGE, round_up

cdef extern from *:
    """
    #include <sys/mman.h>
    #ifndef MADV_COLLAPSE
    #define MADV_COLLAPSE 25
    #endif
    """
    int MADV_COLLAPSE
    int MADV_HUGEPAGE
    int madvise(void *, size_t, int) nogil

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t, size_t)

cdef enum:
    HUGE_PAGE = 2 << 20


cdef inline void *huge_zeroed(uint64_t n) noexcept nogil:
    """n zero bytes of this process's own, in huge pages as what is shared; to be given back by free(). NULL: no memory."""
    cdef uint64_t page = HUGE_PAGE if n >= HUGE_PAGE else PAGE
    cdef void *at
    n = round_up(n, page)
    at = aligned_alloc(page, n)
    if at != NULL:
        if page == HUGE_PAGE:
            madvise(at, n, MADV_HUGEPAGE)
        memset(at, 0, n)
    return at


cdef inline void *huge_map(int fd, uint64_t size, int access, int flags) noexcept nogil:
    """mmap() of a whole file, shared, so that its huge pages are mapped as such. MAP_FAILED and errno as mmap()."""
    cdef char *room
    cdef char *at
    cdef uint64_t before
    if size < HUGE_PAGE:
        return mmap(NULL, size, access, MAP_SHARED | flags, fd, 0)
    room = <char *> mmap(NULL, size + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if room == <char *> MAP_FAILED:
        return room
    at = <char *> <uintptr_t> round_up(<uintptr_t> room, HUGE_PAGE)
    before = at - room
    if mmap(at, size, access, MAP_SHARED | MAP_FIXED | flags, fd, 0) == MAP_FAILED:
        munmap(room, size + HUGE_PAGE)
        return MAP_FAILED
    if before:
        munmap(room, before)
    # what is left behind the file's last page
    munmap(at + round_up(size, PAGE), HUGE_PAGE - before)
    return at


cdef inline uint64_t huge_collapse(int fd, void *base, uint64_t size) noexcept nogil:
    """Asks for huge pages behind a huge_map()ped file that none has pinned yet. Pages that are there are copied, so this is for
    before anyone works with it: 1 to 2 ms for each MiB where pages are new to the machine, 0.1 otherwise. Returns the bytes that
    lie in huge pages now; none with a kernel that doesn't know how, and no more where the machine has none left."""
    cdef uint64_t at = 0
    cdef uint64_t got = 0
    while at + HUGE_PAGE <= size:
        # the kernel collapses no range that has no page; a touch would end the process if the file system is full
        if posix_fallocate(fd, at, 1) != 0:
            break
        if madvise(<char *> base + at, HUGE_PAGE, MADV_COLLAPSE) == 0:
            got += HUGE_PAGE
        elif errno != EAGAIN:       # that one's pages are busy; anything else would be so for the next as well
            break
        at += HUGE_PAGE
    return got
