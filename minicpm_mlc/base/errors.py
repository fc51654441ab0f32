"""Every mistake that a user can fix. The message says what was seen, what was expected and what to
type next.
"""

from __future__ import annotations


class MiniCPMError(Exception):
    """Base of all errors shown to users without a traceback."""


class ConfigError(MiniCPMError):
    """A config.json that is missing, damaged, or asks for maths that is not implemented."""


class CheckpointError(MiniCPMError):
    """A checkpoint whose files or tensors are missing, damaged, extra or mis-shaped."""


class HubError(MiniCPMError):
    """A model's name that no hub knows, a hub that can't be reached or refuses, a download that is
    damaged or doesn't fit the disk.
    """


class CompileError(MiniCPMError):
    """A bundle that can't be compiled or written as asked."""


class BundleError(MiniCPMError):
    """A bundle that is damaged, or made for another device, ABI or TVM version."""


class ContextError(MiniCPMError):
    """A prompt or context that doesn't fit the model, the engine's context or memory."""


class PromptTooLongError(ContextError):
    """A prompt that the engine's context doesn't hold. `fact` says how long both are; `larger` is
    the largest context that the model and memory allow, None where it is open already.
    """

    def __init__(self, tokens: int, context: int, largest: int) -> None:
        self.fact = f"the prompt has {tokens} tokens and the context holds {context}"
        self.larger = largest if context < largest else None
        advice = f", or open the engine with a larger context (--context, up to {largest})"
        super().__init__(f"{self.fact}; shorten the prompt{advice if self.larger else ''}")


class DeviceError(MiniCPMError):
    """A device that was lost, is out of memory, or whose driver failed."""


class SamplingError(MiniCPMError):
    """A sampling option outside its range."""


class TemplateError(MiniCPMError):
    """A chat template that can't be parsed or rendered."""


class FieldError(MiniCPMError):
    """A field of a request that is missing or has another kind of value. `param` is its name."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class EngineError(MiniCPMError):
    """An engine that is closed, busy, or asked for something that it does not have."""
