// A number that threads wait on until another thread changes it.
#pragma once
#include "system.h"

enum { SPIN = 50000 };  // nanoseconds that a wait keeps its core

typedef struct {
  _Alignas(64) Number number;
  Number sleepers;
} Event;

// Returns once the number isn't `value`. Most waits are short: it spins, then for the rest of
// `patience` nanoseconds lets whoever wants this core go first, then sleeps.
static void wait_while(Event *event, uint32_t value, uint64_t patience) {
  uint64_t waited, begun = nanoseconds();
  do {
    for (int i = 0; i < 32; i++) {
      if (atomic_load(&event->number) != value) return;
      pause_briefly();
    }
    waited = nanoseconds() - begun;
    if (waited > SPIN) yield_core();
  } while (waited < patience);
  atomic_fetch_add(&event->sleepers, 1);
  while (atomic_load(&event->number) == value) sleep_while(&event->number, value);
  atomic_fetch_sub(&event->sleepers, 1);
}

// To be called after the number was changed.
static void wake(Event *event) {
  if (atomic_load(&event->sleepers)) wake_sleepers(&event->number);
}
