# cython: language_level=3
from baracuda_kernels._core._view cimport View

# Makes a new view one of source, with a TensorRef's parameters. name is the argument's, for
# messages.
cdef object fill(View self, str name, object source, object shape, object strides,
                 object element, object device)
