#include "model.h"

#include <algorithm>
#include <numeric>

#include "session.h"

namespace minicpm {
namespace {

std::vector<int32_t> Slice(const std::vector<int32_t>& ids, int64_t begin, int64_t end) {
  return {ids.begin() + begin, ids.begin() + end};
}

}  // namespace

Model::Model(const Bundle& bundle, int threads, int64_t context, const Gears& gears)
    : gears(gears),
      library_(bundle, threads),
      manifest_(bundle.manifest.sha256),
      pool_((context + bundle.manifest.page_size - 1) / bundle.manifest.page_size, bundle.manifest.page_size),
      sequence_(&pool_, context, bundle.manifest.recurrent()),
      cache_(&pool_),
      pools_(library_.NewPools(pool_.size())) {}

int64_t Model::Begin(const std::vector<int32_t>& ids) {
  int64_t live = CommonPrefix(sequence_.tokens(), ids);
  if (recurrent()) return sequence_.Truncate(live);
  if (live == size() && live >= Known(ids)) return live;
  cache_.Keep(sequence_, true);
  sequence_.Truncate(0);
  PrefixCache::Found found = cache_.Find(ids);
  int64_t full = static_cast<int64_t>(found.pages.size()) * pool_.page_size;
  sequence_.Adopt(found.pages, Slice(ids, 0, full));
  if (found.rows && sequence_.Room()) Copy(found.tail, Slice(ids, full, full + found.rows));
  return size();
}

int64_t Model::Known(const std::vector<int32_t>& ids) {
  PrefixCache::Found found = cache_.Find(ids);
  return static_cast<int64_t>(found.pages.size()) * pool_.page_size + found.rows;
}

void Model::Truncate(int64_t length) {
  length = std::min(length, size());
  int64_t cut = length / pool_.page_size;
  int32_t shared = length < size() ? sequence_.table()[static_cast<size_t>(cut)] : -1;
  std::vector<int32_t> first = Slice(sequence_.tokens(), cut * pool_.page_size, length);
  bool lost = sequence_.Truncate(length) < length;
  if (lost && !first.empty() && !recurrent()) Copy(shared, first);  // nobody writes into a shared page
  while (pool_.reclaim()) {
  }
}

// Appends tokens whose keys and values are the first of another page. The sequence must end at a page's end.
void Model::Copy(int32_t page, const std::vector<int32_t>& ids) {
  sequence_.Reserve(static_cast<int64_t>(ids.size()));
  std::vector<int32_t> slots(ids.size()), sources(ids.size());
  std::iota(slots.begin(), slots.end(), 0);
  std::iota(sources.begin(), sources.end(), static_cast<int32_t>(pool_.page_size));
  int32_t own = sequence_.table().back();
  library_.Commit(sources, slots, {own, page}, pools_);
  CopyDrafted(page, own, static_cast<int32_t>(ids.size()) - 1);
  sequence_.Append(ids);
}

// What a draft head has of a page's first tokens.
void Model::CopyDrafted(int32_t source, int32_t page, int32_t rows) {
  int32_t drafted = pool_.drafted[static_cast<size_t>(source)];
  if (!drafted) return;
  const Memory& memory = library_.memory();
  for (const Tensor& tensor : DraftPools()) {
    std::string bytes(PageBytes(tensor), '\0');
    memory.ReadPages(tensor, {source}, bytes.data());
    memory.WritePages(tensor, {page}, bytes.data());
  }
  pool_.drafted[static_cast<size_t>(page)] = std::min(rows, drafted);
}

const Pools& Model::DraftPools() {
  if (!draft_pools_) draft_pools_ = library_.NewDraftPools(pool_.size());
  return *draft_pools_;
}

void Model::Forget() {
  outputs_.clear();  // its memory is taken for the next results
  features_.rows.clear();
  verified_.reset();
}

void Model::Take(Outputs outputs) {
  if (outputs.features) {
    features_.width = outputs.features->shape()[1];
    const float* data = static_cast<const float*>(outputs.features->data_ptr());
    for (int64_t row = 0; row < outputs.features->shape()[0]; ++row) features_.rows.push_back(data + row * features_.width);
  }
  outputs_.push_back(std::move(outputs));
}

const float* Model::Prefill(const std::vector<int32_t>& ids, bool sparse) {
  int32_t last = static_cast<int32_t>(ids.size()) - 1;
  std::vector<int32_t> slots = sequence_.Reserve(last + 1);
  Forget();
  Take(library_.Prefill(ids, slots, sequence_.table(), {last}, pools_, sparse));
  sequence_.Append(ids);
  return outputs_[0].Row(0);
}

const float* Model::Decode(int32_t id) {
  std::vector<int32_t> slots = sequence_.Reserve(1);
  Forget();
  Take(library_.Decode(id, slots[0], sequence_.table(), pools_, gears.Sparse(size() + 1)));
  sequence_.Append({id});
  return outputs_[0].Row(0);
}

Model::Order Model::OrderOf(const Tree& tree) const {
  std::vector<int32_t> depths = tree.Depths(), parents;
  Order order;
  order.nodes.resize(depths.size());
  order.places.resize(depths.size());
  std::iota(order.nodes.begin(), order.nodes.end(), 0);
  auto border = std::stable_partition(order.nodes.begin(), order.nodes.end(), [&](int32_t node) {
    return !gears.Sparse(size() + depths[static_cast<size_t>(node)] + 1);
  });
  order.dense = border - order.nodes.begin();
  int32_t rows = 0;
  for (int32_t node : order.nodes) order.places[static_cast<size_t>(node)] = rows++;
  for (int32_t node : order.nodes) {
    int32_t parent = tree.parents[static_cast<size_t>(node)];
    parents.push_back(parent < 0 ? -1 : order.places[static_cast<size_t>(parent)]);
  }
  TreeShape shape(parents, {});
  order.depths = shape.depths;
  order.masks = shape.masks;
  return order;
}

void Model::VerifyRows(const Tree& tree, const Order& order, int64_t first, int64_t last, bool sparse) {
  if (first == last) return;
  TreeRows rows{{}, {}, {}, {}, static_cast<int32_t>(size())};
  for (int64_t i = first; i < last; ++i) {
    rows.ids.push_back(tree.tokens[static_cast<size_t>(order.nodes[static_cast<size_t>(i)])]);
    rows.positions.push_back(rows.base + order.depths[static_cast<size_t>(i)]);
    rows.slots.push_back(rows.base + static_cast<int32_t>(i));
  }
  rows.ancestors = MaskWords({order.masks.begin() + first, order.masks.begin() + last});
  Take(library_.Verify(rows, sequence_.table(), pools_, sparse));
}

std::vector<const float*> Model::Verify(const Tree& tree) {
  sequence_.Reserve(tree.size());
  Forget();
  Order order = OrderOf(tree);
  VerifyRows(tree, order, 0, order.dense, false);
  VerifyRows(tree, order, order.dense, tree.size(), true);
  std::vector<const float*> computed, logits;
  for (const Outputs& outputs : outputs_) {
    for (int64_t row = 0; row < outputs.rows(); ++row) computed.push_back(outputs.Row(row));
  }
  Features features{features_.width, {}};
  for (int32_t place : order.places) {
    logits.push_back(computed[static_cast<size_t>(place)]);
    if (!features_.rows.empty()) features.rows.push_back(features_.rows[static_cast<size_t>(place)]);
  }
  features_ = features;
  verified_ = Verified{tree, order.places};
  return logits;
}

void Model::Commit(const std::vector<int32_t>& path) {
  std::vector<int32_t> sources, ids;
  Features features{features_.width, {}};
  for (int32_t node : path) {
    size_t i = static_cast<size_t>(node);
    sources.push_back(static_cast<int32_t>(size()) + verified_->places[i]);
    ids.push_back(verified_->tree.tokens[i]);
    if (!features_.rows.empty()) features.rows.push_back(features_.rows[i]);
  }
  std::vector<int32_t> slots(path.size());
  std::iota(slots.begin(), slots.end(), static_cast<int32_t>(size()));
  library_.Commit(sources, slots, sequence_.table(), pools_);
  features_ = features;
  sequence_.Append(ids);
  verified_.reset();
}

void Model::CheckSavable() const {
  if (recurrent()) Fail(MINICPM_REQUEST, "the model keeps state per sequence, which can't be saved");
}

void Model::Save(const std::string& path) {
  CheckSavable();
  cache_.Keep(sequence_, false);
  std::vector<KeptPage> pages = cache_.All();
  int64_t full = size() / pool_.page_size;
  if (int64_t rest = size() % pool_.page_size) {
    std::vector<int32_t> before = cache_.Find(Slice(sequence_.tokens(), 0, size() - rest)).pages;
    auto parent = std::find_if(pages.begin(), pages.end(), [&](const KeptPage& page) {
      return !before.empty() && page.page == before.back();
    });
    int32_t place = before.empty() ? -1 : static_cast<int32_t>(parent - pages.begin());
    std::vector<int32_t> tokens = Slice(sequence_.tokens(), size() - rest, size());
    int32_t page = sequence_.table()[static_cast<size_t>(full)];
    if (static_cast<int64_t>(before.size()) == full) pages.push_back({place, tokens, page});
  }
  SaveSession(path, manifest_, {pages, sequence_.tokens()}, library_.memory(), pools_);
}

void Model::Resume(const std::string& path) {
  CheckSavable();
  Saved saved = LoadSession(path, manifest_, context(), library_.memory(), pools_, &pool_);
  cache_.Restore(saved.pages);
  Begin(saved.own);
}

}  // namespace minicpm
