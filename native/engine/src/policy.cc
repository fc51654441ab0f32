#include "policy.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

namespace minicpm {
namespace {

// What trying a drafter that did not pay may cost, as a share of the decoding time: in the long run, at first, and where
// even drafts that were accepted whole would not pay.
constexpr double kTriesShare = 0.005, kFirstTriesShare = 0.05, kHopelessShare = 0.001;
// Decode steps that one try counts as lost at most; what took longer was slow for being the first.
constexpr double kMostLossSteps = 4;
constexpr double kFreeLossSteps = 0.003;  // decode steps: a drafter that loses no more is asked at every token
constexpr double kSwitchRatio = 1.1;      // one drafter is left for another that is this times as fast
constexpr double kLeastSpeedUp = 1.02;    // a tree must be expected to be this times as fast as decoding
// At most so many rounds after a plain step was measured, another one is; and per plain step measured so far, because the
// first ones may be slow.
constexpr int64_t kRefreshRounds = 64, kRoundsPerStep = 2;
constexpr double kNgramChances[] = {0.3, 0.5, 0.7, 0.85};  // of each level, by kind of draft
constexpr int64_t kTopK = 4;                               // guesses after a token
constexpr int64_t kTreeNodes[] = {2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 56, 64};
constexpr int64_t kExploreNodes = 4;   // of a tree that is not expected to pay
constexpr int64_t kTryLevels = 2;      // of a drafter that has not paid yet
constexpr int64_t kRechooseRounds = 4;  // after which the best depth is chosen again
constexpr int64_t kFollowTokens = 128;  // that a drafter has seen, at least, before it is asked again
constexpr int64_t kReadTokens = 64;     // of a text that a drafter reads before it guesses

bool IsAuto(const Speculation& options) { return options.speculate == "auto"; }

}  // namespace

void Backoff::Lost(double steps, bool hopeless) {
  double soonest = steps / (hopeless ? kHopelessShare : kFirstTriesShare);
  double latest = steps / (hopeless ? kHopelessShare : kTriesShare);
  double wait = std::min(std::max(2.0 * static_cast<double>(wait_), soonest), latest);
  wait_ = std::max<int64_t>(1, std::llrint(wait));
  waited_ = 0;
}

void Backoff::Won() {
  wait_ = 1;
  waited_ = 0;
}

Policy::Policy(const std::vector<std::string>& names) {
  for (const std::string& name : names) arms_.emplace_back().name = name;
}

void Policy::Begin() {
  double decode = costs_.decode.value;
  for (Arm& arm : arms_) {
    if (decode && arm.saved < 0 && arm.reading.samples && IsWorth(arm)) {
      arm.gain = std::max(arm.saved, -kMostLossSteps * decode);
      NoteLoss(&arm);
    }
    arm.saved = std::max(0.0, arm.saved / 2);
  }
  cold_ = true;
}

bool Policy::Sleeps(const Speculation& options) {
  if (!asleep_ || !IsAuto(options)) return false;
  --asleep_;
  return true;
}

std::vector<size_t> Policy::Following(const Speculation& options) const {
  if (asleep_ && IsAuto(options)) return following_;
  std::vector<size_t> all(arms_.size());
  std::iota(all.begin(), all.end(), size_t{0});
  return all;
}

std::vector<size_t> Policy::Due(const Speculation& options) {
  if (options.speculate == "off" || options.tree_size == 1) return {};  // a tree of its root alone is a plain step
  std::vector<size_t> forced;
  for (size_t i = 0; i < arms_.size(); ++i) {
    if (arms_[i].name == options.speculate) forced.push_back(i);
  }
  int64_t measured = costs_.decode.samples;
  if (measured < 2 || since_decode_ >= std::min(kRefreshRounds, kRoundsPerStep * measured)) {
    return options.tree_size ? forced : std::vector<size_t>{};
  }
  if (!IsAuto(options)) return forced;
  std::vector<size_t> due;
  for (size_t i = 0; i < arms_.size(); ++i) {
    if (IsWorth(arms_[i]) || arms_[i].tries.Due()) due.push_back(i);
  }
  if (due.empty()) Sleep();
  return due;
}

// Until just before the next of the drafters is due; those that are due soon after it go on following the text.
void Policy::Sleep() {
  int64_t soonest = arms_.empty() ? kRefreshRounds : INT64_MAX;
  for (const Arm& arm : arms_) soonest = std::min(soonest, arm.tries.left());
  asleep_ = std::max<int64_t>(0, soonest - 1);
  following_.clear();
  for (size_t i = 0; i < arms_.size(); ++i) {
    if (arms_[i].tries.left() - asleep_ < kFollowTokens) following_.push_back(i);
    arms_[i].tries.Pass(asleep_);
  }
}

Plan Policy::PlanOf(size_t drafter, const Speculation& options) {
  Arm& arm = arms_[drafter];
  int64_t top_k = options.draft_top_k.value_or(kTopK);
  if (arm.name == "ngram") return {options.draft_depth.value_or(kMostLevels), top_k};
  bool trying = IsAuto(options) && arm.gain <= 0;
  int64_t depth = options.draft_depth ? *options.draft_depth : trying ? kTryLevels : BestDepth(&arm);
  bool fixed = options.draft_depth || !costs_.decode.value;
  double floor = fixed ? 0 : std::min(0.5, arm.level.value / costs_.decode.value);
  return {std::min(depth, 1 + kMostNodes / top_k), top_k, floor};
}

std::optional<Draft> Policy::Cut(size_t drafter, const Draft& whole, const Speculation& options, int64_t room) {
  Arm& arm = arms_[drafter];
  Draft draft = whole.Likeliest(kMostNodes);
  int64_t limit = std::min({room, draft.tree.size(), options.tree_size.value_or(kMostNodes)});
  if (limit < 2) return std::nullopt;
  if (options.tree_size) return draft.Likeliest(limit);
  std::vector<double> reach = AcceptanceOf(&arm, draft.kind).Reach(draft), falling = reach;
  std::sort(falling.begin(), falling.end(), std::greater<>());
  int64_t best = 0, counted = 0;
  double tokens = 0, most = 0, best_tokens = 0, best_seconds = 0;
  for (int64_t size : kTreeNodes) {
    if (size > limit) break;
    for (; counted < size; ++counted) tokens += falling[static_cast<size_t>(counted)];
    double seconds = costs_.Verify(static_cast<double>(size)), rate = tokens / (seconds + arm.level.value);
    if (best && rate <= most) continue;
    best = size;
    most = rate;
    best_tokens = tokens;
    best_seconds = seconds;
  }
  bool pays = best_tokens * costs_.decode.value >= kLeastSpeedUp * best_seconds;
  if (pays || !IsAuto(options)) return draft.Likeliest(best, reach);
  if (arm.checks[draft.kind].Due()) return draft.Likeliest(std::min(kExploreNodes, limit), reach);
  return std::nullopt;
}

bool Policy::PrefersAnother(size_t drafter, const Draft& draft) {
  std::vector<double> reach = AcceptanceOf(&arms_[drafter], draft.kind).Reach(draft);
  double expected = std::accumulate(reach.begin(), reach.end(), 0.0);
  double rate = expected / costs_.Verify(static_cast<double>(draft.tree.size()));
  return std::any_of(arms_.begin() + static_cast<ptrdiff_t>(drafter) + 1, arms_.end(), [&](const Arm& other) {
    return IsWorth(other) && other.Rate() > kSwitchRatio * rate;
  });
}

void Policy::Decoded(double seconds) {
  if (cold_) {
    cold_ = false;
    return;
  }
  if (2 * seconds < costs_.decode.value) {
    // what was measured before was held up, so no gain over it was real
    costs_.decode = Average();
    for (Arm& arm : arms_) arm.gain = std::min(arm.gain, 0.0);
  }
  costs_.decode.Add(seconds);
  since_decode_ = 0;
}

void Policy::Drafted(size_t drafter, const std::optional<Draft>& draft, double seconds) {
  if (!draft) return;
  Arm& arm = arms_[drafter];
  int64_t levels = draft->levels - (draft->Reading() > 0);
  if (levels) arm.level.Add((seconds - draft->Reading()) / static_cast<double>(levels));
  if (draft->read_tokens >= kFreeRows && arm.asked) {  // the first time is slow for being the first
    arm.reading.Add(draft->read_seconds / static_cast<double>(draft->read_tokens));
  }
  arm.saved -= draft->Reading();
}

void Policy::Finished(size_t drafter, const Round& round) {
  Arm& arm = arms_[drafter];
  double decode = costs_.decode.value, tokens = static_cast<double>(round.path.size());
  ++since_decode_;
  double spent = costs_.Verified(round.draft.tree.size(), round.verify_seconds + round.other_seconds);
  AcceptanceOf(&arm, round.draft.kind).Add(round.draft, round.accepted());
  double drafting = round.draft_seconds - round.draft.Reading();
  arm.round.Add(spent + drafting);
  arm.tokens.Add(tokens);
  arm.nodes.Add(static_cast<double>(round.draft.tree.size()));
  if (!decode) return;
  double saved = tokens * decode - spent;
  Backoff& check = arm.checks[round.draft.kind];
  if (saved > 0) {
    check.Won();
  } else {
    check.Lost(std::min(kMostLossSteps, -saved / decode), false);
  }
  NoteGain(&arm, saved - drafting);
}

std::string Policy::Describe() const {
  std::string tried;
  const Arm* best = nullptr;
  for (const Arm& arm : arms_) {
    if (!arm.Rate()) continue;
    char text[96];
    std::snprintf(text, sizeof text, "%s %.2fx with %.0f nodes", arm.name.c_str(), arm.Rate() * costs_.decode.value,
                  arm.nodes.value);
    tried += (tried.empty() ? "" : ", ") + std::string(text);
    if (IsWorth(arm) && (!best || arm.Rate() > best->Rate())) best = &arm;
  }
  return (best ? best->name : "off") + " (" + (tried.empty() ? "nothing drafted yet" : tried) + ")";
}

void Policy::NoteGain(Arm* arm, double gain) {
  double decode = costs_.decode.value;
  arm->saved += gain;
  gain = std::max(gain, -kMostLossSteps * decode);
  bool was_good = IsWorth(*arm);
  ++arm->asked;
  double keep = std::min(kPastWeight, 1 - 1 / static_cast<double>(arm->asked));
  arm->gain = gain > 0 && !was_good ? gain : keep * arm->gain + (1 - keep) * gain;
  if (!decode) return;
  if (!IsWorth(*arm)) {
    NoteLoss(arm);
  } else if (arm->saved >= 0) {
    arm->tries.Won();
  }
}

// The next try has to wait for what this one cost, and for what it will have to read.
void Policy::NoteLoss(Arm* arm) {
  double lost = static_cast<double>(kReadTokens) * arm->reading.value - arm->gain;
  arm->tries.Lost(lost / costs_.decode.value, IsHopeless(*arm));
}

// Whether even chains that are accepted whole are not worth the time of a drafter that runs a model.
bool Policy::IsHopeless(const Arm& arm) const {
  if (arm.name == "ngram" || arm.level.samples < 2) return false;
  for (int64_t depth = 1; depth <= kMostLevels / 2; ++depth) {
    double tokens = static_cast<double>(depth + 1);
    double seconds = static_cast<double>(depth) * arm.level.value + costs_.Verify(tokens);
    if (tokens * costs_.decode.value >= kLeastSpeedUp * seconds) return false;
  }
  return true;
}

bool Policy::IsWorth(const Arm& arm) const { return arm.gain >= -kFreeLossSteps * costs_.decode.value; }

Acceptance& Policy::AcceptanceOf(Arm* arm, int kind) {
  double prior = arm->name == "ngram" ? kNgramChances[kind] : 1;
  return arm->acceptance.try_emplace(kind, prior).first->second;
}

// Of 1 to kMostLevels / 2 levels, those with most tokens per second; before anything was measured, 4.
int64_t Policy::BestDepth(Arm* arm) {
  if (arm->acceptance.empty()) return 4;
  if (arm->depth && arm->round.samples % kRechooseRounds) return arm->depth;
  std::vector<double> survival = AcceptanceOf(arm, 0).Survival();
  double tokens = survival[0], most = -1;
  for (int64_t depth = 1; depth <= kMostLevels / 2; ++depth) {
    tokens += survival[static_cast<size_t>(depth)];
    double seconds = static_cast<double>(depth) * arm->level.value + costs_.Verify(std::max(2.0, arm->nodes.value));
    double rate = tokens / std::max(seconds, 1e-9);
    if (rate <= most) continue;
    most = rate;
    arm->depth = depth;
  }
  return arm->depth;
}

}  // namespace minicpm
