"""Kernels under other names, in a module whose functions call them."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator


def new_name(text: str, old: Any) -> Any:
    """A GlobalVar for what `old` names."""
    name = relax.GlobalVar(text)
    relax.expr._update_type(name, old.ty)
    return name


def renamed(module: Any, kernels: dict[Any, Any], names: dict[Any, Any]) -> Any:
    """`module` with `kernels` (functions by GlobalVar) in the place of those in `names`, called by
    their new names there.
    """
    caller = _Caller(module, names)
    rest = {name: f for name, f in module.functions_items() if name not in names}
    functions = {
        name: caller.visit_expr(f) if isinstance(f, relax.Function) else f
        for name, f in rest.items()
    }
    return tvm.IRModule(functions | kernels, attrs=module.attrs)


@mutator
class _Caller(PyExprMutator):
    """Functions that call by the new names."""

    def __init__(self, module: Any, names: dict[Any, Any]) -> None:
        super().__init__(module)
        self.names = names

    def visit_global_var_(self, name: Any) -> Any:
        """The function's new name, where it has one."""
        return self.names.get(name, name)
