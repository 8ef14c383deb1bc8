// The machine's own ceiling: how many float32 operations a second its arithmetic units can do.
#pragma once

#include <cstdint>

// Most float32 operations a second of so many threads, in GFLOP/s; a multiply-add is two. Takes some tenths of a second.
double ceiling_gflops(uint32_t threads);
