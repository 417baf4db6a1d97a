# SPDX-License-Identifier: MIT
"""``torch.compile(model, backend="fastconv")``: fastconv's operators in captured code.

Convolutions, pooling, batch normalisation and LSTMs become fastconv's operators, wherever the
forward code calls them: in layers or as functions. A convolution whose result goes into one
activation, and that into one pooling, becomes one ``conv_block2d``; a relu behind a batch
normalisation becomes part of it. Then the graph runs as it is, operator by operator, so that
autograd, dynamic batch sizes and everything else stay eager PyTorch's; ``options={"inner":
"inductor"}`` hands it to that compiler instead, which fuses what is left.

Dynamo does not capture a function that calls a ``torch.nn.LSTM``, nor what else it calls, unless
``torch._dynamo.config.allow_rnn`` is set: all of it runs on torch. ``fastconv.nn.LSTM``, and
``lstm_cell`` loops, are captured always.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.backends.registry import list_backends, lookup_backend, register_backend
from torch.fx import GraphModule, Node

from fastconv import functional

NAME = "fastconv"
_log = logging.getLogger(__name__)

Compiled = Callable[..., Any]


def backend(
    graph_module: GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: dict[str, Any] | None = None,
) -> Compiled:
    """Compiles one captured graph; what ``torch.compile(..., backend="fastconv")`` calls.

    Args:
        graph_module: the graph, which is changed in place.
        example_inputs: fake tensors and symbolic sizes, as Dynamo passes them.
        options: ``{"inner": NAME}`` names the backend that runs the changed graph, among those of
            ``torch._dynamo.list_backends()``; the default ``"eager"`` runs it operator by operator.

    Returns:
        A callable with the graph's signature.

    Raises:
        ValueError: for other options, or an inner backend that does not exist.
    """
    inner = _inner_backend(dict(options or {}))
    changes = rewrite(graph_module)
    _log.debug("%d changes: %s", len(changes), "; ".join(changes))
    if inner is None:
        return graph_module.forward
    return lookup_backend(inner)(graph_module, list(example_inputs))


def _inner_backend(options: dict[str, Any]) -> str | None:
    inner = options.pop("inner", "eager")
    if options:
        raise ValueError(f"fastconv backend: expected no option but inner, got {[*options]}")
    if inner == "eager":
        return None
    known = [name for name in list_backends(None) if name != NAME]
    if inner not in known:
        raise ValueError(f"fastconv backend: expected inner among {known}, got {inner!r}")
    return str(inner)


def rewrite(graph_module: GraphModule) -> list[str]:
    """Puts fastconv's operators into a graph of torch-level calls, and into graphs nested in it.

    Only calls on float32 tensors in CPU memory whose result is float32 too (which it is not under
    autocast) are changed, as the example values that Dynamo left in the nodes tell.

    Returns:
        What was changed, one line each, such as ``"conv_block2d: conv2d, relu, max_pool2d"``.
    """
    changes: list[str] = []
    for module in graph_module.modules():
        if not isinstance(module, GraphModule):
            continue
        before = len(changes)
        # Convolutions first: each takes the pooling behind it along.
        for pass_ in (_rewrite_convolution, _rewrite_norm, _rewrite_other):
            for node in list(module.graph.nodes):
                call = _bound(node) if node.op == "call_function" else None
                if call is not None and _served(node):
                    changes += pass_(node, call)
        if len(changes) > before:
            module.graph.lint()
            module.recompile()
    return changes


def _rewrite_other(node: Node, call: _Call) -> list[str]:
    function = _REPLACEMENTS.get(call.op)
    # torch.lstm has a second form, (data, batch_sizes, hx, ...), which Dynamo does not capture.
    if function is None or (call.op == "lstm" and isinstance(call.arguments["hx"], Node)):
        return []
    _replace([node], function, call.arguments)
    return [call.op]


# --- What a node calls ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """A call of an operator that matters here, its arguments by name."""

    op: str
    arguments: dict[str, Any]


_POOL = ("kernel_size", "stride", "padding")
_SIGNATURES: dict[str, tuple[str, ...]] = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "max_pool2d": ("input", *_POOL, "dilation", "ceil_mode", "return_indices"),
    "avg_pool2d": ("input", *_POOL, "ceil_mode", "count_include_pad", "divisor_override"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training",
                   "momentum", "eps"),
    "lstm": ("input", "hx", "params", "has_biases", "num_layers", "dropout", "train",
             "bidirectional", "batch_first"),
    "lstm_cell": ("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh"),
    "relu": ("input", "inplace"),
    "sigmoid": ("input",),
    "tanh": ("input",),
    "leaky_relu": ("input", "negative_slope", "inplace"),
}  # fmt: skip

_REPLACEMENTS: dict[str, Callable[..., Any]] = {
    "max_pool2d": functional.max_pool2d,
    "avg_pool2d": functional.avg_pool2d,
    "lstm": functional.lstm,
    "lstm_cell": functional.lstm_cell,
}

_ACTIVATIONS = ("relu", "sigmoid", "tanh", "leaky_relu")

_FUNCTIONS: dict[Any, str] = {
    torch.conv2d: "conv2d",
    F.max_pool2d: "max_pool2d",
    torch.max_pool2d: "max_pool2d",
    F.avg_pool2d: "avg_pool2d",
    F.batch_norm: "batch_norm",
    torch.lstm: "lstm",
    torch.lstm_cell: "lstm_cell",
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
    torch.sigmoid_: "sigmoid",
    F.tanh: "tanh",
    torch.tanh: "tanh",
    torch.tanh_: "tanh",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu",
}
_METHODS = {"relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"}


def _bound(node: Node) -> _Call | None:
    """The call with its arguments under the names of ``_SIGNATURES``; None if it is another's."""
    if node.op == "call_function":
        op = _FUNCTIONS.get(node.target)
    elif node.op == "call_method" and node.target in _METHODS:
        op = str(node.target).rstrip("_")
    else:
        op = None
    if op is None:
        return None
    names = _SIGNATURES[op]
    if len(node.args) > len(names) or not {*node.kwargs} <= {*names}:
        return None
    return _Call(op, {**dict(zip(names, node.args, strict=False)), **node.kwargs})


def _tensors(node: Node) -> list[Tensor] | None:
    """Example values of a node's results; None if they are no tensors or unknown."""
    value = node.meta.get("example_value", node.meta.get("val"))
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    tensors = [v for v in values if isinstance(v, Tensor)]
    return tensors if len(tensors) == len(values) else None


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
    )


def _served(node: Node) -> bool:
    """Whether the results and every operand in floating point are float32 on the CPU."""
    for operand in (node, *node.all_input_nodes):
        tensors = _tensors(operand)
        if tensors is None or not all(_is_plain(t) or _is_index(t) for t in tensors):
            return False
    return True


def _is_index(tensor: Tensor) -> bool:
    return tensor.dtype == torch.int64


# --- Convolution, activation, pooling ------------------------------------------------------------


def _rewrite_convolution(node: Node, call: _Call) -> list[str]:
    if call.op != "conv2d":
        return []
    chain, calls = [node], [call]
    arguments = dict(call.arguments)
    for takes in (_take_activation, _take_pool):
        after = _only_user(chain[-1])
        found = None if after is None else _bound(after)
        if found is not None and takes(found, arguments):
            assert after is not None
            chain.append(after)
            calls.append(found)
    if len(chain) == 1:
        _replace(chain, functional.conv2d, arguments)
        return ["conv2d"]
    _replace(chain, functional.conv_block2d, arguments)
    return [f"conv_block2d: {', '.join(part.op for part in calls)}"]


def _rewrite_norm(node: Node, call: _Call) -> list[str]:
    if call.op != "batch_norm":
        return []
    chain, arguments = [node], dict(call.arguments)
    after = _only_user(node)
    found = None if after is None else _bound(after)
    if found is not None and found.op == "relu":
        assert after is not None
        chain.append(after)
        arguments["activation"] = "relu"
    _replace(chain, functional.batch_norm, arguments)
    return ["batch_norm: batch_norm, relu" if len(chain) == 2 else "batch_norm"]


def _take_activation(call: _Call, arguments: dict[str, Any]) -> bool:
    """Adds an activation to the arguments of a block, if it is one."""
    if call.op not in _ACTIVATIONS:
        return False
    arguments["activation"] = call.op
    if "negative_slope" in call.arguments:
        arguments["negative_slope"] = call.arguments["negative_slope"]
    return True


def _take_pool(call: _Call, arguments: dict[str, Any]) -> bool:
    """Adds a pooling to the arguments of a block, if it has no options but window and stride."""
    given = call.arguments
    if not (
        call.op in ("max_pool2d", "avg_pool2d")
        and given.get("padding", 0) in (0, (0, 0), [0, 0])
        and given.get("dilation", 1) in (1, (1, 1), [1, 1])
        and not given.get("ceil_mode", False)
        and not given.get("return_indices", False)
        and given.get("divisor_override") is None
    ):
        return False
    arguments["pool"] = call.op.removesuffix("_pool2d")
    arguments["pool_size"] = given["kernel_size"]
    stride = given.get("stride")  # None and an empty tuple both stand for the size of the window
    arguments["pool_stride"] = None if isinstance(stride, Iterable) and not [*stride] else stride
    return True


def _only_user(node: Node) -> Node | None:
    """The node that takes this one's result, if one alone does, as its input and under the same
    modes: what switches autograd or autocast has no tensor for a result."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if user.args[:1] != (node,) or not _served(user):
        return None
    between = node.next
    while between is not user:
        if between.op in ("call_function", "call_method") and _switches_modes(between):
            return None
        between = between.next
    return user


def _switches_modes(node: Node) -> bool:
    value = node.meta.get("example_value", node.meta.get("val"))
    return value is None and node.target is not operator.getitem


def _replace(chain: list[Node], function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Puts one call in the place of a chain, where the chain begins: what its first node reads may
    be changed in place before its last."""
    first, last = chain[0], chain[-1]
    graph = first.graph
    with graph.inserting_before(first):
        new = graph.call_function(function, kwargs=arguments)
    new.meta = dict(last.meta)
    last.replace_all_uses_with(new)
    for node in reversed(chain):
        graph.erase_node(node)


# torch finds the backend by the package's entry point and registers it then; a package that was
# not installed has none.
if NAME not in list_backends(None):
    register_backend(backend, name=NAME)
