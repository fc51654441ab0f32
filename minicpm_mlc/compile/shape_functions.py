"""The functions that compute shapes at run time, the same for the same model.

TVM's VMShapeLower writes their statements in the order of a hash of addresses, and takes two for
one if their orders happen to be equal.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm.tirx import PrimFunc, SeqStmt

from minicpm_mlc.compile.renaming import new_name, renamed


@tvm.transform.module_pass(opt_level=0)
def order_shape_functions(module: Any, _: Any) -> Any:
    """Pass: their statements in the order of the places they write, equal ones once, numbered by
    their text.
    """
    functions = {name: _ordered(f) for name, f in module.functions_items() if _computes_shapes(f)}
    texts = {name: f.script() for name, f in functions.items()}
    different = {text: name for name, text in texts.items()}
    numbered = {
        text: new_name(f"shape_func{i}", different[text])
        for i, text in enumerate(sorted(different))
    }
    kernels = {numbered[text]: functions[name] for text, name in different.items()}
    return renamed(module, kernels, {name: numbered[text] for name, text in texts.items()})


def _computes_shapes(function: Any) -> bool:
    return isinstance(function, PrimFunc) and "tirx.is_host_func" in (function.attrs or {})


def _ordered(function: Any) -> Any:
    """Each statement writes a place of its own, from places that are there before the function is
    called.
    """
    if not isinstance(function.body, SeqStmt):
        return function
    return function.with_body(SeqStmt(sorted(function.body.seq, key=_place)))


def _place(store: Any) -> int:
    return int(store.indices[0])
