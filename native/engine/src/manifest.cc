#include "manifest.h"

#include <algorithm>

#include "dtype.h"
#include "files.h"

namespace minicpm {
namespace {

constexpr int64_t kMost = INT32_MAX;
constexpr int64_t kBytes = INT64_MAX;

// Whether the name stays inside its folder on every system.
bool IsPlain(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name != "manifest.json" &&
         name.find_first_of(std::string("/\\:\0", 4)) == std::string::npos;
}

void CheckPlace(const std::string& folder, const std::optional<std::string>& text) {
  if (!IsFolder(folder)) {
    Fail(MINICPM_BUNDLE, folder, SizeOfFile(folder) ? " is a file" : " is not there", "; expected a bundle folder");
  }
  if (!text) {
    Fail(MINICPM_BUNDLE, folder, " has no manifest.json, so it isn't a bundle; make one: minicpm-mlc compile CHECKPOINT");
  }
}

void CheckVersion(const std::string& folder, const Json& json) {
  std::optional<Json> format = json.Find("format"), abi = json.Find("abi");
  std::string seen_format = format ? format->Shown() : "none", seen_abi = abi ? abi->Shown() : "none";
  if (seen_format != std::to_string(kFormat) || seen_abi != std::to_string(kAbi)) {
    Fail(MINICPM_BUNDLE, folder, " has bundle format ", seen_format, " and ABI ", seen_abi,
         "; this engine reads format ", kFormat, " and ABI ", kAbi, "; compile it again: minicpm-mlc compile");
  }
}

StateEntry ReadEntry(const Json& json, int64_t num_layers) {
  StateEntry entry;
  std::vector<Json> layers = json.At("layers").List();
  for (const Json& layer : layers) layer.Whole(0, num_layers - 1);
  entry.layers = static_cast<int64_t>(layers.size());
  for (const Json& size : json.At("shape").List()) entry.shape.push_back(size.Whole(1, kMost));
  entry.dtype = json.At("dtype").Text();
  if (!DtypeOf(entry.dtype)) json.At("dtype").Refuse("a known type");
  std::string per = json.At("per").Text();
  if (per != "page" && per != "sequence") json.At("per").Refuse("page or sequence");
  entry.per_page = per == "page";
  return entry;
}

std::vector<StateEntry> ReadTable(const Json& json, int64_t num_layers) {
  std::vector<StateEntry> table;
  for (const Json& entry : json.List()) table.push_back(ReadEntry(entry, num_layers));
  return table;
}

void ReadModel(const Json& model, Manifest* m) {
  m->vocab_size = model.At("vocab_size").Whole(1, kMost);
  for (const Json& id : model.At("eos_token_ids").List()) {
    m->eos_token_ids.push_back(static_cast<int32_t>(id.Whole(0, m->vocab_size - 1)));
  }
  std::optional<Json> sparse = model.Find("sparse");
  if (!sparse) return;
  int64_t block = sparse->At("block_size").Whole(m->page_size, m->page_size);
  int64_t local = sparse->At("window_size").Whole(0, kMost) / block;
  m->sparse = Sparse{sparse->At("dense_len").Whole(-1, kMost), sparse->At("topk").Whole(1, kMost) + local};
}

void ReadFiles(const Json& json, Manifest* m) {
  Json files = json.At("files");
  for (const std::string& name : files.Keys()) {
    Json entry = files.At(name);
    Json digits = entry.At("sha256");
    std::string sha256 = digits.Text();
    if (sha256.size() != 64 || sha256.find_first_not_of("0123456789abcdef") != std::string::npos) {
      digits.Refuse("the 64 digits of a SHA-256");
    }
    if (!IsPlain(name)) files.Refuse("file names without a folder");
    m->files[name] = {static_cast<uint64_t>(entry.At("bytes").Whole(0, kBytes)), sha256};
  }
  m->library = json.At("library").Text();
  if (!m->files.count(m->library)) json.At("library").Refuse("one of files");
}

void ReadTarget(const Json& target, Manifest* m) {
  m->device = target.At("device").Text();
  m->triple = target.At("triple").Text();
  m->cpu = target.At("cpu").Text();
  m->features = target.At("features").Texts();
}

void ReadMemory(const Json& memory, Manifest* m) {
  m->memory_weights = static_cast<uint64_t>(memory.At("weights").Whole(0, kBytes));
  m->memory_per_token = static_cast<uint64_t>(memory.At("kv_per_token").Whole(1, kBytes));
  m->memory_activations = static_cast<uint64_t>(memory.At("activations").Whole(0, kBytes));
}

uint64_t BytesPerSequence(const std::vector<StateEntry>& table) {
  uint64_t sum = 0;
  for (const StateEntry& entry : table) {
    if (entry.per_page) continue;
    uint64_t bytes = static_cast<uint64_t>(entry.layers) * DtypeOf(entry.dtype)->bits / 8;
    for (int64_t size : entry.shape) bytes *= static_cast<uint64_t>(size);
    sum += bytes;
  }
  return sum;
}

}  // namespace

std::string Manifest::part() const { return library.rfind(kCpuPart, 0) == 0 ? kCpuPart : ""; }

Manifest Manifest::Load(const std::string& folder, const std::string& name) {
  std::string place = folder + "/" + name;
  std::optional<std::string> text = ReadSmall(place);
  CheckPlace(folder, text);
  Json json = Json::Parse(*text, place, MINICPM_BUNDLE, kRepair);
  CheckVersion(folder, json);
  Manifest m(json);
  m.sha256 = Sha256(*text);
  m.name = json.At("name").Text();
  m.tvm = json.At("tvm").Text();
  m.page_size = json.At("page_size").Whole(64, 64);
  m.max_context = json.At("max_context").Whole(1, kMost);
  m.prefill_chunk = json.At("prefill_chunk").Whole(1, kMost);
  Json model = json.At("model");
  ReadModel(model, &m);
  m.state = ReadTable(json.At("state"), model.At("num_layers").Whole(1, kMost));
  if (std::optional<Json> draft = json.Find("draft")) {
    int64_t vocab = draft->At("vocab").Whole(1, m.vocab_size);
    m.draft = DraftEntry{vocab, ReadTable(draft->At("state"), draft->At("layers").Whole(1, kMost))};
  }
  m.params = json.At("params").Texts();
  ReadTarget(json.At("target"), &m);
  ReadMemory(json.At("memory"), &m);
  ReadFiles(json, &m);
  return m;
}

bool Manifest::recurrent() const { return BytesPerSequence(state) > 0; }

uint64_t Manifest::MemoryNeed(uint64_t context) const {
  uint64_t page = static_cast<uint64_t>(page_size), pages = (context + page - 1) / page;
  uint64_t states = BytesPerSequence(state) + (draft ? BytesPerSequence(draft->state) : 0);
  return memory_weights + pages * page * memory_per_token + states + memory_activations;
}

}  // namespace minicpm
