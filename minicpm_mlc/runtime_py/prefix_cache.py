"""Pages that are kept after their sequence went on or ended, for texts that begin with the same
tokens: a tree of pages, each behind the one before it, the least recently used given back first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from typing import NamedTuple

from minicpm_mlc.runtime_py.kv_cache import PagePool, Sequence, common_prefix


class Found(NamedTuple):
    """What is kept of a text: its full `pages`, and the first `rows` tokens of the page `tail`,
    which goes on differently; to be copied.
    """

    pages: list[int]
    tail: int
    rows: int


class Kept(NamedTuple):
    """A page that is kept, for who stores it: its tokens, and the place of the page before it in
    the list; -1: none.
    """

    parent: int
    tokens: tuple[int, ...]
    page: int


@dataclass(eq=False)
class _Node:
    """A page and its tokens; fewer than fill it at the end of a text."""

    parent: _Node | None
    tokens: tuple[int, ...]
    page: int
    children: dict[tuple[int, ...], _Node] = field(default_factory=dict)


class PrefixCache:
    """An owner of pages of a pool, which gives them back when the pool has no other.

    A page stays as it was computed: in the gear, and by the call, of the text that came first.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._root = _Node(None, (), -1)
        self._nodes: OrderedDict[_Node, None] = OrderedDict()  # the least recently used first
        pool.reclaim = self.evict

    def all(self) -> list[Kept]:
        """The pages that it keeps, each behind the one before it in its text."""
        places = {self._root: -1}
        kept: list[Kept] = []
        for node in self._below(self._root):
            assert node.parent
            places[node] = len(kept)
            kept.append(Kept(places[node.parent], node.tokens, node.page))
        return kept

    def restore(self, kept: Ids[Kept]) -> None:
        """Takes over pages that have one owner, listed as by `all`."""
        nodes: list[_Node] = []
        for parent, tokens, page in kept:
            before = nodes[parent] if parent >= 0 else self._root
            nodes.append(_Node(before, tokens, page))
            before.children[tokens] = nodes[-1]
            self._nodes[nodes[-1]] = None
            self._pool.kept[page] = True

    def _below(self, node: _Node) -> Iterator[_Node]:
        waiting = [*node.children.values()]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children.values()

    def keep(self, sequence: Sequence, tail: bool = False) -> None:
        """Keeps a sequence's full pages; with `tail` also its last one, into which the sequence
        must not write any more.
        """
        size = self._pool.page_size
        path = self._root
        for i, page in enumerate(sequence.page_table.tolist()):
            tokens = tuple(sequence.tokens[i * size : (i + 1) * size])
            if not tokens or (len(tokens) < size and not tail):
                break
            node = path.children.get(tokens)
            if node is None:
                node = self._add(path, tokens, page)
            elif node.page != page and not self._replace(node, page):
                break
            path = node
        self._touch(path)

    def find(self, token_ids: Ids[int]) -> Found:
        """The longest beginning of a text that is kept."""
        size = self._pool.page_size
        node = self._root
        pages: list[int] = []
        rest = tuple(token_ids[:size])
        while len(rest) == size and (child := node.children.get(rest)):
            pages.append(child.page)
            node = child
            rest = tuple(token_ids[len(pages) * size : (len(pages) + 1) * size])
        shared = [(common_prefix(child.tokens, rest), child) for child in node.children.values()]
        rows, best = max(shared, key=lambda pair: pair[0], default=(0, node))
        self._touch(best if rows else node)
        return Found(pages, best.page, rows)

    def evict(self) -> bool:
        """Gives the least recently used page back that no sequence has and none is kept behind."""
        for node in self._nodes:
            if not node.children and self._pool.owners[node.page] == 1:
                self._remove(node)
                return True
        return False

    def _add(self, parent: _Node, tokens: tuple[int, ...], page: int) -> _Node:
        for part, child in list(parent.children.items()):
            shorter = len(part) < len(tokens) and tokens[: len(part)] == part
            if shorter and self._pool.owners[child.page] == 1:
                self._remove(child)  # the new page holds its tokens too
        node = parent.children[tokens] = _Node(parent, tokens, page)
        self._nodes[node] = None
        self._own(page)
        return node

    def _replace(self, node: _Node, page: int) -> bool:
        """Keeps another page of the same tokens, so that whoever has a page has all before it."""
        if self._pool.owners[node.page] > 1:
            return False
        self._disown(node.page)
        node.page = page
        self._own(page)
        return True

    def _remove(self, node: _Node) -> None:
        assert node.parent
        del node.parent.children[node.tokens]
        del self._nodes[node]
        self._disown(node.page)

    def _own(self, page: int) -> None:
        self._pool.share(page)
        self._pool.kept[page] = True

    def _disown(self, page: int) -> None:
        self._pool.kept[page] = False
        self._pool.release(page)

    def _touch(self, node: _Node) -> None:
        """It and all before it were used now; those behind go first."""
        at: _Node | None = node
        while at and at.parent:
            self._nodes.move_to_end(at)
            at = at.parent
