# The parts of libbpf (1.1 and later) that lbd uses: declarations only, names untouched.
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

cdef extern from "linux/bpf.h" nogil:
    enum:
        BPF_ANY
        BPF_F_XDP_HAS_FRAGS
        BPF_MAP_TYPE_ARRAY
        BPF_PROG_TYPE_XDP
        BPF_XDP

    struct bpf_insn:
        uint8_t code            # its other fields are 0 here
        int32_t imm

    struct bpf_prog_info:
        uint32_t type
        uint32_t id
        char name[16]

    struct bpf_link_info_xdp "":
        uint32_t ifindex

    struct bpf_link_info:
        uint32_t type
        uint32_t id
        uint32_t prog_id
        bpf_link_info_xdp xdp

    struct bpf_map_info:
        uint32_t type
        uint32_t key_size
        uint32_t value_size
        uint32_t max_entries
        char name[16]

cdef extern from "linux/if_link.h" nogil:
    enum:
        XDP_FLAGS_SKB_MODE
        XDP_FLAGS_DRV_MODE

cdef extern from "bpf/libbpf.h" nogil:
    struct bpf_object
    struct bpf_map
    struct bpf_program

    bpf_object *bpf_object__open_mem(const void *buf, size_t size, const void *opts)
    int bpf_object__load(bpf_object *obj)
    void bpf_object__close(bpf_object *obj)
    bpf_program *bpf_object__find_program_by_name(const bpf_object *obj, const char *name)
    bpf_map *bpf_object__find_map_by_name(const bpf_object *obj, const char *name)
    int bpf_program__fd(const bpf_program *prog)
    int bpf_program__set_flags(bpf_program *prog, uint32_t flags)
    int bpf_map__fd(const bpf_map *map)
    int bpf_map__set_max_entries(bpf_map *map, uint32_t max_entries)
    int bpf_xdp_query_id(int ifindex, int flags, uint32_t *prog_id)
    int libbpf_num_possible_cpus()

cdef extern from "bpf/bpf.h" nogil:
    struct bpf_prog_load_opts:
        size_t sz
        int expected_attach_type
        uint32_t prog_flags

    int bpf_prog_load(int prog_type, const char *prog_name, const char *license, const bpf_insn *insns, size_t insn_cnt,
                      bpf_prog_load_opts *opts)

    struct bpf_link_create_opts:
        size_t sz
        uint32_t flags

    int bpf_link_create(int prog_fd, int target_fd, int attach_type, const bpf_link_create_opts *opts)
    int bpf_link_detach(int link_fd)
    int bpf_link_update(int link_fd, int new_prog_fd, const void *opts)
    int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags)
    int bpf_map_lookup_elem(int fd, const void *key, void *value)
    int bpf_map_delete_elem(int fd, const void *key)
    int bpf_map_get_next_key(int fd, const void *key, void *next_key)
    int bpf_prog_get_fd_by_id(uint32_t id)
    int bpf_obj_get_info_by_fd(int fd, void *info, uint32_t *length)
