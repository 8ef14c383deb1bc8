// Times on a device without Python: devices/_measuring.py, the same procedure.
#pragma once

#include <glob.h>

#include "ceiling.h"
#include "job.h"

namespace measure {

struct Limits {
  uint64_t least_warmup = 10, most_warmup = 200, iterations = 100, images = 2, ceiling = 1;
  double minutes = 0, most_seconds = 120;
};

constexpr double kAgree = 0.05, kWindowSeconds = 5;

inline double percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const double at = share * double(values.size() - 1);
  const size_t low = size_t(at), high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - double(low)) * (values[high] - values[low]);
}

// Whether the medians of the last two windows agree.
inline bool stable(const std::vector<double>& times, size_t window) {
  if (times.size() < 2 * window) return false;
  const double last = percentile({times.end() - ptrdiff_t(window), times.end()}, 0.5);
  const double before = percentile({times.end() - ptrdiff_t(2 * window), times.end() - ptrdiff_t(window)}, 0.5);
  return std::abs(last - before) <= kAgree * last;
}

inline std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

inline std::vector<std::string> matching(const char* pattern) {
  glob_t found = {};
  std::vector<std::string> paths;
  if (glob(pattern, 0, nullptr, &found) == 0) paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  globfree(&found);
  return paths;
}

// {"zone's type": degrees Celsius}; some drivers give degrees, most thousandths, and zones that are off give nonsense.
inline std::string temperatures() {
  std::map<std::string, double> zones;
  for (const std::string& zone : matching("/sys/class/thermal/thermal_zone*")) {
    const std::string text = first_line(zone + "/temp"), type = first_line(zone + "/type");
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end), celsius = std::abs(value) >= 1000 ? value / 1000 : value;
    if (end != text.c_str() && celsius > -40 && celsius < 150) zones[type.empty() ? "zone" : type] = celsius;
  }
  std::string out;
  for (const auto& [name, celsius] : zones) out += (out.empty() ? "" : ", ") + quoted(name) + ": " + number(celsius);
  return "{" + out + "}";
}

inline std::string frequencies() {
  std::vector<double> mhz;
  for (const std::string& path : matching("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")) {
    mhz.push_back(std::strtod(first_line(path).c_str(), nullptr) / 1000);
  }
  return numbers(mhz);
}

class Measurer {
 public:
  Measurer(const Request& request, const Limits& limits, uint32_t threads) : job_(request), limits_(limits), threads_(threads) {}

  // Returns the JSON object that goes to standard output.
  std::string run() {
    const double first = step();
    std::vector<double> warmup, samples, decoder, images;
    bool settled = false;
    double began = now();
    while (!(settled = stable(warmup, limits_.least_warmup)) && warmup.size() < limits_.most_warmup && now() - began <= limits_.most_seconds) {
      warmup.push_back(step());
      say(0, limits_.iterations);
    }
    began = now();
    while (samples.size() < limits_.iterations && (samples.size() < 3 || now() - began <= limits_.most_seconds)) {
      samples.push_back(step());
      say(samples.size(), limits_.iterations);
    }
    std::fprintf(stderr, "step %zu of %zu\n", samples.size(), size_t(limits_.iterations));
    const Trajectory& golden = job_.golden.trajectories[0];
    for (size_t i = 0; job_.decoder && i <= std::max<size_t>(limits_.images, 1); ++i) {
      double milliseconds = 0;
      job_.decode(0, golden.last.data(), &milliseconds);
      if (i) decoder.push_back(milliseconds);
    }
    for (size_t i = 0; i < limits_.images; ++i) {
      images.push_back(image());
      say(limits_.iterations, limits_.iterations);
    }
    const std::string sustained = sustain();
    const uint64_t peak = resident("VmHWM");
    const std::string ceiling =
        limits_.ceiling ? ", \"ceiling_gflops\": " + number(ceiling_gflops(threads_)) +
                              ", \"ceiling\": \"float32 multiply-adds on registers, " + std::to_string(threads_) + " threads\""
                        : "";
    return "{\"schema_version\": 1, \"kind\": \"measurement\", \"runtime_version\": \"ExecuTorch " EXECUTORCH_VERSION ", C++ runner\"" +
           (", \"load_ms\": " + number(job_.load_ms)) + ", \"first_ms\": " + number(first) + ", \"warmup_ms\": " + numbers(warmup) +
           ", \"stable\": " + (settled ? "true" : "false") + ", \"samples_ms\": " + numbers(samples) + ", \"decoder_ms\": " +
           numbers(decoder) + ", \"image_ms\": " + numbers(images) + ", \"sustained\": [" + sustained + "], \"base_memory_bytes\": " +
           std::to_string(job_.base_memory) + ", \"peak_memory_bytes\": " + std::to_string(peak) + ceiling + "}";
  }

 private:
  static double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

  // At most twice a second: a line for each call would wake up the link, beside what is being timed.
  void say(size_t done, size_t total) {
    if (now() - said_ < 0.5) return;
    said_ = now();
    std::fprintf(stderr, "step %zu of %zu\n", done, total);
  }

  // One call on the inputs of the golden's next row, in milliseconds.
  double step() {
    const Trajectory& golden = job_.golden.trajectories[0];
    const size_t row = number_++ % job_.plan.rows;
    double milliseconds = 0;
    job_.predict(row, golden.samples.data() + row * count_of(job_.golden.sample), golden.features.data() + row * job_.golden.feature_width,
                 &milliseconds);
    return milliseconds;
  }

  // One image from noise, in milliseconds.
  double image() {
    const double began = now();
    Loop loop(job_.plan, job_.seed, 0, count_of(job_.golden.sample));
    for (size_t row = 0; row < job_.plan.rows; ++row) {
      loop.advance(job_.predict(row, loop.x().data(), job_.golden.trajectories[0].features.data() + row * job_.golden.feature_width));
    }
    if (job_.decoder) job_.decode(0, loop.x().data());
    return (now() - began) * 1e3;
  }

  std::string sustain() {
    std::string out;
    const double began = now(), total = 60 * limits_.minutes;
    for (double start = 0; (start = now() - began) < total;) {
      std::vector<double> times;
      while (times.empty() || now() - began < start + kWindowSeconds) times.push_back(step());
      const double seconds = now() - began;
      out += (out.empty() ? "" : ", ") + ("{\"seconds\": " + number(seconds)) + ", \"calls\": " + std::to_string(times.size()) +
             ", \"p50_ms\": " + number(percentile(times, 0.5)) + ", \"p90_ms\": " + number(percentile(times, 0.9)) +
             ", \"celsius\": " + temperatures() + ", \"mhz\": " + frequencies() + "}";
      say(size_t(seconds), size_t(total));
    }
    return out;
  }

  Job job_;
  Limits limits_;
  uint32_t threads_;
  size_t number_ = 0;
  double said_ = 0;
};

}  // namespace measure
