// The board of a ring's ranks, for tests of ranks in several processes.
#include <cstring>

#include "ring/exchange/nccl/board.h"

using baracuda::NcclBoard;

extern "C" {

void* board_join(const char* name, int rank, int world_size) {
  return NcclBoard::join(name, rank, world_size).release();
}

void board_leave(void* board) { delete static_cast<NcclBoard*>(board); }

void board_close_entry(void* board) { static_cast<NcclBoard*>(board)->close_entry(); }

void board_refuse(void* board, const char* reason, int begun) {
  baracuda_error error = {BARACUDA_UNSUPPORTED, 0, -1, -1, "", ""};
  std::strncpy(error.message, reason, sizeof(error.message) - 1);
  static_cast<NcclBoard*>(board)->refuse(error, begun != 0);
}

// The message of another rank's refusal of the run that begins; NULL if there is none.
const char* board_begin(void* board) {
  static thread_local baracuda_error found;
  return static_cast<NcclBoard*>(board)->begin(NcclBoard::kRun, &found) ? nullptr : found.message;
}

const char* board_compare(void* board) {
  static thread_local baracuda_error found;
  return static_cast<NcclBoard*>(board)->begin(NcclBoard::kCompared, &found) ? nullptr
                                                                             : found.message;
}

const char* board_look(void* board) {
  static thread_local baracuda_error found;
  return static_cast<NcclBoard*>(board)->poll(&found) ? found.message : nullptr;
}

void board_fail(void* board, const char* reason) {
  baracuda_error error = {BARACUDA_UNSUPPORTED, 0, -1, -1, "", ""};
  std::strncpy(error.message, reason, sizeof(error.message) - 1);
  static_cast<NcclBoard*>(board)->fail(error);
}
}
