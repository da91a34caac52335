# cython: language_level=3
"""The C ABI of attention, for cimport."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from baracuda_kernels._core.c_api cimport baracuda_ring_program

cdef extern from "baracuda/element.h" nogil:
    enum:
        BARACUDA_F16
        BARACUDA_BF16
        BARACUDA_F32
        BARACUDA_F64
    ctypedef struct baracuda_strides:
        int64_t batch
        int64_t head
        int64_t seq

cdef extern from "baracuda/positions.h" nogil:
    ctypedef struct baracuda_position_map:
        int64_t head
        int64_t tail
        int64_t stride
        int64_t split
    baracuda_position_map baracuda_layout_map(int32_t layout, int32_t rank, int32_t world_size,
                                              int64_t length)

cdef extern from "baracuda/attention.h" nogil:
    enum:
        BARACUDA_STEP_FIRST
        BARACUDA_STEP_LAST
        BARACUDA_STEP_CAUSAL
        BARACUDA_STEP_FOLLOWS
    ctypedef struct baracuda_attention_step_params:
        uint64_t struct_size
        uint32_t flags
        int32_t element
        int32_t lse_element
        int32_t sm_margin
        int64_t batch
        int64_t heads
        int64_t kv_heads
        int64_t query_len
        int64_t key_len
        int64_t head_dim
        double scale
        const void* q
        const void* k
        const void* v
        void* y
        void* lse
        void* state
        baracuda_strides q_strides
        baracuda_strides k_strides
        baracuda_strides v_strides
        baracuda_strides y_strides
        baracuda_position_map q_map
        baracuda_position_map k_map
    int32_t baracuda_attention_available(int32_t kernel)
    ctypedef struct baracuda_attention_family:
        const char* name
        int32_t min_compute_capability
        int32_t max_compute_capability
        uint32_t elements
        int32_t tensor_cores
        int32_t vector_bytes
        int32_t forward_strides
    int32_t baracuda_attention_family_info(int32_t kernel, baracuda_attention_family* info)
    int32_t baracuda_attention_refusal(int32_t kernel,
                                       const baracuda_attention_step_params* params,
                                       char* reason, int64_t size)
    int64_t baracuda_attention_state_bytes(int32_t kernel,
                                           const baracuda_attention_step_params* params)
    int32_t baracuda_attention_load(int32_t kernel, const baracuda_attention_step_params* params)
    int32_t baracuda_attention_step(int32_t kernel, const baracuda_attention_step_params* params,
                                    void* stream)
    ctypedef struct baracuda_visible_pairs:
        int64_t whole
        int64_t cut
        int64_t first_row
        int64_t end_row
    int32_t baracuda_attention_visible_pairs(const baracuda_attention_step_params* params,
                                             baracuda_visible_pairs* pairs)

cdef extern from "baracuda/attention_backward.h" nogil:
    ctypedef struct baracuda_attention_backward_params:
        uint64_t struct_size
        baracuda_attention_step_params step
        const void* dy
        const void* dlse
        void* dq
        void* dk
        void* dv
        baracuda_strides dy_strides
        baracuda_strides dq_strides
        baracuda_strides dk_strides
        baracuda_strides dv_strides
        baracuda_strides lse_strides
        baracuda_strides dlse_strides
        int32_t kv_gradient_element
    uint32_t baracuda_attention_backward_elements(int32_t kernel)
    int32_t baracuda_attention_backward_ordered(int32_t kernel)
    int32_t baracuda_attention_backward_refusal(int32_t kernel,
                                                const baracuda_attention_step_params* problem,
                                                char* reason, int64_t size)
    int64_t baracuda_attention_backward_scratch_bytes(
        int32_t kernel, const baracuda_attention_step_params* problem)
    int32_t baracuda_attention_backward_load(int32_t kernel,
                                             const baracuda_attention_step_params* problem)
    int32_t baracuda_attention_backward_prepare(int32_t kernel,
                                                const baracuda_attention_backward_params* params,
                                                void* stream)
    int32_t baracuda_attention_backward_step(int32_t kernel,
                                             const baracuda_attention_backward_params* params,
                                             void* stream)

cdef extern from "baracuda/attention_ring.h" nogil:
    ctypedef struct baracuda_attention_ring_problem:
        uint64_t struct_size
        int32_t kernel
        int32_t layout
        baracuda_attention_step_params step
    const baracuda_ring_program* baracuda_attention_ring_program()
    ctypedef struct baracuda_attention_backward_ring_problem:
        uint64_t struct_size
        int32_t kernel
        int32_t layout
        baracuda_attention_backward_params call
    const baracuda_ring_program* baracuda_attention_backward_ring_program()

cdef extern from "baracuda/xla_ffi.h" nogil:
    void* baracuda_xla_attention_host(void* frame)
    void* baracuda_xla_attention_cuda(void* frame)
    void* baracuda_xla_attention_cuda_load(void* frame)
    void* baracuda_xla_attention_backward_host(void* frame)
    void* baracuda_xla_attention_backward_cuda(void* frame)
    void* baracuda_xla_attention_backward_cuda_load(void* frame)
