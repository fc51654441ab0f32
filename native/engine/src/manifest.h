// manifest.json: what a bundle holds and was compiled for.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "json.h"

namespace minicpm {

inline constexpr int kFormat = 1;  // layout of the bundle folder: minicpm_mlc/bundle/manifest.py
inline constexpr int kAbi = 7;     // functions of the compiled library, there too

// A bundle for a GPU may hold a library for the processor too: a manifest of its own, and what the names of that library's
// own files begin with. All other files serve both.
inline constexpr const char* kManifest = "manifest.json";
inline constexpr const char* kCpuPart = "cpu-";
inline constexpr const char* kCpuManifest = "cpu-manifest.json";

// One pool in each of its layers; `shape` is that of a page, or of a sequence.
struct StateEntry {
  int64_t layers = 0;
  std::vector<int64_t> shape;
  std::string dtype;
  bool per_page = true;
};

struct Sparse {
  int64_t dense_len, budget;  // tokens from which on rows read sparsely; blocks that a row reads at most
};

// An EAGLE head: how many tokens it knows, and its pools.
struct DraftEntry {
  int64_t vocab;
  std::vector<StateEntry> state;
};

struct FileEntry {
  uint64_t bytes;
  std::string sha256;
};

struct Manifest {
  explicit Manifest(Json json) : json(std::move(json)) {}

  // Fails where the folder is no bundle, or of another format; errors name the folder.
  static Manifest Load(const std::string& folder, const std::string& name = kManifest);

  uint64_t MemoryNeed(uint64_t context) const;  // bytes, for one sequence of so many tokens
  bool recurrent() const;                       // state per sequence, which can't go back to an earlier token
  bool has_second() const { return files.count(kCpuManifest) > 0; }  // a library for the processor
  std::string part() const;                                         // kCpuPart for that one, else empty

  std::string name, tvm, library, sha256;
  std::string device, triple, cpu;
  std::vector<std::string> features;
  int64_t max_context, prefill_chunk, page_size, vocab_size;
  std::vector<int32_t> eos_token_ids;
  std::optional<Sparse> sparse;
  std::vector<StateEntry> state;
  std::optional<DraftEntry> draft;
  std::vector<std::string> params;
  uint64_t memory_weights, memory_per_token, memory_activations;
  std::map<std::string, FileEntry> files;
  Json json;  // all of it
};

}  // namespace minicpm
