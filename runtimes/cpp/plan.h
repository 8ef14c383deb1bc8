// The plan and the golden trajectories of a bundle: edge_sd/diffusion/plan.py and edge_sd/bundle/golden.py.
#pragma once

#include <optional>

#include "safetensors.h"

// One row a step. Columns of coefficients are float64 in the file; `loop.h` rounds them to float32 before it multiplies.
struct Plan {
  size_t rows = 0, history = 0;
  std::vector<double> timestep, p, q, u, a, a_next, c;
  std::vector<double> b, b_next;  // (rows, history)
  std::vector<size_t> program;
  double start = 1;  // what the first noise is multiplied by
};

inline Plan load_plan(const std::string& path, size_t programs) {
  const SafetensorsFile file(path);
  const Shape vector = file.find("timestep").shape, matrix = file.find("b").shape;
  require(vector.size() == 1 && vector[0] >= 1, path + ": a plan needs at least one row");
  require(matrix.size() == 2 && matrix[1] >= 1, path + ": column b is not a table");
  const Shape table = {vector[0], matrix[1]};
  file.read<double>("guidance", vector);
  size_t expected = 11;
  if (file.tensors().count("features")) {
    const Shape features = file.find("features").shape;
    require(features.size() == 2, path + ": column features is not a table");
    file.read<float>("features", {vector[0], features[1]});
    ++expected;
  }
  Plan plan;
  if (file.tensors().count("start")) {
    plan.start = file.read<double>("start", {1})[0];
    ++expected;
  }
  plan.rows = vector[0], plan.history = matrix[1];
  plan.timestep = file.read<double>("timestep", vector);
  plan.p = file.read<double>("p", vector), plan.q = file.read<double>("q", vector);
  plan.u = file.read<double>("u", vector), plan.a = file.read<double>("a", vector);
  plan.a_next = file.read<double>("a_next", vector), plan.c = file.read<double>("c", vector);
  plan.b = file.read<double>("b", table), plan.b_next = file.read<double>("b_next", table);
  for (const int64_t number : file.read<int64_t>("program", vector)) {
    require(number >= 0 && uint64_t(number) < programs, path + ": column program names " + std::to_string(number) +
                ", but " + std::to_string(programs) + " programs were given");
    plan.program.push_back(size_t(number));
  }
  require(file.tensors().size() == expected, path + " has columns that no plan has");
  return plan;
}

// What the reference saw and said at every step of one trajectory; image is empty where the bundle has no decoder.
struct Trajectory {
  std::vector<float> samples, predictions, last, features, image;
};

struct Golden {
  Shape sample;  // (C, H, W)
  uint64_t feature_width = 0;
  std::optional<Shape> image;
  std::vector<Trajectory> trajectories;
};

inline Golden load_golden(const std::string& path, size_t rows) {
  const SafetensorsFile file(path);
  Golden golden;
  golden.sample = file.find("0.final").shape;
  require(golden.sample.size() == 3, path + ": tensor 0.final is not one sample");
  const Shape features = file.find("0.features").shape;
  require(features.size() == 2, path + ": tensor 0.features is not a table");
  golden.feature_width = features[1];
  if (file.tensors().count("0.image")) golden.image = file.find("0.image").shape;
  Shape steps = {rows};
  steps.insert(steps.end(), golden.sample.begin(), golden.sample.end());
  size_t expected = 0;
  for (size_t i = 0; file.tensors().count(std::to_string(i) + ".final"); ++i) {
    const std::string prefix = std::to_string(i) + ".";
    Trajectory one;
    one.samples = file.read<float>(prefix + "samples", steps);
    one.predictions = file.read<float>(prefix + "predictions", steps);
    one.last = file.read<float>(prefix + "final", golden.sample);
    one.features = file.read<float>(prefix + "features", {rows, golden.feature_width});
    if (golden.image) one.image = file.read<float>(prefix + "image", *golden.image);
    expected += golden.image ? 5 : 4;
    golden.trajectories.push_back(std::move(one));
  }
  require(file.tensors().size() == expected, path + " holds tensors that no trajectory has");
  return golden;
}
