// JSON text, and its values by their place: what is not as expected ends in an Error that names the place.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "error.h"

namespace minicpm {

class Json {
 public:
  // `place` names the text in errors, which have this status and end with `advice`.
  static Json Parse(const std::string& text, const std::string& place, minicpm_status status = MINICPM_REQUEST,
                    const std::string& advice = "give valid JSON");
  static std::string Quote(const std::string& text);

  bool IsNull() const;
  bool IsText() const;
  bool IsList() const;
  bool IsObject() const;
  bool IsBool() const;
  bool IsNumber() const;

  bool Has(const std::string& key) const;
  Json At(const std::string& key) const;                  // fails where it is missing
  std::optional<Json> Find(const std::string& key) const;  // nothing where it is missing or null
  std::vector<std::string> Keys() const;

  std::string Text() const;
  bool Bool() const;
  double Number() const;
  int64_t Whole(int64_t lowest, int64_t highest) const;
  std::vector<Json> List() const;
  std::vector<int32_t> Ids() const;
  std::vector<std::string> Texts() const;
  // Of large vocabularies: an object's whole numbers by their keys, and a list of pairs, each ["a", "b"] or "a b".
  std::vector<std::pair<std::string, int64_t>> Numbers() const;
  std::vector<std::pair<std::string, std::string>> Pairs() const;

  // The first place where two values differ, empty if they don't.
  std::string Difference(const Json& other) const;
  std::string Shown() const;  // the value, cut

  [[noreturn]] void Refuse(const std::string& expected) const;

 private:
  struct Value;  // tvm-ffi's, whose headers take long to compile

  Json(Value value, std::string place, minicpm_status status, std::string advice);
  Json Inner(Value value, const std::string& key) const;

  std::shared_ptr<const Value> value_;
  std::string place_;
  minicpm_status status_;
  std::string advice_;
};

}  // namespace minicpm
