# cython: language_level=3
"""The two DLPack structs (legacy and versioned capsules), as the specification lays them out."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    typedef struct { int32_t device_type; int32_t device_id; } BaracudaDLDevice;
    typedef struct { uint8_t code; uint8_t bits; uint16_t lanes; } BaracudaDLDataType;
    typedef struct {
      void* data;
      BaracudaDLDevice device;
      int32_t ndim;
      BaracudaDLDataType dtype;
      int64_t* shape;
      int64_t* strides;
      uint64_t byte_offset;
    } BaracudaDLTensor;
    typedef struct { BaracudaDLTensor dl_tensor; void* manager; void* deleter; } BaracudaDLManaged;
    typedef struct {
      struct { uint32_t major; uint32_t minor; } version;
      void* manager;
      void* deleter;
      uint64_t flags;
      BaracudaDLTensor dl_tensor;
    } BaracudaDLVersioned;
    """
    ctypedef struct BaracudaDLDevice:
        int32_t device_type
        int32_t device_id
    ctypedef struct BaracudaDLDataType:
        uint8_t code
        uint8_t bits
        uint16_t lanes
    ctypedef struct BaracudaDLTensor:
        void* data
        BaracudaDLDevice device
        int32_t ndim
        BaracudaDLDataType dtype
        int64_t* shape
        int64_t* strides
        uint64_t byte_offset
    ctypedef struct BaracudaDLManaged:
        BaracudaDLTensor dl_tensor
    ctypedef struct BaracudaDLVersion:
        uint32_t major
        uint32_t minor
    ctypedef struct BaracudaDLVersioned:
        BaracudaDLVersion version
        uint64_t flags
        BaracudaDLTensor dl_tensor
