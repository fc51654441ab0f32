// The compiled library of a bundle and its functions; docs/architecture.md describes their arguments.
#pragma once

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "bundle.h"
#include "device_memory.h"
#include "thread_pool.h"

namespace minicpm {

// Tensors in the order of the state table. A page costs memory once written.
using Pools = tvm::ffi::Array<Tensor>;

// Logits float32 [rows, padded vocabulary], valid until the next call. `features` float32 [rows, F] where the bundle has
// a draft head.
struct Outputs {
  const float* Row(int64_t row) const;
  int64_t rows() const;

  Tensor logits;
  std::optional<Tensor> features;
};

// What a draft head proposes after n rows, the likeliest first: ids of its own vocabulary int32 [n, k], their
// log-probabilities float32 [n, k], and the hidden states float32 [n, H] that say so.
struct DraftOutputs {
  Tensor ids, values, hidden;
};

// Rows of a token tree behind a sequence of `base` tokens: int32 [n] each, `ancestors` [n, 2].
struct TreeRows {
  std::vector<int32_t> ids, positions, slots, ancestors;
  int32_t base;
};

class Library {
 public:
  // Fails where it doesn't load, or says other facts of itself than the manifest.
  Library(const Bundle& bundle, int threads);
  ~Library();

  Pools NewPools(int64_t pages) const;
  Pools NewDraftPools(int64_t pages) const;

  // A chunk of one sequence; logits of the rows `logit_rows`.
  Outputs Prefill(const std::vector<int32_t>& ids, const std::vector<int32_t>& slots, const std::vector<int32_t>& table,
                  const std::vector<int32_t>& logit_rows, const Pools& pools, bool sparse);
  // One row of one sequence.
  Outputs Decode(int32_t id, int32_t slot, const std::vector<int32_t>& table, const Pools& pools, bool sparse);
  // Nodes of a tree, each computed as the decode row of its path; the sequence stays as it is.
  Outputs Verify(const TreeRows& rows, const std::vector<int32_t>& table, const Pools& pools, bool sparse);
  // Moves the rows at `sources`, ascending, to `slots`.
  void Commit(const std::vector<int32_t>& sources, const std::vector<int32_t>& slots, const std::vector<int32_t>& table,
              const Pools& pools);

  // The draft head over rows of one sequence at `slots`, the first of them at `position`: each token with the base's
  // features, float32 [n, F], of the one before it. What the last row proposes.
  DraftOutputs DraftExtend(const std::vector<int32_t>& ids, const std::vector<float>& features, int32_t position,
                           const std::vector<int32_t>& slots, const std::vector<int32_t>& table, const Pools& pools);
  // The draft head over nodes of a draft tree; `hidden` float32 [n, H] are its own.
  DraftOutputs DraftStep(const TreeRows& rows, const std::vector<float>& hidden, const std::vector<int32_t>& table,
                         const Pools& pools);

  const Memory& memory() const { return memory_; }
  // One kernel alone, on tensors of memory(); fails where there is none.
  void CallKernel(const std::string& name, const std::vector<Tensor>& tensors) const;

  const int threads;

 private:
  using Function = tvm::ffi::Function;
  Function Named(const std::string& name) const;
  Json CheckedFacts(const Bundle& bundle) const;
  void LoadWeights(const Bundle& bundle, const Json& facts);
  tvm::ffi::Any Call(const Function& function, int64_t rows, const std::vector<Tensor>& arguments, const Pools& pools,
                     bool weights);
  tvm::ffi::Any Run(const Function& function, int64_t rows, const std::vector<tvm::ffi::AnyView>& arguments) const;
  std::vector<Tensor> Results(const tvm::ffi::Any& result);  // to be read by this process
  Outputs OutputsOf(const tvm::ffi::Any& result);
  DraftOutputs DraftOutputsOf(const tvm::ffi::Any& result);
  void BoundAllocator(int64_t bytes);

  const Manifest& manifest_;
  const Memory memory_;
  std::string path_;
  tvm::ffi::Optional<tvm::ffi::Module> module_, vm_;
  tvm::ffi::Array<Tensor> params_;
  std::vector<Function> prefill_, decode_, verify_;  // by gear: dense, sparse
  std::optional<Function> commit_, draft_extend_, draft_step_;
  const ThreadPool* pool_ = nullptr;  // none for a device
  std::set<int64_t> kept_;  // sizes of results that TVM's allocator may keep
};

}  // namespace minicpm
