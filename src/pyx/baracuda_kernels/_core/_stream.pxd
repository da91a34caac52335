# cython: language_level=3

cdef class Stream:
    cdef void* handle            # cudaStream_t
    cdef readonly int device     # CUDA ordinal, -1 for the host
    cdef object owner

cdef Stream as_stream(object stream)
