// minicpm.h as a page calls it: pieces of an answer go to a function of the page, as WebAssembly has no pointers to those.
#include "minicpm.h"

#define IMPORT(name) __attribute__((import_module("minicpm"), import_name(name)))
#define EXPORT(name) __attribute__((export_name(name)))

extern "C" {

// Whether no more are wanted.
IMPORT("piece") int minicpm_web_piece(minicpm_piece kind, const char* bytes, size_t size);

static int Tell(void*, minicpm_piece kind, const char* bytes, size_t size) { return minicpm_web_piece(kind, bytes, size); }

EXPORT("chat")
minicpm_status minicpm_web_chat(minicpm_engine* engine, const char* messages, const char* options) {
  return minicpm_chat(engine, messages, options, Tell, nullptr);
}

EXPORT("generate")
minicpm_status minicpm_web_generate(minicpm_engine* engine, const char* prompt, const char* options) {
  return minicpm_generate(engine, prompt, options, Tell, nullptr);
}

}  // extern "C"
