# cython: language_level=3
from libc.stdint cimport int32_t

# The checks of the arguments of Communicator's constructors. Each raises an InvalidProblemError
# that names the argument. None stands for the argument's default.

# CUDA ordinal, the current device by default; -1 for "host".
cdef int32_t device_ordinal(object device) except? -2
# The ordinals of several devices, distinct.
cdef list device_ordinals(object devices)
# SMs of an exchange, a power of two.
cdef int32_t ctas_of(object max_ctas) except? -2
# An enum baracuda_peer_wish.
cdef int32_t wish_of(object exchange) except -1
# Seconds; 0 for no limit, which is what None means.
cdef double seconds_of(object timeout) except? -2
# Seconds, where a limit must be given. `other` names other values that the caller takes, for the
# message.
cdef double positive_seconds(object timeout, str other=*) except? -2
# An enum baracuda_peer_wait, by the environment.
cdef int32_t peer_wait() except -1
# An int, and no bool, in [low, end).
cdef bint is_integer(object value, object low, object end)
