// Calls of minicpm.h for the tests: a line of standard input is a call, VERB ARGUMENT..., each argument in hexadecimal; a
// line of output its result, STATUS TEXT KIND TEXT..., each text in hexadecimal, - where it is empty.
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "minicpm.h"

namespace {

std::string FromHex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

std::string ToHex(const std::string& bytes) {
  std::string hex;
  for (unsigned char byte : bytes) {
    hex += "0123456789abcdef"[byte >> 4];
    hex += "0123456789abcdef"[byte & 15];
  }
  return hex.empty() ? "-" : hex;
}

struct Pieces {
  std::string line;
  minicpm_engine* engine;
  int left;  // pieces until it ends the answer; below 0: all
  bool cancels;
};

int Keep(void* user, minicpm_piece kind, const char* bytes, size_t size) {
  Pieces* pieces = static_cast<Pieces*>(user);
  pieces->line += " " + std::to_string(kind) + " " + ToHex(std::string(bytes, size));
  bool enough = pieces->left >= 0 && --pieces->left <= 0;
  if (enough && pieces->cancels) minicpm_cancel(pieces->engine);
  return enough && !pieces->cancels;
}

std::string TextOf(char* text) {
  std::string copy = text ? text : "";
  minicpm_free(text);
  return copy;
}

std::string Call(minicpm_engine* engine, const std::string& verb, const std::vector<std::string>& given) {
  auto argument = [&](size_t i) { return i < given.size() ? given[i].c_str() : ""; };
  Pieces pieces{"", engine, std::atoi(argument(2)) ? std::atoi(argument(2)) : -1, given.size() > 3};
  std::string text;
  minicpm_status status = MINICPM_OK;
  if (verb == "tokenize") text = TextOf(minicpm_tokenize(engine, argument(0)));
  if (verb == "prompt") text = TextOf(minicpm_prompt(engine, argument(0), argument(1)));
  if (verb == "info") text = TextOf(minicpm_info(engine));
  if (verb == "stats") text = TextOf(minicpm_stats(engine));
  if (verb == "chat") status = minicpm_chat(engine, argument(0), argument(1), Keep, &pieces);
  if (verb == "generate") status = minicpm_generate(engine, argument(0), argument(1), Keep, &pieces);
  if (verb == "save") status = minicpm_save(engine, argument(0));
  if (verb == "truncate") status = minicpm_truncate(engine, static_cast<uint32_t>(std::stoul(argument(0))));
  bool gives_text = verb == "tokenize" || verb == "prompt" || verb == "info" || verb == "stats";
  if (gives_text && text.empty()) status = MINICPM_FAILED;
  if (status != MINICPM_OK) text = minicpm_error();
  return std::to_string(status) + " " + ToHex(text) + pieces.line;
}

}  // namespace

int main(int count, char** texts) {
  minicpm_engine* engine = nullptr;
  minicpm_status status = minicpm_open(MINICPM_VERSION, texts[1], count > 2 ? texts[2] : nullptr, &engine);
  std::cout << status << " " << ToHex(minicpm_error()) << std::endl;
  if (status != MINICPM_OK) return 0;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string verb, word;
    std::vector<std::string> arguments;
    words >> verb;
    while (words >> word) arguments.push_back(FromHex(word == "-" ? "" : word));
    std::cout << Call(engine, verb, arguments) << std::endl;
  }
  minicpm_close(engine);
  return 0;
}
