#include "library.h"

#include <numeric>

#include "dtype.h"
#include "params.h"
#include "shared_symbols.h"

namespace minicpm {
namespace {

namespace ffi = tvm::ffi;
constexpr int64_t kKeptBytes = 16 << 20;  // of results of all sizes that the allocator may keep
constexpr const char* kKernelCases = "kernel-cases.npz";

int64_t Size(const std::vector<int32_t>& values) { return static_cast<int64_t>(values.size()); }

Tensor Row(const std::vector<int32_t>& values) { return Int32s(values, {Size(values)}); }

Tensor Table(const std::vector<int32_t>& pages) { return Int32s(pages, {1, Size(pages)}); }

// One row of floats for each of n rows.
Tensor Floats(const std::vector<float>& values, int64_t n) {
  return Float32s(values, {n, static_cast<int64_t>(values.size()) / n});
}

Pools NewPoolsOf(const Memory& memory, const std::vector<StateEntry>& table, int64_t pages) {
  Pools pools;
  for (const StateEntry& entry : table) {
    std::vector<int64_t> shape = {entry.per_page ? pages : 1};
    shape.insert(shape.end(), entry.shape.begin(), entry.shape.end());
    for (int64_t layer = 0; layer < entry.layers; ++layer) pools.push_back(memory.New(shape, *DtypeOf(entry.dtype)));
  }
  return pools;
}

// TVM's allocator keeps each freed result for the next one of exactly its size, for all libraries of this process.
void EmptyAllocator() {
  static const ffi::Function clear = ffi::Function::GetGlobalRequired("vm.builtin.memory_manager.clear");
  clear();
}

ffi::Module LoadModule(const std::string& path, const std::string& linked) {
  if (linked.empty()) ShareSymbols();
  try {
    return linked.empty() ? ffi::Module::LoadFromFile(path)
                          : ffi::Function::GetGlobalRequired("ffi.SystemLib")(linked).cast<ffi::Module>();
  } catch (const std::exception& error) {
    Fail(MINICPM_BUNDLE, path, " can't be loaded (", error.what(), "); ", kRepair);
  }
}

// The virtual machine of a library.
ffi::Module Started(const ffi::Module& module, const std::string& path) {
  try {
    return module->GetFunction("vm_load_executable", false).value()().cast<ffi::Module>();
  } catch (const std::exception& error) {
    Fail(MINICPM_BUNDLE, path, " can't be loaded (", error.what(), "); ", kRepair);
  }
}

}  // namespace

const float* Outputs::Row(int64_t row) const {
  return static_cast<const float*>(logits.data_ptr()) + row * logits.shape()[1];
}

int64_t Outputs::rows() const { return logits.shape()[0]; }

Library::Library(const Bundle& bundle, int threads)
    : threads(threads),
      manifest_(bundle.manifest),
      memory_(bundle.manifest.device),
      path_(bundle.File(bundle.manifest.library)) {
  module_ = LoadModule(path_, bundle.linked);
  vm_ = Started(module_.value(), path_);
  memory_.Start(Named("vm_initialization"));
  Json facts = CheckedFacts(bundle);
  if (memory_.on_host()) pool_ = &ThreadPool::Of(path_);
  LoadWeights(bundle, facts);
  for (const char* gear : {"", "_sparse"}) {
    if (*gear && !manifest_.sparse) continue;
    prefill_.push_back(Named(std::string("prefill") + gear));
    decode_.push_back(Named(std::string("decode") + gear));
    if (!manifest_.recurrent()) verify_.push_back(Named(std::string("verify") + gear));
  }
  if (!manifest_.recurrent()) commit_ = Named("commit");
  if (manifest_.draft) {
    draft_extend_ = Named("draft_extend");
    draft_step_ = Named("draft_step");
  }
}

Library::~Library() { EmptyAllocator(); }

ffi::Function Library::Named(const std::string& name) const {
  ffi::Optional<ffi::Function> function = vm_.value()->GetFunction(name, false);
  if (!function.has_value()) Fail(MINICPM_BUNDLE, path_, " has no function ", name, "; ", kRepair);
  return function.value();
}

void Library::CallKernel(const std::string& name, const std::vector<Tensor>& tensors) const {
  ffi::Optional<ffi::Function> function = module_.value()->GetFunction(name, true);
  if (!function.has_value()) Fail(MINICPM_BUNDLE, path_, " has no kernel ", name, "; ", kRepair);
  Run(function.value(), 1, {tensors.begin(), tensors.end()});
}

// Nothing signs a manifest, so the library says what it was compiled from: the manifest's numbers reach compiled code only
// where they are the library's own.
Json Library::CheckedFacts(const Bundle& bundle) const {
  std::string text = Named("bundle_facts")().cast<ffi::String>();
  Json facts = Json::Parse(text, "the manifest in " + path_, MINICPM_BUNDLE, kRepair);
  Json inside = facts.At("manifest");
  for (const std::string& key : inside.Keys()) {
    std::string wrong = manifest_.json.At(key).Difference(inside.At(key));
    if (!wrong.empty()) Fail(MINICPM_BUNDLE, wrong, " is not what ", path_, " was compiled for; ", kRepair);
  }
  std::string cases = bundle.Named(kKernelCases);
  auto listed = manifest_.files.find(cases);
  if (listed == manifest_.files.end() || listed->second.sha256 != facts.At("cases").Text()) {
    Fail(MINICPM_BUNDLE, bundle.folder, "/", cases, " is missing or not the one that ", path_,
         " was compiled with; ", kRepair);
  }
  std::vector<Json> tensors = facts.At("tensors").List();
  if (tensors.size() != manifest_.params.size()) facts.At("tensors").Refuse("as many as the manifest's params");
  return facts;
}

void Library::LoadWeights(const Bundle& bundle, const Json& facts) {
  std::vector<Json> tensors = facts.At("tensors").List();
  std::vector<Param> params = LoadParams(bundle);
  for (size_t i = 0; i < params.size(); ++i) {
    std::vector<Json> fact = tensors.at(i).List();
    std::vector<int64_t> shape;
    for (const Json& size : fact.at(2).List()) shape.push_back(size.Whole(0, INT32_MAX));
    if (fact.at(1).Text() != params[i].dtype || shape != params[i].shape) {
      Fail(MINICPM_BUNDLE, bundle.folder, "/tensor-cache.json is damaged at ", fact.at(0).Text(), ": ", path_,
           " was compiled for another type or shape; ", kRepair);
    }
    params_.push_back(memory_.Given(params[i].tensor));
  }
}

Pools Library::NewPools(int64_t pages) const { return NewPoolsOf(memory_, manifest_.state, pages); }

Pools Library::NewDraftPools(int64_t pages) const { return NewPoolsOf(memory_, manifest_.draft.value().state, pages); }

ffi::Any Library::Call(const Function& function, int64_t rows, const std::vector<Tensor>& arguments, const Pools& pools,
                       bool weights) {
  std::vector<Tensor> given;
  for (const Tensor& argument : arguments) given.push_back(memory_.Given(argument));
  std::vector<ffi::AnyView> views(given.begin(), given.end());
  views.emplace_back(pools);
  if (weights) views.emplace_back(params_);
  return Run(function, rows, views);
}

ffi::Any Library::Run(const Function& function, int64_t rows, const std::vector<ffi::AnyView>& arguments) const {
  ffi::Any result;
  std::optional<ThreadPool::Turn> turn;
  if (pool_) turn.emplace(*pool_, threads, rows);
  memory_.Guarded([&] { function.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result); });
  return result;
}

std::vector<Tensor> Library::Results(const ffi::Any& result) {
  std::vector<Tensor> tensors;
  if (auto tensor = result.as<Tensor>()) {
    tensors.push_back(*tensor);
  } else {
    for (const ffi::Any& part : result.cast<ffi::Array<ffi::Any>>()) tensors.push_back(part.cast<Tensor>());
  }
  for (Tensor& tensor : tensors) {
    BoundAllocator(static_cast<int64_t>(ffi::GetDataSize(tensor)));
    tensor = memory_.Read(tensor);
  }
  return tensors;
}

Outputs Library::OutputsOf(const ffi::Any& result) {
  std::vector<Tensor> parts = Results(result);
  Outputs outputs{parts.at(0), std::nullopt};
  if (manifest_.draft) outputs.features = parts.at(1);
  return outputs;
}

DraftOutputs Library::DraftOutputsOf(const ffi::Any& result) {
  std::vector<Tensor> parts = Results(result);
  return {parts.at(0), parts.at(1), parts.at(2)};
}

void Library::BoundAllocator(int64_t bytes) {
  kept_.insert(bytes);
  if (std::accumulate(kept_.begin(), kept_.end(), int64_t{0}) <= kKeptBytes) return;
  kept_ = {bytes};
  EmptyAllocator();
}

Outputs Library::Prefill(const std::vector<int32_t>& ids, const std::vector<int32_t>& slots,
                         const std::vector<int32_t>& table, const std::vector<int32_t>& logit_rows, const Pools& pools,
                         bool sparse) {
  std::vector<Tensor> arguments = {Row(ids), Row(slots), Row(slots), Table(table), Row(logit_rows)};
  return OutputsOf(Call(prefill_.at(sparse), Size(ids), arguments, pools, true));
}

Outputs Library::Decode(int32_t id, int32_t slot, const std::vector<int32_t>& table, const Pools& pools, bool sparse) {
  std::vector<Tensor> arguments = {Row({id}), Row({slot}), Row({slot}), Table(table)};
  return OutputsOf(Call(decode_.at(sparse), 1, arguments, pools, true));
}

Outputs Library::Verify(const TreeRows& rows, const std::vector<int32_t>& table, const Pools& pools, bool sparse) {
  std::vector<Tensor> arguments = {Row(rows.ids),    Row(rows.positions), Row(rows.slots),
                                   Row({rows.base}), Table(table),        Int32s(rows.ancestors, {Size(rows.ids), 2})};
  return OutputsOf(Call(verify_.at(sparse), Size(rows.ids), arguments, pools, true));
}

void Library::Commit(const std::vector<int32_t>& sources, const std::vector<int32_t>& slots,
                     const std::vector<int32_t>& table, const Pools& pools) {
  Call(commit_.value(), Size(sources), {Row(sources), Row(slots), Table(table)}, pools, false);
}

DraftOutputs Library::DraftExtend(const std::vector<int32_t>& ids, const std::vector<float>& features, int32_t position,
                                  const std::vector<int32_t>& slots, const std::vector<int32_t>& table,
                                  const Pools& pools) {
  std::vector<int32_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), position);
  int32_t last = static_cast<int32_t>(ids.size()) - 1;
  std::vector<Tensor> arguments = {Row(ids),   Floats(features, Size(ids)), Row(positions),
                                   Row(slots), Table(table),                Row({last})};
  return DraftOutputsOf(Call(draft_extend_.value(), Size(ids), arguments, pools, true));
}

DraftOutputs Library::DraftStep(const TreeRows& rows, const std::vector<float>& hidden,
                                const std::vector<int32_t>& table, const Pools& pools) {
  int64_t n = Size(rows.ids);
  std::vector<Tensor> arguments = {Row(rows.ids),    Floats(hidden, n), Row(rows.positions),
                                   Row(rows.slots),  Row({rows.base}),  Table(table),
                                   Int32s(rows.ancestors, {n, 2})};
  return DraftOutputsOf(Call(draft_step_.value(), n, arguments, pools, true));
}

}  // namespace minicpm
