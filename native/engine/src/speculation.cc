#include "speculation.h"

#include <algorithm>
#include <sstream>

namespace minicpm {
namespace {

constexpr int64_t kMostTopK = 16;  // guesses of a draft head after each row

std::optional<int64_t> Count(const Json& options, const char* name, int64_t most) {
  std::optional<Json> count = options.Find(name);
  if (!count) return std::nullopt;
  return count->Whole(1, most);
}

std::string ListOf(const std::vector<int64_t>& values) {
  std::ostringstream list;
  for (int64_t value : values) list << (list.tellp() ? ", " : "") << value;
  return "[" + list.str() + "]";
}

std::string ObjectOf(const std::map<std::string, int64_t>& values) {
  std::ostringstream object;
  for (const auto& [name, value] : values) object << (object.tellp() ? ", " : "") << '"' << name << "\": " << value;
  return "{" + object.str() + "}";
}

}  // namespace

Speculation Speculation::Of(const Json& options) {
  Speculation asked;
  if (std::optional<Json> speculate = options.Find("speculate")) {
    asked.speculate = speculate->Text();
    bool known = asked.speculate == "auto" || asked.speculate == "off" || asked.speculate == "ngram" ||
                 asked.speculate == "eagle";
    if (!known) speculate->Refuse("auto, off, ngram or eagle");
  }
  asked.tree_size = Count(options, "tree_size", kMostNodes);
  asked.draft_depth = Count(options, "draft_depth", kMostLevels);
  asked.draft_top_k = Count(options, "draft_top_k", kMostTopK);
  int64_t stepped = asked.draft_top_k.value_or(1) * (asked.draft_depth.value_or(1) - 1);
  if (stepped > kMostNodes) {
    Fail(MINICPM_REQUEST, "draft_top_k ", *asked.draft_top_k, " at draft_depth ", *asked.draft_depth, " drafts ", stepped,
         " nodes before the last level; at most ", kMostNodes, " fit: lower one of them");
  }
  return asked;
}

void SpeculationStats::Add(const Round& round, double commit) {
  std::vector<int32_t> depths = round.draft.tree.Depths();
  int64_t depth = *std::max_element(depths.begin(), depths.end());
  ++rounds;
  nodes += round.draft.tree.size();
  accepted += round.accepted();
  ++drafters[round.drafter];
  auto count = [](std::vector<int64_t>* counts, int64_t reached) {
    if (static_cast<int64_t>(counts->size()) < reached) counts->resize(static_cast<size_t>(reached));
    for (int64_t level = 0; level < reached; ++level) ++(*counts)[static_cast<size_t>(level)];
  };
  count(&drafted_at, depth);
  count(&accepted_at, round.accepted());
  accepted_at.resize(drafted_at.size());
  verify_seconds += round.verify_seconds;
  commit_seconds += commit;
  host_seconds += round.other_seconds - commit;
}

std::string SpeculationStats::ToJson() const {
  double length = rounds ? 1 + static_cast<double>(accepted) / static_cast<double>(rounds) : 0;
  std::ostringstream json;
  json << "{\"decision\": " << Json::Quote(decision) << ", \"rounds\": " << rounds
       << ", \"plain_steps\": " << plain_steps << ", \"nodes\": " << nodes << ", \"accepted\": " << accepted
       << ", \"accept_length\": " << length << ", \"drafters\": " << ObjectOf(drafters)
       << ", \"drafted_at\": " << ListOf(drafted_at) << ", \"accepted_at\": " << ListOf(accepted_at)
       << ", \"draft_seconds\": " << draft_seconds << ", \"verify_seconds\": " << verify_seconds
       << ", \"commit_seconds\": " << commit_seconds << ", \"host_seconds\": " << host_seconds << "}";
  return json.str();
}

}  // namespace minicpm
