// Safetensors files, read strictly and written atomically.
//
// A file is the length of its header (8 bytes, little-endian), the header (JSON: name → dtype, shape, offsets), and the data.
// What is read must add up: known dtypes, sizes that are those of the shapes, data that lie one after the other without gap or
// overlap up to the end of the file.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>

#include "json.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors files are little-endian, and so must the machine be");

using Shape = std::vector<uint64_t>;

inline std::string shown(const Shape& shape) {
  std::string out;
  for (const uint64_t size : shape) out += (out.empty() ? "" : ", ") + std::to_string(size);
  return "(" + out + ")";
}

struct StoredTensor {
  std::string dtype;
  Shape shape;
  uint64_t begin = 0, end = 0;
};

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path) : path_(path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    const std::streamoff size = file ? std::streamoff(file.tellg()) : -1;
    require(size >= 0, "cannot read " + path + ": " + std::strerror(errno));
    uint64_t length = 0;
    file.seekg(0).read(reinterpret_cast<char*>(&length), sizeof length);
    refuse(!file || length > 100'000'000 || length > uint64_t(size) - 8, "its header is cut short");
    std::string header(length, '\0');
    data_.resize(size_t(size) - 8 - size_t(length));
    file.read(header.data(), std::streamsize(length)).read(data_.data(), std::streamsize(data_.size()));
    refuse(!file, "it cannot be read to its end");
    parse(header);
    check_places();
  }

  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }

  // The values of a tensor that must be there, of type T and of that shape, all finite.
  template <typename T>
  std::vector<T> read(const std::string& name, const Shape& shape) const {
    const StoredTensor& tensor = find(name);
    require(tensor.dtype == dtype_of(T{}) && tensor.shape == shape, path_ + ": tensor " + name + " is " + tensor.dtype + " " +
                shown(tensor.shape) + ", expected " + dtype_of(T{}) + " " + shown(shape));
    std::vector<T> values((tensor.end - tensor.begin) / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), data_.data() + tensor.begin, tensor.end - tensor.begin);
    for (const T value : values) require(std::isfinite(double(value)), path_ + ": tensor " + name + " is not finite");
    return values;
  }

  const StoredTensor& find(const std::string& name) const {
    const auto found = tensors_.find(name);
    require(found != tensors_.end(), path_ + " holds no tensor " + name);
    return found->second;
  }

 private:
  static const char* dtype_of(float) { return "F32"; }
  static const char* dtype_of(double) { return "F64"; }
  static const char* dtype_of(int64_t) { return "I64"; }

  void refuse(bool bad, const std::string& why) const { require(!bad, path_ + " is not a whole safetensors file: " + why); }

  void parse(const std::string& header) {
    JsonReader json(header.data(), header.data() + header.size(), path_);
    json.object([&](const std::string& name) {
      if (name == "__metadata__") return json.object([&](const std::string&) { json.string(); });
      StoredTensor tensor;
      Shape offsets;
      int seen = 0;
      json.object([&](const std::string& field) {
        if (field == "dtype") tensor.dtype = json.string(), seen |= 1;
        else if (field == "shape") tensor.shape = json.integers(), seen |= 2;
        else if (field == "data_offsets") offsets = json.integers(), seen |= 4;
        else refuse(true, "tensor " + name + " has a field " + field);
      });
      refuse(seen != 7 || offsets.size() != 2, "tensor " + name + " lacks its dtype, shape or place");
      tensor.begin = offsets[0], tensor.end = offsets[1];
      refuse(!tensors_.emplace(name, tensor).second, "tensor " + name + " is there twice");
    });
    json.finish();
  }

  void check_places() const {
    static const std::map<std::string, uint64_t> widths = {{"F64", 8}, {"I64", 8}, {"U64", 8}, {"F32", 4}, {"I32", 4}, {"U32", 4},
                                                           {"F16", 2}, {"BF16", 2}, {"I16", 2}, {"U16", 2}, {"I8", 1}, {"U8", 1}, {"BOOL", 1}};
    std::vector<std::pair<uint64_t, uint64_t>> places;
    for (const auto& [name, tensor] : tensors_) {
      const auto width = widths.find(tensor.dtype);
      refuse(width == widths.end(), "tensor " + name + " is of the unknown dtype " + tensor.dtype);
      uint64_t bytes = width->second;
      for (const uint64_t size : tensor.shape) refuse(__builtin_mul_overflow(bytes, size, &bytes), "tensor " + name + " is too large");
      refuse(tensor.begin > tensor.end || tensor.end > data_.size() || tensor.end - tensor.begin != bytes,
             "tensor " + name + " does not lie where its header says");
      places.emplace_back(tensor.begin, tensor.end);
    }
    std::sort(places.begin(), places.end());
    uint64_t end = 0;
    for (const auto& place : places) {
      refuse(place.first != end, "its tensors overlap or leave gaps");
      end = place.second;
    }
    refuse(end != data_.size(), "it goes on after its last tensor");
  }

  std::string path_;
  std::vector<char> data_;
  std::map<std::string, StoredTensor> tensors_;
};

// Tensors of float32 on their way into a file.
class SafetensorsWriter {
 public:
  void add(const std::string& name, const Shape& shape, const std::vector<float>& values) {
    const uint64_t begin = data_.size();
    data_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    std::string sizes;
    for (const uint64_t size : shape) sizes += (sizes.empty() ? "" : ",") + std::to_string(size);
    header_ += "," + quoted(name) + ":{\"dtype\":\"F32\",\"shape\":[" + sizes + "],\"data_offsets\":[" + std::to_string(begin) + "," +
               std::to_string(data_.size()) + "]}";
  }

  // Writes beside `path` and renames: a reader finds the old file or the whole new one.
  void write(const std::string& path, const std::string& metadata_key, const std::string& metadata) const {
    std::string header = "{\"__metadata__\":{" + quoted(metadata_key) + ":" + quoted(metadata) + "}" + header_ + "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    const uint64_t length = header.size();
    std::string whole(reinterpret_cast<const char*>(&length), sizeof length);
    whole += header;
    whole += data_;
    const std::string part = path + "." + std::to_string(getpid()) + ".part";
    const int file = open(part.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    bool good = file >= 0;
    for (size_t done = 0; good && done < whole.size();) {
      const ssize_t wrote = ::write(file, whole.data() + done, whole.size() - done);
      good = wrote > 0 || (wrote < 0 && errno == EINTR);
      if (wrote > 0) done += size_t(wrote);
    }
    good = good && fsync(file) == 0 && std::rename(part.c_str(), path.c_str()) == 0;
    const int error = errno;
    if (file >= 0) close(file);
    if (!good) unlink(part.c_str());
    require(good, "cannot write " + path + ": " + std::strerror(error));
  }

 private:
  std::string header_, data_;
};
