"""What a traced function would run, and where: read from its graph, on any machine."""

from typing import NamedTuple

import tensorflow as tf

# Python in the middle of a graph: the data comes to the host and goes back.
PYTHON_OPERATIONS = ("PyFunc", "PyFuncStateless", "EagerPyFunc")

# What update graphs have outside of XLA that touches floating-point tensors, and for which
# TensorFlow has a kernel on GPUs. A CPU build does not know them: look a new one up in
# tensorflow/core/kernels before it joins the list.
HAVE_GPU_KERNELS = """
AddV2 AssignSubVariableOp AssignVariableOp BiasAdd BiasAddGrad Bitcast BroadcastTo Cast
ConcatV2 Const DivNoNan EnsureShape Equal Fill GatherV2 Greater Identity IdentityN If IsFinite
Less MatMul Maximum Mean Mul MulNoNan Neg NotEqual OnesLike Pack Pad Placeholder
ReadVariableOp RealDiv Reshape ResourceGather ResourceScatterUpdate SelectV2 Slice
SparseTensorDenseMatMul Split SplitV Square StatelessWhile StridedSlice Sub Sum
TensorListConcatV2 TensorListReserve TensorListSetItem Tile Unpack ZerosLike
"""


class Operation(NamedTuple):
    """A node of a graph, or of a function that the graph calls.

    Attributes:
        type: String, such as "MatMul".
        name: String.
        function: String, the function it stands in; empty for the graph itself.
        device: String, the device that was asked for; mostly empty.
        compiled: Whether XLA compiles it.
        floating: Whether it takes or gives floating-point tensors.
    """

    type: str
    name: str
    function: str
    device: str
    compiled: bool
    floating: bool


def operations(graph_def):
    """All that a graph runs, in functions of its library as well.

    Args:
        graph_def: `GraphDef` of a concrete function's graph.

    Returns:
        List of `Operation`. What is called both inside and outside of XLA is there twice.
    """
    library = {function.signature.name: function for function in graph_def.library.function}
    waiting, seen, found = [("", graph_def.node, False)], set(), []
    while waiting:
        where, nodes, compiled = waiting.pop()
        for node in nodes:
            inside = compiled or _compiles(node)
            place = node.op, node.name, where, node.device
            found.append(Operation(*place, inside, _is_floating(node)))
            for name in _called(node, library):
                call = name, inside or _compiles(library[name])
                if call not in seen:
                    seen.add(call)
                    waiting.append((name, library[name].node_def, call[1]))
    return found


def copying_to_the_host(found):
    """Those of `Operation`s by which an update would leave the GPU."""
    # Where a branch fails, it says with which numbers.
    failing = {one.function for one in found if one.type == "Assert" and one.function}

    def leaves(one):
        if one.type in PYTHON_OPERATIONS or "CPU" in one.device.upper():
            return True
        message = one.type == "AsString" and one.function in failing
        return one.floating and not (one.compiled or message or _runs_on_gpus(one.type))

    return [one for one in found if leaves(one)]


def horovods(found):
    """Horovod's collectives among `Operation`s."""
    return [one for one in found if one.type.startswith("Horovod")]


def _runs_on_gpus(kind):
    return kind in HAVE_GPU_KERNELS.split() or kind.startswith("Horovod")


def _compiles(node):
    """Whether XLA compiles a node, or a function."""
    return "_XlaMustCompile" in node.attr and node.attr["_XlaMustCompile"].b


def _called(node, library):
    """Names of the functions that a node calls."""
    named = [node.op]
    for value in node.attr.values():
        named += [value.func.name, *(function.name for function in value.list.func)]
    return [name for name in named if name in library]


def _is_floating(node):
    kinds = [kind for value in node.attr.values() for kind in (value.type, *value.list.type)]
    return any(tf.as_dtype(kind).is_floating for kind in kinds if kind)
