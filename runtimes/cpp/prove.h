// The whole proof on a device without Python: a bundle's golden trajectories followed twice, and what came out, kept.
#pragma once

#include "job.h"

namespace prove {

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

class Prover {
 public:
  // `labels` are the classes of the trajectories, for the program `temporal`; none where the model knows none.
  Prover(const Request& request, std::vector<uint64_t> labels) : job_(request), labels_(std::move(labels)) {
    forced_.assign(job_.plan.rows, kSame), free_ = forced_;
    require(labels_.empty() || labels_.size() == job_.golden.trajectories.size(), "there is not one label for each trajectory");
  }

  // Writes the evidence; returns the JSON object that goes to standard output.
  std::string run(const std::string& header, const std::string& output) {
    for (size_t index = 0; index < job_.golden.trajectories.size(); ++index) follow(index);
    out_.write(output, "edge_sd", header);
    std::string steps;
    for (size_t row = 0; row < job_.plan.rows; ++row) {
      steps += (row ? ", " : "") + ("{\"row\": " + std::to_string(row)) + ", \"teacher_forced_db\": " + number(forced_[row]) +
               ", \"free_running_db\": " + number(free_[row]) + "}";
    }
    return "{\"schema_version\": 1, \"kind\": \"proof\", \"trajectories\": " + std::to_string(job_.golden.trajectories.size()) +
           ", \"steps\": [" + steps + "], \"final_snr_db\": " + number(last_) +
           ", \"image_snr_db\": " + (job_.decoder ? number(image_) : "null") + ", \"load_ms\": " + number(job_.load_ms) +
           ", \"calls_ms\": " + numbers(calls_ms_) + ", \"decoder_ms\": " + numbers(decoder_ms_) +
           ", \"peak_memory_bytes\": " + std::to_string(resident("VmHWM")) + "}";
  }

 private:
  void follow(size_t index) {
    const Trajectory& golden = job_.golden.trajectories[index];
    const size_t size = count_of(job_.golden.sample);
    Loop loop(job_.plan, job_.seed, index, size);
    std::vector<float> forced, before;
    for (size_t row = 0; row < job_.plan.rows; ++row) {
      const float* features = golden.features.data() + row * job_.golden.feature_width;
      const float* sample = golden.samples.data() + row * size;
      const std::vector<float> told = predict(row, sample, features);
      forced.insert(forced.end(), told.begin(), told.end());
      before.insert(before.end(), loop.x().begin(), loop.x().end());
      lower(forced_[row], snr_db(golden.predictions.data() + row * size, told.data(), size));
      lower(free_[row], snr_db(sample, loop.x().data(), size));
      loop.advance(predict(row, loop.x().data(), features));
      const size_t done = index * job_.plan.rows + row + 1, total = job_.golden.trajectories.size() * job_.plan.rows;
      std::fprintf(stderr, "step %zu of %zu\n", done, total);
    }
    lower(last_, snr_db(golden.last.data(), loop.x().data(), size));
    const std::string prefix = std::to_string(index) + ".";
    Shape steps = {job_.plan.rows};
    steps.insert(steps.end(), job_.golden.sample.begin(), job_.golden.sample.end());
    out_.add(prefix + "forced", steps, forced);
    out_.add(prefix + "free", steps, before);
    out_.add(prefix + "last", job_.golden.sample, loop.x());
    if (job_.decoder) decode(index, loop.x());
    if (job_.temporal) out_.add(prefix + "features", {job_.plan.rows, job_.golden.feature_width}, rows(index));
  }

  std::vector<float> predict(size_t row, const float* sample, const float* features) {
    calls_ms_.push_back(0);
    return job_.predict(row, sample, features, &calls_ms_.back());
  }

  // The reference's last sample, which is compared, and the runner's own, which is a picture.
  void decode(size_t index, const std::vector<float>& last) {
    const Trajectory& golden = job_.golden.trajectories[index];
    const std::string prefix = std::to_string(index) + ".";
    decoder_ms_.insert(decoder_ms_.end(), 2, 0.0);
    const std::vector<float> image = job_.decode(index, golden.last.data(), &decoder_ms_[decoder_ms_.size() - 2]);
    lower(image_, snr_db(golden.image.data(), image.data(), image.size()));
    out_.add(prefix + "image", *job_.golden.image, image);
    out_.add(prefix + "drawn", *job_.golden.image, job_.decode(index, last.data(), &decoder_ms_.back()));
  }

  // The time features of every row, by the bundle's own program.
  std::vector<float> rows(size_t index) {
    std::vector<float> found;
    for (size_t row = 0; row < job_.plan.rows; ++row) {
      const float time = float(job_.plan.timestep[row]);
      std::vector<Tensor> inputs = {tensor_of({1}, &time)};
      if (!labels_.empty()) {
        const int32_t label = int32_t(labels_[index]);
        inputs.push_back({{Dtype::int32, {1}}, std::string(reinterpret_cast<const char*>(&label), sizeof label)});
      }
      const std::vector<float> made = Job::finite(*job_.temporal, inputs, nullptr, "at step " + std::to_string(row));
      require(made.size() == job_.golden.feature_width, job_.temporal->name() + " does not return one row of time features");
      found.insert(found.end(), made.begin(), made.end());
    }
    return found;
  }

  static void lower(double& worst, double value) { worst = std::min(worst, value); }

  Job job_;
  std::vector<uint64_t> labels_;
  SafetensorsWriter out_;
  std::vector<double> forced_, free_, calls_ms_, decoder_ms_;
  double last_ = kSame, image_ = kSame;
};

}  // namespace prove
