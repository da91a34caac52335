# cython: language_level=3
from baracuda_kernels._core._view cimport View

# Makes `self`, a new view, a view of `source`. The parameters are a TensorRef's. `name` is the
# argument's, for messages.
cdef object fill(View self, str name, object source, object shape, object strides,
                 object element, object device)
