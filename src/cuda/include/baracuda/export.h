// Visibility of the C ABI: everything else in the library is hidden.
#pragma once

#if defined(__GNUC__)
#define BARACUDA_API __attribute__((visibility("default")))
#else
#define BARACUDA_API
#endif
