// One request, from its prompt's token ids to tokens.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <vector>

#include "drafters.h"
#include "model.h"
#include "sampler.h"
#include "stats.h"

namespace minicpm {

struct Request {
  std::vector<int32_t> ids;
  Sampling sampling;
  std::optional<int64_t> max_tokens;
  Speculation speculation;
};

// Who takes the tokens. Each is told before the next one is computed.
struct TokenSink {
  std::function<bool(int32_t)> feed;              // whether no more are wanted
  std::function<std::vector<int32_t>()> forced;  // tokens that come next in place of drawn ones
};

// Answers the request on the model's sequence, until an end token, a limit, or `stop` is set. `stats` are its figures.
void Generate(Model* model, Drafters* drafters, const Request& request, const std::set<int32_t>& end_tokens,
              int64_t vocab_size, int64_t chunk, const TokenSink& sink, const std::atomic<bool>& stop, Stats* stats);

}  // namespace minicpm
