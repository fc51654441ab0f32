#include "json.h"

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/string.h>

#include <algorithm>

namespace minicpm {
namespace {

namespace ffi = tvm::ffi;
constexpr int kDeepest = 100;  // objects and lists in one another: the parser calls itself for each
constexpr size_t kShown = 60;

// Whether the brackets outside of strings lie no deeper than kDeepest.
bool IsShallow(const std::string& text) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kDeepest) return false;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return true;
}

}  // namespace

struct Json::Value {
  ffi::Any any;
};

Json::Json(Value value, std::string place, minicpm_status status, std::string advice)
    : value_(std::make_shared<Value>(std::move(value))), place_(std::move(place)), status_(status), advice_(std::move(advice)) {}

Json Json::Parse(const std::string& text, const std::string& place, minicpm_status status, const std::string& advice) {
  if (!IsShallow(text)) Fail(status, place, " has objects and lists too deep in one another; ", advice);
  ffi::String wrong;
  ffi::Any value;
  try {
    value = ffi::json::Parse(ffi::String(text), &wrong);
  } catch (const std::exception& error) {
    Fail(status, place, " is not JSON (", error.what(), "); ", advice);
  }
  if (!wrong.empty()) Fail(status, place, " is not JSON (", std::string(wrong), "); ", advice);
  return Json(Value{value}, place, status, advice);
}

std::string Json::Quote(const std::string& text) { return ffi::json::Stringify(ffi::String(text)); }

bool Json::IsNull() const { return value_->any == nullptr; }
bool Json::IsText() const { return value_->any.as<ffi::String>().has_value(); }
bool Json::IsList() const { return value_->any.as<ffi::json::Array>().has_value(); }
bool Json::IsObject() const { return value_->any.as<ffi::json::Object>().has_value(); }
bool Json::IsBool() const { return value_->any.type_index() == ffi::TypeIndex::kTVMFFIBool; }
bool Json::IsNumber() const {
  int32_t type = value_->any.type_index();
  return type == ffi::TypeIndex::kTVMFFIInt || type == ffi::TypeIndex::kTVMFFIFloat;
}

std::string Json::Shown() const {
  std::string text = ffi::json::Stringify(value_->any);
  if (text.size() <= kShown) return text;
  size_t end = kShown;
  while (end && (text[end] & 0xC0) == 0x80) --end;  // no half character
  return text.substr(0, end) + "...";
}

void Json::Refuse(const std::string& expected) const {
  Fail(status_, place_, " is ", Shown(), ", expected ", expected, "; ", advice_);
}

Json Json::Inner(Value value, const std::string& key) const {
  return Json(std::move(value), place_ + ": " + key, status_, advice_);
}

bool Json::Has(const std::string& key) const {
  if (!IsObject()) Refuse("an object");
  return value_->any.cast<ffi::json::Object>().count(ffi::String(key)) > 0;
}

Json Json::At(const std::string& key) const {
  if (!Has(key)) Fail(status_, place_, " lacks ", key, "; ", advice_);
  return Inner(Value{value_->any.cast<ffi::json::Object>()[ffi::String(key)]}, key);
}

std::optional<Json> Json::Find(const std::string& key) const {
  if (!Has(key)) return std::nullopt;
  Json found = At(key);
  if (found.IsNull()) return std::nullopt;
  return found;
}

std::vector<std::string> Json::Keys() const {
  if (!IsObject()) Refuse("an object");
  std::vector<std::string> keys;
  for (const auto& entry : value_->any.cast<ffi::json::Object>()) keys.push_back(entry.first.cast<ffi::String>());
  return keys;
}

std::string Json::Text() const {
  if (!IsText()) Refuse("a text");
  return value_->any.cast<ffi::String>();
}

bool Json::Bool() const {
  if (!IsBool()) Refuse("true or false");
  return value_->any.cast<bool>();
}

double Json::Number() const {
  if (!IsNumber()) Refuse("a number");
  return value_->any.cast<double>();
}

int64_t Json::Whole(int64_t lowest, int64_t highest) const {
  bool whole = value_->any.type_index() == ffi::TypeIndex::kTVMFFIInt;
  int64_t number = whole ? value_->any.cast<int64_t>() : 0;
  if (!whole || number < lowest || number > highest) {
    std::string upper = highest == INT64_MAX ? " or more" : " to " + std::to_string(highest);
    Refuse("a whole number, " + std::to_string(lowest) + upper);
  }
  return number;
}

std::vector<Json> Json::List() const {
  if (!IsList()) Refuse("a list");
  std::vector<Json> items;
  for (const ffi::Any& item : value_->any.cast<ffi::json::Array>()) items.push_back(Inner(Value{item}, std::to_string(items.size())));
  return items;
}

std::vector<int32_t> Json::Ids() const {
  std::vector<int32_t> ids;
  for (const Json& item : List()) ids.push_back(static_cast<int32_t>(item.Whole(0, INT32_MAX)));
  return ids;
}

std::vector<std::string> Json::Texts() const {
  std::vector<std::string> texts;
  for (const Json& item : List()) texts.push_back(item.Text());
  return texts;
}

std::vector<std::pair<std::string, int64_t>> Json::Numbers() const {
  if (!IsObject()) Refuse("an object");
  std::vector<std::pair<std::string, int64_t>> numbers;
  for (const auto& entry : value_->any.cast<ffi::json::Object>()) {
    if (entry.second.type_index() != ffi::TypeIndex::kTVMFFIInt) Refuse("whole numbers");
    numbers.emplace_back(entry.first.cast<ffi::String>(), entry.second.cast<int64_t>());
  }
  return numbers;
}

std::vector<std::pair<std::string, std::string>> Json::Pairs() const {
  if (!IsList()) Refuse("a list");
  std::vector<std::pair<std::string, std::string>> pairs;
  for (const ffi::Any& item : value_->any.cast<ffi::json::Array>()) {
    if (auto text = item.as<ffi::String>()) {
      std::string both = *text;
      size_t space = both.find(' ', 1);
      if (space == std::string::npos) Refuse("pairs of texts");
      pairs.emplace_back(both.substr(0, space), both.substr(space + 1));
      continue;
    }
    auto pair = item.as<ffi::json::Array>();
    if (!pair || pair->size() != 2) Refuse("pairs of texts");
    auto first = (*pair)[0].as<ffi::String>(), second = (*pair)[1].as<ffi::String>();
    if (!first || !second) Refuse("pairs of texts");
    pairs.emplace_back(*first, *second);
  }
  return pairs;
}

std::string Json::Difference(const Json& other) const {
  if (!IsObject() || !other.IsObject()) {
    return ffi::json::Stringify(value_->any) == ffi::json::Stringify(other.value_->any) ? "" : place_;
  }
  for (const std::string& key : other.Keys()) {
    if (!Has(key)) return place_ + ": " + key;
  }
  for (const std::string& key : Keys()) {
    if (!other.Has(key)) return place_ + ": " + key;
    std::string inner = At(key).Difference(other.At(key));
    if (!inner.empty()) return inner;
  }
  return "";
}

}  // namespace minicpm
