// As much JSON as a safetensors header and our own answers need: a strict reader of objects, strings, integers, and a quoter.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "failure.h"

// A cursor over a header's text. Whatever it does not expect is a Failure.
class JsonReader {
 public:
  JsonReader(const char* begin, const char* end, std::string source) : at_(begin), end_(end), source_(std::move(source)) {}

  // Calls `value(key)` for each entry of the object that comes next.
  template <typename Value>
  void object(Value value) {
    take('{');
    if (skip('}')) return;
    do {
      const std::string key = string();
      take(':');
      value(key);
    } while (skip(','));
    take('}');
  }

  std::vector<uint64_t> integers() {
    std::vector<uint64_t> found;
    take('[');
    if (skip(']')) return found;
    do found.push_back(integer());
    while (skip(','));
    take(']');
    return found;
  }

  uint64_t integer() {
    space();
    const char* first = at_;
    uint64_t value = 0;
    for (; at_ < end_ && *at_ >= '0' && *at_ <= '9'; ++at_) {
      check(!__builtin_mul_overflow(value, uint64_t{10}, &value) && !__builtin_add_overflow(value, uint64_t(*at_ - '0'), &value),
            "a number beyond 64 bits");
    }
    check(at_ > first, "no number where one belongs");
    check(at_ - first == 1 || *first != '0', "a number that begins with 0");
    return value;
  }

  std::string string() {
    std::string text;
    take('"');
    while (true) {
      check(at_ < end_, "a string without an end");
      const unsigned char c = *at_++;
      if (c == '"') return text;
      check(c >= 0x20, "a control character in a string");
      if (c != '\\') {
        text += char(c);
        continue;
      }
      check(at_ < end_, "a string without an end");
      const char escaped = *at_++;
      static const std::string from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
      if (escaped == 'u') {
        append_utf8(text, code_point());
      } else {
        check(from.find(escaped) != std::string::npos, "an unknown escape in a string");
        text += to[from.find(escaped)];
      }
    }
  }

  void finish() {
    space();
    check(at_ == end_, "something after its end");
  }

 private:
  void space() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
  }

  bool skip(char c) {
    space();
    if (at_ == end_ || *at_ != c) return false;
    ++at_;
    return true;
  }

  void take(char c) { check(skip(c), std::string("no '") + c + "' where one belongs"); }

  void check(bool holds, const std::string& what) { require(holds, source_ + " is not a whole safetensors file: its header has " + what); }

  uint32_t code_unit() {
    uint32_t value = 0;
    for (int digit = 0; digit < 4; ++digit) {
      check(at_ < end_, "a string without an end");
      const char c = *at_++;
      const bool decimal = c >= '0' && c <= '9', lower = c >= 'a' && c <= 'f', upper = c >= 'A' && c <= 'F';
      check(decimal || lower || upper, "an unknown escape in a string");
      value = value * 16 + uint32_t(decimal ? c - '0' : (lower ? c - 'a' : c - 'A') + 10);
    }
    return value;
  }

  uint32_t code_point() {
    const uint32_t first = code_unit();
    if (first < 0xD800 || first > 0xDFFF) return first;
    check(first < 0xDC00 && end_ - at_ > 1 && at_[0] == '\\' && at_[1] == 'u', "half a character");
    at_ += 2;
    const uint32_t second = code_unit();
    check(second >= 0xDC00 && second <= 0xDFFF, "half a character");
    return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
  }

  static void append_utf8(std::string& text, uint32_t c) {
    if (c < 0x80) {
      text += char(c);
    } else if (c < 0x800) {
      text += {char(0xC0 | c >> 6), char(0x80 | (c & 0x3F))};
    } else if (c < 0x10000) {
      text += {char(0xE0 | c >> 12), char(0x80 | (c >> 6 & 0x3F)), char(0x80 | (c & 0x3F))};
    } else {
      text += {char(0xF0 | c >> 18), char(0x80 | (c >> 12 & 0x3F)), char(0x80 | (c >> 6 & 0x3F)), char(0x80 | (c & 0x3F))};
    }
  }

  const char *at_, *end_;
  std::string source_;
};

inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    char escape[8];
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      std::snprintf(escape, sizeof escape, "\\u%04x", c);
      out += escape;
    } else {
      out += c;
    }
  }
  return out + '"';
}

// 17 digits say a double exactly.
inline std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

inline std::string numbers(const std::vector<double>& values) {
  std::string out;
  for (const double value : values) out += (out.empty() ? "" : ", ") + number(value);
  return "[" + out + "]";
}
