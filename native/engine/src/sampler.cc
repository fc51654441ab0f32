#include "sampler.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <numeric>

namespace minicpm {
namespace {

double Checked(const Json& value, double low, double high, bool closed) {
  double number = value.IsNumber() ? value.Number() : NAN;
  if (!(number >= low && number <= high) || (number == low && !closed)) {
    std::ostringstream range;
    range << "a number in " << (closed ? '[' : '(') << low << ", " << high << ']';
    value.Refuse(range.str());
  }
  return number;
}

// The largest logit's place, the first among equals.
size_t Best(const float* logits, size_t n) {
  size_t best = 0;
  for (size_t i = 0; i < n; ++i) {
    if (std::isnan(logits[i])) return i;
    if (logits[i] > logits[best]) best = i;
  }
  return best;
}

}  // namespace

Sampling Sampling::Of(const Json& options, const Sampling& defaults) {
  Sampling s = defaults;
  auto number = [&](const char* name, double* to, double low, double high, bool closed) {
    if (std::optional<Json> value = options.Find(name)) *to = Checked(*value, low, high, closed);
  };
  number("temperature", &s.temperature, 0, 100, true);
  number("top_p", &s.top_p, 0, 1, false);
  number("min_p", &s.min_p, 0, 1, true);
  number("repetition_penalty", &s.repetition_penalty, 0, 100, false);
  number("presence_penalty", &s.presence_penalty, -100, 100, true);
  number("frequency_penalty", &s.frequency_penalty, -100, 100, true);
  if (std::optional<Json> top_k = options.Find("top_k")) s.top_k = top_k->Whole(0, INT64_MAX);
  if (std::optional<Json> seed = options.Find("seed")) s.seed = static_cast<uint64_t>(seed->Whole(0, INT64_MAX));
  return s;
}

Sampling Sampling::Published(const std::optional<Json>& generation_config) {
  Sampling published;
  if (!generation_config) return published;
  std::optional<Json> do_sample = generation_config->Find("do_sample");
  if (!do_sample || do_sample->Bool()) {
    Sampling read = Of(*generation_config, published);
    read.presence_penalty = read.frequency_penalty = 0;
    read.seed.reset();
    return read;
  }
  published.temperature = 0;  // a greedy answer reads no number but the penalty
  if (std::optional<Json> penalty = generation_config->Find("repetition_penalty")) {
    published.repetition_penalty = Checked(*penalty, 0, 100, false);
  }
  return published;
}

Sampler::Sampler(const Sampling& sampling, int64_t vocab_size, const std::vector<int32_t>& prompt)
    : sampling_(sampling),
      vocab_size_(static_cast<size_t>(vocab_size)),
      random_(sampling.seed),
      counts_(vocab_size_),
      seen_(vocab_size_) {
  for (int32_t id : prompt) seen_[static_cast<size_t>(id)] = true;
}

void Sampler::Accept(int32_t id) {
  ++counts_[static_cast<size_t>(id)];
  seen_[static_cast<size_t>(id)] = true;
}

int32_t Sampler::Sample(const float* logits) {
  size_t best = Best(logits, vocab_size_);
  if (!std::isfinite(logits[best])) {
    Fail(MINICPM_BUNDLE,
         "the largest logit is not a finite number; the weights are damaged: compile the checkpoint again");
  }
  if (sampling_.temperature == 0 && !sampling_.Penalises()) return static_cast<int32_t>(best);
  std::vector<double> scores = Penalised(logits);
  if (sampling_.temperature == 0) {
    return static_cast<int32_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
  }
  std::vector<Choice> choices = TopK(scores);
  CutTail(&choices);
  return choices.size() == 1 ? choices[0].id : Draw(choices);
}

std::vector<double> Sampler::Penalised(const float* logits) const {
  std::vector<double> scores(logits, logits + vocab_size_);
  if (!sampling_.Penalises()) return scores;
  for (size_t i = 0; i < vocab_size_; ++i) {
    if (!seen_[i]) continue;
    double penalty = sampling_.repetition_penalty, score = scores[i];
    score = score < 0 ? score * penalty : std::min(score / penalty, DBL_MAX);
    scores[i] = score - sampling_.presence_penalty * (counts_[i] > 0) - sampling_.frequency_penalty * counts_[i];
  }
  return scores;
}

// The k largest, of equals the lower ids, in the order of their ids, with exp((score - the largest) / temperature).
std::vector<Sampler::Choice> Sampler::TopK(const std::vector<double>& scores) const {
  std::vector<int32_t> ids(scores.size());
  std::iota(ids.begin(), ids.end(), 0);
  if (sampling_.top_k > 0 && sampling_.top_k < static_cast<int64_t>(ids.size())) {
    auto end = ids.begin() + static_cast<ptrdiff_t>(sampling_.top_k);
    std::nth_element(ids.begin(), end, ids.end(), [&](int32_t a, int32_t b) {
      double x = scores[static_cast<size_t>(a)], y = scores[static_cast<size_t>(b)];
      return x != y ? x > y : a < b;
    });
    ids.erase(end, ids.end());
    std::sort(ids.begin(), ids.end());
  }
  double largest = -INFINITY;
  for (int32_t id : ids) largest = std::max(largest, scores[static_cast<size_t>(id)]);
  std::vector<Choice> choices;
  choices.reserve(ids.size());
  for (int32_t id : ids) {
    choices.push_back({id, std::exp((scores[static_cast<size_t>(id)] - largest) / sampling_.temperature)});
  }
  return choices;
}

// Top-p: from the likeliest down, a token stays if those before it have less than this share together. Then min-p.
void Sampler::CutTail(std::vector<Choice>* choices) const {
  double total = 0;
  for (const Choice& choice : *choices) total += choice.share;
  if (sampling_.top_p == 1 && sampling_.min_p == 0) {
    for (Choice& choice : *choices) choice.share /= total;
    return;
  }
  // fewer to sort: those of less than (1 - top_p) / n together weigh less than 1 - top_p, so all lie behind the cut
  double least = std::max(0.5 * (1 - sampling_.top_p) / static_cast<double>(choices->size()) * total, sampling_.min_p);
  choices->erase(std::remove_if(choices->begin(), choices->end(), [&](const Choice& c) { return c.share < least; }),
                 choices->end());
  std::stable_sort(choices->begin(), choices->end(), [](const Choice& a, const Choice& b) { return a.share > b.share; });
  double before = 0, kept = 0;
  size_t n = 0;
  for (; n < choices->size() && (n == 0 || sampling_.top_p == 1 || before < sampling_.top_p); ++n) {
    (*choices)[n].share /= total;
    before += (*choices)[n].share;
  }
  choices->resize(n);
  for (const Choice& choice : *choices) kept += choice.share;
  for (Choice& choice : *choices) choice.share /= kept;
}

int32_t Sampler::Draw(const std::vector<Choice>& choices) {
  double sum = 0;
  for (const Choice& choice : choices) sum += choice.share;
  double drawn = random_.Next() * sum, edge = 0;
  for (size_t i = 0; i + 1 < choices.size(); ++i) {
    edge += choices[i].share;
    if (drawn < edge) return choices[i].id;
  }
  return choices.back().id;
}

}  // namespace minicpm
