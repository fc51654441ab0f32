#include "eagle.h"

#include <algorithm>
#include <utility>

#include "stats.h"

namespace minicpm {
namespace {

constexpr int64_t kWindowTokens = 1024;  // that the head sees: MiniCPM4's report finds that a window helps
constexpr int64_t kReadTokens = 64;      // of a longer text that the head reads at once, at least

// The head's hidden states of one level, from which the next goes on.
class HeadWalk {
 public:
  HeadWalk(DraftHead* head, std::vector<float> hidden)
      : head_(head), hidden_(std::move(hidden)), width_(hidden_.size()) {}

  // What comes after each token of a level, `rows` the nodes of the level before that they follow.
  Guesses Step(const std::vector<int32_t>& ids, const std::vector<int32_t>& rows) {
    std::vector<float> hidden;
    std::vector<int32_t> parents;
    for (int32_t row : rows) {
      auto begin = hidden_.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(row) * width_);
      hidden.insert(hidden.end(), begin, begin + static_cast<ptrdiff_t>(width_));
      parents.push_back(first_ + row);
    }
    Proposed proposed = head_->Step(ids, hidden, parents);
    first_ = first_ < 0 ? 0 : first_ + static_cast<int32_t>(hidden_.size() / width_);
    hidden_ = std::move(proposed.hidden);
    return proposed.guesses;
  }

 private:
  DraftHead* head_;
  std::vector<float> hidden_;
  size_t width_;        // of one row; Extend gives one
  int32_t first_ = -1;  // number of the level's first node; the row that Extend gave is no node
};

}  // namespace

EagleDrafter::EagleDrafter(const Bundle& bundle, Model* model)
    : model_(model),
      head_(bundle, model, kWindowTokens),
      page_size_(bundle.manifest.page_size),
      most_(kReadTokens + bundle.manifest.page_size) {}

void EagleDrafter::Begin() {
  int64_t shared = CommonPrefix(tokens_, model_->sequence().tokens());
  int64_t lost = std::max<int64_t>(0, end_ - shared) * width_, kept = static_cast<int64_t>(features_.size()) - lost;
  features_.resize(static_cast<size_t>(std::max<int64_t>(0, kept)));
  end_ = std::min(end_, shared);
  shared_ = shared;
  cached_ = model_->size();
}

void EagleDrafter::Cached() {
  const Features& features = model_->features();
  int64_t n = static_cast<int64_t>(features.rows.size());
  Follow();
  width_ = features.width;
  if (end_ != model_->size() - n) features_.clear();  // tokens in between were not seen here
  end_ = model_->size();
  for (int64_t i = std::max<int64_t>(0, n - most_); i < n; ++i) {
    const float* row = features.rows[static_cast<size_t>(i)];
    features_.insert(features_.end(), row, row + width_);
  }
  int64_t excess = static_cast<int64_t>(features_.size()) - most_ * width_;
  if (excess > most_ * width_) features_.erase(features_.begin(), features_.begin() + excess);
}

// Takes in what the text has become; of the head's rows those stay whose tokens are still there.
void EagleDrafter::Follow() {
  const std::vector<int32_t>& tokens = model_->sequence().tokens();
  if (shared_) {
    int64_t shared = CommonPrefix(tokens_, tokens);
    tokens_.resize(static_cast<size_t>(shared));
    read_ = head_.Truncate(std::min(read_, std::max<int64_t>(0, shared - 1)));
    if (!read_) read_ = head_.Adopt(cached_);
    shared_.reset();
  }
  if (tokens.size() > tokens_.size()) tokens_.insert(tokens_.end(), tokens.begin() + tokens_.size(), tokens.end());
}

// The features to read, float32 [n, F]: all, or of many those of the last tokens and what is before them in their page.
std::vector<float> EagleDrafter::Unread() const {
  int64_t lacking = end_ - read_, n = std::min(lacking, static_cast<int64_t>(features_.size()) / width_);
  if (n > most_) n = end_ - (end_ - kReadTokens) / page_size_ * page_size_;
  std::vector<float> unread(features_.end() - n * width_, features_.end());
  // a row whose next token is another one now: better without features than a gap
  if (n == lacking - 1) unread.insert(unread.begin(), static_cast<size_t>(width_), 0.0f);
  return unread;
}

std::optional<Draft> EagleDrafter::Propose(const std::vector<int32_t>& history, const Plan& plan) {
  int64_t room = std::min(model_->sequence().Room(), kMostNodes);
  Follow();
  if (features_.empty() || end_ != model_->size() || !room) return std::nullopt;
  int32_t root = history.back();
  std::vector<float> unread = Unread();
  double seconds = 0;
  Proposed proposed;
  {
    Timing timing(&seconds);
    proposed = head_.Extend(root, unread, width_);
  }
  read_ = end_;
  tokens_.resize(static_cast<size_t>(end_));
  tokens_.push_back(root);
  HeadWalk walk(&head_, proposed.hidden);
  auto step = [&](const std::vector<int32_t>& ids, const std::vector<int32_t>& rows) { return walk.Step(ids, rows); };
  Plan fitting = plan;
  fitting.depth = std::min(plan.depth, 1 + room / plan.top_k);
  Draft draft = Expand(root, proposed.guesses, step, fitting);
  draft.read_tokens = static_cast<int64_t>(unread.size()) / width_;
  draft.read_seconds = seconds;
  return draft;
}

}  // namespace minicpm
