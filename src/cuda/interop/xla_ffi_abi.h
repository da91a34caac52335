// The part of XLA's FFI that the handlers use, declared from its documented C ABI (version 0.x,
// xla/ffi/api/c_api.h), so that building needs no XLA. Every struct begins with its size, as its
// maker knows it; XLA asks a handler for the version it was written to before it registers it.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace baracuda {
namespace xla {

constexpr int kMajorVersion = 0;
constexpr int kMinorVersion = 3;  // nothing here has changed since 0.1

enum ExtensionType : int32_t { kMetadata = 1 };
enum ValueType : int32_t { kBuffer = 1 };      // of operands and results
enum AttributeType : int32_t { kScalar = 3 };  // of attributes
enum HandlerTraits : uint32_t { kCommandBufferCompatible = 1 };

enum DataType : int32_t {
  kS64 = 5,
  kU32 = 8,
  kF16 = 10,
  kF32 = 11,
  kF64 = 12,
  kBF16 = 16,
};

enum ErrorCode : int32_t {
  kInvalidArgument = 3,
  kResourceExhausted = 8,
  kUnimplemented = 12,
  kInternal = 13,
};

struct Extension {
  size_t struct_size;
  int32_t type;
  Extension* next;
};

struct ApiVersion {
  size_t struct_size;
  Extension* extensions;
  int32_t major_version;
  int32_t minor_version;
};

struct Metadata {
  size_t struct_size;
  ApiVersion api_version;
  uint32_t traits;
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

struct ErrorCreateArgs {
  size_t struct_size;
  Extension* extensions;
  const char* message;
  int32_t code;
};

struct StreamGetArgs {
  size_t struct_size;
  Extension* extensions;
  void* context;
  void* stream;  // out
};

// Errors are owned by whoever gets them: a handler's by XLA, a call's by the handler, which hands
// it on.
struct Api {
  size_t struct_size;
  Extension* extensions;
  ApiVersion api_version;
  const void* internal;
  void* (*error_create)(ErrorCreateArgs*);
  void* unused[3];  // error_get_message, error_destroy, handler_register
  void* (*stream_get)(StreamGetArgs*);
};

struct Buffer {
  size_t struct_size;
  Extension* extensions;
  int32_t dtype;
  void* data;
  int64_t rank;
  int64_t* dims;
};

struct Scalar {
  int32_t dtype;
  void* value;
};

struct Text {
  const char* data;
  size_t size;
};

struct Values {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int32_t* types;
  void** values;
};

struct Attributes {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int32_t* types;
  Text** names;  // sorted
  void** values;
};

struct CallFrame {
  size_t struct_size;
  Extension* extensions;
  const Api* api;
  void* context;
  int32_t stage;
  Values operands;
  Values results;
  Attributes attributes;
};

}  // namespace xla
}  // namespace baracuda
