#include "params.h"

#include <map>
#include <memory>

#include "dtype.h"
#include "files.h"

namespace minicpm {
namespace {

constexpr const char* kTensorCache = "tensor-cache.json";

Param View(const std::shared_ptr<MappedFile>& shard, const Json& record) {
  Json name = record.At("dtype");
  std::optional<DLDataType> dtype = DtypeOf(name.Text());
  if (!dtype) name.Refuse("a known type");
  std::vector<int64_t> shape;
  for (const Json& size : record.At("shape").List()) shape.push_back(size.Whole(1, INT32_MAX));
  uint64_t bytes = BytesOf(shape, *dtype);
  if (static_cast<uint64_t>(record.At("nbytes").Whole(0, INT64_MAX)) != bytes) {
    record.At("nbytes").Refuse(std::to_string(bytes) + ", as its shape says");
  }
  uint64_t start = static_cast<uint64_t>(record.At("byteOffset").Whole(0, INT64_MAX));
  if (bytes > shard->size() || start > shard->size() - bytes) record.At("byteOffset").Refuse("one inside its file");
  return {name.Text(), shape, TensorOver(shard->data() + start, shard, shape, *dtype)};
}

}  // namespace

std::vector<Param> LoadParams(const Bundle& bundle) {
  std::optional<Json> cache = bundle.Object(kTensorCache);
  if (!cache) bundle.File(kTensorCache);  // fails
  std::map<std::string, Param> found;
  for (const Json& shard : cache->At("records").List()) {
    auto file = std::make_shared<MappedFile>(bundle.File(shard.At("dataPath").Text()));
    for (const Json& record : shard.At("records").List()) found.insert_or_assign(record.At("name").Text(), View(file, record));
  }
  std::vector<Param> params;
  for (const std::string& name : bundle.manifest.params) {
    auto param = found.find(name);
    if (param == found.end()) {
      Fail(MINICPM_BUNDLE, bundle.folder, "/", kTensorCache, " doesn't describe ", name, "; ", kRepair);
    }
    params.push_back(param->second);
  }
  return params;
}

}  // namespace minicpm
