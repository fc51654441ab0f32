/* A conversation with a compiled bundle, a line a message: what an app does with native/engine/include/minicpm.h.
 *
 *   cmake -S native/engine -B build && cmake --build build
 *   build/chat BUNDLE
 */
#include <stdio.h>
#include <string.h>

#include "minicpm.h"

enum { LONGEST = 1 << 16 };  /* bytes of the conversation as JSON */

/* Appends a message to a JSON list without its closing bracket; 0 where there is no more room. */
static int add(char* messages, const char* role, const char* text) {
  size_t at = strlen(messages);
  if (at + 64 > LONGEST) return 0;
  at += (size_t)snprintf(messages + at, LONGEST - at, "%s{\"role\": \"%s\", \"content\": \"", at > 1 ? ", " : "", role);
  for (; *text; ++text) {
    if (at + 16 > LONGEST) return 0;
    if (*text == '"' || *text == '\\') messages[at++] = '\\';
    if ((unsigned char)*text < 0x20) {
      at += (size_t)snprintf(messages + at, LONGEST - at, "\\u%04x", *text);
    } else {
      messages[at++] = *text;
    }
  }
  strcpy(messages + at, "\"}");
  return 1;
}

/* Shows the answer and keeps it in `user`, a text of LONGEST bytes. */
static int show(void* user, minicpm_piece kind, const char* bytes, size_t size) {
  char* answer = user;
  if (kind != MINICPM_ANSWER) return 0;
  fwrite(bytes, 1, size, stdout);
  fflush(stdout);
  if (strlen(answer) + size >= LONGEST) return 1;
  strncat(answer, bytes, size);
  return 0;
}

int main(int count, char** arguments) {
  static char messages[LONGEST + 16] = "[", answer[LONGEST];
  char line[4096];
  minicpm_engine* engine = NULL;
  if (count != 2 || minicpm_open(MINICPM_VERSION, arguments[1], NULL, &engine) != MINICPM_OK) {
    fprintf(stderr, "%s\n", count == 2 ? minicpm_error() : "usage: chat BUNDLE");
    return 1;
  }
  while (printf("> "), fflush(stdout), fgets(line, sizeof line, stdin)) {
    size_t before = strlen(messages);
    line[strcspn(line, "\n")] = 0;
    answer[0] = 0;
    if (!add(messages, "user", line)) break;
    strcat(messages, "]");
    minicpm_status status = minicpm_chat(engine, messages, NULL, show, answer);
    messages[strlen(messages) - 1] = 0;
    printf("\n");
    if (status != MINICPM_OK) {
      fprintf(stderr, "%s\n", minicpm_error());
      messages[before] = 0;  /* the question is forgotten */
    } else if (!add(messages, "assistant", answer)) {
      break;
    }
  }
  minicpm_close(engine);
  return 0;
}
