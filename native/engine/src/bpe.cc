#include "bpe.h"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <queue>
#include <tuple>

#include "text.h"

namespace minicpm {
namespace {

uint64_t PairOf(int32_t left, int32_t right) { return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right); }

bool Flag(const Json& model, const char* name) {
  std::optional<Json> flag = model.Find(name);
  return flag && flag->Bool();
}

}  // namespace

void FailForeign(int64_t id, int64_t vocab_size) {
  Fail(MINICPM_BUNDLE, "tokenizer.json has token id ", id, ", but the model has ", vocab_size,
       " tokens; it belongs to another model; compile the checkpoint again");
}

Bpe::Bpe(const Json& model, int64_t vocab_size) {
  std::optional<Json> type = model.Find("type");
  if (!type || type->Text() != "BPE") (type ? *type : model).Refuse("a BPE model");
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix", "dropout"}) {
    std::optional<Json> value = model.Find(name);
    if (value && !(value->IsText() && value->Text().empty())) value->Refuse("null");
  }
  std::vector<std::pair<std::string, int64_t>> vocab = model.At("vocab").Numbers();
  ids_.reserve(vocab.size());
  for (const auto& [text, id] : vocab) {
    if (id < 0 || id >= vocab_size) FailForeign(id, vocab_size);
    if (texts_.size() <= static_cast<size_t>(id)) texts_.resize(static_cast<size_t>(id) + 1);
    texts_[static_cast<size_t>(id)] = text;
    ids_.emplace(text, static_cast<int32_t>(id));
  }
  known_.resize(texts_.size());
  for (const auto& entry : ids_) known_[static_cast<size_t>(entry.second)] = true;
  ReadMerges(model.At("merges"));
  if (std::optional<Json> unknown = model.Find("unk_token")) unknown_ = IdOf(unknown->Text());
  fuse_unknown_ = Flag(model, "fuse_unk");
  byte_fallback_ = Flag(model, "byte_fallback");
  ignore_merges_ = Flag(model, "ignore_merges");
}

void Bpe::ReadMerges(const Json& merges) {
  std::vector<std::pair<std::string, std::string>> pairs = merges.Pairs();
  merges_.reserve(pairs.size());
  for (size_t rank = 0; rank < pairs.size(); ++rank) {
    const auto& [left, right] = pairs[rank];
    int32_t a = IdOf(left), b = IdOf(right), both = IdOf(left + right);
    if (a < 0 || b < 0 || both < 0) merges.Refuse("pairs of tokens of the vocabulary, which " + left + right + " isn't");
    merges_[PairOf(a, b)] = {static_cast<int32_t>(rank), both};
  }
}

const std::string* Bpe::TextOf(int32_t id) const {
  size_t at = static_cast<size_t>(id);
  return id >= 0 && at < texts_.size() && known_[at] ? &texts_[at] : nullptr;
}

int32_t Bpe::IdOf(const std::string& text) const {
  auto found = ids_.find(text);
  return found == ids_.end() ? -1 : found->second;
}

const Bpe::Merge* Bpe::Find(int32_t left, int32_t right) const {
  auto found = merges_.find(PairOf(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

std::vector<Symbol> Bpe::Encode(std::string_view word) const {
  if (ignore_merges_) {
    int32_t whole = IdOf(std::string(word));
    if (whole >= 0) return {{whole, word.size()}};
  }
  std::vector<Symbol> symbols = Characters(word);
  Join(&symbols);
  return symbols;
}

std::vector<Symbol> Bpe::Characters(std::string_view word) const {
  std::vector<Symbol> symbols;
  std::optional<Symbol> unknown;
  for (size_t at = 0; at < word.size();) {
    std::string_view character = word.substr(at, CharacterAt(word, at).bytes);
    at += character.size();
    int32_t id = IdOf(std::string(character));
    if (id < 0 && byte_fallback_ && AppendBytes(character, &symbols)) continue;
    if (id < 0 && unknown_ < 0) continue;
    if (id < 0 && unknown && fuse_unknown_) {
      unknown->bytes += character.size();
      continue;
    }
    if (unknown) symbols.push_back(*unknown);
    unknown.reset();
    if (id < 0) {
      unknown = Symbol{unknown_, character.size()};
    } else {
      symbols.push_back({id, character.size()});
    }
  }
  if (unknown) symbols.push_back(*unknown);
  return symbols;
}

// A character as tokens of its bytes, <0xE2>; false where one of them is missing. Its bytes count for the first.
bool Bpe::AppendBytes(std::string_view character, std::vector<Symbol>* symbols) const {
  std::vector<Symbol> bytes;
  for (char byte : character) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", static_cast<uint8_t>(byte));
    int32_t id = IdOf(name);
    if (id < 0) return false;
    bytes.push_back({id, 1});
  }
  symbols->insert(symbols->end(), bytes.begin(), bytes.end());
  return true;
}

// Joins the pair of the lowest rank, the leftmost of equals, until there is none.
void Bpe::Join(std::vector<Symbol>* symbols) const {
  struct Node {
    Symbol symbol;
    int64_t before, after;  // -1: none
    bool gone = false;
  };
  using Candidate = std::tuple<int32_t, int64_t, int32_t>;  // rank, place of the left one, what they make
  std::vector<Node> nodes;
  for (const Symbol& symbol : *symbols) {
    int64_t i = static_cast<int64_t>(nodes.size());
    nodes.push_back({symbol, i - 1, i + 1});
  }
  if (nodes.empty()) return;
  nodes.back().after = -1;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  auto offer = [&](int64_t left) {
    if (left < 0 || nodes[left].after < 0) return;
    const Merge* merge = Find(nodes[left].symbol.id, nodes[nodes[left].after].symbol.id);
    if (merge) queue.push({merge->rank, left, merge->id});
  };
  for (size_t i = 0; i + 1 < nodes.size(); ++i) offer(static_cast<int64_t>(i));
  while (!queue.empty()) {
    auto [rank, at, id] = queue.top();
    queue.pop();
    Node& left = nodes[at];
    if (left.gone || left.after < 0) continue;
    Node& right = nodes[left.after];
    const Merge* merge = Find(left.symbol.id, right.symbol.id);
    if (!merge || merge->id != id) continue;  // one of them was joined meanwhile
    left.symbol = {id, left.symbol.bytes + right.symbol.bytes};
    right.gone = true;
    left.after = right.after;
    if (left.after >= 0) nodes[left.after].before = at;
    offer(left.before);
    offer(at);
  }
  symbols->clear();
  for (const Node& node : nodes) {
    if (!node.gone) symbols->push_back(node.symbol);
  }
}

}  // namespace minicpm
