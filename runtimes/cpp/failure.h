// What goes wrong, in words: main() prints it and returns 1.
#pragma once

#include <stdexcept>
#include <string>

struct Failure : std::runtime_error {
  explicit Failure(const std::string& message) : std::runtime_error(message) {}
};

inline void require(bool holds, const std::string& message) {
  if (!holds) throw Failure(message);
}
