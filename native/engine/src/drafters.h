// The drafters of an engine and what is known of them, kept from call to call.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bundle.h"
#include "drafter.h"
#include "model.h"
#include "policy.h"

namespace minicpm {

class Drafters {
 public:
  // The least expensive first: prompt lookup, and the bundle's draft head if it has one. None for a model whose state
  // can't go back.
  Drafters(const Bundle& bundle, Model* model);

  // Fails where the options name a drafter that is not there.
  void Check(const Speculation& options) const;

  bool empty() const { return all_.empty(); }
  const std::string& NameOf(size_t drafter) const { return names_[drafter]; }
  Drafter& operator[](size_t drafter) { return *all_[drafter]; }
  Policy& policy() { return *policy_; }
  void Begin();

 private:
  std::string bundle_;
  bool recurrent_;
  std::vector<std::string> names_;
  std::vector<std::unique_ptr<Drafter>> all_;
  std::unique_ptr<Policy> policy_;
};

}  // namespace minicpm
