#include "generation.h"

#include <algorithm>
#include <deque>

#include "steps.h"

namespace minicpm {
namespace {

class Generation {
 public:
  Generation(Model* model, Drafters* drafters, const Request& request, int64_t vocab_size, const TokenSink& sink,
             const std::atomic<bool>& stop, Stats* stats)
      : model_(model),
        request_(request),
        sink_(sink),
        stop_(stop),
        stats_(stats),
        sampler_(request.sampling, vocab_size, request.ids),
        steps_(model, drafters, request.speculation, request.max_tokens, &stats->speculation) {
    *stats = Stats{};
    stats->prompt_tokens = static_cast<int64_t>(request.ids.size());
    stats->context = model->context();
  }

  // False where it was stopped.
  bool Prefill(int64_t chunk) {
    Timing timing(&stats_->prefill_seconds);
    const std::vector<int32_t>& ids = request_.ids;
    stats_->cached_tokens = model_->Begin({ids.begin(), ids.end() - 1});  // the last one's logits are wanted
    steps_.Begin();
    bool sparse = model_->gears.Sparse(stats_->prompt_tokens);
    for (int64_t at = stats_->cached_tokens; at < stats_->prompt_tokens; at = model_->size()) {
      if (stop_) return false;
      int64_t end = std::min(at + chunk, stats_->prompt_tokens);
      logits_ = model_->Prefill({ids.begin() + at, ids.begin() + end}, sparse);
      steps_.Prefilled();
    }
    Note();
    return true;
  }

  // Why it ended.
  const char* Decode(const std::set<int32_t>& end_tokens) {
    const char* reason = Answer(end_tokens);
    Timing timing(&stats_->decode_seconds);
    steps_.Close();
    return reason;
  }

 private:
  const char* Answer(const std::set<int32_t>& end_tokens) {
    Force();
    for (;;) {
      if (stop_) return "cancelled";
      int32_t id = Next();
      if (end_tokens.count(id)) return "stop";
      sampler_.Accept(id);
      ++stats_->generated_tokens;
      if (sink_.feed(id)) return "stop";
      Force();
      if (request_.max_tokens && stats_->generated_tokens == *request_.max_tokens) return "length";
      if (steps_.size() == model_->context()) return "context";
      Append(id);
    }
  }

  void Force() {
    std::vector<int32_t> forced = sink_.forced();
    forced_.insert(forced_.end(), forced.begin(), forced.end());
  }

  int32_t Next() {
    if (forced_.empty()) {
      Timing timing(&stats_->decode_seconds);
      return sampler_.Sample(logits_);
    }
    int32_t id = forced_.front();
    forced_.pop_front();
    return id;
  }

  void Append(int32_t id) {
    Timing timing(&stats_->decode_seconds);
    logits_ = steps_.Next(id);
    ++stats_->decode_steps;
    Note();
  }

  void Note() {
    stats_->context_used = steps_.size();
    stats_->sparse = model_->gears.Sparse(steps_.size());
    Gears::Blocks blocks = model_->gears.At(steps_.size());
    stats_->blocks_read = blocks.read;
    stats_->blocks = blocks.present;
  }

  Model* model_;
  const Request& request_;
  const TokenSink& sink_;
  const std::atomic<bool>& stop_;
  Stats* stats_;
  Sampler sampler_;
  Steps steps_;
  std::deque<int32_t> forced_;
  const float* logits_ = nullptr;  // after the text
};

}  // namespace

void Generate(Model* model, Drafters* drafters, const Request& request, const std::set<int32_t>& end_tokens,
              int64_t vocab_size, int64_t chunk, const TokenSink& sink, const std::atomic<bool>& stop, Stats* stats) {
  Generation generation(model, drafters, request, vocab_size, sink, stop, stats);
  stats->finish_reason = generation.Prefill(chunk) ? generation.Decode(end_tokens) : "cancelled";
}

}  // namespace minicpm
