"""How models write calls of tools, a file for each format."""

from __future__ import annotations

from minicpm_mlc.base.choices import TOOL_FORMATS
from minicpm_mlc.prompt.tool_formats.hermes import Hermes
from minicpm_mlc.prompt.tool_formats.minicpm import MiniCPM
from minicpm_mlc.prompt.tool_formats.minicpm5 import MiniCPM5
from minicpm_mlc.prompt.tools import ToolFormat

FORMATS: dict[str, ToolFormat] = dict(
    zip(TOOL_FORMATS, (MiniCPM(), Hermes(), MiniCPM5()), strict=True)
)
