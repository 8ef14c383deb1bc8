// Methods of ExecuTorch programs, called with plain arrays.
#pragma once

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <chrono>
#include <map>
#include <memory>

#include "safetensors.h"

// The wheel ships this library without its header (1.5.1); of the class only what is called is declared, never its data.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t new_thread_count);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

// Threads of one call. A loaded program points into the pool of its time: set this first.
inline void set_threads(uint32_t threads) {
  auto* pool = executorch::extension::threadpool::get_threadpool();
  require(pool != nullptr, "ExecuTorch has no pool of threads");
  if (pool->get_thread_count() != threads) {
    require(pool->_unsafe_reset_threadpool(threads), "ExecuTorch refuses a pool of " + std::to_string(threads) + " threads");
  }
}

// What stands for a dtype in frames: the number of ExecuTorch's ScalarType.
enum class Dtype : uint32_t { int32 = 3, float16 = 5, float32 = 6 };

inline size_t width_of(Dtype dtype) { return dtype == Dtype::float16 ? 2 : 4; }

struct TensorSpec {
  Dtype dtype;
  Shape shape;

  size_t bytes() const {
    uint64_t total = width_of(dtype);
    for (const uint64_t size : shape) require(!__builtin_mul_overflow(total, size, &total), "a tensor " + shown(shape) + " is too large");
    return size_t(total);
  }
  bool operator==(const TensorSpec& other) const { return dtype == other.dtype && shape == other.shape; }
};

inline std::string shown(const TensorSpec& spec) {
  return std::string(spec.dtype == Dtype::int32 ? "int32 " : spec.dtype == Dtype::float16 ? "float16 " : "float32 ") + shown(spec.shape);
}

struct Tensor {
  TensorSpec spec;
  std::string data;
};

inline Tensor tensor_of(const Shape& shape, const float* values) {
  const TensorSpec spec{Dtype::float32, shape};
  return {spec, std::string(reinterpret_cast<const char*>(values), spec.bytes())};
}

// What the process is at, for the line that it leaves when it crashes (main.cpp).
inline const char* current_task = "starting";

class Program {
 public:
  // `name` is FILE:METHOD; the method's name holds no colon, the file's may.
  Program(std::shared_ptr<executorch::extension::Module> module, std::string name, std::string method)
      : module_(std::move(module)), name_(std::move(name)), method_(std::move(method)), task_("running " + name_) {
    const auto methods = module_->method_names();
    check(methods.error(), "load");
    require(methods->count(method_) == 1, name_ + ": the file has no method " + method_);
    check(module_->load_method(method_), "load");
    const auto meta = module_->method_meta(method_);
    check(meta.error(), "load");
    for (size_t i = 0; i < meta->num_inputs(); ++i) inputs_.push_back(spec_of(meta->input_tensor_meta(i)));
    for (size_t i = 0; i < meta->num_outputs(); ++i) outputs_.push_back(spec_of(meta->output_tensor_meta(i)));
    require(outputs_.size() == 1 && outputs_[0].dtype == Dtype::float32, name_ + " does not return one tensor of float32");
  }

  const std::string& name() const { return name_; }
  const std::vector<TensorSpec>& inputs() const { return inputs_; }
  const TensorSpec& output() const { return outputs_[0]; }

  // A copy of what the method returns; `milliseconds`, if given, is how long the method itself took.
  std::vector<float> operator()(std::vector<Tensor>& inputs, double* milliseconds = nullptr) {
    require(inputs.size() == inputs_.size(),
            name_ + " takes " + std::to_string(inputs_.size()) + " tensors, not " + std::to_string(inputs.size()));
    std::vector<executorch::extension::TensorPtr> held;
    std::vector<executorch::runtime::EValue> values;
    for (size_t i = 0; i < inputs.size(); ++i) {
      require(inputs[i].spec == inputs_[i], name_ + " takes " + shown(inputs_[i]) + ", not " + shown(inputs[i].spec));
      std::vector<executorch::aten::SizesType> sizes(inputs_[i].shape.begin(), inputs_[i].shape.end());
      held.push_back(executorch::extension::from_blob(inputs[i].data.data(), sizes, executorch::aten::ScalarType(inputs_[i].dtype)));
      values.emplace_back(held.back());
    }
    current_task = task_.c_str();
    const auto began = std::chrono::steady_clock::now();
    const auto result = module_->execute(method_, values);
    const auto ended = std::chrono::steady_clock::now();
    current_task = "between calls";
    if (milliseconds) *milliseconds = std::chrono::duration<double, std::milli>(ended - began).count();
    check(result.error(), "run");
    require(result->size() == 1 && result->at(0).isTensor(), name_ + " did not return one tensor");
    return values_of(result->at(0).toTensor());
  }

 private:
  using Meta = executorch::runtime::Result<executorch::runtime::TensorInfo>;

  TensorSpec spec_of(const Meta& meta) const {
    check(meta.error(), "load");
    const auto type = meta->scalar_type();
    using Type = executorch::aten::ScalarType;
    require(type == Type::Int || type == Type::Half || type == Type::Float, name_ + " has a tensor of an unknown dtype");
    for (size_t i = 0; i < meta->dim_order().size(); ++i) {
      require(meta->dim_order()[i] == i, name_ + " has a tensor that does not lie row by row");
    }
    return {Dtype(type), Shape(meta->sizes().begin(), meta->sizes().end())};
  }

  std::vector<float> values_of(const executorch::aten::Tensor& out) const {
    const Shape shape(out.sizes().begin(), out.sizes().end());
    require(shape == outputs_[0].shape && out.scalar_type() == executorch::aten::ScalarType::Float,
            name_ + " returned " + shown(shape) + ", not " + shown(outputs_[0]));
    const float* values = out.const_data_ptr<float>();
    return std::vector<float>(values, values + out.numel());
  }

  void check(executorch::runtime::Error error, const std::string& verb) const {
    require(error == executorch::runtime::Error::Ok, "ExecuTorch cannot " + verb + " " + name_ + ": " + to_string(error));
  }

  std::shared_ptr<executorch::extension::Module> module_;
  std::string name_, method_, task_;
  std::vector<TensorSpec> inputs_, outputs_;
};

// Loads programs by FILE:METHOD; methods of one file share what the file holds.
class Loader {
 public:
  Program load(const std::string& name) {
    using executorch::extension::Module;
    const size_t colon = name.rfind(':');
    require(colon != std::string::npos && colon > 0 && colon + 1 < name.size(), "a program is given as FILE:METHOD, unlike " + name);
    const std::string file = name.substr(0, colon);
    task_ = "loading " + name;
    current_task = task_.c_str();
    auto& module = modules_[file];
    if (!module) {
      std::ifstream readable(file, std::ios::binary);
      require(bool(readable), "cannot read " + file + ": " + std::strerror(errno));
      module = std::make_shared<Module>(file, Module::LoadMode::Mmap);
      const auto error = module->load(executorch::runtime::Program::Verification::InternalConsistency);
      require(error == executorch::runtime::Error::Ok,
              "ExecuTorch cannot load " + file + ": " + to_string(error) + "; the file is damaged, or of another version");
    }
    Program program(module, name, name.substr(colon + 1));
    current_task = "between calls";
    return program;
  }

 private:
  std::map<std::string, std::shared_ptr<executorch::extension::Module>> modules_;
  std::string task_;
};
