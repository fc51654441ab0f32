"""Checkpoint -> bundle."""

from minicpm_mlc.compile.compiler import CompileResult, compile_model

__all__ = ["CompileResult", "compile_model"]
