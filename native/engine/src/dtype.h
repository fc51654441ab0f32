// Types of numbers by the names that bundles give them.
#pragma once

#include <dlpack/dlpack.h>

#include <map>
#include <optional>
#include <string>

namespace minicpm {

// bfloat16 as its bits, as in Python; nothing for a name that no bundle has.
inline std::optional<DLDataType> DtypeOf(const std::string& name) {
  static const std::map<std::string, DLDataType> kTypes = {
      {"float32", {kDLFloat, 32, 1}}, {"float16", {kDLFloat, 16, 1}}, {"bfloat16", {kDLUInt, 16, 1}},
      {"int8", {kDLInt, 8, 1}},       {"uint8", {kDLUInt, 8, 1}},     {"int16", {kDLInt, 16, 1}},
      {"uint16", {kDLUInt, 16, 1}},   {"int32", {kDLInt, 32, 1}},     {"uint32", {kDLUInt, 32, 1}}};
  auto found = kTypes.find(name);
  if (found == kTypes.end()) return std::nullopt;
  return found->second;
}

}  // namespace minicpm
