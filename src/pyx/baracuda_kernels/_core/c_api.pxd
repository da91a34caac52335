# cython: language_level=3
"""The C ABI of src/cuda/include/baracuda, for cimport. Ops declare theirs beside themselves."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef extern from "baracuda/status.h" nogil:
    enum:
        BARACUDA_OK
        BARACUDA_INVALID_ARGUMENT
        BARACUDA_UNSUPPORTED
        BARACUDA_MISALIGNED
        BARACUDA_UNAVAILABLE
        BARACUDA_TIMEOUT
        BARACUDA_ABORTED
        BARACUDA_OUT_OF_MEMORY
        BARACUDA_CUDA_ERROR
        BARACUDA_NCCL_ERROR
        BARACUDA_TRANSPORT_ERROR
        BARACUDA_INTERRUPTED
    ctypedef struct baracuda_error:
        int32_t status
        int32_t code
        int32_t rank
        int32_t step
        char call[64]
        char message[320]
    const baracuda_error* baracuda_last_error()

cdef extern from "baracuda/build_info.h" nogil:
    const char* baracuda_version()
    const char* baracuda_source_hash()
    const char* baracuda_architectures()
    const char* baracuda_nvcc_version()
    const char* baracuda_cxx_compiler()

cdef extern from "baracuda/runtime.h" nogil:
    ctypedef struct baracuda_cuda_device:
        char name[128]
        int32_t compute_capability
        int32_t multiprocessors
        int32_t max_shared_bytes
        int64_t total_bytes
    int32_t baracuda_cuda_built()
    int32_t baracuda_set_signal_check(int32_t (*check)() noexcept nogil)
    int32_t baracuda_cuda_runtime_version()
    int32_t baracuda_cuda_driver_version(int32_t* version)
    int32_t baracuda_cuda_device_count(int32_t* count)
    int32_t baracuda_cuda_current_device(int32_t* device)
    int32_t baracuda_cuda_set_device(int32_t device)
    int32_t baracuda_cuda_device_info(int32_t device, baracuda_cuda_device* info)
    int32_t baracuda_cuda_stream_device(void* stream, int32_t* device)
    int32_t baracuda_cuda_pointer_device(const void* pointer, int32_t* device)
    int32_t baracuda_cuda_stream_synchronize(void* stream)
    int32_t baracuda_cuda_stream_is_capturing(void* stream, int32_t* capturing)
    int32_t baracuda_cuda_allocate(int64_t nbytes, void** data)
    void baracuda_cuda_free(void* data)

cdef extern from "baracuda/host.h" nogil:
    int32_t baracuda_host_threads()
    int32_t baracuda_set_host_threads(int32_t threads)
    const char* baracuda_host_isa()
    ctypedef struct baracuda_progress:
        int64_t done
        int64_t total
    void baracuda_watch_progress(baracuda_progress* progress)

cdef extern from "baracuda/exchange.h" nogil:
    ctypedef struct baracuda_transport:
        uint64_t struct_size
        void* context
        int32_t rank
        int32_t world_size
        int32_t (*group_start)(void* context) noexcept nogil
        int32_t (*send)(void* context, const void* data, int64_t nbytes, int32_t peer,
                        void* stream) noexcept nogil
        int32_t (*recv)(void* context, void* data, int64_t nbytes, int32_t peer,
                        void* stream) noexcept nogil
        int32_t (*group_end)(void* context) noexcept nogil
    ctypedef struct baracuda_stream_ops:
        int32_t (*set_device)(int32_t device) noexcept nogil
        int32_t (*get_device)(int32_t* device) noexcept nogil
        int32_t (*event_destroy)(void* event) noexcept nogil
        int32_t (*timed_event_create)(void** event) noexcept nogil
        int32_t (*elapsed)(void* start, void* stop, float* milliseconds) noexcept nogil
    const baracuda_stream_ops* baracuda_host_stream_ops()
    const baracuda_stream_ops* baracuda_cuda_stream_ops()
    ctypedef struct baracuda_ring_message:
        void* data
        int64_t bytes
        int32_t peer
    ctypedef struct baracuda_ring_round:
        int32_t receive_count
        baracuda_ring_message receives[8]
    ctypedef struct baracuda_ring_endpoint:
        uint64_t struct_size
        baracuda_transport transport
        const baracuda_stream_ops* ops
        int32_t device
        int32_t max_ctas
        int32_t steps_enqueued
        void* ring_stream
    int32_t baracuda_ring_endpoint_open(baracuda_ring_endpoint* endpoint)
    int32_t baracuda_ring_endpoint_close(baracuda_ring_endpoint* endpoint)
    int32_t baracuda_ring_all_gather(baracuda_ring_endpoint* endpoint, const void* mine,
                                     int64_t nbytes, void* all)
    ctypedef struct baracuda_local_world:
        pass
    int32_t baracuda_local_world_create(int32_t world_size, double timeout_seconds,
                                        baracuda_local_world** world)
    int32_t baracuda_local_world_abort(baracuda_local_world* world)
    int32_t baracuda_local_world_destroy(baracuda_local_world* world)
    int32_t baracuda_local_transport(baracuda_local_world* world, int32_t rank,
                                     baracuda_ring_endpoint* endpoint)

cdef extern from "baracuda/ring.h" nogil:
    enum:
        BARACUDA_RING_MAX_PAYLOADS
        BARACUDA_RING_BESIDE
        BARACUDA_RING_BEHIND
    ctypedef struct baracuda_ring_hop:
        pass
    void baracuda_ring_schedule(int32_t rank, int32_t world_size, baracuda_ring_hop* hops)
    ctypedef struct baracuda_ring_payload:
        int32_t timing
        int32_t part
        int32_t pieces
        int64_t piece_bytes[4]
        void* own[4]
        void* buffers[3]
    ctypedef struct baracuda_ring_program:
        int32_t parts
        int32_t (*settle)(const void* problem, const void* at)
    ctypedef struct baracuda_ring_marks:
        void* exchange_begin
        void* exchange_end
        void* wait_begin
        void* compute_begin
        void* compute_end
        void* add_begin
        void* add_end
        void* settle_begin
        void* settle_end
    ctypedef struct baracuda_ring_call:
        uint64_t struct_size
        baracuda_ring_endpoint* endpoint
        void* stream
        const baracuda_ring_hop* hops
        const baracuda_ring_program* program
        const void* problem
        const baracuda_ring_payload* payloads
        int32_t payload_count
        const baracuda_ring_marks* marks
    int32_t baracuda_ring_has_exchange(const baracuda_ring_call* call, int32_t number)
    void baracuda_ring_messages(const baracuda_ring_call* call, int32_t number,
                                baracuda_ring_round* round)
    int32_t baracuda_ring_has_sum(const baracuda_ring_call* call, int32_t number)
    int32_t baracuda_ring_run(baracuda_ring_call* calls, int32_t count)

cdef extern from "baracuda/peer.h" nogil:
    enum:
        BARACUDA_PEER_AUTO
        BARACUDA_PEER_REQUIRED
        BARACUDA_PEER_NEVER
        BARACUDA_PEER_WORKS
        BARACUDA_PEER_WAIT_EVENT
        BARACUDA_PEER_WAIT_VALUE
        BARACUDA_PEER_WAIT_GATE
    ctypedef struct baracuda_peer:
        pass
    ctypedef struct baracuda_peer_ops:
        pass
    const baracuda_peer_ops* baracuda_cuda_peer_ops()
    const char* baracuda_peer_reason_text(int32_t reason)
    int32_t baracuda_peer_reason_of(const baracuda_peer* peer, int32_t rank)
    const char* baracuda_peer_detail_of(const baracuda_peer* peer, int32_t rank)
    int32_t baracuda_peer_register(baracuda_peer* peer, void* data, int64_t nbytes)
    int32_t baracuda_peer_is_registered(const baracuda_peer* peer, const void* data,
                                        int64_t nbytes)

cdef extern from "baracuda/nccl.h" nogil:
    enum:
        BARACUDA_NCCL_UNIQUE_ID_BYTES
    ctypedef struct baracuda_nccl_comm:
        pass
    int32_t baracuda_nccl_load(const char* path)
    const char* baracuda_nccl_path()
    int32_t baracuda_nccl_version(int32_t* version)
    int32_t baracuda_nccl_unique_id(void* id)
    int32_t baracuda_nccl_init_rank(int32_t world_size, const void* id, int32_t rank,
                                    int32_t device, int32_t max_ctas, double timeout_seconds,
                                    baracuda_nccl_comm** comm)
    int32_t baracuda_nccl_init_all(int32_t count, const int32_t* devices, int32_t max_ctas,
                                   double timeout_seconds, baracuda_nccl_comm** comms)
    int32_t baracuda_nccl_from_handle(void* handle, int32_t device, double timeout_seconds,
                                      baracuda_nccl_comm** comm)
    int32_t baracuda_nccl_split(baracuda_nccl_comm* comm, int32_t color, int32_t key,
                                double timeout_seconds, baracuda_nccl_comm** child)
    int32_t baracuda_nccl_rank(const baracuda_nccl_comm* comm)
    int32_t baracuda_nccl_world_size(const baracuda_nccl_comm* comm)
    void* baracuda_nccl_handle(const baracuda_nccl_comm* comm)
    int32_t baracuda_nccl_is_owned(const baracuda_nccl_comm* comm)
    baracuda_ring_endpoint* baracuda_nccl_endpoint(baracuda_nccl_comm* comm)
    int32_t baracuda_nccl_async_error(baracuda_nccl_comm* comm)
    int32_t baracuda_nccl_abort(baracuda_nccl_comm* comm)
    int32_t baracuda_nccl_destroy(baracuda_nccl_comm* comm)
    int32_t baracuda_nccl_state(baracuda_nccl_comm* comm)
    int32_t baracuda_nccl_look(baracuda_nccl_comm* comm, int32_t* state)
    int32_t baracuda_nccl_connect_peers(baracuda_nccl_comm** comms, int32_t count, int32_t wish,
                                        int32_t wait, double timeout_seconds)
    baracuda_peer* baracuda_nccl_peer(const baracuda_nccl_comm* comm)
    int32_t baracuda_nccl_close_peers(baracuda_nccl_comm* comm)
    int32_t baracuda_nccl_synchronize(baracuda_nccl_comm* comm, void* stream,
                                      double timeout_seconds)
    int32_t baracuda_nccl_all_gather(baracuda_nccl_comm* comm, const void* mine, int64_t bytes,
                                     void* all, double timeout_seconds)
    int32_t baracuda_nccl_refuse(baracuda_nccl_comm* comm, int32_t status, const char* reason,
                                 int32_t begun)
    int32_t baracuda_nccl_arm(baracuda_nccl_comm* comm, double timeout_seconds)
    int32_t baracuda_nccl_disarm(baracuda_nccl_comm* comm)
