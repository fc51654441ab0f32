"""TIR statements, and one kernel from its first to its last word."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.targets.vulkan import memory
from minicpm_mlc.targets.vulkan.expressions import Expressions, handle, node_type
from minicpm_mlc.targets.vulkan.memory import Arguments, Array
from minicpm_mlc.targets.vulkan.values import BOOL, INT32, Features, Unsupported, scalar

# kinds of For
SERIAL = 0
UNROLLED = 3
WORKGROUP = 2  # SPIR-V's scope
# SPIR-V's memory semantics
ACQUIRE_RELEASE = 0x8
WORKGROUP_MEMORY = 0x100
UNIFORM_MEMORY = 0x40
SEMANTICS = {
    "shared": ACQUIRE_RELEASE | WORKGROUP_MEMORY,
    "global": ACQUIRE_RELEASE | WORKGROUP_MEMORY | UNIFORM_MEMORY,
}


@dataclass(frozen=True)
class Shader:
    """A kernel for Vulkan. `uniform`: its scalars come in a uniform buffer, being too many for push
    constants.
    """

    words: list[int]
    uniform: bool


def lower(name: str, function: Any, target: Any) -> Shader:
    """One device function, as TVM's passes leave it. Raises CompileError for what can't be lowered,
    naming it.
    """
    return Kernel(name, function, target).shader()


class Kernel(Expressions):
    """The body of a kernel, statement by statement."""

    def __init__(self, name: str, function: Any, target: Any) -> None:
        super().__init__(Features.of(target))
        self.name = name
        self.function = function
        self.tags = [str(tag) for tag in function.attrs["tirx.kernel_launch_params"]]
        self.shared_limit = int(target.attrs["max_shared_memory_per_block"])
        self.shared_bytes = 0
        self.local_size = [1, 1, 1]
        self.arguments = Arguments(self)
        self.statement: Any = None

    def shader(self) -> Shader:
        """The kernel as SPIR-V. Raises CompileError, with the statement, where there is no way."""
        try:
            self._take_arguments()
            self.run(self.function.body)
        except Unsupported as error:
            raise CompileError(
                f"kernel {self.name}: Vulkan has no instructions here for {error}{self._where()}"
            ) from error
        self.arguments.finish()
        x, y, z = self.local_size
        return Shader(self.module.words(self.name, (x, y, z)), self.arguments.uniform)

    def _where(self) -> str:
        """The statement's first line, without the declarations that TVM prints before it."""
        lines = [] if self.statement is None else str(self.statement).splitlines()
        return next(
            (
                f": {line[:200]}"
                for line in lines
                if not re.search(r" = T\.\w+\(\)|T\.(handle|Buffer)\(", line)
            ),
            "",
        )

    def _take_arguments(self) -> None:
        scalars = []
        for parameter in self.function.params:
            if type(parameter.ty).__name__ == "PointerType":
                self.arguments.bindings[handle(parameter)] = len(self.arguments.bindings)
            else:
                scalars.append(parameter)
        loaded = self.arguments.load_scalars([node_type(parameter) for parameter in scalars])
        for parameter, value in zip(scalars, loaded, strict=True):
            self.bind(parameter, value)

    def run(self, statement: Any) -> None:
        """Emit a statement. Raises Unsupported."""
        name = type(statement).__name__
        if name != "SeqStmt":
            self.statement = statement
        method = getattr(self, f"_run_{name}", None)
        if method is None:
            raise Unsupported(f"{name} statements")
        method(statement)

    def scoped(self, statement: Any) -> None:
        """Emit a statement whose values are known within it alone."""
        self.scopes.append({})
        self.run(statement)
        self.scopes.pop()

    def _run_SeqStmt(self, statement: Any) -> None:
        for part in statement.seq:
            self.run(part)

    def _run_Bind(self, statement: Any) -> None:
        self.bind(statement.var, self.value(statement.value))

    def _run_BufferStore(self, statement: Any) -> None:
        array = self.array(statement.buffer)
        if type(statement.indices[0]).__name__ == "Ramp":
            self._copy_lanes(array, statement)
        else:
            value = self.value(statement.value)
            memory.store(self, array, self.index(statement.indices), value)
        if array.storage == "StorageBuffer":
            self.arguments.written.update(
                b for (b, _), other in self.arguments.arrays.items() if other is array
            )

    def _copy_lanes(self, array: Array, statement: Any) -> None:
        """A vector from one array to another, number by number. Raises Unsupported for a vector
        that is computed.
        """
        (to,), value = statement.indices, statement.value
        if type(value).__name__ != "TensorLoad":
            raise Unsupported("vectors other than those that are loaded and stored")
        (at,) = value.indices
        source = self.array(value.source)
        for lane in range(int(to.lanes)):
            number = memory.load(self, source, self._lane(at, lane))
            memory.store(self, array, self._lane(to, lane), number)

    def _lane(self, ramp: Any, lane: int) -> int:
        """The index of one lane."""
        t = node_type(ramp.base)
        step = self.constant(t, lane * int(ramp.stride))
        return self.emit("IAdd", self.type(t), self.value(ramp.base), step)

    def _run_DeclBuffer(self, statement: Any) -> None:
        """A view of an argument."""
        buffer = statement.buffer
        data = statement.data
        if handle(data) not in self.arguments.bindings or str(buffer.elem_offset) != "0":
            raise Unsupported("a buffer that is no argument from its start")
        array = self.arguments.array(
            self.arguments.bindings[handle(data)], scalar(str(buffer.dtype))
        )
        self.arrays[handle(buffer)] = array

    def _run_AllocBuffer(self, statement: Any) -> None:
        buffer = statement.buffer
        t = scalar(str(statement.buffer.dtype))
        length = int(buffer.shape[0])
        scope = str(buffer.scope())
        if scope not in ("shared", "local"):
            raise Unsupported(f"an array in {scope} memory")
        if scope == "shared":
            self.shared_bytes += length * max(self.bits(t), 32) // 8
            if self.shared_bytes > self.shared_limit:
                raise Unsupported(
                    f"{self.shared_bytes} bytes of shared memory; the target allows "
                    f"{self.shared_limit}"
                )
        storage = "Workgroup" if scope == "shared" else "Function"
        variable = self.module.variable(storage, self.module.array(self.type(t), length))
        self.arrays[handle(buffer)] = Array(variable, t, storage)

    def _run_IfThenElse(self, statement: Any) -> None:
        def otherwise() -> None:
            if statement.else_case is not None:
                self.run(statement.else_case)

        self.branch(
            self.value(statement.condition), (lambda: self.run(statement.then_case), otherwise)
        )

    def _run_For(self, statement: Any) -> None:
        if statement.kind not in (SERIAL, UNROLLED) or statement.step is not None:
            raise Unsupported(f"a loop of kind {statement.kind} with step {statement.step}")
        t = node_type(statement.loop_var)
        type = self.type(t)
        begin = self.value(statement.min)
        end = self.emit("IAdd", type, begin, self.value(statement.extent))
        header, body, follow, merge, count, after = (self.module.new_id() for _ in range(6))
        before = self.block
        self.append("Branch", 0, header)
        self.label(header)
        self.define("Phi", type, count, begin, before, after, follow)
        more = self.append(
            "SLessThan" if t.kind == "i" else "ULessThan", self.type(BOOL), count, end
        )
        self.append("LoopMerge", 0, merge, follow, 0)
        self.append("BranchConditional", 0, more, body, merge)
        self.label(body)
        self.bind(statement.loop_var, count)
        self.scoped(statement.body)
        self.append("Branch", 0, follow)
        self.label(follow)
        self.define("IAdd", type, after, count, self.constant(t, 1))
        self.append("Branch", 0, header)
        self.label(merge)

    def _run_While(self, statement: Any) -> None:
        header, test, body, follow, merge = (self.module.new_id() for _ in range(5))
        self.append("Branch", 0, header)
        self.label(header)
        self.append("LoopMerge", 0, merge, follow, 0)
        self.append("Branch", 0, test)
        self.label(test)
        self.scopes.append({})
        self.append("BranchConditional", 0, self.value(statement.condition), body, merge)
        self.label(body)
        self.run(statement.body)
        self.scopes.pop()
        self.append("Branch", 0, follow)
        self.label(follow)
        self.append("Branch", 0, header)
        self.label(merge)

    def _run_Evaluate(self, statement: Any) -> None:
        call = statement.value
        if type(call).__name__ == "IntImm":
            return
        if type(call).__name__ != "Call" or call.op.name != "tirx.tvm_storage_sync":
            raise Unsupported("a call for its effect")
        scope = str(call.args[0].value)
        if scope not in SEMANTICS:
            raise Unsupported(f"a barrier of {scope} memory")
        number = self.module.number
        self.append(
            "ControlBarrier", 0, number(WORKGROUP), number(WORKGROUP), number(SEMANTICS[scope])
        )

    def _run_AttrStmt(self, statement: Any) -> None:
        key = str(statement.attr_key)
        if key != "thread_extent":
            if not key.startswith("pragma_"):
                raise Unsupported(f"the attribute {key}")
            return self.run(statement.body)
        tag = str(statement.node.thread_tag)
        if not tag.startswith(("blockIdx.", "threadIdx.")):
            raise Unsupported(f"the thread index {tag}")
        axis = "xyz".index(tag[-1])
        if tag.startswith("threadIdx."):
            self.local_size[axis] = int(statement.value)
            self._bind_index(statement, self._component("LocalInvocationId", axis))
            self.run(statement.body)
        elif "blockIdx.y" in self.tags:
            self._bind_index(statement, self._component("WorkgroupId", axis))
            self.run(statement.body)
        else:
            self._run_workgroup(statement)

    def _run_workgroup(self, statement: Any) -> None:
        """Workgroups in one row, which the launch may have cut into several, the last not full."""
        number = self.type(INT32)
        columns = self._component("NumWorkgroups", 0)
        above = self.emit("IMul", number, self._component("WorkgroupId", 1), columns)
        self._bind_index(
            statement, self.emit("IAdd", number, above, self._component("WorkgroupId", 0))
        )
        t = node_type(statement.node.var)
        extent = statement.value
        limit = self.cast(self.value(extent), node_type(extent), t)
        inside = self.emit("SLessThan", self.type(BOOL), self.value(statement.node.var), limit)
        self.branch(inside, (lambda: self.run(statement.body), lambda: None))

    def _bind_index(self, statement: Any, value: int) -> None:
        variable = statement.node.var
        self.bind(variable, self.cast(value, scalar("uint32"), node_type(variable)))

    def _component(self, builtin: str, axis: int) -> int:
        vector = self.emit(
            "Load",
            self.module.declare("TypeVector", self.module.integer(), 3),
            self.module.builtin(builtin),
        )
        return self.emit("CompositeExtract", self.module.integer(), vector, axis)
