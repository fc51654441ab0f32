// The engine's readers on files of strangers: engine_fuzz TARGET FOLDER; a line of input is a file in hexadecimal, a line of
// output says "taken" or why it was refused. What a reader throws besides its Error ends the process, as does an input that
// takes 10 seconds. With MINICPM_LIBFUZZER it is a target for clang's -fsanitize=fuzzer, named by MINICPM_FUZZ_TARGET and
// MINICPM_FUZZ_FOLDER.
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <string>

#include "context.h"
#include "kernel_cases.h"
#include "params.h"
#include "prompt.h"
#include "session.h"
#include "stops.h"
#include "tokenizer.h"

namespace {

using namespace minicpm;

constexpr const char* kText = "hello world\n 12 <s><|im_end|> \xE4\xBD\xA0" "e\xCC\x81 \xED\x95\x9C</think>";

std::string FileOf(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void Write(const std::string& path, const std::string& data) { std::ofstream(path, std::ios::binary) << data; }

void ReadTokenizer(const std::string& data, const std::string&) {
  Tokenizer tokenizer(Json::Parse(data, "tokenizer.json", MINICPM_BUNDLE, kRepair), 1000);
  for (int32_t id : tokenizer.Encode(kText)) tokenizer.BytesOf(id);
  tokenizer.Encode(kText, true);
  tokenizer.EncodeMiddle("\n</think>\n\n");
  StopStrings({"<s>", "o"}, tokenizer.hidden()).Feed(kText);
}

void ReadManifest(const std::string& data, const std::string& folder) {
  Write(folder + "/manifest.json", data);
  Manifest manifest = Manifest::Load(folder);
  ChooseContext(manifest, std::nullopt, manifest.MemoryNeed(64));
}

void ReadParams(const std::string& data, const std::string& folder) {
  Write(folder + "/tensor-cache.json", data);
  LoadParams({folder, Manifest::Load(folder), ""});
}

void ReadRules(const std::string& data, const std::string& folder) {
  static const Tokenizer tokenizer(
      Json::Parse(FileOf(folder + "/tokenizer.json"), "tokenizer.json", MINICPM_BUNDLE, kRepair), 1 << 20);
  Json json = Json::Parse(data, "engine.json", MINICPM_BUNDLE, kRepair);
  ChatRules rules(json.At("chat"));
  for (const char* last : {"Hello /think", "", "</think> \xE4\xBD\xA0 <|im_end|>"}) {
    rules.Make(tokenizer, {{"user", "Hi"}, {"assistant", "hm\n</think>\n\nHo"}, {"user", last}}, std::nullopt);
  }
}

void ReadSession(const std::string& data, const std::string& folder) {
  Write(folder + "/state", data);
  PagePool pool(4, 64);
  PrefixCache cache(&pool);
  Pools pools = {ReservedTensor({4, 2, 8}, {kDLFloat, 32, 1}), ReservedTensor({4, 16}, {kDLUInt, 8, 1})};
  Saved saved = LoadSession(folder + "/state", "manifest", 200, Memory("cpu"), pools, &pool);
  cache.Restore(saved.pages);
  Sequence sequence(&pool, 200, false);
  PrefixCache::Found found = cache.Find(saved.own);
  sequence.Adopt(found.pages, {saved.own.begin(), saved.own.begin() + 64 * static_cast<ptrdiff_t>(found.pages.size())});
  if (sequence.Room() > 0) sequence.Reserve(sequence.Room());
  cache.Keep(sequence, true);
  sequence.Truncate(0);
  while (pool.reclaim()) {
  }
  if (pool.available() != 4) std::abort();  // a page was lost
}

void ReadCases(const std::string& data, const std::string& folder) {
  Write(folder + "/kernel-cases.npz", data);
  KernelCases cases({folder, Manifest::Load(folder), ""});
  for (const KernelCase* each : cases.Smallest(1 << 20)) {
    for (const Tiled& input : each->inputs) input.Whole();
    for (const Expected& expected : each->expected) expected.values.Whole();
  }
}

const std::map<std::string, void (*)(const std::string&, const std::string&)> kTargets = {
    {"tokenizer", ReadTokenizer}, {"manifest", ReadManifest}, {"params", ReadParams},
    {"rules", ReadRules},         {"session", ReadSession},   {"cases", ReadCases},
};

// Why the file was refused; empty where it was taken.
std::string Refused(const std::string& target, const std::string& data, const std::string& folder) try {
  kTargets.at(target)(data, folder);
  return "";
} catch (const Error& error) {
  return error.what();
}

}  // namespace

#ifdef MINICPM_LIBFUZZER
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string target = std::getenv("MINICPM_FUZZ_TARGET"), folder = std::getenv("MINICPM_FUZZ_FOLDER");
  Refused(target, std::string(reinterpret_cast<const char*>(data), size), folder);
  return 0;
}
#else
int main(int, char** texts) {
  for (std::string hex; std::getline(std::cin, hex);) {
    std::string data;
    for (size_t i = 0; i + 1 < hex.size(); i += 2) data += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    alarm(10);
    std::string why = Refused(texts[1], data, texts[2]);
    std::cout << (why.empty() ? "taken" : Json::Quote(why)) << std::endl;
  }
  return 0;
}
#endif
