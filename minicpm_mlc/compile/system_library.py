"""Names for a static library: an app may hold several, so every symbol begins with the library's
own prefix.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm.tirx import PrimFunc

from minicpm_mlc.compile.renaming import new_name, renamed


def prefixed(prefix: str) -> Any:
    """Pass: kernels are named with `prefix` in front, and the module is compiled as a system
    library of that prefix.

    AttachGlobalSymbol would do it, but stumbles over kernels that read a buffer as another type.
    """

    @tvm.transform.module_pass(opt_level=0)
    def rename(module: Any, _: Any) -> Any:
        kernels = {name: f for name, f in module.functions_items() if isinstance(f, PrimFunc)}
        names = {name: new_name(prefix + name.name_hint, name) for name in kernels}
        named = {
            names[name]: f.with_attr("global_symbol", names[name].name_hint)
            for name, f in kernels.items()
        }
        return renamed(module, named, names).with_attr("system_lib_prefix", prefix)

    return rename
