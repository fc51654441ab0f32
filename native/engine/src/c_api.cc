// The functions of minicpm.h: no exception leaves them.
#include <tvm/ffi/error.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>

#include "engine.h"

struct minicpm_engine {
  std::unique_ptr<minicpm::Engine> engine;
  std::mutex busy;
};

namespace minicpm {
namespace {

thread_local std::string last_error;

minicpm_status Failed(minicpm_status status, const char* text) {
  last_error = text;
  return status;
}

// Runs what may throw; keeps why it failed.
template <typename Body>
minicpm_status Guarded(Body body) noexcept {
  try {
    last_error.clear();
    body();
    return MINICPM_OK;
  } catch (const Error& error) {
    return Failed(error.status, error.what());
  } catch (const std::bad_alloc&) {
    return Failed(MINICPM_MEMORY, "out of memory; close other programs, or open the bundle with a smaller \"context\"");
  } catch (const std::exception& error) {
    return Failed(MINICPM_FAILED, error.what());
  } catch (...) {
    return Failed(MINICPM_FAILED, "an unknown exception");
  }
}

// The same on an engine that no other thread is in.
template <typename Body>
minicpm_status Alone(minicpm_engine* engine, Body body) noexcept {
  return Guarded([&] {
    std::unique_lock<std::mutex> lock(engine->busy, std::try_to_lock);
    if (!lock) Fail(MINICPM_BUSY, "the engine is busy in another thread; wait for that call to end, or open a second one");
    body(*engine->engine);
  });
}

Json Options(const char* options) {
  Json json = Json::Parse(options && *options ? options : "{}", "options");
  if (!json.IsObject()) json.Refuse("an object");
  return json;
}

Engine::OnPiece Calls(minicpm_on_piece on_piece, void* user) {
  return [=](minicpm_piece kind, std::string_view bytes) {
    return on_piece && on_piece(user, kind, bytes.data(), bytes.size()) != 0;
  };
}

char* Copied(const std::string& text) {
  char* copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (copy) std::memcpy(copy, text.c_str(), text.size() + 1);
  return copy;
}

std::string ListOf(const std::vector<int32_t>& ids) {
  std::string list;
  for (int32_t id : ids) list += (list.empty() ? "" : ", ") + std::to_string(id);
  return "[" + list + "]";
}

template <typename Body>
char* Text(minicpm_engine* engine, Body body) noexcept {
  std::string text;
  minicpm_status status = Alone(engine, [&](Engine& own) { text = body(own); });
  return status == MINICPM_OK ? Copied(text) : nullptr;
}

}  // namespace
}  // namespace minicpm

using minicpm::Engine;
using minicpm::Json;

extern "C" {

uint32_t minicpm_version(void) { return MINICPM_VERSION; }

const char* minicpm_error(void) { return minicpm::last_error.c_str(); }

minicpm_status minicpm_open(uint32_t version, const char* bundle, const char* options, minicpm_engine** engine) {
  *engine = nullptr;
  return minicpm::Guarded([&] {
    if (version != MINICPM_VERSION) {
      minicpm::Fail(MINICPM_REQUEST, "the app was compiled for version ", version, " of minicpm.h, and this is ",
                    MINICPM_VERSION, "; compile it with this library's header");
    }
    *engine = new minicpm_engine{Engine::Open(bundle, minicpm::Options(options)), {}};
  });
}

void minicpm_close(minicpm_engine* engine) { delete engine; }

minicpm_status minicpm_memory_need(const char* bundle, uint32_t context, uint64_t* bytes) {
  return minicpm::Guarded([&] { *bytes = minicpm::Manifest::Load(bundle).MemoryNeed(context); });
}

char* minicpm_info(const minicpm_engine* engine) { return minicpm::Copied(engine->engine->Info()); }

minicpm_status minicpm_chat(minicpm_engine* engine, const char* messages, const char* options,
                            minicpm_on_piece on_piece, void* user) {
  return minicpm::Alone(engine, [&](Engine& own) {
    own.Chat(Json::Parse(messages, "messages"), minicpm::Options(options), minicpm::Calls(on_piece, user));
  });
}

minicpm_status minicpm_generate(minicpm_engine* engine, const char* prompt, const char* options,
                                minicpm_on_piece on_piece, void* user) {
  return minicpm::Alone(engine, [&](Engine& own) {
    own.Generate(Json::Parse(prompt, "prompt"), minicpm::Options(options), minicpm::Calls(on_piece, user));
  });
}

void minicpm_cancel(minicpm_engine* engine) { engine->engine->Cancel(); }

char* minicpm_tokenize(minicpm_engine* engine, const char* text) {
  return minicpm::Text(engine, [&](Engine& own) { return minicpm::ListOf(own.Tokenize(text)); });
}

char* minicpm_prompt(minicpm_engine* engine, const char* messages, const char* options) {
  return minicpm::Text(engine, [&](Engine& own) {
    return minicpm::ListOf(own.PromptIds(Json::Parse(messages, "messages"), minicpm::Options(options)));
  });
}

minicpm_status minicpm_truncate(minicpm_engine* engine, uint32_t length) {
  return minicpm::Alone(engine, [&](Engine& own) { own.Truncate(length); });
}

minicpm_status minicpm_save(minicpm_engine* engine, const char* path) {
  return minicpm::Alone(engine, [&](Engine& own) { own.Save(path); });
}

char* minicpm_stats(minicpm_engine* engine) {
  return minicpm::Text(engine, [&](Engine& own) { return own.stats().ToJson(); });
}

void minicpm_free(char* text) { std::free(text); }

}  // extern "C"
