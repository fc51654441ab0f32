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

size_t PagesInPart(const Tensor& pool) { return std::max<size_t>(1, kPartBytes / PageBytes(pool)); }

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
std::vector<int32_t> TextsOf(const Saved& saved) {
  std::vector<int32_t> texts;
  for (const KeptPage& page : saved.pages) texts.push_back(page.parent);
  for (const KeptPage& page : saved.pages) texts.push_back(static_cast<int32_t>(page.tokens.size()));
  for (const KeptPage& page : saved.pages) texts.insert(texts.end(), page.tokens.begin(), page.tokens.end());
  texts.insert(texts.end(), saved.own.begin(), saved.own.end());
  return texts;
}

std::vector<int32_t> PagesOf(const Saved& saved) {
  std::vector<int32_t> pages;
  for (const KeptPage& each : saved.pages) pages.push_back(each.page);
  return pages;
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

// The texts as they were written; the number of each page is its place in the file.
Saved ReadTexts(const std::string& path, const Footer& footer, const std::vector<int32_t>& texts, size_t page_size) {
  size_t n = footer.pages;
  if (footer.own > texts.size() || (texts.size() - footer.own) / 2 < n) FailDamaged(path);
  auto own = texts.end() - static_cast<ptrdiff_t>(footer.own);
  auto at = texts.begin() + static_cast<ptrdiff_t>(2 * n);  // of the page's tokens
  Saved saved;
  for (size_t page = 0; page < n; ++page) {
    int32_t parent = texts[page], length = texts[n + page];
    bool fits = length >= 1 && static_cast<size_t>(length) <= page_size && length <= own - at;
    bool known = parent >= -1 && parent < static_cast<int32_t>(page);
    if (!fits || !known || (parent >= 0 && saved.pages[static_cast<size_t>(parent)].tokens.size() != page_size)) {
      FailDamaged(path);
    }
    saved.pages.push_back({parent, {at, at + length}, static_cast<int32_t>(page)});
    at += length;
  }
  if (at != own) FailDamaged(path);
  saved.own.assign(own, texts.end());
  return saved;
}

// Which of the pages to load, by their places: those of the sequence itself, then the others while there is room.
std::vector<bool> Chosen(const Saved& saved, int64_t room) {
  std::vector<bool> chosen(saved.pages.size());
  int64_t known = 0;
  int32_t last = -1;
  auto take = [&](size_t i) {
    if (chosen[i] || room == 0) return;
    chosen[i] = true;
    --room;
  };
  for (size_t i = 0; i < chosen.size(); ++i) {
    const KeptPage& page = saved.pages[i];
    int64_t size = static_cast<int64_t>(page.tokens.size());
    bool own = page.parent == last && size <= static_cast<int64_t>(saved.own.size()) - known &&
               std::equal(page.tokens.begin(), page.tokens.end(), saved.own.begin() + known);
    if (!own) continue;
    take(i);
    last = static_cast<int32_t>(i);
    known += size;
  }
  for (size_t i = 0; i < chosen.size(); ++i) {
    int32_t parent = saved.pages[i].parent;
    if (parent < 0 || chosen[static_cast<size_t>(parent)]) take(i);
  }
  return chosen;
}

// What a file stores, its checksums right: the texts, and where each pool's pages begin.
struct Stored {
  std::vector<int32_t> texts;
  std::vector<const char*> first;
};

Stored CheckedParts(const std::string& path, const MappedFile& file, const Footer& footer,
                    const Pools& pools) {
  size_t magic = std::strlen(kMagic);
  uint64_t length, expected = magic + uint64_t{footer.tokens} * sizeof(int32_t);
  for (const Tensor& pool : pools) expected += uint64_t{footer.pages} * PageBytes(pool);
  std::memcpy(&length, file.data() + file.size() - kTail, 8);
  if (expected + length + kTail != file.size()) FailDamaged(path);
  size_t sum = 0;
  const char* at = file.data() + magic;
  auto check = [&](size_t size) {
    if (sum >= footer.sums.size() || Checksum(at, size) != footer.sums[sum++]) FailDamaged(path);
    at += size;
  };
  Stored stored;
  stored.texts.resize(footer.tokens);
  if (footer.tokens) std::memcpy(stored.texts.data(), at, footer.tokens * sizeof(int32_t));
  check(footer.tokens * sizeof(int32_t));
  for (const Tensor& pool : pools) {
    stored.first.push_back(at);
    for (size_t start = 0; start < footer.pages; start += PagesInPart(pool)) {
      check(std::min(PagesInPart(pool), footer.pages - start) * PageBytes(pool));
    }
  }
  return stored;
}

// Writes the pages that were chosen: `pages` of the pool, and `places` of each of the file among them, -1 for none. `first`:
// where the file has the pool's pages.
void LoadPages(const Memory& memory, const Tensor& pool, const std::vector<int32_t>& pages,
               const std::vector<int32_t>& places, const char* first) {
  for (size_t start = 0, end; start < places.size(); start = end) {
    end = start + 1;
    if (places[start] < 0) continue;
    while (end < places.size() && places[end] >= 0) ++end;
    auto from = pages.begin() + places[start];
    memory.WritePages(pool, {from, from + static_cast<ptrdiff_t>(end - start)}, first + start * PageBytes(pool));
  }
}

}  // namespace

void SaveSession(const std::string& path, const std::string& manifest, const Saved& saved, const Memory& memory,
                 const Pools& pools) {
  PartialFile file(path);
  std::string sums;
  auto put = [&](const void* data, size_t size) {
    file.Write(data, size);
    sums += (sums.empty() ? "\"" : ", \"") + Checksum(static_cast<const char*>(data), size) + "\"";
  };
  file.Write(kMagic, std::strlen(kMagic));
  std::vector<int32_t> texts = TextsOf(saved);
  put(texts.data(), texts.size() * sizeof(int32_t));
  std::vector<int32_t> pages = PagesOf(saved);
  std::string part;
  for (const Tensor& pool : pools) {
    for (size_t start = 0; start < pages.size(); start += PagesInPart(pool)) {
      size_t end = std::min(pages.size(), start + PagesInPart(pool));
      part.resize((end - start) * PageBytes(pool));
      auto first = pages.begin() + static_cast<ptrdiff_t>(start);
      memory.ReadPages(pool, {first, first + static_cast<ptrdiff_t>(end - start)}, part.data());
      put(part.data(), part.size());
    }
  }
  std::ostringstream footer;
  footer << "{\"manifest\": \"" << manifest << "\", \"pages\": " << pages.size() << ", \"tokens\": " << texts.size()
         << ", \"own\": " << saved.own.size() << ", \"sums\": [" << sums << "]}";
  std::string said = footer.str();
  uint64_t length = said.size();
  file.Write(said.data(), said.size());
  file.Write(&length, 8);
  file.Write(DigestOf(said).data(), 32);
  file.Finish();
}

Saved LoadSession(const std::string& path, const std::string& manifest, int64_t context, const Memory& memory,
                  const Pools& pools, PagePool* pool) {
  if (!SizeOfFile(path)) Fail(MINICPM_REQUEST, path, " can't be read; ", kAdvice);
  MappedFile file(path);
  Footer footer = ReadFooter(path, file, manifest);
  Stored stored = CheckedParts(path, file, footer, pools);
  Saved saved = ReadTexts(path, footer, stored.texts, static_cast<size_t>(pool->page_size));
  if (static_cast<int64_t>(saved.own.size()) > context) {
    Fail(MINICPM_CONTEXT, path, " has ", saved.own.size(), " tokens and the context holds ", context,
         "; open the bundle with a larger \"context\"");
  }
  std::vector<bool> chosen = Chosen(saved, pool->available());
  std::vector<int32_t> places(chosen.size(), -1);  // in what is loaded
  Saved loaded{{}, saved.own};
  for (size_t i = 0; i < chosen.size(); ++i) {
    if (!chosen[i]) continue;
    KeptPage page = saved.pages[i];
    page.page = pool->Take();
    if (page.parent >= 0) page.parent = places[static_cast<size_t>(page.parent)];
    places[i] = static_cast<int32_t>(loaded.pages.size());
    loaded.pages.push_back(std::move(page));
  }
  std::vector<int32_t> pages = PagesOf(loaded);
  for (size_t k = 0; k < pools.size(); ++k) LoadPages(memory, pools[static_cast<int64_t>(k)], pages, places, stored.first[k]);
  return loaded;
}

}  // namespace minicpm
