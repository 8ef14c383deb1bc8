// Serving programs to a parent process, by the frames that runtimes/_frames.py documents.
#pragma once

#include "program.h"

namespace frames {

enum Status : uint32_t { kTensor = 0, kFault = 1, kReady = 2 };

constexpr uint32_t kMostTensors = 16, kMostDimensions = 8;
constexpr uint64_t kMostBytes = uint64_t{1} << 31;

// Reads `size` bytes; false where the stream ends before the first of them.
inline bool read_bytes(int file, void* to, size_t size) {
  size_t done = 0;
  while (done < size) {
    const ssize_t got = ::read(file, static_cast<char*>(to) + done, size - done);
    if (got < 0 && errno == EINTR) continue;
    require(got >= 0, std::string("cannot read a request: ") + std::strerror(errno));
    if (got == 0 && done == 0) return false;
    require(got > 0, "a request ends in its middle");
    done += size_t(got);
  }
  return true;
}

inline uint32_t read_number(int file) {
  uint32_t value = 0;
  require(read_bytes(file, &value, sizeof value), "a request ends in its middle");
  return value;
}

inline void write_bytes(int file, const std::string& bytes) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t wrote = ::write(file, bytes.data() + done, bytes.size() - done);
    require(wrote > 0 || errno == EINTR, std::string("cannot answer: ") + std::strerror(errno));
    if (wrote > 0) done += size_t(wrote);
  }
}

inline void append(std::string& frame, uint32_t value) { frame.append(reinterpret_cast<const char*>(&value), sizeof value); }

inline void write_text(int file, Status status, const std::string& text) {
  std::string frame;
  append(frame, status);
  append(frame, uint32_t(text.size()));
  write_bytes(file, frame + text);
}

inline Tensor read_tensor(int file) {
  const uint32_t code = read_number(file), rank = read_number(file);
  require(code == 3 || code == 5 || code == 6, "a request names the unknown dtype " + std::to_string(code));
  require(rank <= kMostDimensions, "a request has a tensor of " + std::to_string(rank) + " dimensions");
  Tensor tensor{{Dtype(code), Shape(rank)}, ""};
  for (uint64_t& size : tensor.spec.shape) size = read_number(file);
  const size_t bytes = tensor.spec.bytes();
  require(bytes <= kMostBytes, "a request has a tensor " + shown(tensor.spec.shape) + ", which is too large");
  tensor.data.resize(bytes);
  require(bytes == 0 || read_bytes(file, tensor.data.data(), bytes), "a request ends in its middle");
  return tensor;
}

inline std::string fault_text(const std::string& message) {
  return "{\"message\": " + quoted(message) + ", \"hint\": \"export the bundle again\", \"code\": 1}";
}

inline std::string specs_text(const std::vector<TensorSpec>& specs) {
  std::string out;
  for (const TensorSpec& spec : specs) {
    std::string sizes;
    for (const uint64_t size : spec.shape) sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
    out += (out.empty() ? "[" : ", [") + std::to_string(uint32_t(spec.dtype)) + ", [" + sizes + "]]";
  }
  return "[" + out + "]";
}

// Loads programs, says so, and answers until the requests end.
inline void serve(const std::vector<std::string>& names, int in, int out) {
  Loader loader;
  std::vector<Program> programs;
  std::string signatures;
  try {
    for (const std::string& name : names) {
      programs.push_back(loader.load(name));
      signatures += (signatures.empty() ? "" : ", ") + ("{\"inputs\": " + specs_text(programs.back().inputs())) +
                    ", \"outputs\": " + specs_text({programs.back().output()}) + "}";
    }
  } catch (const Failure& failure) {
    write_text(out, kFault, fault_text(failure.what()));
    throw;
  }
  write_text(out, kReady, "{\"programs\": [" + signatures + "]}");
  uint32_t number = 0;
  while (read_bytes(in, &number, sizeof number)) {
    const uint32_t count = read_number(in);
    require(count <= kMostTensors, "a request has " + std::to_string(count) + " tensors");
    std::vector<Tensor> inputs;
    for (uint32_t i = 0; i < count; ++i) inputs.push_back(read_tensor(in));
    try {
      require(number < programs.size(), "there is no program number " + std::to_string(number));
      Program& program = programs[number];
      const Tensor answer = tensor_of(program.output().shape, program(inputs).data());
      std::string frame;
      append(frame, kTensor);
      append(frame, uint32_t(answer.spec.dtype));
      append(frame, uint32_t(answer.spec.shape.size()));
      for (const uint64_t size : answer.spec.shape) append(frame, uint32_t(size));
      write_bytes(out, frame + answer.data);
    } catch (const Failure& failure) {
      write_text(out, kFault, fault_text(failure.what()));
    }
  }
}

}  // namespace frames
