"""Checkpoint -> bundle."""

from .compiler import CompileResult, compile_model

__all__ = ["CompileResult", "compile_model"]
