/* Runs a bundle that minicpm-mlc compiled, without Python.
 *
 * All text is UTF-8. A call that fails returns a status other than MINICPM_OK (or NULL), and minicpm_error() tells why,
 * with what to do. No exception leaves a call. One call at a time computes on an engine; another thread's ends in
 * MINICPM_BUSY. minicpm_cancel may be called by any thread, at any time before minicpm_close.
 */
#ifndef MINICPM_H_
#define MINICPM_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MINICPM_VERSION 1 /* of these functions; minicpm_open refuses an app that was compiled for another one */

#if defined(_WIN32)
#define MINICPM_API __declspec(dllexport)
#else
#define MINICPM_API __attribute__((visibility("default")))
#endif

typedef enum {
  MINICPM_OK = 0,
  MINICPM_BUNDLE = 1,  /* the bundle is damaged, incomplete, or made for another machine or runtime */
  MINICPM_REQUEST = 2, /* an option, message or token that can't be used */
  MINICPM_CONTEXT = 3, /* the text is longer than the context */
  MINICPM_MEMORY = 4,  /* too little of it is free */
  MINICPM_BUSY = 5,    /* another thread is inside a call of this engine */
  MINICPM_FAILED = 6   /* anything else */
} minicpm_status;

typedef enum {
  MINICPM_THINKING = 0, /* text of the think block, without its markers */
  MINICPM_ANSWER = 1,   /* text */
  MINICPM_TOKEN = 2     /* an int32_t, the next token's id: where the option "tokens" is true, in place of text */
} minicpm_piece;

typedef struct minicpm_engine minicpm_engine;

/* A piece of an answer: whole characters, not ended by a zero. Anything but 0 ends the answer. */
typedef int (*minicpm_on_piece)(void* user, minicpm_piece kind, const char* bytes, size_t size);

MINICPM_API uint32_t minicpm_version(void);

/* Why this thread's last call failed; valid until its next one. */
MINICPM_API const char* minicpm_error(void);

/* Opens a bundle, which is a program: it runs with the app's rights. Give MINICPM_VERSION.
 * options, a JSON object or NULL: "context" (tokens), "threads", "attention" ("auto", "dense", "sparse"),
 * "sha256" (of the only manifest that may run, or a list of them), "check" (false: the files' hashes were checked before), "linked" (the
 * prefix of a model's static library that is part of the app, which runs in place of the bundle's file), "resume" (a
 * file of minicpm_save), "device" ("cpu": the processor's library of a bundle that has a GPU's too. Without it that one
 * is opened where the GPU isn't there, fails or computes wrong; minicpm_info tells why).
 */
MINICPM_API minicpm_status minicpm_open(uint32_t version, const char* bundle, const char* options,
                                        minicpm_engine** engine);
MINICPM_API void minicpm_close(minicpm_engine* engine);

/* Bytes that a context of so many tokens takes, the weights included. */
MINICPM_API minicpm_status minicpm_memory_need(const char* bundle, uint32_t context, uint64_t* bytes);

/* JSON: the model's name, its context, vocabulary, threads, device, why that isn't the bundle's GPU ("fell_back", null
 * if it is or there is none), and whether it can chat and switch thinking.
 * To be freed by minicpm_free, as all that is returned as char*. */
MINICPM_API char* minicpm_info(const minicpm_engine* engine);

/* Answers a conversation: messages is JSON, [{"role": "user", "content": "Hello"}, ...].
 * options, a JSON object or NULL: "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
 * "frequency_penalty", "seed", "stop" (a text or a list), "max_tokens", "think" (true, false), "max_think_tokens",
 * "tokens"; "speculate" ("auto", "off", "ngram", "eagle"), "tree_size", "draft_depth", "draft_top_k": how tokens are
 * guessed ahead, which changes the time and not the text.
 */
MINICPM_API minicpm_status minicpm_chat(minicpm_engine* engine, const char* messages, const char* options,
                                        minicpm_on_piece on_piece, void* user);

/* Goes on from a prompt without a chat template: JSON, a text or a list of token ids. Options as above. */
MINICPM_API minicpm_status minicpm_generate(minicpm_engine* engine, const char* prompt, const char* options,
                                            minicpm_on_piece on_piece, void* user);

/* Ends the running call before its next step; it returns MINICPM_OK with the text so far. */
MINICPM_API void minicpm_cancel(minicpm_engine* engine);

/* JSON: the token ids of a text, BOS first where the model wants it. */
MINICPM_API char* minicpm_tokenize(minicpm_engine* engine, const char* text);

/* JSON: the token ids that the engine makes of a conversation. Options: "think". */
MINICPM_API char* minicpm_prompt(minicpm_engine* engine, const char* messages, const char* options);

/* Forgets the cached tokens from `length` on, and the pages that are kept of other texts. */
MINICPM_API minicpm_status minicpm_truncate(minicpm_engine* engine, uint32_t length);

/* Writes what is computed to a file, all or nothing, for minicpm_open's "resume", or Python's Engine(..., resume=path).
 * After minicpm_cancel that is a prompt as far as it was read. */
MINICPM_API minicpm_status minicpm_save(minicpm_engine* engine, const char* path);

/* JSON: figures of the last call, named as in Python's Stats. */
MINICPM_API char* minicpm_stats(minicpm_engine* engine);

MINICPM_API void minicpm_free(char* text);

#ifdef __cplusplus
}
#endif

#endif
