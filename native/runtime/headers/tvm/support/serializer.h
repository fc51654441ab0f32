// How TVM's serializer writes the types that a compiled library holds.
#pragma once

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/endian.h>
#include <tvm/ffi/string.h>
#include <tvm/support/io.h>

#include <string>
#include <type_traits>
#include <vector>

namespace tvm {
namespace support {

static_assert(TVM_FFI_LITTLE_ENDIAN, "libraries are little-endian");

template <typename T>
struct Serializer<T, std::enable_if_t<std::is_trivially_copyable_v<T>>> {
  static constexpr bool enabled = true;
  static void Write(Stream* to, const T& value) { to->Write(static_cast<const void*>(&value), sizeof(T)); }
  static bool Read(Stream* from, T* value) { return from->Read(static_cast<void*>(value), sizeof(T)) == sizeof(T); }
};

// Reads a count and calls add() as often: a count that lies ends at the end of the bytes, not at that of the memory.
template <typename Add>
bool ReadCounted(Stream* from, Add add) {
  uint64_t count;
  if (!from->Read(&count)) return false;
  for (uint64_t i = 0; i < count; ++i) {
    if (!add()) return false;
  }
  return true;
}

template <>
struct Serializer<std::string> {
  static constexpr bool enabled = true;
  static void Write(Stream* to, const std::string& text) {
    to->Write(static_cast<uint64_t>(text.size()));
    to->Write(static_cast<const void*>(text.data()), text.size());
  }
  static bool Read(Stream* from, std::string* text) {
    text->clear();
    return ReadCounted(from, [&] {
      char character;
      if (!from->Read(&character)) return false;
      text->push_back(character);
      return true;
    });
  }
};

template <typename T>
struct Serializer<std::vector<T>> {
  static constexpr bool enabled = true;
  static void Write(Stream* to, const std::vector<T>& values) {
    to->Write(static_cast<uint64_t>(values.size()));
    to->WriteArray(values.data(), values.size());
  }
  static bool Read(Stream* from, std::vector<T>* values) {
    values->clear();
    return ReadCounted(from, [&] {
      values->emplace_back();
      return from->Read(&values->back());
    });
  }
};

template <>
struct Serializer<ffi::String> {
  static constexpr bool enabled = true;
  static void Write(Stream* to, const ffi::String& text) { to->Write(std::string(text)); }
  static bool Read(Stream* from, ffi::String* text) {
    std::string read;
    if (!from->Read(&read)) return false;
    *text = ffi::String(read);
    return true;
  }
};

template <typename T>
struct Serializer<ffi::Array<T>> {
  static constexpr bool enabled = true;
  static void Write(Stream* to, const ffi::Array<T>& values) {
    to->Write(static_cast<uint64_t>(values.size()));
    for (const T& value : values) to->Write(value);
  }
  static bool Read(Stream* from, ffi::Array<T>* values) {
    values->clear();
    return ReadCounted(from, [&] {
      T value;
      if (!from->Read(&value)) return false;
      values->push_back(value);
      return true;
    });
  }
};

}  // namespace support
}  // namespace tvm
