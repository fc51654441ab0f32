#include "steps.h"

#include <algorithm>
#include <utility>

#include "stats.h"

namespace minicpm {
namespace {

using Time = std::chrono::steady_clock::time_point;

double Seconds(Time from, Time to) { return std::chrono::duration<double>(to - from).count(); }

}  // namespace

Steps::Steps(Model* model, Drafters* drafters, const Speculation& options, std::optional<int64_t> limit,
             SpeculationStats* stats)
    : model_(model),
      drafters_(drafters),
      options_(options),
      drafting_(!drafters->empty() && options.speculate != "off"),
      left_(limit.value_or(model->context())),
      stats_(stats) {}

int64_t Steps::size() const { return model_->size() + (walk_ ? static_cast<int64_t>(walk_->round.path.size()) : 0); }

void Steps::Cached() {
  for (size_t drafter : drafters_->policy().Following(options_)) (*drafters_)[drafter].Cached();
}

const float* Steps::Next(int32_t id) {
  if (const float* logits = Followed(id)) return logits;
  --left_;
  return drafting_ ? Speculated(id) : Decode(id);
}

// The logits after one more token where the tree has them; else the tree is left.
const float* Steps::Followed(int32_t id) {
  std::optional<int32_t> child;
  if (walk_) child = walk_->round.draft.tree.Child(walk_->round.path.back(), id);
  if (!child) {
    Settle();
    return nullptr;
  }
  --left_;
  walk_->round.path.push_back(*child);
  return walk_->logits[static_cast<size_t>(*child)];
}

// Keeps the path that was followed; nothing else of the tree survives.
void Steps::Settle() {
  if (!walk_) return;
  Walk walk = std::move(*walk_);
  walk_.reset();
  double commit = 0;
  {
    Timing other(&walk.round.other_seconds);
    {
      Timing timing(&commit);
      model_->Commit(walk.round.path);
    }
    Cached();
  }
  drafters_->policy().Finished(walk.drafter, walk.round);
  stats_->Add(walk.round, commit);
}

void Steps::Close() {
  Settle();
  if (drafting_) stats_->decision = drafters_->policy().Describe();
}

const float* Steps::Decode(int32_t id) {
  ++stats_->plain_steps;
  return model_->Decode(id);
}

const float* Steps::Speculated(int32_t id) {
  Policy& policy = drafters_->policy();
  bool sleeps = policy.Sleeps(options_);
  if (!sleeps && std::min(left_, Room()) > 1) {
    std::vector<size_t> names = policy.Due(options_);
    if (const float* logits = names.empty() ? nullptr : Propose(names, id)) return logits;
  }
  Time start = Clock::now();
  const float* logits = Decode(id);
  Cached();
  if (!sleeps) policy.Decoded(Seconds(start, Clock::now()));
  return logits;
}

// Verifies the tree of the first drafter that has one worth it; nothing where there is none.
const float* Steps::Propose(const std::vector<size_t>& names, int32_t id) {
  Policy& policy = drafters_->policy();
  int64_t room = Room(), deepest = std::min(room, left_) - 1;
  Time start = Clock::now();
  const std::vector<int32_t>& history = History(id);
  for (size_t name : names) {
    Plan plan = policy.PlanOf(name, options_);
    plan.depth = std::min(plan.depth, deepest);
    Time drafting = Clock::now();
    std::optional<Draft> draft = (*drafters_)[name].Propose(history, plan);
    Time drafted = Clock::now();
    stats_->draft_seconds += Seconds(drafting, drafted);
    stats_->host_seconds += Seconds(start, drafting);
    policy.Drafted(name, draft, Seconds(drafting, drafted));
    std::optional<Draft> cut = draft ? policy.Cut(name, *draft, options_, room) : std::nullopt;
    if (cut && !(names.size() > 1 && policy.PrefersAnother(name, *cut))) {
      return Verify(name, *cut, Seconds(drafting, drafted), Seconds(drafted, Clock::now()));
    }
    policy.Missed(name, Seconds(start, drafted) - (draft ? draft->Reading() : 0));
    start = drafted;
  }
  stats_->host_seconds += Seconds(start, Clock::now());
  return nullptr;
}

const float* Steps::Verify(size_t drafter, const Draft& draft, double draft_seconds, double choose_seconds) {
  Round round{drafters_->NameOf(drafter), draft, {0}, draft_seconds, 0, choose_seconds};
  std::vector<const float*> logits;
  {
    Timing timing(&round.verify_seconds);
    logits = model_->Verify(draft.tree);
  }
  walk_ = Walk{drafter, std::move(round), std::move(logits)};
  return walk_->logits[0];
}

// The cached tokens, of which those seen before have not changed, and the root.
const std::vector<int32_t>& Steps::History(int32_t root) {
  const std::vector<int32_t>& tokens = model_->sequence().tokens();
  history_.resize(kept_);
  history_.insert(history_.end(), tokens.begin() + static_cast<ptrdiff_t>(kept_), tokens.end());
  kept_ = history_.size();
  history_.push_back(root);
  return history_;
}

}  // namespace minicpm
