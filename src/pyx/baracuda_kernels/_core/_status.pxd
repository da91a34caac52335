# cython: language_level=3
from libc.stdint cimport int32_t

# Raises the typed error of a failed C entry; 0 for BARACUDA_OK.
cdef int check(int32_t status) except -1
# The exception of the thread's last failure, not raised.
cdef object last_exception(int32_t status)
# For a call from which no exception can be raised: its KeyboardInterrupt is raised later.
cdef int raise_later(int32_t status) except -1
# What other ranks are told of an error.
cdef str text_of(object error)
# Whether a signal's handler raised it, and not the code that the handler interrupted.
cdef bint is_of_a_signal(object error) except -1
