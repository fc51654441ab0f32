"""jinja2's sandbox with `transformers`' additions, and a budget for all that a template does.

The sandbox keeps templates from reaching Python. What they could still do, run for ever or fill
the memory, is counted (render_budget.py): the code generator puts a step into every loop, and
passes every value that is made to the environment.
"""

from __future__ import annotations

import functools
import json
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro, markup_join, str_join
from jinja2.sandbox import (
    ImmutableSandboxedEnvironment,
    SandboxedEscapeFormatter,
    SandboxedFormatter,
)
from jinja2.utils import Namespace, generate_lorem_ipsum
from markupsafe import Markup, escape

from minicpm_mlc.prompt import growth
from minicpm_mlc.prompt.render_budget import (
    KEYWORD_BYTES,
    budget,
    check_items,
    check_size,
)

COMPARISONS = 100  # in one chain, a < b < c
MOST_WORDS = 10_000  # of lipsum
MOST_INDENT = 1_000  # of tojson


class _CountedCode(CodeGenerator):
    """Python code in which loops take steps and values go through the environment."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        step = nodes.EnvironmentAttribute("step", lineno=node.lineno)  # a property: reading counts
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        if node.test:
            node.test = nodes.And(step, node.test, lineno=node.lineno)
        super().visit_For(node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "store":
            return super().visit_Tuple(node, frame)
        self._made(super().visit_Tuple, node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._made(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._made(super().visit_Dict, node, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        if len(node.ops) > COMPARISONS:
            self.fail(f"more than {COMPARISONS} comparisons in a chain", node.lineno)
        self._made(super().visit_Compare, node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined(context, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if not isinstance(node.arg, nodes.Slice):
            return super().visit_Getitem(node, frame)
        self.write("environment.sliced(")
        self.visit(node.node, frame)
        for part in (node.arg.start, node.arg.stop, node.arg.step):
            self.write(", ")
            self.visit(part or nodes.Const(None), frame)
        self.write(")")

    def signature(
        self, node: Any, frame: Frame, extra_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Arguments of a call; those after * go through the environment."""
        if node.dyn_args is not None:
            spread = nodes.EnvironmentAttribute("spread", lineno=node.lineno)
            node.dyn_args = nodes.Call(spread, [node.dyn_args], [], None, None, lineno=node.lineno)
        super().signature(node, frame, extra_kwargs)

    def _made(self, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        self.write("environment.made(")
        visit(node, frame)
        self.write(")")

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):  # nothing is computed without a budget
            raise nodes.Impossible()
        return super()._output_child_to_const(node, frame, finalize)

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write("environment.text(context, ")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; here only its content counts."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call, as `transformers` has it: what is set inside stays inside."""
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("content"), [], [], body).set_lineno(lineno)

    def content(self, caller: Macro) -> str:
        """What the block holds."""
        return caller()


class _Dict:
    """`dict` for templates, without the type's other attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """As dict.fromkeys."""
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """A namespace that stores no private names, and doesn't print what it holds: it may hold
    itself.
    """

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a name in the template
        self, *given = args
        values = dict(*given, **kwargs)
        budget().charge(len(values) * KEYWORD_BYTES)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


class _CountedFormatter(SandboxedFormatter):
    """str.format with its results counted while they come."""

    size = 0

    def format_field(self, value: Any, format_spec: str) -> str:
        budget().step()
        growth.check_spec(format_spec)
        text = super().format_field(value, format_spec)
        self.size += len(text)
        check_size(self.size)
        return text


class _CountedEscapeFormatter(_CountedFormatter, SandboxedEscapeFormatter):
    """The same for Markup."""


class CountedSandbox(ImmutableSandboxedEnvironment):
    """The environment of chat templates. Rendering in it needs a budget (`new_budget`)."""

    code_generator_class = _CountedCode
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants are computed on a render's budget, too
            extensions=[_GenerationTag, loopcontrols],
        )
        self.filters |= {"tojson": _tojson, "join": _join(self.filters["join"])}
        self.filters = {
            name: _counted(filter_, growth.FILTERS.get(name))
            for name, filter_ in self.filters.items()
        }
        self.tests = {name: _counted(test, None) for name, test in self.tests.items()}
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
            "lipsum": _lipsum,
        }

    @property
    def step(self) -> Literal[True]:
        """Counts one step."""
        budget().step()
        return True

    def made(self, value: Any) -> Any:
        """Counts a value that was made."""
        used = budget()
        used.step()
        return used.made(value)

    def text(self, context: Context, value: Any) -> str:
        """A value as it's written into the prompt."""
        used = budget()
        used.step()
        if type(value) is str and not context.eval_ctx.autoescape:
            return value
        return used.made(escape(value) if context.eval_ctx.autoescape else str(value))

    def joined(self, context: Context, parts: tuple[Any, ...]) -> str:
        """`a ~ b`."""
        texts = [self.text(context, part) for part in parts]
        check_size(sum(map(len, texts)))
        return self.made((markup_join if context.eval_ctx.autoescape else str_join)(texts))

    def concat(self, parts: Iterable[str]) -> str:
        """The text of a macro or block."""
        texts = list(parts)
        check_size(sum(map(len, texts)))
        return self.made("".join(texts))

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """`value[start:stop:step]`; a part weighs no more than the whole."""
        used = budget()
        used.step()
        part = value[start:stop:step]
        used.charge(sys.getsizeof(part))
        return part

    def spread(self, values: Any) -> Any:
        """The arguments after a *."""
        check_items(10 * len(values) if isinstance(values, str | bytes) else 0)
        return values

    def getattr(self, obj: Any, attribute: str) -> Any:
        budget().step()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        budget().step()
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        used = budget()
        used.step()
        growth.check_operator(operator, left, right)
        return used.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        used = budget()
        used.step()
        if isinstance(__obj, types.BuiltinMethodType | types.MethodType):
            given = {name: value for name, value in kwargs.items() if name[:1] != "_"}
            args = growth.checked_method(__obj.__self__, __obj.__name__, args, given)
        used.given(args, kwargs)
        return used.made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """str.format and format_map in the sandbox, with their results counted."""
        if super().wrap_str_format(value) is None:
            return None
        text = value.__self__
        formatter = (
            _CountedEscapeFormatter(self, escape=text.escape)
            if isinstance(text, Markup)
            else _CountedFormatter(self)
        )

        def wrapped(
            *args: Any, **kwargs: Any
        ) -> str:  # a partial would show the template its parts
            if value.__name__ == "format_map":
                return type(text)(formatter.vformat(text, (), *args, **kwargs))
            return type(text)(formatter.vformat(text, args, kwargs))

        return functools.update_wrapper(wrapped, value)


def _counted(function: Callable[..., Any], check: growth.Check | None) -> Callable[..., Any]:
    """A filter or test that takes a step, is checked before it runs, and its result counted."""
    skipped = int(hasattr(function, "jinja_pass_arg"))  # the context or environment comes first

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        used = budget()
        used.step()
        used.given(args, kwargs)
        if check:
            check(*args[skipped:], **kwargs)
        result = function(*args, **kwargs)
        if isinstance(result, types.GeneratorType):
            used.chained(result, (*args, *kwargs.values()))
        return used.made(result)

    return counted


def _join(join: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(join)
    def checked(eval_ctx: Any, value: Any, d: str = "", attribute: Any = None) -> str:
        growth.check_path(attribute)
        items = growth.checked_items(Markup(d) if eval_ctx.autoescape else str(d), value)
        return join(eval_ctx, items, d, attribute)

    return checked


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja2's HTML escapes."""
    options: dict[str, Any] = {"ensure_ascii": ensure_ascii, "sort_keys": sort_keys}
    if indent is None and separators is None:
        return json.dumps(x, **options)
    if (len(indent) if isinstance(indent, str) else indent or 0) > MOST_INDENT:
        raise SecurityError(f"an indent of more than {MOST_INDENT} spaces")
    parts: list[str] = []
    size = 0
    for part in json.JSONEncoder(indent=indent, separators=separators, **options).iterencode(x):
        budget().step()
        size += len(part)
        check_size(size)
        parts.append(part)
    return "".join(parts)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(format: str) -> str:
    growth.check_spec(format)
    check_size(256 * len(format))
    return datetime.now().strftime(format)


def _lipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
    if growth.whole(n) * growth.whole(max) > MOST_WORDS:
        raise SecurityError(f"lipsum of more than {MOST_WORDS:,} words")
    return generate_lorem_ipsum(n, html, min, max)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace stores no private name, such as {name!r:.80}")
