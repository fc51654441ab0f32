"""Whether the engine can read a folder's small files: the one question that compile has for it."""

from __future__ import annotations

from minicpm_mlc.bundle.small_files import TOKENIZER, SmallFiles
from minicpm_mlc.prompt.sampling import default_sampling
from minicpm_mlc.prompt.template import ChatTemplate
from minicpm_mlc.prompt.tokenizer import Tokenizer


def check_readable(files: SmallFiles, vocab_size: int) -> None:
    """Reads sampling, chat template and tokenizer as an engine does. Raises MiniCPMError with what
    it would say.
    """
    default_sampling(files)
    ChatTemplate.from_files(files)
    if files.content(TOKENIZER) is not None:
        Tokenizer.from_files(files, None, vocab_size)
