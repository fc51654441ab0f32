"""Sequences to run requests on: the engine's own one, and as many more as run at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.kv_cache import common_prefix
from minicpm_mlc.runtime_py.prefix_cache import Kept, PrefixCache
from minicpm_mlc.runtime_py.saved_state import load_state, save_state
from minicpm_mlc.runtime_py.speculative.policy import Policy
from minicpm_mlc.runtime_py.speculative.steps import Drafter


@dataclass(eq=False)
class Slot:
    """A sequence, and who guesses its next tokens."""

    model: CachedModel
    drafters: dict[str, Drafter]
    policy: Policy


class Slots:
    """Hands out slots, each with what is kept of its new text.

    The engine's own slot is taken first, and keeps its text when it is given back, so that the next
    call goes on from there. The others give their pages to the prefix cache.
    """

    def __init__(self, own: Slot, make: Callable[[], Slot], cache: PrefixCache | None) -> None:
        """`cache` None: pages can't be shared, as the model keeps state per sequence."""
        self.own = own
        self.all = [own]
        self._make = make
        self.cache = cache
        self._idle = [own]

    def take(self) -> Slot:
        """A slot that nobody has."""
        if not self._idle:
            self._idle.append(self._make())
            self.all += self._idle
        return self._idle.pop()

    def place(self, slot: Slot, token_ids: list[int]) -> None:
        """Makes the slot's text the longest known beginning of these tokens."""
        sequence = slot.model.sequence
        if self.cache is None:
            slot.model.reuse(token_ids)
            return
        live = common_prefix(sequence.tokens, token_ids)
        if live == len(sequence) and live >= self._known(token_ids):
            return
        self.clear(slot)
        found = self.cache.find(token_ids)
        full = len(found.pages) * sequence.pool.page_size
        sequence.adopt(found.pages, token_ids[:full])
        if found.rows and sequence.room:
            slot.model.copy(found.tail, token_ids[full : full + found.rows])

    def keep(self, slot: Slot) -> None:
        """Keeps the pages that its text has filled, for other texts that begin so."""
        if self.cache is not None:
            self.cache.keep(slot.model.sequence)

    def save(self, path: str | Path, manifest: str) -> None:
        """Writes all that is kept and the engine's own sequence to a file: see saved_state."""
        model = self.own.model
        if self.cache is None:
            raise EngineError("the model keeps state per sequence, which can't be saved")
        self.keep(self.own)
        kept = self.cache.all()
        sequence = model.sequence
        size = sequence.pool.page_size
        full = len(sequence) // size
        if rest := tuple(sequence.tokens[full * size :]):
            places = {each.page: i for i, each in enumerate(kept)}
            before = self.cache.find(sequence.tokens[: full * size]).pages
            if len(before) == full:
                parent = places[before[-1]] if before else -1
                kept.append(Kept(parent, rest, int(sequence.page_table[full])))
        pools = model.cache.library.pool_arrays(model.cache.pools)
        save_state(path, manifest, kept, sequence.tokens, pools)

    def load(self, path: str | Path, manifest: str) -> None:
        """Goes on from what `save` wrote."""
        cache = self.own.model.cache
        pools = cache.library.pool_arrays(cache.pools)
        kept, own = load_state(path, manifest, cache.pages, pools)
        if self.cache is not None:
            self.cache.restore(kept)
            self.place(self.own, own)

    def give_back(self, slot: Slot) -> None:
        """Nobody has it any more."""
        if slot is self.own:
            self.keep(slot)
            self._idle.append(slot)
        else:
            self.clear(slot)
            self._idle.insert(0, slot)

    def forget(self) -> None:
        """Keeps nothing for what may come any more, but the engine's own text."""
        while self.cache is not None and self.cache.evict():
            pass

    def spare(self) -> bool:
        """Gives up the text of the engine's own slot where nobody has it; whether that was so."""
        if self.own not in self._idle or not len(self.own.model):
            return False
        self.clear(self.own)
        return True

    def clear(self, slot: Slot) -> None:
        """Its sequence is empty from now on; its pages are kept for what may come."""
        if self.cache is not None:
            self.cache.keep(slot.model.sequence, tail=True)
        slot.model.free()

    def _known(self, token_ids: list[int]) -> int:
        assert self.cache is not None
        found = self.cache.find(token_ids)
        pool = self.own.model.sequence.pool
        return len(found.pages) * pool.page_size + found.rows
