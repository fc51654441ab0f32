// The engine's policy of speculation alone: a line of input is a call, a line of output what it gave. A draft is KIND LEVELS
// READ_TOKENS READ_SECONDS N, then N times PARENT REACH; its tokens are its nodes' numbers.
#include <iostream>
#include <sstream>
#include <string>

#include "policy.h"

namespace {

using namespace minicpm;

Draft DraftOf(std::istream& words) {
  Draft draft;
  size_t nodes;
  words >> draft.kind >> draft.levels >> draft.read_tokens >> draft.read_seconds >> nodes;
  for (size_t node = 0; node < nodes; ++node) {
    int32_t parent;
    double reach;
    words >> parent >> reach;
    draft.tree.tokens.push_back(static_cast<int32_t>(node));
    draft.tree.parents.push_back(parent);
    draft.reach.push_back(reach);
  }
  return draft;
}

// SPECULATE TREE_SIZE DRAFT_DEPTH DRAFT_TOP_K, 0 for what is not given.
Speculation SpeculationOf(std::istream& words) {
  Speculation asked;
  int64_t size, depth, top_k;
  words >> asked.speculate >> size >> depth >> top_k;
  if (size) asked.tree_size = size;
  if (depth) asked.draft_depth = depth;
  if (top_k) asked.draft_top_k = top_k;
  return asked;
}

template <typename Values>
std::string ListOf(const Values& values) {
  std::string list = "[";
  for (auto value : values) list += (list.size() > 1 ? ", " : "") + std::to_string(value);
  return list + "]";
}

std::string Call(Policy* policy, std::istream& words) {
  std::string verb;
  size_t drafter = 0;
  double seconds = 0;
  words >> verb;
  if (verb == "begin") policy->Begin();
  if (verb == "sleeps") return std::to_string(policy->Sleeps(SpeculationOf(words)));
  if (verb == "due") return ListOf(policy->Due(SpeculationOf(words)));
  if (verb == "following") return ListOf(policy->Following(SpeculationOf(words)));
  if (verb == "describe") return policy->Describe();
  if (verb == "decoded") {
    words >> seconds;
    policy->Decoded(seconds);
  }
  if (verb == "plan") {
    words >> drafter;
    Plan plan = policy->PlanOf(drafter, SpeculationOf(words));
    std::ostringstream text;
    text << plan.depth << " " << plan.top_k << " " << plan.floor;
    return text.str();
  }
  if (verb == "cut") {
    int64_t room;
    words >> drafter >> room;
    Speculation asked = SpeculationOf(words);
    std::optional<Draft> cut = policy->Cut(drafter, DraftOf(words), asked, room);
    return cut ? ListOf(cut->tree.tokens) : "none";
  }
  if (verb == "prefers") {
    words >> drafter;
    return std::to_string(policy->PrefersAnother(drafter, DraftOf(words)));
  }
  if (verb == "drafted") {
    words >> drafter >> seconds;
    policy->Drafted(drafter, DraftOf(words), seconds);
  }
  if (verb == "missed") {
    words >> drafter >> seconds;
    policy->Missed(drafter, seconds);
  }
  if (verb == "finished") {
    Round round;
    size_t accepted;
    words >> drafter >> round.draft_seconds >> round.verify_seconds >> round.other_seconds >> accepted;
    round.draft = DraftOf(words);
    round.path.resize(accepted + 1);
    policy->Finished(drafter, round);
  }
  return "done";
}

}  // namespace

int main() {
  Policy policy({"ngram", "eagle"});
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::cout << Call(&policy, words) << std::endl;
  }
  return 0;
}
