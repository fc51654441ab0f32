"""Names for a static library: an app may hold several, so every symbol begins with the library's own prefix."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.tirx import PrimFunc


def prefixed(prefix: str) -> Any:
    """Pass: kernels are named with `prefix` in front, and the module is compiled as a system library of that prefix.

    AttachGlobalSymbol would do it, but stumbles over kernels that read a buffer as another type.
    """

    @tvm.transform.module_pass(opt_level=0)
    def rename(module: Any, _: Any) -> Any:
        kernels = {name: f for name, f in module.functions_items() if isinstance(f, PrimFunc)}
        names = {name: relax.GlobalVar(prefix + name.name_hint) for name in kernels}
        for name, new in names.items():
            relax.expr._update_type(new, name.ty)
        renamer = _Renamer(module, names)
        functions = {names[name]: f.with_attr("global_symbol", names[name].name_hint) for name, f in kernels.items()}
        functions |= {n: renamer.visit_expr(f) for n, f in module.functions_items() if isinstance(f, relax.Function)}
        rest = {n: f for n, f in module.functions_items() if n not in kernels and not isinstance(f, relax.Function)}
        return tvm.IRModule(functions | rest, attrs=module.attrs).with_attr("system_lib_prefix", prefix)

    return rename


@mutator
class _Renamer(PyExprMutator):
    """Functions that call the kernels by their new names."""

    def __init__(self, module: Any, names: dict[Any, Any]) -> None:
        super().__init__(module)
        self.names = names

    def visit_global_var_(self, name: Any) -> Any:
        return self.names.get(name, name)
