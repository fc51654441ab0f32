#include "drafters.h"

#include <algorithm>

#include "eagle.h"
#include "ngram.h"

namespace minicpm {

Drafters::Drafters(const Bundle& bundle, Model* model) : bundle_(bundle.folder), recurrent_(model->recurrent()) {
  if (!recurrent_) {
    names_.push_back("ngram");
    all_.push_back(std::make_unique<NgramDrafter>());
  }
  if (!recurrent_ && bundle.manifest.draft) {
    names_.push_back("eagle");
    all_.push_back(std::make_unique<EagleDrafter>(bundle, model));
  }
  policy_ = std::make_unique<Policy>(names_);
}

void Drafters::Check(const Speculation& options) const {
  const std::string& asked = options.speculate;
  if (asked == "auto" || asked == "off" || std::count(names_.begin(), names_.end(), asked)) return;
  if (recurrent_) {
    Fail(MINICPM_REQUEST, "speculate is \"", asked, "\", and ", bundle_,
         " keeps state per sequence, which can't take back a wrong guess; leave speculation off");
  }
  Fail(MINICPM_REQUEST, "speculate is \"", asked, "\", and ", bundle_,
       " has no draft head; compile it with one: minicpm-mlc compile CHECKPOINT --draft HEAD");
}

void Drafters::Begin() {
  policy_->Begin();
  for (const std::unique_ptr<Drafter>& drafter : all_) drafter->Begin();
}

}  // namespace minicpm
