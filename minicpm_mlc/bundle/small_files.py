"""The small files of a checkpoint, which a bundle holds too: each read once, by one set of rules.

compile reads them before it touches a weight, asks of them what the engine will ask, and copies the
bytes that it has read.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import BundleError, MiniCPMError
from minicpm_mlc.base.files import as_object, as_text, parse_json, read_small
from minicpm_mlc.bundle.generation_config import GenerationConfig
from minicpm_mlc.bundle.tokenizer_file import TokenizerFile

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_FILES = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
COPIED = (*TOKENIZER_FILES, CONFIG, GENERATION_CONFIG, CHAT_TEMPLATE)


class SmallFiles:
    """Those of a folder; None is a folder without any. What is wrong with one is raised as `error`,
    with its name and, at the end, `advice`.
    """

    def __init__(
        self,
        folder: Path | None,
        error: type[MiniCPMError] = BundleError,
        advice: str = "compile the checkpoint again",
    ) -> None:
        self.folder = folder
        self._error = error
        self._advice = advice
        self._contents: dict[str, bytes | None] = {}
        self._objects: dict[str, dict[str, Any]] = {}

    def content(self, name: str) -> bytes | None:
        """All bytes of a file, without a byte order mark; None where there is no such file."""
        if name not in self._contents:
            self._contents[name] = self._read(name)
        return self._contents[name]

    def object(self, name: str) -> dict[str, Any]:
        """The object in a JSON file; an empty one where there is no such file."""
        if name not in self._objects:
            self._objects[name] = self.parsed(name)
        return self._objects[name]

    def parsed(self, name: str) -> dict[str, Any]:
        """The same, not kept: a large vocabulary takes 100 MB."""
        data = self.content(name)
        if data is None:
            return {}
        value = parse_json(data, self._place(name), self._error, self._advice)
        return as_object(value, self._place(name), self._error, self._advice)

    def check(self) -> None:
        """Reads every file that a bundle holds. Raises as the class says."""
        for name in COPIED:
            if name.endswith(".json"):
                self.object(name)
            else:
                self.content(name)
        _ = self.generation, self.tokenizer, self.chat_template

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json."""
        return self.object(TOKENIZER_CONFIG)

    @cached_property
    def generation(self) -> GenerationConfig:
        """generation_config.json."""
        try:
            return GenerationConfig.of(self.object(GENERATION_CONFIG))
        except ValueError as wrong:
            raise self.refuse(GENERATION_CONFIG, str(wrong)) from None

    @cached_property
    def tokenizer(self) -> TokenizerFile | None:
        """What tokenizer.json says of its tokens; None where there is no such file."""
        if self.content(TOKENIZER) is None:
            return None
        try:
            return TokenizerFile.of(self.object(TOKENIZER))
        except ValueError as wrong:
            raise self.refuse(TOKENIZER, str(wrong)) from None

    @cached_property
    def chat_template(self) -> tuple[str, str] | None:
        """The template and where it stands: chat_template.jinja, else tokenizer_config.json; None
        where neither has one.
        """
        if (data := self.content(CHAT_TEMPLATE)) is not None:
            place = self._place(CHAT_TEMPLATE)
            return as_text(data, place, self._error, self._advice), str(place)
        found = self.tokenizer_config.get("chat_template")
        if isinstance(found, list):
            found = self._default_template(found)
        if found is None or isinstance(found, str):
            where = f"chat_template in {self._place(TOKENIZER_CONFIG)}"
            return None if found is None else (found, where)
        wrong = f"is {type(found).__name__}, expected a string or a list of named templates"
        raise self.refuse(TOKENIZER_CONFIG, f"chat_template {wrong}")

    def _default_template(self, templates: list[Any]) -> object:
        named = {str(t.get("name")): t.get("template") for t in templates if isinstance(t, dict)}
        if "default" not in named:
            has = f"(it has: {', '.join(sorted(named))})"
            wrong = f"chat_template is a list without a template named 'default' {has:.200}"
            raise self.refuse(TOKENIZER_CONFIG, wrong)
        return named["default"]

    def special_token(self, key: str) -> str | None:
        """The text of tokenizer_config.json's `key`, such as eos_token: a text, or an object with
        "content"; None where it names none.
        """
        value = self.tokenizer_config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if text is not None and not isinstance(text, str):
            raise self.refuse(TOKENIZER_CONFIG, f"{key} is {text!r:.60}, expected a token's text")
        return text or None

    def refuse(self, name: str, wrong: str) -> MiniCPMError:
        """The error of a file with something wrong in it."""
        return self._error(f"{self._place(name)}: {wrong}; {self._advice}")

    def _place(self, name: str) -> Path:
        return (self.folder or Path()) / name

    def _read(self, name: str) -> bytes | None:
        try:
            return read_small(self._place(name), self._error, self._advice) if self.folder else None
        except FileNotFoundError:
            return None
