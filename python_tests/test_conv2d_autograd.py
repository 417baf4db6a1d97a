# SPDX-License-Identifier: MIT
"""conv2d inside torch's machinery: derivatives of any order, torch.func, compile, autocast."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from cases import Conv2dCase
from reference import assert_all_parity, oracle_conv2d, run_conv2d, significant_strides
from test_conv2d import LAYOUTS, channels_last, make_tensors, sliced
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import fastconv.functional as F
from fastconv import nn, runtime

torch_conv2d = torch.nn.functional.conv2d

# Tiny, because numerical differentiation calls the operator once per element.
TINY = [
    Conv2dCase("plain", 2, 2, (4, 3), 3, (2, 2), padding=(1, 0)),
    Conv2dCase("strided", 1, 2, (6, 5), 2, (3, 2), stride=(2, 3), padding=(1, 1)),
    Conv2dCase("dilated", 1, 1, (5, 6), 2, (2, 3), dilation=(2, 2), padding=(0, 1)),
    Conv2dCase("groups", 1, 4, (3, 3), 6, (2, 2), groups=2),
    Conv2dCase("depthwise", 1, 3, (4, 4), 3, (3, 3), padding=(1, 1), groups=3),
    Conv2dCase("unread-input", 1, 2, (5, 5), 2, (1, 2), stride=(3, 4)),
    Conv2dCase("no-bias", 2, 2, (3, 4), 2, (2, 2), bias=False),
]


def tiny(cases: list[Conv2dCase]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


def double_operands(case: Conv2dCase, needs: tuple[bool, ...] = (True,) * 3) -> list[Tensor | None]:
    t = make_tensors(case).map(lambda t: t.double())
    return [
        None if tensor is None else tensor.requires_grad_(need)
        for tensor, need in zip((t.input, t.weight, t.bias), needs, strict=True)
    ]


def conv(case: Conv2dCase, conv2d: Callable = F.conv2d) -> Callable[..., Tensor]:
    return lambda *operands: conv2d(*operands, **case.options)


# --- Derivatives ---------------------------------------------------------------------------------


@tiny(TINY)
def test_gradcheck(case: Conv2dCase) -> None:
    # check_batched_grad differentiates under vmap, check_forward_ad by dual numbers.
    assert gradcheck(
        conv(case), double_operands(case), check_batched_grad=True, check_forward_ad=True
    )


@pytest.mark.parametrize("needs", [m for m in itertools.product([True, False], repeat=3) if any(m)])
def test_gradcheck_of_subsets(needs: tuple[bool, bool, bool]) -> None:
    assert gradcheck(conv(TINY[0]), double_operands(TINY[0], needs))


@pytest.mark.parametrize("change", [channels_last, sliced])
def test_gradcheck_in_other_layouts(change: Callable[[Tensor], Tensor]) -> None:
    case = TINY[3]
    x, w, b = double_operands(case)
    x, w = (change(t.detach().float()).double() for t in (x, w))
    assert gradcheck(conv(case), [x.requires_grad_(), w.requires_grad_(), b])


@tiny(TINY)
def test_gradgradcheck(case: Conv2dCase) -> None:
    assert gradgradcheck(conv(case), double_operands(case))


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, True, True)])
def test_gradgradcheck_of_subsets(needs: tuple[bool, bool, bool]) -> None:
    assert gradgradcheck(conv(TINY[0]), double_operands(TINY[0], needs))


def test_third_order() -> None:
    case = TINY[0]

    def third(conv2d: Callable) -> list[Tensor]:
        x, w, b = double_operands(case)
        value = conv2d(x, w, b, **case.options).tanh().sum()
        grads = torch.autograd.grad(value, [x, w, b], create_graph=True)
        value = sum((g * g).sum() for g in grads)
        grads = torch.autograd.grad(value, [x, w, b], create_graph=True)
        value = sum(g.sin().sum() for g in grads)
        return torch.autograd.grad(value, [x, w, b])

    for ours, theirs in zip(third(F.conv2d), third(torch_conv2d), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_float32_second_derivatives(isa: str) -> None:
    """A gradient penalty, the usual reason for a second derivative, in float32."""

    def penalty(conv2d: Callable, dtype: torch.dtype) -> list[Tensor]:
        t = make_tensors(TINY[0]).map(lambda t: t.to(dtype))
        x, w, b = (t.requires_grad_() for t in (t.input, t.weight, t.bias))
        value = conv2d(x, w, b, **TINY[0].options).relu().sum()
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [w])

    ours, exact = penalty(F.conv2d, torch.float32), penalty(torch_conv2d, torch.float64)
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-5, atol=1e-5)


def test_backward_of_several_outputs_and_shared_weight() -> None:
    case = TINY[0]

    def total(conv2d: Callable) -> tuple[Tensor, ...]:
        x, w, b = double_operands(case)
        first = conv2d(x, w, b, **case.options)
        second = conv2d(x * 2, w, None, **case.options)
        (first.sum() + (first * second).sum()).backward()
        return x.grad, w.grad, b.grad

    for ours, theirs in zip(total(F.conv2d), total(torch_conv2d), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_unused_output_has_no_gradient() -> None:
    x, w, b = double_operands(TINY[0])
    F.conv2d(x, w, b, **TINY[0].options)
    assert torch.autograd.grad((x * 2).sum(), [w], allow_unused=True) == (None,)


def test_changed_operand_is_noticed() -> None:
    """torch's version counter: an operand written between forward and backward is an error."""
    for position in (0, 1):
        operands = double_operands(TINY[0])
        output = F.conv2d(*operands, **TINY[0].options)
        with torch.no_grad():
            operands[position].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()
    operands = double_operands(TINY[0])
    output = F.conv2d(*operands, **TINY[0].options)
    with torch.no_grad():
        operands[2].mul_(2)  # the bias is not needed any more
    output.sum().backward()


def test_second_backward_needs_retain_graph() -> None:
    x, w, b = double_operands(TINY[0])
    output = F.conv2d(x, w, b, **TINY[0].options).sum()
    output.backward(retain_graph=True)
    output.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        output.backward()


def test_checkpoint_and_saved_tensor_hooks() -> None:
    x, w, b = double_operands(TINY[0])
    plain = torch.autograd.grad(conv(TINY[0])(x, w, b).square().sum(), [x, w, b])
    again = checkpoint(conv(TINY[0]), x, w, b, use_reentrant=False).square().sum()
    for a, c in zip(torch.autograd.grad(again, [x, w, b]), plain, strict=True):
        assert torch.equal(a, c)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        conv(TINY[0])(x, w, b).sum().backward()
    assert {t.data_ptr() for t in packed} == {x.data_ptr(), w.data_ptr()}


# --- The registered operators --------------------------------------------------------------------

BACKWARD_MASKS = [
    [True, True, True],
    [True, False, False],
    [False, True, True],
    [False, True, False],
]


def requires(tensors: list[Tensor | None], flags: bool) -> list[Tensor | None]:
    return [None if t is None else t.detach().clone().requires_grad_(flags) for t in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@tiny([TINY[0], TINY[1], TINY[4], TINY[6]])
def test_opcheck_forward(case: Conv2dCase, dtype: torch.dtype) -> None:
    t = make_tensors(case).map(lambda t: t.to(dtype))
    options = [list(v) if isinstance(v, tuple) else v for v in case.options.values()]
    for needs_grad in (False, True):
        operands = requires([t.input, t.weight, t.bias], needs_grad)
        torch.library.opcheck(torch.ops.fastconv.conv2d.default, (*operands, *options))
    nhwc = [channels_last(t.input), t.weight, t.bias]
    torch.library.opcheck(torch.ops.fastconv.conv2d.default, (*nhwc, *options))
    single = requires([t.input[0], t.weight, t.bias], True)
    torch.library.opcheck(torch.ops.fastconv.conv2d.default, (*single, *options))


@pytest.mark.parametrize("mask", BACKWARD_MASKS, ids=str)
@tiny([TINY[0], TINY[3]])
def test_opcheck_backward(case: Conv2dCase, mask: list[bool]) -> None:
    t = make_tensors(case)
    options = [list(v) if isinstance(v, tuple) else v for v in case.options.values()]
    for change in (torch.clone, channels_last):
        operands = [change(t.grad_output), change(t.input), change(t.weight)]
        op = torch.ops.fastconv._conv2d_backward.default
        torch.library.opcheck(op, (*operands, *options, mask))
        torch.library.opcheck(op, (*requires(operands, True), *options, mask))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@tiny(TINY)
def test_fake_and_meta_tensors_have_the_real_shape(case: Conv2dCase, layout: str) -> None:
    tensors = LAYOUTS[layout](make_tensors(case))
    real = run_conv2d(F.conv2d, tensors, case.options)
    meta = run_conv2d(F.conv2d, tensors.map(lambda t: t.to("meta")), case.options)
    for name in ["output", "grad_input", "grad_weight", "grad_bias"]:
        a, b = getattr(real, name), getattr(meta, name)
        if a is not None:
            assert (a.shape, a.dtype) == (b.shape, b.dtype), name
            assert significant_strides(a) == significant_strides(b), name
            assert b.is_meta


# --- torch.compile -------------------------------------------------------------------------------


class TinyNet(torch.nn.Module):
    def __init__(self, layers) -> None:
        super().__init__()
        self.first = layers.Conv2d(1, 4, 3, padding=1)
        self.second = layers.Conv2d(4, 6, 3, stride=2, padding="valid", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).tanh()


def test_compile_fullgraph_with_dynamic_batch() -> None:
    """One graph, no break, one recompilation at most: batch sizes 2, 3 and 7 share it."""
    torch._dynamo.reset()
    net = TinyNet(nn)
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    counted = torch.compile(net, fullgraph=True, dynamic=True, backend=count)
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3, 7):
        x = torch.randn(batch, 1, 9, 11, requires_grad=True)
        counted(x)
        (ours,) = torch.autograd.grad(compiled(x).square().sum(), [x])
        (eager,) = torch.autograd.grad(net(x).square().sum(), [x])
        torch.testing.assert_close(ours, eager)
    assert len(graphs) == 1
    called = {node.target for node in graphs[0].graph.nodes if node.op == "call_function"}
    assert torch.ops.fastconv.conv2d.default in called


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    torch._dynamo.reset()
    net = TinyNet(nn).to(memory_format=torch.channels_last)
    compiled = torch.compile(net, fullgraph=True)
    x = torch.randn(2, 1, 9, 11)
    compiled(x).square().sum().backward()
    ours = [p.grad for p in net.parameters()]
    net.zero_grad()
    net(x).square().sum().backward()
    for a, b in zip(ours, (p.grad for p in net.parameters()), strict=True):
        torch.testing.assert_close(a, b)


def test_export() -> None:
    net = TinyNet(nn).eval()
    program = torch.export.export(net, (torch.randn(2, 1, 9, 11),))
    x = torch.randn(2, 1, 9, 11)
    torch.testing.assert_close(program.module()(x), net(x))
    assert any("fastconv.conv2d" in str(node.target) for node in program.graph.nodes)


# --- torch.func and forward mode -----------------------------------------------------------------


def test_vmap_over_inputs_weights_and_both() -> None:
    case = TINY[0]
    x, w, b = (t.detach() for t in double_operands(case))
    xs, ws, bs = (torch.stack([t, t + 1, 2 * t]) for t in (x, w, b))
    for dims, operands in [
        ((0, None, None), (xs, w, b)),
        ((None, 0, None), (x, ws, b)),
        ((None, None, 0), (x, w, bs)),
        ((0, 0, 0), (xs, ws, bs)),
    ]:
        ours = vmap(conv(case), dims)(*operands)
        one_by_one = [
            conv(case)(*(t if d is None else t[i] for t, d in zip(operands, dims, strict=True)))
            for i in range(3)
        ]
        torch.testing.assert_close(ours, torch.stack(one_by_one))


def test_func_transforms_agree_with_torchs() -> None:
    case = TINY[1]
    x, w, b = (t.detach() for t in double_operands(case))
    tangents = tuple(torch.randn_like(t) for t in (x, w, b))

    def everything(conv2d: Callable) -> list:
        function = conv(case, conv2d)

        def loss(*operands: Tensor) -> Tensor:
            return function(*operands).square().sum()

        return [
            grad(loss, argnums=(0, 1, 2))(x, w, b),
            jacrev(function, argnums=1)(x, w, b),
            jvp(function, (x, w, b), tangents),
            vjp(function, x, w, b)[1](function(x, w, b)),
            hessian(loss, argnums=1)(x, w, b),
            vmap(grad(loss, argnums=1), (0, None, None))(torch.stack([x, -x]), w, b),
        ]

    torch.testing.assert_close(everything(F.conv2d), everything(torch_conv2d))


def test_forward_mode() -> None:
    case = TINY[2]
    x, w, b = (t.detach() for t in double_operands(case))
    direction = torch.randn_like(w)
    with forward_ad.dual_level():
        output = F.conv2d(x, forward_ad.make_dual(w, direction), b, **case.options)
        slope = forward_ad.unpack_dual(output).tangent
    torch.testing.assert_close(slope, torch_conv2d(x, direction, None, **case.options))


def test_batched_gradients() -> None:
    """is_grads_batched runs the backward operator under vmap."""
    case = TINY[0]
    x, w, b = double_operands(case)
    output = F.conv2d(x, w, b, **case.options)
    directions = torch.randn(4, *output.shape, dtype=torch.float64)
    together = torch.autograd.grad(
        output, [x, w, b], directions, is_grads_batched=True, retain_graph=True
    )
    one_by_one = [torch.autograd.grad(output, [x, w, b], d, retain_graph=True) for d in directions]
    for a, c in zip(together, zip(*one_by_one, strict=True), strict=True):
        torch.testing.assert_close(a, torch.stack(c))


def test_functional_call_and_per_sample_gradients() -> None:
    ours, theirs = TinyNet(nn).double(), TinyNet(torch.nn).double()
    theirs.load_state_dict(ours.state_dict())
    parameters = {name: p.detach() * 1.5 for name, p in ours.named_parameters()}
    x = torch.randn(3, 1, 7, 7, dtype=torch.float64)

    def per_sample(net: torch.nn.Module) -> dict[str, Tensor]:
        def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
            return functional_call(net, parameters, (sample.unsqueeze(0),)).square().sum()

        return vmap(grad(loss), (None, 0))(parameters, x)

    torch.testing.assert_close(
        functional_call(ours, parameters, (x,)), functional_call(theirs, parameters, (x,))
    )
    torch.testing.assert_close(per_sample(ours), per_sample(theirs))


# --- autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(dtype: torch.dtype, isa: str) -> None:
    case = Conv2dCase("autocast", 2, 3, (8, 8), 5, (3, 3), padding=(1, 1))
    t = make_tensors(case)
    by_torch = run_conv2d(torch_conv2d, t, case.options)
    with torch.autocast("cpu", dtype=dtype):
        ours = run_conv2d(F.conv2d, t, case.options)
        mixed = F.conv2d(t.input.to(dtype), t.weight, t.bias.to(dtype), **case.options)
    assert mixed.dtype == torch.float32
    assert ours.output.dtype == torch.float32
    assert_all_parity(ours, by_torch, oracle_conv2d(t, case.options))
    assert runtime.last_used_isa("conv2d_grad_weight") == isa


def test_autocast_leaves_float64_alone() -> None:
    x, w, b = double_operands(TINY[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.conv2d(x, w, b, **TINY[0].options).dtype == torch.float64
