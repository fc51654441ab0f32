#include "engine.h"

#include <algorithm>

#include "context.h"
#include "device_check.h"
#include "host.h"
#include "text.h"

namespace minicpm {
namespace {

const std::vector<std::string> kOpenOptions = {"context", "threads", "attention", "sha256", "check", "linked", "resume", "device"};
const std::vector<std::string> kOptions = {"temperature",        "top_k",            "top_p",
                                           "min_p",              "repetition_penalty", "presence_penalty",
                                           "frequency_penalty",  "seed",             "stop",
                                           "max_tokens",         "think",            "max_think_tokens",
                                           "tokens",            "speculate",        "tree_size",
                                           "draft_depth",       "draft_top_k"};

constexpr const char* kLinkedCpuPart = "cpu_";  // kCpuPart as a part of symbols

bool Flag(const Json& options, const char* name, bool otherwise) {
  std::optional<Json> flag = options.Find(name);
  return flag ? flag->Bool() : otherwise;
}

std::optional<int64_t> Count(const Json& options, const char* name, int64_t lowest) {
  std::optional<Json> count = options.Find(name);
  if (!count) return std::nullopt;
  return count->Whole(lowest, INT64_MAX);
}

std::optional<bool> Think(const Json& options) {
  std::optional<Json> think = options.Find("think");
  if (!think) return std::nullopt;
  return think->Bool();
}

std::string TextOr(const Json& options, const char* name, const std::string& otherwise) {
  std::optional<Json> text = options.Find(name);
  return text ? text->Text() : otherwise;
}

// One text or a list.
std::vector<std::string> Texts(const std::optional<Json>& option) {
  if (!option) return {};
  return option->IsText() ? std::vector<std::string>{option->Text()} : option->Texts();
}

// Its library for this device, or the first one.
Bundle OpenBundle(const std::string& folder, const Json& options, const std::string& device) {
  Bundle bundle = Bundle::Open(folder, Flag(options, "check", true), Texts(options.Find("sha256")), device);
  bundle.linked = TextOr(options, "linked", "");
  if (!bundle.linked.empty() && !bundle.manifest.part().empty()) bundle.linked += kLinkedCpuPart;
  return bundle;
}

int Threads(const Json& options) {
  std::optional<Json> asked = options.Find("threads");
  return asked ? static_cast<int>(asked->Whole(1, Processors())) : PhysicalCores();
}

}  // namespace

void CheckNames(const Json& options, const std::vector<std::string>& names) {
  for (const std::string& name : options.Keys()) {
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    Fail(MINICPM_REQUEST, "there is no option ", Json::Quote(name), "; options are ", Joined(names, ", "));
  }
}

std::unique_ptr<Engine> Engine::Open(const std::string& folder, const Json& options) {
  CheckNames(options, kOpenOptions);
  std::string device = TextOr(options, "device", "");
  try {
    return std::unique_ptr<Engine>(new Engine(OpenBundle(folder, options, device), options));
  } catch (const DeviceError& error) {
    if (!device.empty() || !Manifest::Load(folder).has_second()) throw;
    std::unique_ptr<Engine> engine(new Engine(OpenBundle(folder, options, "cpu"), options));
    std::string why = error.what();
    engine->fell_back_ = why.substr(0, why.find("; "));  // without what would be done without that library
    return engine;
  }
}

Engine::Engine(Bundle bundle, const Json& options) : bundle_(std::move(bundle)), threads_(Threads(options)) {
  const Manifest& manifest = bundle_.manifest;
  int64_t context = ChooseContext(manifest, Count(options, "context", 1), Memory(manifest.device).Free());
  std::optional<Json> generation = bundle_.Object("generation_config.json");
  published_ = Sampling::Published(generation);
  end_tokens_.insert(manifest.eos_token_ids.begin(), manifest.eos_token_ids.end());
  if (std::optional<Json> more = generation ? generation->Find("eos_token_id") : std::nullopt) {
    std::vector<int32_t> ids = more->IsList() ? more->Ids() : std::vector<int32_t>{static_cast<int32_t>(more->Whole(0, INT32_MAX))};
    end_tokens_.insert(ids.begin(), ids.end());
  }
  model_.emplace(bundle_, threads_, context, Gears(manifest, TextOr(options, "attention", "auto")));
  CheckKernels(bundle_, model_->library());
  ReadTokenizer();  // once the library said how large the vocabulary is
  ReadRules();
  drafters_.emplace(bundle_, &*model_);
  if (std::optional<Json> resume = options.Find("resume")) model_->Resume(resume->Text());
}

void Engine::ReadTokenizer() {
  std::optional<Json> json = bundle_.Object("tokenizer.json");
  if (!json) {
    no_tokenizer_ = bundle_.folder + " has no tokenizer.json, so it can't read text; give token ids to generate";
    return;
  }
  try {
    tokenizer_.emplace(*json, bundle_.manifest.vocab_size);
  } catch (const Error& error) {
    no_tokenizer_ = std::string("this engine can't read text with this tokenizer; give token ids to generate. ") + error.what();
  }
}

void Engine::ReadRules() {
  std::optional<Json> json = bundle_.Object("engine.json");
  if (!json) return;
  json->At("format").Whole(1, 1);
  beginning_ = json->At("beginning").Ids();
  rules_.emplace(json->At("chat"));
}

const Tokenizer& Engine::tokenizer() const {
  if (!tokenizer_) Fail(MINICPM_REQUEST, no_tokenizer_);
  return *tokenizer_;
}

std::vector<int32_t> Engine::Tokenize(const std::string& text) const {
  std::vector<int32_t> ids = tokenizer().Encode(WholeCharacters(text));
  bool begins = ids.size() >= beginning_.size() && std::equal(beginning_.begin(), beginning_.end(), ids.begin());
  if (!begins) ids.insert(ids.begin(), beginning_.begin(), beginning_.end());
  return ids;
}

std::vector<int32_t> Engine::PromptIds(const Json& messages, const Json& options) const {
  if (!rules_) Fail(MINICPM_REQUEST, bundle_.folder, " has no engine.json, so nobody can chat; compile it again");
  return rules_->Make(tokenizer(), ChatRules::Messages(messages), Think(options)).ids;
}

std::vector<int32_t> Engine::Checked(std::vector<int32_t> ids) const {
  if (ids.empty()) Fail(MINICPM_REQUEST, "the prompt is empty; give at least one token");
  int64_t size = static_cast<int64_t>(ids.size());
  if (size > model_->context()) {
    Fail(MINICPM_CONTEXT, "the prompt has ", size, " tokens and the context holds ", model_->context(),
         "; shorten it, or open the bundle with a larger \"context\"");
  }
  for (int32_t id : ids) {
    if (id < bundle_.manifest.vocab_size) continue;
    Fail(MINICPM_REQUEST, "token id ", id, " is not in the vocabulary of ", bundle_.manifest.vocab_size,
         " tokens; give a text without that token, or other ids");
  }
  return ids;
}

void Engine::Chat(const Json& messages, const Json& options, const OnPiece& on_piece) {
  if (!rules_) Fail(MINICPM_REQUEST, bundle_.folder, " has no engine.json, so nobody can chat; compile it again");
  Prompt prompt = rules_->Make(tokenizer(), ChatRules::Messages(messages), Think(options));
  Reading reading;
  reading.chat = true;
  reading.opened = prompt.thinking;
  reading.max_think_tokens = Count(options, "max_think_tokens", 0);
  Answer(prompt.ids, reading, options, on_piece);
}

void Engine::Generate(const Json& prompt, const Json& options, const OnPiece& on_piece) {
  if (!prompt.IsText() && !prompt.IsList()) prompt.Refuse("a text or a list of token ids");
  // an empty text is refused, even where BOS would be added
  bool empty = prompt.IsText() && prompt.Text().empty();
  std::vector<int32_t> ids = empty ? std::vector<int32_t>{} : prompt.IsText() ? Tokenize(prompt.Text()) : prompt.Ids();
  Answer(ids, Reading{}, options, on_piece);
}

void Engine::Answer(std::vector<int32_t> ids, Reading reading, const Json& options, const OnPiece& on_piece) {
  CheckNames(options, kOptions);
  reading.stops = StopStrings::Of(options.Find("stop"));
  Request request{Checked(std::move(ids)), Sampling::Of(options, published_), Count(options, "max_tokens", 1),
                  Speculation::Of(options)};
  drafters_->Check(request.speculation);
  cancelled_ = false;
  bool unwanted = false;
  auto show = [&](minicpm_piece kind, std::string_view bytes) { unwanted = unwanted || on_piece(kind, bytes); };
  std::optional<Reader> reader;
  if (!Flag(options, "tokens", false)) {
    reader.emplace(tokenizer(), request.ids, reading, show);
  }
  auto feed = [&](int32_t id) {
    if (reader) {
      reader->Feed(id);
    } else {
      show(MINICPM_TOKEN, std::string_view(reinterpret_cast<const char*>(&id), sizeof id));
    }
    if (unwanted) cancelled_ = true;
    return reader && reader->stopped();
  };
  auto forced = [&] { return reader ? reader->Forced() : std::vector<int32_t>{}; };
  minicpm::Generate(&*model_, &*drafters_, request, end_tokens_, bundle_.manifest.vocab_size,
                    bundle_.manifest.prefill_chunk, {feed, forced}, cancelled_, &stats_);
  if (reader && !unwanted) reader->Finish();
}

std::string Engine::Info() const {
  bool chats = rules_ && rules_->refused().empty() && tokenizer_;
  std::ostringstream json;
  json << "{\"name\": " << Json::Quote(bundle_.manifest.name) << ", \"context\": " << model_->context()
       << ", \"max_context\": " << bundle_.manifest.max_context << ", \"vocab_size\": " << bundle_.manifest.vocab_size
       << ", \"threads\": " << threads_ << ", \"device\": " << Json::Quote(bundle_.manifest.device)
       << ", \"fell_back\": " << (fell_back_.empty() ? "null" : Json::Quote(fell_back_)) << ", \"tvm\": " << Json::Quote(bundle_.manifest.tvm)
       << ", \"sha256\": " << Json::Quote(bundle_.manifest.sha256) << ", \"can_chat\": " << (chats ? "true" : "false")
       << ", \"can_switch_thinking\": " << (chats && rules_->can_switch_thinking() ? "true" : "false") << "}";
  return json.str();
}

}  // namespace minicpm
