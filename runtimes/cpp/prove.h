// The whole proof on a device without Python: a bundle's golden trajectories followed twice, and what came out, kept.
#pragma once

#include "loop.h"
#include "program.h"

namespace prove {

struct Request {
  std::string plan, golden, decoder, header, output;
  std::vector<std::string> programs;
  uint64_t seed = 0;
};

constexpr double kSame = 200;  // SAME_DB of edge_sd/evaluation/metrics.py, whose snr_db this is

inline double snr_db(const float* reference, const float* other, size_t count) {
  double signal = 0, noise = 0;
  for (size_t i = 0; i < count; ++i) {
    if (!std::isfinite(reference[i]) || !std::isfinite(other[i])) return -kSame;
    const double left = reference[i], difference = left - double(other[i]);
    signal += left * left;
    noise += difference * difference;
  }
  if (noise == 0) return kSame;
  return std::max(-kSame, std::min(kSame, 10 * std::log10(std::max(signal, 1e-300) / noise)));
}

// Largest resident set in bytes. getrusage's maximum would count the parent too, whose pages a child holds until it executes.
inline uint64_t peak_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::strtoull(line.c_str() + 6, nullptr, 10) * 1024;
  }
  return 0;
}

inline Shape batched(const Shape& shape) {
  Shape out = {1};
  out.insert(out.end(), shape.begin(), shape.end());
  return out;
}

inline size_t count_of(const Shape& shape) {
  return TensorSpec{Dtype::float32, shape}.bytes() / sizeof(float);
}

class Prover {
 public:
  explicit Prover(const Request& request) : request_(request) {
    plan_ = load_plan(request.plan, request.programs.size());
    golden_ = load_golden(request.golden, plan_.rows);
    require(request.decoder.empty() || golden_.image, request.golden + " holds no images for a decoder");
    const auto began = std::chrono::steady_clock::now();
    Loader loader;
    for (const std::string& name : request.programs) programs_.push_back(loader.load(name));
    if (!request.decoder.empty()) decoder_.emplace(loader.load(request.decoder));
    load_ms_ = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count();
    const TensorSpec sample{Dtype::float32, batched(golden_.sample)}, features{Dtype::float32, {1, golden_.feature_width}};
    for (const Program& program : programs_) expect(program, {sample, features}, sample);
    if (decoder_) expect(*decoder_, {sample}, {Dtype::float32, batched(*golden_.image)});
    forced_.assign(plan_.rows, kSame), free_ = forced_;
  }

  // Returns the JSON object that goes to standard output.
  std::string run() {
    for (size_t index = 0; index < golden_.trajectories.size(); ++index) follow(index);
    out_.write(request_.output, "edge_sd", request_.header);
    std::string steps;
    for (size_t row = 0; row < plan_.rows; ++row) {
      steps += (row ? ", " : "") + ("{\"row\": " + std::to_string(row)) + ", \"teacher_forced_db\": " + number(forced_[row]) +
               ", \"free_running_db\": " + number(free_[row]) + "}";
    }
    return "{\"schema_version\": 1, \"kind\": \"proof\", \"trajectories\": " + std::to_string(golden_.trajectories.size()) +
           ", \"steps\": [" + steps + "], \"final_snr_db\": " + number(last_) +
           ", \"image_snr_db\": " + (decoder_ ? number(image_) : "null") + ", \"load_ms\": " + number(load_ms_) +
           ", \"calls_ms\": " + numbers(calls_ms_) + ", \"decoder_ms\": " + numbers(decoder_ms_) +
           ", \"peak_memory_bytes\": " + std::to_string(peak_memory()) + "}";
  }

 private:
  static void expect(const Program& program, const std::vector<TensorSpec>& inputs, const TensorSpec& output) {
    std::string wanted, found;
    for (const TensorSpec& spec : inputs) wanted += shown(spec) + ", ";
    for (const TensorSpec& spec : program.inputs()) found += shown(spec) + ", ";
    require(program.inputs() == inputs && program.output() == output, program.name() + " takes " + found + "returns " +
                shown(program.output()) + "; the goldens want " + wanted + shown(output));
  }

  void follow(size_t index) {
    const Trajectory& golden = golden_.trajectories[index];
    const size_t size = count_of(golden_.sample);
    Loop loop(plan_, request_.seed, index, size);
    std::vector<float> forced, before;
    for (size_t row = 0; row < plan_.rows; ++row) {
      const float* features = golden.features.data() + row * golden_.feature_width;
      const float* sample = golden.samples.data() + row * size;
      const std::vector<float> told = predict(row, sample, features);
      forced.insert(forced.end(), told.begin(), told.end());
      before.insert(before.end(), loop.x().begin(), loop.x().end());
      lower(forced_[row], snr_db(golden.predictions.data() + row * size, told.data(), size));
      lower(free_[row], snr_db(sample, loop.x().data(), size));
      loop.advance(predict(row, loop.x().data(), features));
      const size_t done = index * plan_.rows + row + 1, total = golden_.trajectories.size() * plan_.rows;
      std::fprintf(stderr, "step %zu of %zu\n", done, total);
    }
    lower(last_, snr_db(golden.last.data(), loop.x().data(), size));
    const std::string prefix = std::to_string(index) + ".";
    Shape steps = {plan_.rows};
    steps.insert(steps.end(), golden_.sample.begin(), golden_.sample.end());
    out_.add(prefix + "forced", steps, forced);
    out_.add(prefix + "free", steps, before);
    out_.add(prefix + "last", golden_.sample, loop.x());
    if (decoder_) decode(index, loop.x());
  }

  std::vector<float> predict(size_t row, const float* sample, const float* features) {
    Program& program = programs_[plan_.program[row]];
    std::vector<Tensor> inputs = {tensor_of(batched(golden_.sample), sample), tensor_of({1, golden_.feature_width}, features)};
    return finite(program, inputs, calls_ms_, "at step " + std::to_string(row));
  }

  // The reference's last sample, which is compared, and the runner's own, which is a picture.
  void decode(size_t index, const std::vector<float>& last) {
    const Trajectory& golden = golden_.trajectories[index];
    const std::string prefix = std::to_string(index) + ".", where = "of trajectory " + std::to_string(index);
    std::vector<Tensor> theirs = {tensor_of(batched(golden_.sample), golden.last.data())};
    const std::vector<float> image = finite(*decoder_, theirs, decoder_ms_, where);
    lower(image_, snr_db(golden.image.data(), image.data(), image.size()));
    out_.add(prefix + "image", *golden_.image, image);
    std::vector<Tensor> ours = {tensor_of(batched(golden_.sample), last.data())};
    out_.add(prefix + "drawn", *golden_.image, finite(*decoder_, ours, decoder_ms_, where));
  }

  static std::vector<float> finite(Program& program, std::vector<Tensor>& inputs, std::vector<double>& times, const std::string& where) {
    double milliseconds = 0;
    const std::vector<float> out = program(inputs, &milliseconds);
    times.push_back(milliseconds);
    for (const float value : out) require(std::isfinite(value), "the output of " + program.name() + " " + where + " is not finite");
    return out;
  }

  static void lower(double& worst, double value) { worst = std::min(worst, value); }

  const Request& request_;
  Plan plan_;
  Golden golden_;
  std::vector<Program> programs_;
  std::optional<Program> decoder_;
  SafetensorsWriter out_;
  std::vector<double> forced_, free_, calls_ms_, decoder_ms_;
  double last_ = kSame, image_ = kSame, load_ms_ = 0;
};

}  // namespace prove
