"""Which blocks of its text an answer of the sparse gear read, for who asks with `block_reads`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minicpm_mlc.runtime_py.chat.text import TextStream
from minicpm_mlc.serve.served import Served

SHOWN = 24  # tokens of a block, whose text is shown


@dataclass(frozen=True)
class BlockMap:
    """Makes the maps of a prompt's answers."""

    served: Served
    prompt: Sequence[int]

    def of(self, reads: Sequence[int]) -> dict[str, Any] | None:
        """`reads`: how often each block was chosen by its score, summed over tokens, layers and
        heads; the `first` ones and the `latest` are read whatever their scores. `texts`: how the
        prompt's blocks begin. None in the dense gear.
        """
        if not reads:
            return None
        gears = self.served.gears
        return {
            "tokens": gears.block_size,
            "reads": list(reads),
            "first": gears.init_blocks,
            "latest": gears.window_blocks + 1,
            "texts": list(map(self._beginning, range(0, len(self.prompt), gears.block_size))),
        }

    def _beginning(self, start: int) -> str:
        stream = TextStream(self.served.tokenizer, self.prompt[:start][-1:])
        return "".join(map(stream.feed, self.prompt[start : start + SHOWN]))
