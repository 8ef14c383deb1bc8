// What a job is given: a bundle's plan, goldens and programs, loaded and checked against one another.
#pragma once

#include <cmath>
#include <optional>

#include "loop.h"
#include "program.h"

struct Request {
  std::string plan, golden, decoder, temporal;
  std::vector<std::string> programs;
  uint64_t seed = 0;
};

inline Shape batched(const Shape& shape) {
  Shape out = {1};
  out.insert(out.end(), shape.begin(), shape.end());
  return out;
}

inline size_t count_of(const Shape& shape) {
  return TensorSpec{Dtype::float32, shape}.bytes() / sizeof(float);
}

// Bytes of this process: VmRSS, its resident set, or VmHWM, the largest so far. getrusage's maximum would count the parent too,
// whose pages a child holds until it executes something else.
inline uint64_t resident(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(field + ":", 0) == 0) return std::strtoull(line.c_str() + field.size() + 1, nullptr, 10) * 1024;
  }
  return 0;
}

class Job {
 public:
  explicit Job(const Request& request) : seed(request.seed) {
    plan = load_plan(request.plan, request.programs.size());
    golden = load_golden(request.golden, plan.rows);
    require(request.decoder.empty() || golden.image, request.golden + " holds no images for a decoder");
    base_memory = resident("VmRSS");
    const auto began = std::chrono::steady_clock::now();
    Loader loader;
    for (const std::string& name : request.programs) programs.push_back(loader.load(name));
    if (!request.decoder.empty()) decoder.emplace(loader.load(request.decoder));
    load_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count();
    if (!request.temporal.empty()) temporal.emplace(loader.load(request.temporal));
    const TensorSpec sample{Dtype::float32, batched(golden.sample)}, features{Dtype::float32, {1, golden.feature_width}};
    for (const Program& program : programs) expect(program, {sample, features}, sample);
    if (decoder) expect(*decoder, {sample}, {Dtype::float32, batched(*golden.image)});
  }

  // The denoiser's prediction at x; `milliseconds`, if given, is how long the program itself took.
  std::vector<float> predict(size_t row, const float* x, const float* features, double* milliseconds = nullptr) {
    Program& program = programs[plan.program[row]];
    std::vector<Tensor> inputs = {tensor_of(batched(golden.sample), x), tensor_of({1, golden.feature_width}, features)};
    return finite(program, inputs, milliseconds, "at step " + std::to_string(row));
  }

  std::vector<float> decode(size_t index, const float* sample, double* milliseconds = nullptr) {
    std::vector<Tensor> inputs = {tensor_of(batched(golden.sample), sample)};
    return finite(*decoder, inputs, milliseconds, "of trajectory " + std::to_string(index));
  }

  static std::vector<float> finite(Program& program, std::vector<Tensor>& inputs, double* milliseconds, const std::string& where) {
    std::vector<float> out = program(inputs, milliseconds);
    for (const float value : out) require(std::isfinite(value), "the output of " + program.name() + " " + where + " is not finite");
    return out;
  }

  Plan plan;
  Golden golden;
  std::vector<Program> programs;
  std::optional<Program> decoder, temporal;
  uint64_t seed, base_memory = 0;
  double load_ms = 0;

 private:
  static void expect(const Program& program, const std::vector<TensorSpec>& inputs, const TensorSpec& output) {
    std::string wanted, found;
    for (const TensorSpec& spec : inputs) wanted += shown(spec) + ", ";
    for (const TensorSpec& spec : program.inputs()) found += shown(spec) + ", ";
    require(program.inputs() == inputs && program.output() == output, program.name() + " takes " + found + "returns " +
                shown(program.output()) + "; the goldens want " + wanted + shown(output));
  }
};
