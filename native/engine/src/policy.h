// Whether to speculate, with which drafter and how large a tree: whatever gives most tokens per second, as measured. As
// minicpm_mlc/runtime_py/speculative/policy.py, whose rules and numbers these are. All times come from outside.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "costs.h"
#include "drafter.h"

namespace minicpm {

// When to try again what did not pay: after waits that double, until trying costs a small share of the time.
class Backoff {
 public:
  bool Due() { return ++waited_ >= wait_; }  // asked once a token
  // A try cost so many decode steps more than plain decoding would have.
  void Lost(double steps, bool hopeless);
  void Won();
  int64_t left() const { return wait_ - waited_; }
  void Pass(int64_t tokens) { waited_ += tokens; }

 private:
  int64_t wait_ = 1, waited_ = 0;
};

// What is known of one drafter.
struct Arm {
  // Tokens per second of its rounds; 0 before the first.
  double Rate() const { return round.value ? tokens.value / round.value : 0; }

  std::string name;
  double gain = 0;   // seconds that asking it saves once the text is read, a moving average
  double saved = 0;  // seconds saved less those of reading; half of what one answer left counts in the next
  int64_t asked = 0;
  Backoff tries;
  Average level;                 // seconds of drafting one level
  Average reading;               // seconds of reading one token of the text
  Average round, tokens, nodes;  // seconds of one round; what it gives, and what it verifies
  int64_t depth = 0;             // that pays best, chosen again from time to time
  std::map<int, Acceptance> acceptance;  // by kind of draft
  std::map<int, Backoff> checks;         // of drafts that are not expected to pay, by kind
};

// Figures of one engine, kept from call to call, and what follows from them. A drafter goes by its place in `names`.
class Policy {
 public:
  explicit Policy(const std::vector<std::string>& names);

  // A call begins. What the last one's text cost to read and its answer did not bring in again is lost.
  void Begin();
  // Whether this token is to be decoded plainly, with nothing asked or measured; asked first, once a token.
  bool Sleeps(const Speculation& options);
  // Who must know of the tokens that are cached now.
  std::vector<size_t> Following(const Speculation& options) const;
  // Whom to ask at this token, in this order; asked once a token that isn't slept through.
  std::vector<size_t> Due(const Speculation& options);
  Plan PlanOf(size_t drafter, const Speculation& options);
  // The part of a draft that is worth verifying, of at most `room` nodes; nothing: decode plainly.
  std::optional<Draft> Cut(size_t drafter, const Draft& draft, const Speculation& options, int64_t room);
  // Whether a drafter that is asked after this one has been faster than this draft is expected to be.
  bool PrefersAnother(size_t drafter, const Draft& draft);

  void Decoded(double seconds);                                                    // one plain step
  void Drafted(size_t drafter, const std::optional<Draft>& draft, double seconds);  // it was asked
  void Missed(size_t drafter, double seconds) { NoteGain(&arms_[drafter], -seconds); }  // it was asked for nothing
  void Finished(size_t drafter, const Round& round);                               // a tree was verified, its path kept

  // What was decided, and the speed of each drafter that was tried against plain decoding.
  std::string Describe() const;

 private:
  void Sleep();
  void NoteGain(Arm* arm, double gain);
  void NoteLoss(Arm* arm);
  bool IsHopeless(const Arm& arm) const;
  bool IsWorth(const Arm& arm) const;
  Acceptance& AcceptanceOf(Arm* arm, int kind);
  int64_t BestDepth(Arm* arm);

  Costs costs_;
  std::vector<Arm> arms_;
  int64_t since_decode_ = 0;
  bool cold_ = false;  // the next plain step may be slow for coming after a prompt
  int64_t asleep_ = 0;
  std::vector<size_t> following_;  // who must know of tokens that are slept through
};

}  // namespace minicpm
