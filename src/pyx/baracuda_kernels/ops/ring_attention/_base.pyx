# cython: language_level=3
"""The part that the plans of both directions share: K and V on the ring, and ``validate``."""

from libc.stdint cimport int32_t, int64_t

from baracuda_kernels.ops.attention cimport c_api as attention_api
from baracuda_kernels._core._member cimport RingMember, as_member
from baracuda_kernels._core._operands cimport SCRATCH_ALIGNMENT
from baracuda_kernels._core._view cimport integer

from baracuda_kernels._core._errors import InvalidProblemError
from baracuda_kernels.ops.ring_attention import _agreement


_SENT_IN_PLACE = (
    "to be sent in place; copy it, or (forward only) stage it in kv_scratch_a")
_MAX_POSITION = 2 ** 62


cdef class RingAttentionBase(RingPlan):
    """Base of the Ring Attention plans."""

    @property
    def kv_scratch_elements(self):
        """Elements of each K/V scratch buffer, 2 * B * Hkv * K * D."""
        return 2 * kv_elements(self.descriptor)

    @property
    def scratch_alignment(self):
        """The addresses of the scratch buffers must be multiples of this many bytes."""
        return SCRATCH_ALIGNMENT

    def validate(self, comm, args=None):
        """Check that all ranks have the same problem (collective; call it before the first run).

        Compares the library version, the direction, every field of the descriptor and the
        schedule. With ``args`` it also compares whether K and V are staged, and the order of their
        dimensions. Ranks that differ may wait for each other, or misread each other's messages. (A
        difference in staging alone matters only if hops go by peer.)

        Parameters
        ----------
        comm : Communicator, LocalCommunicator, or an object with the Transport protocol
        args : object, optional
            The arguments of the run, of the plan's own type.

        Raises
        ------
        InvalidProblemError
            On every rank: the message names the rank that differs from rank 0, the field, and both
            values.
        CommunicatorError, NcclError, NcclTimeoutError
            The ring failed, or a rank did not make the call in time.
        """
        cdef RingMember member = as_member(comm, self.device)
        try:
            self.refuse_member(member)
            if args is not None:
                self.check(args, member.world_size)
            message = _agreement.encode(self.descriptor, self.sku.direction, args, member.rank)
        except Exception as error:
            member.pass_on(error, False)
            raise
        _agreement.require(member.world_size, member.all_gather(message))

    cdef int bind_chunks(self, AttentionOperands checks, TensorRef k, TensorRef v,
                         TensorRef scratch_a, TensorRef scratch_b, int64_t world_size,
                         bint own_scratch_b, baracuda_attention_step_params* step,
                         baracuda_ring_payload* payload) except -1:
        cdef RingAttentionDescriptor d = self.descriptor
        cdef TensorRef view
        checks.bind_keys(d, k, v, step)
        payload.own[0] = <void*>step.k
        payload.own[1] = <void*>step.v
        payload.piece_bytes[0] = payload.piece_bytes[1] = kv_elements(d) * d.itemsize
        payload.buffers[0] = payload.buffers[1] = NULL
        if world_size > 1:
            shape = (d.batch_size, d.num_kv_heads, d.key_len, d.head_dim)
            require_dense("k", k, shape, step.k_strides, _SENT_IN_PLACE)
            require_dense("v", v, shape, step.v_strides, _SENT_IN_PLACE)
            view = checks.scratch("kv_scratch_a", scratch_a, 2 * kv_elements(d))
            payload.buffers[1] = view.data
        if world_size > 2 and own_scratch_b:
            view = checks.scratch("kv_scratch_b", scratch_b, 2 * kv_elements(d))
            payload.buffers[0] = view.data
        return 0

    cdef dict orders(self, object args):
        return _agreement.orders(self.descriptor, args)

    cdef int place(self, object rank, object origin, object world_size,
                   baracuda_attention_step_params* step) except -1:
        cdef RingAttentionDescriptor d = self.descriptor
        cdef int32_t ranks = integer("world_size", world_size, 1, 2 ** 31)
        if int(ranks) * max(d.query_len, d.key_len) > _MAX_POSITION:
            raise InvalidProblemError(
                f"world_size: got {ranks}, must keep all positions below 2**62")
        step.q_map = attention_api.baracuda_layout_map(
            d.c_layout, integer("rank", rank, 0, ranks), ranks, d.query_len)
        step.k_map = attention_api.baracuda_layout_map(
            d.c_layout, integer("origin", origin, 0, ranks), ranks, d.key_len)
        return 0


cdef int64_t kv_elements(RingAttentionDescriptor d) noexcept:
    return d.batch_size * d.num_kv_heads * d.key_len * d.head_dim


cdef int require_dense(str name, TensorRef view, tuple shape,
                       attention_api.baracuda_strides strides, str why) except -1:
    cdef int64_t expected = 1
    element_strides = (strides.batch, strides.head, strides.seq, 1)
    if 0 in shape:
        return 0
    for i in sorted([i for i in range(4) if shape[i] > 1], key=lambda i: element_strides[i]):
        if element_strides[i] != expected:
            raise InvalidProblemError(
                f"{name}: got strides {view.strides} for shape {view.shape}, must be dense (in any "
                f"dimension order) {why}")
        expected *= shape[i]
    return 0
