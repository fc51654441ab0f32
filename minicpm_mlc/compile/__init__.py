"""Checkpoint -> bundle."""

from minicpm_mlc.compile.compiler import compile_model
from minicpm_mlc.compile.result import CompileResult

__all__ = ["CompileResult", "compile_model"]
