// A bundle that answers.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "bundle.h"
#include "generation.h"
#include "prompt.h"
#include "reader.h"

namespace minicpm {

class Engine {
 public:
  // A piece of an answer; whether no more are wanted.
  using OnPiece = std::function<bool(minicpm_piece kind, std::string_view bytes)>;

  // `options` as in minicpm.h. Where the bundle's device isn't there, fails or computes wrong, its library for the
  // processor is opened, if it has one.
  static std::unique_ptr<Engine> Open(const std::string& folder, const Json& options);

  void Chat(const Json& messages, const Json& options, const OnPiece& on_piece);
  void Generate(const Json& prompt, const Json& options, const OnPiece& on_piece);
  void Cancel() { cancelled_ = true; }

  std::vector<int32_t> Tokenize(const std::string& text) const;
  std::vector<int32_t> PromptIds(const Json& messages, const Json& options) const;
  void Truncate(int64_t length) { model_->Truncate(length); }
  void Save(const std::string& path) { model_->Save(path); }
  std::string Info() const;
  const Stats& stats() const { return stats_; }

 private:
  Engine(Bundle bundle, const Json& options);
  void ReadTokenizer();
  void ReadRules();
  const Tokenizer& tokenizer() const;  // fails where the bundle has none that this engine can read
  std::vector<int32_t> Checked(std::vector<int32_t> ids) const;
  void Answer(std::vector<int32_t> ids, Reading reading, const Json& options, const OnPiece& on_piece);

  Bundle bundle_;
  std::string fell_back_;  // why the processor answers in place of the bundle's device; empty if it doesn't
  int threads_;
  std::set<int32_t> end_tokens_;
  Sampling published_;
  std::optional<Tokenizer> tokenizer_;
  std::string no_tokenizer_;  // why there is none
  std::optional<ChatRules> rules_;
  std::vector<int32_t> beginning_;  // of a text: BOS, or none
  std::optional<Model> model_;
  std::optional<Drafters> drafters_;
  Stats stats_;
  std::atomic<bool> cancelled_{false};
};

// Fails for an option that is none of these.
void CheckNames(const Json& options, const std::vector<std::string>& names);

}  // namespace minicpm
