#include "npy.h"

#include <cmath>
#include <cstring>

namespace minicpm {
namespace {

constexpr std::string_view kStart("\x93NUMPY\x01\x00", 8);
constexpr size_t kEnd = 22, kEntry = 46, kLocal = 30;  // bytes of the parts of an archive, without names
constexpr uint32_t kEndMark = 0x06054b50, kEntryMark = 0x02014b50, kLocalMark = 0x04034b50;

template <typename T>
T Read(const char* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

// What follows `name` in a header, up to one of `ends`.
std::string_view After(std::string_view header, std::string_view name, char end) {
  size_t at = header.find(name);
  if (at == std::string_view::npos) return {};
  std::string_view rest = header.substr(at + name.size());
  return rest.substr(0, rest.find(end));
}

// "(3, 4)" without its brackets; nothing for other texts.
std::optional<std::vector<int64_t>> Sizes(std::string_view text) {
  std::vector<int64_t> sizes;
  for (size_t at = 0; at < text.size();) {
    int64_t size = 0;
    size_t digits = 0;
    for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; ++at, ++digits) size = size * 10 + (text[at] - '0');
    if (!digits || digits > 18) return std::nullopt;
    sizes.push_back(size);
    while (at < text.size() && (text[at] == ',' || text[at] == ' ')) ++at;
  }
  return sizes;
}

double Half(uint16_t bits) {
  int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                               : exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return bits >> 15 ? -size : size;
}

bool IsKind(std::string_view kind) {
  static constexpr std::string_view kKinds[] = {"f2", "f4", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"};
  for (std::string_view known : kKinds) {
    if (kind == known) return true;
  }
  return false;
}

}  // namespace

double NumberAt(const std::string& kind, const char* bytes) {
  int size = kind[1] - '0';
  if (kind[0] == 'f') return size == 4 ? Read<float>(bytes) : Half(Read<uint16_t>(bytes));
  if (size == 8) return static_cast<double>(Read<int64_t>(bytes));
  if (size == 4 && kind[0] == 'i') return Read<int32_t>(bytes);  // in one expression it would become unsigned
  if (size == 4) return Read<uint32_t>(bytes);
  if (size == 2) return kind[0] == 'i' ? Read<int16_t>(bytes) : Read<uint16_t>(bytes);
  return kind[0] == 'i' ? Read<int8_t>(bytes) : Read<uint8_t>(bytes);
}

std::optional<Npy> Npy::Of(std::string_view bytes) {
  size_t fixed = kStart.size() + 2;
  if (bytes.size() < fixed || bytes.substr(0, kStart.size()) != kStart) return std::nullopt;
  size_t size = Read<uint16_t>(bytes.data() + kStart.size());
  if (bytes.size() - fixed < size) return std::nullopt;
  std::string_view header = bytes.substr(fixed, size), kind = After(header, "'descr': '", '\'');
  std::optional<std::vector<int64_t>> shape = Sizes(After(header, "'shape': (", ')'));
  bool rows = header.find("'fortran_order': False") != std::string_view::npos;
  if (kind.size() != 3 || (kind[0] != '<' && kind[0] != '|') || !IsKind(kind.substr(1)) || !shape || !rows) {
    return std::nullopt;
  }
  Npy array{std::string(kind.substr(1)), *shape, bytes.substr(fixed + size)};
  uint64_t wanted = array.itemsize();
  for (int64_t each : *shape) {
    if (__builtin_mul_overflow(wanted, static_cast<uint64_t>(each), &wanted)) return std::nullopt;
  }
  if (wanted != array.data.size()) return std::nullopt;
  return array;
}

double Npy::Value(size_t i) const { return NumberAt(kind, data.data() + i * itemsize()); }

std::optional<std::map<std::string, std::string_view>> FilesOfZip(std::string_view bytes) {
  if (bytes.size() < kEnd) return std::nullopt;
  const char* end = bytes.data() + bytes.size() - kEnd;
  size_t count = Read<uint16_t>(end + 10), at = Read<uint32_t>(end + 16);
  if (Read<uint32_t>(end) != kEndMark) return std::nullopt;
  std::map<std::string, std::string_view> files;
  for (size_t i = 0; i < count; ++i) {
    if (at > bytes.size() || bytes.size() - at < kEntry) return std::nullopt;
    const char* entry = bytes.data() + at;
    size_t name = Read<uint16_t>(entry + 28), others = Read<uint16_t>(entry + 30) + Read<uint16_t>(entry + 32);
    size_t size = Read<uint32_t>(entry + 24), local = Read<uint32_t>(entry + 42);
    bool packed = Read<uint16_t>(entry + 10) != 0;
    if (Read<uint32_t>(entry) != kEntryMark || packed || bytes.size() - at - kEntry < name) return std::nullopt;
    if (local > bytes.size() || bytes.size() - local < kLocal) return std::nullopt;
    const char* header = bytes.data() + local;
    size_t start = local + kLocal + Read<uint16_t>(header + 26) + Read<uint16_t>(header + 28);
    if (Read<uint32_t>(header) != kLocalMark || start > bytes.size() || bytes.size() - start < size) return std::nullopt;
    files[std::string(bytes.substr(at + kEntry, name))] = bytes.substr(start, size);
    at += kEntry + name + others;
  }
  return files;
}

}  // namespace minicpm
