#include "session.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "files.h"
#include "sha256.h"

namespace minicpm {
namespace {

constexpr const char* kMagic = "minicpm-mlc state 1\n";
constexpr size_t kPartBytes = 2 << 20;
constexpr size_t kRow = 512;   // words of 64 bits that are summed up
constexpr size_t kTail = 40;   // bytes: the footer's length and SHA-256
constexpr const char* kAdvice = "open the bundle without \"resume\"; the text is computed again";

[[noreturn]] void FailDamaged(const std::string& path) { Fail(MINICPM_REQUEST, path, " is damaged; ", kAdvice); }

// SHA-256 of the sums of rows and columns of words, and of the bytes that fill no row.
std::string Checksum(const char* data, size_t size) {
  size_t rows = size / (8 * kRow);
  std::vector<uint64_t> columns(kRow), sums(rows);
  for (size_t row = 0; row < rows; ++row) {
    for (size_t i = 0; i < kRow; ++i) {
      uint64_t word;
      std::memcpy(&word, data + (row * kRow + i) * 8, 8);
      columns[i] += word;
      sums[row] += word;
    }
  }
  Sha256Digest digest;
  digest.Add(reinterpret_cast<const char*>(columns.data()), 8 * kRow);
  digest.Add(reinterpret_cast<const char*>(sums.data()), 8 * rows);
  digest.Add(data + rows * 8 * kRow, size % (8 * kRow));
  return digest.Hex();
}

std::array<uint8_t, 32> DigestOf(const std::string& text) {
  Sha256Digest digest;
  digest.Add(text.data(), text.size());
  return digest.Bytes();
}

// A pool's memory: the bytes of a page, and where its first page lies.
struct Pool {
  char* data;
  size_t page_bytes;
};

std::vector<Pool> PoolsOf(const Pools& tensors) {
  std::vector<Pool> pools;
  for (const Tensor& tensor : tensors) {
    size_t pages = static_cast<size_t>(tensor.shape()[0]);
    size_t bytes = tvm::ffi::GetDataSize(tensor);
    pools.push_back({static_cast<char*>(tensor.data_ptr()), bytes / pages});
  }
  return pools;
}

size_t PagesInPart(const Pool& pool) { return std::max<size_t>(1, kPartBytes / pool.page_bytes); }

class PartialFile {
 public:
  explicit PartialFile(const std::string& path) : path_(path), partial_(path + ".partial-" + std::to_string(getpid())) {
    file_ = std::fopen(partial_.c_str(), "wb");
    if (!file_) Refuse();
  }
  ~PartialFile() {
    if (file_) std::fclose(file_);
    std::remove(partial_.c_str());
  }
  void Write(const void* bytes, size_t size) {
    if (std::fwrite(bytes, 1, size, file_) != size) Refuse();
  }
  void Finish() {
    if (std::fflush(file_) || fsync(fileno(file_))) Refuse();
    if (std::rename(partial_.c_str(), path_.c_str())) Refuse();
  }

 private:
  [[noreturn]] void Refuse() { Fail(MINICPM_FAILED, path_, " can't be written (", std::strerror(errno), ")"); }

  std::string path_, partial_;
  FILE* file_ = nullptr;
};

// Each page's parent, each page's number of tokens, all their tokens, the sequence's own ones.
std::vector<int32_t> TextsOf(const std::vector<int32_t>& tokens, int64_t page_size) {
  int32_t size = static_cast<int32_t>(page_size), left = static_cast<int32_t>(tokens.size());
  int32_t pages = (left + size - 1) / size;
  std::vector<int32_t> texts;
  for (int32_t page = 0; page < pages; ++page) texts.push_back(page - 1);
  for (; left > 0; left -= size) texts.push_back(std::min(left, size));
  texts.insert(texts.end(), tokens.begin(), tokens.end());
  texts.insert(texts.end(), tokens.begin(), tokens.end());
  return texts;
}

struct Footer {
  std::string manifest;
  size_t pages, tokens, own;
  std::vector<std::string> sums;
};

Footer ReadFooter(const std::string& path, const MappedFile& file, const std::string& manifest) {
  size_t magic = std::strlen(kMagic);
  if (file.size() < magic + kTail || std::memcmp(file.data(), kMagic, magic)) {
    Fail(MINICPM_REQUEST, path, " is not a saved state of this version; ", kAdvice);
  }
  const char* tail = file.data() + file.size() - kTail;
  uint64_t length;
  std::memcpy(&length, tail, 8);
  if (length > file.size() - kTail - magic) FailDamaged(path);
  std::string said(tail - length, length);
  if (std::memcmp(DigestOf(said).data(), tail + 8, 32)) FailDamaged(path);
  Json json = Json::Parse(said, path, MINICPM_REQUEST, kAdvice);
  auto count = [&](const char* name) { return static_cast<size_t>(json.At(name).Whole(0, INT32_MAX)); };
  Footer footer{json.At("manifest").Text(), count("pages"), count("tokens"), count("own"), json.At("sums").Texts()};
  if (footer.manifest != manifest) {
    Fail(MINICPM_REQUEST, path, " was saved by the bundle with the SHA-256 ", footer.manifest, ", this one has ",
         manifest, "; ", kAdvice);
  }
  return footer;
}

// The pages in the file that hold a sequence, one behind the other, and how many of its tokens they have.
struct Chain {
  std::vector<size_t> pages;
  size_t tokens = 0;
};

Chain ChainOf(const std::string& path, const Footer& footer, const std::vector<int32_t>& texts, size_t page_size) {
  size_t n = footer.pages;
  if (texts.size() < 2 * n + footer.own) FailDamaged(path);
  auto own = texts.end() - static_cast<ptrdiff_t>(footer.own);
  Chain chain;
  int32_t last = -1;
  size_t at = 2 * n;  // of the page's tokens
  for (size_t page = 0; page < n; ++page) {
    int32_t length = texts[n + page];
    if (length < 1 || static_cast<size_t>(length) > page_size) FailDamaged(path);
    size_t size = static_cast<size_t>(length);
    if (size > texts.size() - footer.own - at || texts[page] < -1 || texts[page] >= static_cast<int32_t>(page)) {
      FailDamaged(path);
    }
    auto tokens = texts.begin() + static_cast<ptrdiff_t>(at);
    at += size;
    bool follows = texts[page] == last && chain.tokens % page_size == 0 && size <= footer.own - chain.tokens;
    if (!follows || !std::equal(tokens, tokens + length, own + static_cast<ptrdiff_t>(chain.tokens))) continue;
    chain.pages.push_back(page);
    chain.tokens += size;
    last = static_cast<int32_t>(page);
  }
  return chain;
}

}  // namespace

void SaveSession(const std::string& path, const std::string& manifest, const std::vector<int32_t>& tokens,
                 int64_t page_size, const Pools& tensors) {
  PartialFile file(path);
  std::string sums;
  auto put = [&](const void* data, size_t size) {
    file.Write(data, size);
    sums += (sums.empty() ? "\"" : ", \"") + Checksum(static_cast<const char*>(data), size) + "\"";
  };
  file.Write(kMagic, std::strlen(kMagic));
  std::vector<int32_t> texts = TextsOf(tokens, page_size);
  put(texts.data(), texts.size() * sizeof(int32_t));
  size_t pages = (tokens.size() + static_cast<size_t>(page_size) - 1) / static_cast<size_t>(page_size);
  for (const Pool& pool : PoolsOf(tensors)) {
    for (size_t start = 0; start < pages; start += PagesInPart(pool)) {
      size_t count = std::min(PagesInPart(pool), pages - start);
      put(pool.data + start * pool.page_bytes, count * pool.page_bytes);
    }
  }
  std::ostringstream footer;
  footer << "{\"manifest\": \"" << manifest << "\", \"pages\": " << pages << ", \"tokens\": " << texts.size()
         << ", \"own\": " << tokens.size() << ", \"sums\": [" << sums << "]}";
  std::string said = footer.str();
  uint64_t length = said.size();
  file.Write(said.data(), said.size());
  file.Write(&length, 8);
  file.Write(DigestOf(said).data(), 32);
  file.Finish();
}

std::vector<int32_t> LoadSession(const std::string& path, const std::string& manifest, int64_t page_size,
                                 int64_t context, const Pools& tensors) {
  if (!SizeOfFile(path)) Fail(MINICPM_REQUEST, path, " can't be read; ", kAdvice);
  MappedFile file(path);
  Footer footer = ReadFooter(path, file, manifest);
  std::vector<Pool> pools = PoolsOf(tensors);
  size_t magic = std::strlen(kMagic), expected = magic + footer.tokens * sizeof(int32_t);
  for (const Pool& pool : pools) expected += footer.pages * pool.page_bytes;
  uint64_t length;
  std::memcpy(&length, file.data() + file.size() - kTail, 8);
  if (expected + length + kTail != file.size()) FailDamaged(path);
  size_t sum = 0;
  const char* at = file.data() + magic;
  auto take = [&](size_t size) {
    if (sum >= footer.sums.size() || Checksum(at, size) != footer.sums[sum++]) FailDamaged(path);
    const char* taken = at;
    at += size;
    return taken;
  };
  std::vector<int32_t> texts(footer.tokens);
  const char* stored = take(footer.tokens * sizeof(int32_t));
  if (!texts.empty()) std::memcpy(texts.data(), stored, texts.size() * sizeof(int32_t));
  Chain chain = ChainOf(path, footer, texts, static_cast<size_t>(page_size));
  if (static_cast<int64_t>(chain.tokens) > context) {
    Fail(MINICPM_CONTEXT, path, " has ", chain.tokens, " tokens and the context holds ", context,
         "; open the bundle with a larger \"context\"");
  }
  for (const Pool& pool : pools) {
    const char* first = at;
    for (size_t start = 0; start < footer.pages; start += PagesInPart(pool)) {
      take(std::min(PagesInPart(pool), footer.pages - start) * pool.page_bytes);
    }
    for (size_t i = 0; i < chain.pages.size(); ++i) {
      std::memcpy(pool.data + i * pool.page_bytes, first + chain.pages[i] * pool.page_bytes, pool.page_bytes);
    }
  }
  auto own = texts.end() - static_cast<ptrdiff_t>(footer.own);
  return {own, own + static_cast<ptrdiff_t>(chain.tokens)};
}

}  // namespace minicpm
