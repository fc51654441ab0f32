// minicpm-run BUNDLE [--prompt TEXT | < TEXT]: an answer of a bundle, over minicpm.h alone; options and output are those of
// `minicpm-mlc chat`. At a terminal without --prompt each line is a message of one conversation.
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <iostream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "minicpm.h"

namespace {

enum class Takes { kNumber, kWhole, kText, kTexts, kFlag };

struct Option {
  const char* name;
  Takes takes;
  const char* help;
};

// What goes to minicpm_chat, and to minicpm_open, by the same names with underscores.
const Option kChat[] = {
    {"temperature", Takes::kNumber, "0 is greedy"},
    {"top-k", Takes::kWhole, "0 is all"},
    {"top-p", Takes::kNumber, "draw from the likeliest tokens that make up this share"},
    {"min-p", Takes::kNumber, "draw from tokens at least this times as likely as the likeliest"},
    {"repetition-penalty", Takes::kNumber, "1 is none"},
    {"presence-penalty", Takes::kNumber, "0 is none"},
    {"frequency-penalty", Takes::kNumber, "0 is none"},
    {"seed", Takes::kWhole, "same seed, same text"},
    {"stop", Takes::kTexts, "text that ends the answer, not the thinking; may be given more than once"},
    {"max-tokens", Takes::kWhole, "longest answer, in tokens"},
    {"max-think-tokens", Takes::kWhole, "longest thinking, in tokens"},
    {"speculate", Takes::kText, "guess tokens ahead: auto, off, ngram or eagle; the text stays the same"},
    {"tree-size", Takes::kWhole, "nodes of a draft tree; what pays unless given"},
    {"draft-depth", Takes::kWhole, "levels of a draft tree; what pays unless given"},
    {"draft-top-k", Takes::kWhole, "guesses after a token; 4 unless given"},
    {"think", Takes::kFlag, "think before answering (--no-think: don't)"},
};
const Option kOpen[] = {
    {"context", Takes::kWhole, "tokens of context"},
    {"threads", Takes::kWhole, "threads; the physical cores unless given"},
    {"attention", Takes::kText, "auto, dense or sparse"},
    {"sha256", Takes::kText, "run only a bundle whose manifest has this SHA-256"},
    {"device", Takes::kText, "cpu: the processor's library of a bundle that has a GPU's too"},
};
const Option kOwn[] = {
    {"prompt", Takes::kText, "answer this and leave; piped text goes before it"},
    {"system", Takes::kText, "system prompt"},
    {"hide-thinking", Takes::kFlag, "don't show what the model thinks"},
    {"stats", Takes::kFlag, "print the call's figures as JSON on standard error"},
    {"ids", Takes::kText, "go on from these token ids, such as 1,2,3, and print token ids"},
    {"tokenize", Takes::kFlag, "print the token ids of the prompt, without its chat template"},
    {"show-prompt", Takes::kFlag, "print the token ids of the prompt in its chat template"},
};

[[noreturn]] void Leave(const std::string& text) {
  std::cerr << "Error: " << text << "\n";
  std::exit(1);
}

void Check(minicpm_status status) {
  if (status != MINICPM_OK) Leave(minicpm_error());
}

std::string Quote(const std::string& text) {
  std::string json = "\"";
  for (char c : text) {
    char code[8];
    if (static_cast<unsigned char>(c) < 0x20) {
      std::snprintf(code, sizeof code, "\\u%04x", c);
      json += code;
    } else {
      if (c == '"' || c == '\\') json += '\\';
      json += c;
    }
  }
  return json + "\"";
}

std::string Underscored(std::string name) {
  for (char& c : name) c = c == '-' ? '_' : c;
  return name;
}

struct Arguments {
  std::string bundle;
  std::map<std::string, std::string> chat, open;       // JSON by name
  std::map<std::string, std::string> own;              // as typed
  std::vector<std::string> stops;                      // JSON
};

std::string ObjectOf(const std::map<std::string, std::string>& members) {
  std::string json;
  for (const auto& [name, value] : members) json += (json.empty() ? "" : ", ") + Quote(name) + ": " + value;
  return "{" + json + "}";
}

bool IsNumber(const std::string& text, bool whole) {
  if (text.empty()) return false;
  char* end = nullptr;
  if (whole) {
    std::strtoll(text.c_str(), &end, 10);
  } else {
    std::strtod(text.c_str(), &end);
  }
  return !*end && text.find_first_of("xXpPnNiI+") == std::string::npos && text[0] != '.' && text.back() != '.';
}

void Take(const Option& option, const std::string& value, std::map<std::string, std::string>* members,
          std::vector<std::string>* stops) {
  std::string name = Underscored(option.name);
  bool number = option.takes == Takes::kNumber || option.takes == Takes::kWhole;
  if (number && !IsNumber(value, option.takes == Takes::kWhole)) {
    Leave(std::string("--") + option.name + " is '" + value + "'; it takes a number");
  }
  if (option.takes == Takes::kTexts) return stops->push_back(Quote(value));
  (*members)[name] = number ? value : Quote(value);
}

template <size_t n>
const Option* Find(const Option (&options)[n], const std::string& name) {
  for (const Option& option : options) {
    if (name == option.name) return &option;
  }
  return nullptr;
}

template <size_t n>
void Help(const Option (&options)[n]) {
  for (const Option& option : options) std::printf("  --%-20s %s\n", option.name, option.help);
}

[[noreturn]] void HelpAndLeave() {
  std::puts("Usage: minicpm-run BUNDLE [OPTIONS] [< TEXT]\n\nAnswers a question with a compiled bundle.\n");
  Help(kOwn);
  Help(kOpen);
  Help(kChat);
  std::exit(0);
}

Arguments Parse(int count, char** texts) {
  Arguments arguments;
#ifdef MINICPM_LINKED
  arguments.open["linked"] = Quote(MINICPM_LINKED);
#endif
  for (int i = 1; i < count; ++i) {
    std::string text = texts[i];
    if (text == "-h" || text == "--help") HelpAndLeave();
    if (text.compare(0, 2, "--") != 0) {
      if (!arguments.bundle.empty()) Leave("one bundle is run; '" + text + "' is a second one");
      arguments.bundle = text;
      continue;
    }
    size_t equals = text.find('=');
    std::string name = text.substr(2, equals == std::string::npos ? equals : equals - 2);
    if (name == "no-think") {
      arguments.chat["think"] = "false";
      continue;
    }
    const Option* chat = Find(kChat, name);
    const Option* open = Find(kOpen, name);
    const Option* own = Find(kOwn, name);
    const Option* option = chat ? chat : open ? open : own;
    if (!option) Leave("there is no option --" + name + "; --help lists them");
    if (option->takes == Takes::kFlag) {
      (chat ? arguments.chat : arguments.own)[Underscored(name)] = "true";
      continue;
    }
    if (equals == std::string::npos && i + 1 == count) Leave("--" + name + " takes a value");
    std::string value = equals == std::string::npos ? texts[++i] : text.substr(equals + 1);
    if (own) {
      arguments.own[name] = value;
    } else {
      Take(*option, value, chat ? &arguments.chat : &arguments.open, &arguments.stops);
    }
  }
  if (arguments.bundle.empty()) Leave("which bundle? minicpm-run BUNDLE --prompt TEXT");
  std::string stops;
  for (const std::string& stop : arguments.stops) stops += (stops.empty() ? "" : ", ") + stop;
  if (!stops.empty()) arguments.chat["stop"] = "[" + stops + "]";
  return arguments;
}

struct Screen {
  bool hide_thinking;
  std::string answer;
  bool thought = false;
};

int Show(void* user, minicpm_piece kind, const char* bytes, size_t size) {
  Screen* screen = static_cast<Screen*>(user);
  if (kind == MINICPM_THINKING) {
    screen->thought = true;
    if (screen->hide_thinking) return 0;
  } else if (screen->answer.empty() && screen->thought && !screen->hide_thinking) {
    std::fputc('\n', stderr);
  }
  FILE* stream = kind == MINICPM_THINKING ? stderr : stdout;
  std::fwrite(bytes, 1, size, stream);
  if (kind == MINICPM_ANSWER) screen->answer.append(bytes, size);
  return std::fflush(stream) != 0;
}

int ShowToken(void* user, minicpm_piece, const char* bytes, size_t) {
  int32_t id;
  std::memcpy(&id, bytes, sizeof id);
  bool* first = static_cast<bool*>(user);
  std::printf(*first ? "%d" : ",%d", id);
  *first = false;
  return 0;
}

std::string MessageOf(const std::string& role, const std::string& content) {
  return "{\"role\": " + Quote(role) + ", \"content\": " + Quote(content) + "}";
}

class Run {
 public:
  explicit Run(const Arguments& arguments) : arguments_(arguments), options_(ObjectOf(arguments.chat)) {
    Check(minicpm_open(MINICPM_VERSION, arguments.bundle.c_str(), ObjectOf(arguments.open).c_str(), &engine_));
    WarnOfFallback();
    if (arguments.own.count("system")) messages_ = MessageOf("system", arguments.own.at("system"));
  }
  ~Run() { minicpm_close(engine_); }

  void GoOn(const std::string& ids) {
    bool first = true;
    arguments_.chat["tokens"] = "true";
    std::string options = ObjectOf(arguments_.chat);
    Check(minicpm_generate(engine_, ("[" + ids + "]").c_str(), options.c_str(), ShowToken, &first));
    std::puts("");
    ShowStats();
  }

  // One turn; what was said is kept for the next one. False where the engine refused.
  bool Ask(const std::string& question) {
    std::string asked = messages_ + (messages_.empty() ? "" : ", ") + MessageOf("user", question);
    Screen screen{Has("hide_thinking"), "", false};
    minicpm_status status = minicpm_chat(engine_, ("[" + asked + "]").c_str(), options_.c_str(), Show, &screen);
    if (status != MINICPM_OK) return false;
    std::puts("");
    ShowStats();
    messages_ = asked + ", " + MessageOf("assistant", screen.answer);
    return true;
  }

  void ShowIds(const std::string& question) {
    std::string asked = "[" + messages_ + (messages_.empty() ? "" : ", ") + MessageOf("user", question) + "]";
    std::string think = arguments_.chat.count("think") ? "{\"think\": " + arguments_.chat["think"] + "}" : "{}";
    char* ids = Has("tokenize") ? minicpm_tokenize(engine_, question.c_str())
                                : minicpm_prompt(engine_, asked.c_str(), think.c_str());
    if (!ids) Leave(minicpm_error());
    std::puts(ids);
    minicpm_free(ids);
  }

  bool Has(const std::string& flag) const { return arguments_.own.count(flag) > 0; }

 private:
  void WarnOfFallback() {
    char* text = minicpm_info(engine_);
    std::string info = text ? text : "", start = "\"fell_back\": \"";
    minicpm_free(text);
    size_t at = info.find(start);
    if (at == std::string::npos) return;
    at += start.size();
    std::cerr << "Warning: " << info.substr(at, info.find("\", \"", at) - at) << "; the processor answers\n";
  }

  // What standard error has after an answer.
  void ShowStats() {
    char* text = minicpm_stats(engine_);
    std::string stats = text ? text : "";
    minicpm_free(text);
    bool cut = stats.find("\"length\"") != std::string::npos || stats.find("\"context\"}") != std::string::npos;
    if (cut) std::cerr << "(cut at " << ValueOf(stats, "generated_tokens") << " tokens)\n";
    if (Has("stats")) std::cerr << stats << "\n";
  }

  // A number of a JSON object, as it is written there.
  static std::string ValueOf(const std::string& json, const std::string& name) {
    size_t at = json.find("\"" + name + "\": ");
    if (at == std::string::npos) return "";
    at += name.size() + 4;
    return json.substr(at, json.find_first_of(",}", at) - at);
  }

  Arguments arguments_;
  std::string options_, messages_;
  minicpm_engine* engine_ = nullptr;
};

std::string Piped() {
  std::string text{std::istreambuf_iterator<char>(std::cin), {}};
  std::string plain;  // line ends as \n
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n') continue;
    plain += text[i] == '\r' ? '\n' : text[i];
  }
  return plain;
}

bool IsBlank(const std::string& text) { return text.find_first_not_of(" \t\n\v\f\r") == std::string::npos; }

// All of a piped standard input, then --prompt, as one message: as it would be asked about a pasted text.
std::string Question(const Arguments& arguments) {
  auto given = arguments.own.find("prompt");
  std::string prompt = given == arguments.own.end() ? "" : given->second;
  if (isatty(0)) return prompt;
  std::string piped = Piped();
  if (IsBlank(piped)) return IsBlank(prompt) ? piped : prompt;
  if (IsBlank(prompt)) return piped;
  piped.erase(piped.find_last_not_of(" \t\n\v\f\r") + 1);
  return piped + "\n\n" + prompt;
}

}  // namespace

int main(int count, char** texts) {
  Arguments arguments = Parse(count, texts);
  auto ids = arguments.own.find("ids");
  bool talks = ids == arguments.own.end() && !arguments.own.count("prompt") && isatty(0);
  std::string question = talks || ids != arguments.own.end() ? "" : Question(arguments);
  if (!talks && ids == arguments.own.end() && IsBlank(question)) {
    Leave("the prompt is empty; give --prompt TEXT or pipe text in");
  }
  Run run(arguments);
  if (ids != arguments.own.end()) {
    run.GoOn(ids->second);
  } else if (run.Has("tokenize") || run.Has("show_prompt")) {
    run.ShowIds(question);
  } else if (!talks) {
    if (!run.Ask(question)) Leave(minicpm_error());
  } else {
    std::string line;
    while (std::cerr << "> ", std::getline(std::cin, line)) {
      if (!IsBlank(line) && !run.Ask(line)) std::cerr << "Error: " << minicpm_error() << "\n";
    }
  }
  return 0;
}
