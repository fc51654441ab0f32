// Drafts of the bundle's own EAGLE head, which goes on from the model's features. As
// minicpm_mlc/runtime_py/speculative/eagle.py.
//
// Keeps the features of the latest tokens, whether the head has read them or not. The head's row i pairs the features of
// token i with token i + 1: it stands as long as both are the text's.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "draft_head.h"
#include "drafter.h"
#include "model.h"

namespace minicpm {

class EagleDrafter : public Drafter {
 public:
  EagleDrafter(const Bundle& bundle, Model* model);

  void Begin() override;
  void Cached() override;
  // EAGLE-2's tree; nothing where the model's features are missing, or the context has no room for the tree.
  std::optional<Draft> Propose(const std::vector<int32_t>& history, const Plan& plan) override;

 private:
  void Follow();
  std::vector<float> Unread() const;

  Model* model_;
  DraftHead head_;
  const int64_t page_size_, most_;
  int64_t width_ = 0;             // of the features of a token
  std::vector<float> features_;  // of the latest tokens
  int64_t end_ = 0;              // tokens that the model had when the last ones came
  int64_t read_ = 0;             // rows that the head has
  std::vector<int32_t> tokens_;  // the text as it was followed, with the root that was drafted from last
  std::optional<int64_t> shared_;  // how many of them a new call's text is known to begin with; nothing: no new call
  int64_t cached_ = 0;             // tokens that the new call's text began with, on whichever pages
};

}  // namespace minicpm
