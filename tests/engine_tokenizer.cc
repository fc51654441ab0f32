// The engine's tokenizer alone: engine_tokenizer TOKENIZER.JSON VOCABULARY; a line of input is HOW TEXT, the text in
// hexadecimal, a line of output its token ids. HOW: encode, plain, middle; or bytes, of a token id.
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include "json.h"
#include "tokenizer.h"

namespace {

std::string FromHex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

void Print(const minicpm::Tokenizer& tokenizer, const std::string& how, const std::string& text) {
  if (how == "bytes") {
    for (unsigned char byte : tokenizer.BytesOf(std::stoi(text))) std::cout << static_cast<int>(byte) << ' ';
    return;
  }
  auto ids = how == "middle" ? tokenizer.EncodeMiddle(text) : tokenizer.Encode(text, how == "plain");
  for (int32_t id : ids) std::cout << id << ' ';
}

}  // namespace

int main(int, char** texts) try {
  std::ifstream file(texts[1], std::ios::binary);
  std::string json{std::istreambuf_iterator<char>(file), {}};
  minicpm::Tokenizer tokenizer(minicpm::Json::Parse(json, "tokenizer.json", MINICPM_BUNDLE, "compile it again"),
                               std::stoll(texts[2]));
  for (std::string how, hex; std::cin >> how >> hex; std::cout << '\n') {
    Print(tokenizer, how, hex == "-" ? "" : FromHex(hex));
  }
  return 0;
} catch (const minicpm::Error& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
