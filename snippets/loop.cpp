// Draw a bundle's golden image with ExecuTorch, without Python: loop NAME.edgesd [INDEX [OUT]].
//
// The loop is `sample`, the program is ExecuTorch's Module. Safetensors files and the noise are read and made by the headers of
// runtimes/cpp, which an application can take along: they need nothing but the standard library. OUT gets the image's float32 values,
// (C, H, W), little-endian. Compile with -ffp-contract=off (CMakeLists.txt): the noise is that of the golden trajectories to the bit.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <cmath>
#include <cstdio>
#include <deque>
#include <functional>

#include "noise.h"
#include "plan.h"

namespace et = executorch::extension;
using Values = std::vector<float>;

// A method of one or two float32 inputs, (1, …), and one output.
Values call(et::Module& module, const std::string& method, std::vector<std::pair<Values*, Shape>> inputs) {
  std::vector<et::TensorPtr> held;
  std::vector<executorch::runtime::EValue> values;
  for (auto& [data, shape] : inputs) {
    held.push_back(et::from_blob(data->data(), std::vector<executorch::aten::SizesType>(shape.begin(), shape.end())));
    values.emplace_back(held.back());
  }
  const auto result = module.execute(method, values);
  require(result.ok(), method + " fails: " + to_string(result.error()));
  const auto out = result->at(0).toTensor();
  return Values(out.const_data_ptr<float>(), out.const_data_ptr<float>() + out.numel());
}

Values sample(const Plan& plan, const std::function<Values(Values&, size_t row)>& program, const std::function<Values(int64_t row)>& noise) {
  Values x = noise(-1);
  const size_t count = x.size();
  for (float& value : x) value = float(plan.start) * value;
  Values base = x;
  std::deque<Values> memory;  // newest first
  for (size_t row = 0; row < plan.rows; ++row) {
    const Values e = program(x, row);
    const float p = float(plan.p[row]), q = float(plan.q[row]), u = float(plan.u[row]), a = float(plan.a[row]);
    const float a_next = float(plan.a_next[row]), c = float(plan.c[row]);
    memory.emplace_front(count);
    if (memory.size() > plan.history) memory.pop_back();
    const Values z = c != 0 ? noise(int64_t(row)) : Values();
    for (size_t i = 0; i < count; ++i) {
      memory[0][i] = p * x[i] + q * e[i];
      base[i] = u * x[i] + a * base[i];
      for (size_t j = 0; j < memory.size(); ++j) base[i] = base[i] + float(plan.b[row * plan.history + j]) * memory[j][i];
      x[i] = a_next * base[i];
      for (size_t j = 0; j < memory.size(); ++j) x[i] = x[i] + float(plan.b_next[row * plan.history + j]) * memory[j][i];
      if (c != 0) x[i] = x[i] + c * z[i];
    }
  }
  return x;
}

// The header lies, as a text inside of JSON, in the first bytes of the file.
uint64_t seed_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  uint64_t length = 0;
  file.read(reinterpret_cast<char*>(&length), sizeof length);
  std::string header(length, '\0');
  file.read(header.data(), std::streamsize(length));
  const std::string key = "\\\"seed\\\":";
  const size_t at = header.find(key);
  require(at != std::string::npos, path + " names no seed");
  return std::strtoull(header.c_str() + at + key.size(), nullptr, 10);
}

int main(int argc, char** argv) try {
  require(argc >= 2, "usage: loop NAME.edgesd [INDEX [OUT]]");
  const std::string folder = argv[1];
  const size_t index = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  et::Module module(folder + "/programs.pte");
  const auto methods = module.method_names();
  require(methods.ok(), folder + "/programs.pte cannot be loaded");
  size_t denoisers = 0;
  for (const std::string& name : *methods) denoisers += name.rfind("denoiser", 0) == 0;

  const Plan plan = load_plan(folder + "/plan.safetensors", denoisers);
  const Golden golden = load_golden(folder + "/golden.safetensors", plan.rows);
  require(index < golden.trajectories.size(), "there is no such trajectory");
  const Trajectory& wanted = golden.trajectories[index];
  const uint64_t seed = seed_of(folder + "/golden.safetensors");
  const size_t count = wanted.last.size(), width = golden.feature_width;
  Shape shape = golden.sample;
  shape.insert(shape.begin(), 1);

  // The rows of this trajectory's class; without classes they are the plan's own.
  const auto program = [&](Values& x, size_t row) {
    Values features(wanted.features.begin() + row * width, wanted.features.begin() + (row + 1) * width);
    const size_t which = plan.program[row];
    return call(module, which == 0 ? "denoiser" : "denoiser." + std::to_string(which), {{&x, shape}, {&features, {1, width}}});
  };
  Values image = sample(plan, program, [&](int64_t row) { return noise::gaussian(seed, index, row, count); });
  if (golden.image) image = call(module, "decoder", {{&image, shape}});

  const Values& reference = golden.image ? wanted.image : wanted.last;
  double signal = 0, error = 0, largest = 0;
  for (size_t i = 0; i < image.size(); ++i) {
    const double difference = double(image[i]) - reference[i];
    signal += double(reference[i]) * reference[i], error += difference * difference, largest = std::max(largest, std::abs(difference));
  }
  std::printf("image %zu: %.1f dB, largest difference %.1e\n", index, 10 * std::log10(signal / std::max(error, 1e-300)), largest);
  if (argc > 3) std::ofstream(argv[3], std::ios::binary).write(reinterpret_cast<const char*>(image.data()), image.size() * sizeof(float));
  return 0;
} catch (const std::exception& failure) {
  std::fprintf(stderr, "%s\n", failure.what());
  return 1;
}
