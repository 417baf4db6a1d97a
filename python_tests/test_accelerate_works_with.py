# SPDX-License-Identifier: MIT
"""What an accelerated model must go on working with: torch's own tools around modules."""

from __future__ import annotations

import copy
import inspect
import socket
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from test_accelerate import INPUTS, OperatorNames, TinyCrnn, case, gradients, small_net
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO

import fastconv


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


# --- Parameters -----------------------------------------------------------------------------------


def parametrized(model: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.spectral_norm(model[4])


def old_weight_norm(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model[0])


def pruned(model: nn.Module) -> None:
    prune.l1_unstructured(model[0], "weight", amount=0.5)


@pytest.mark.parametrize("change", [parametrized, old_weight_norm, pruned])
@pytest.mark.parametrize("first", ["accelerate", "change"])
def test_reparametrized_weights(change: Callable[[nn.Module], None], first: str) -> None:
    model = small_net().eval()
    fast = copy.deepcopy(model)
    if first == "accelerate":
        fastconv.accelerate(fast)
    torch.manual_seed(1)
    change(model)
    torch.manual_seed(1)
    change(fast)
    report = fastconv.accelerate(fast)
    assert report.swapped[0].name == "0"
    x = torch.randn(2, 3, 18, 14)
    theirs, ours = gradients(model, x), gradients(fast, x)
    assert {*ours} == {*theirs}
    for name in theirs:
        close(ours[name], theirs[name])
    fastconv.restore(fast)
    assert torch.equal(fast(x), model(x))


def test_parametrized_lstm() -> None:
    model = nn.LSTM(4, 5)
    nn.utils.parametrizations.weight_norm(model, "weight_hh_l0")
    fast = copy.deepcopy(model)
    assert fastconv.accelerate(fast).swapped
    x = torch.randn(6, 2, 4)
    for net in (model, fast):
        net(x)[0].sum().backward()
    close(fast(x)[0], model(x)[0])
    for ours, theirs in zip(fast.parameters(), model.parameters(), strict=True):
        close(ours.grad, theirs.grad)


def test_shared_layers() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    relu = nn.ReLU()
    model = nn.Sequential(conv, relu, nn.Sequential(conv, relu, nn.MaxPool2d(2)), conv, relu)
    fast = copy.deepcopy(model)
    report = fastconv.accelerate(fast)
    assert [entry.name for entry in report.swapped] == ["0", "1", "2.2"]
    assert len(report.fused) == 3
    x = torch.randn(2, 3, 8, 8)
    theirs, ours = gradients(model, x), gradients(fast, x)
    for name in theirs:
        close(ours[name], theirs[name])


def test_lazy_layers() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU())
    fastconv.accelerate(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        y = model(torch.randn(1, 2, 8, 8))
    assert type(model[0]) is nn.Conv2d
    close(model(torch.ones(1, 2, 8, 8)), torch.relu(model[0](torch.ones(1, 2, 8, 8))))
    assert y.shape == (1, 4, 6, 6)
    with OperatorNames() as operators:
        model(torch.ones(1, 2, 8, 8))
    assert "fastconv.conv2d" in operators.names


@pytest.mark.parametrize("build", INPUTS)
def test_a_frozen_backbone_computes_no_weight_gradients(build: Callable[[], nn.Module]) -> None:
    _, fast, x = case(build)
    fast.requires_grad_(False)
    x.requires_grad_()
    with OperatorNames() as operators:
        y = fast(x)
    masks: list[Any] = []

    class Masks(OperatorNames):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            masks.extend(a for a in args if isinstance(a, list) and a and type(a[0]) is bool)
            return super().__torch_dispatch__(func, types, args, kwargs)

    with Masks():
        y.sum().backward()
    assert operators.names
    assert masks
    for mask in masks:  # [input, weight, bias], or those of an LSTM layer, where 3 to 7 are weights
        assert not any(mask[1:3] if len(mask) == 3 else mask[3:])
    assert x.grad is not None
    assert all(p.grad is None for p in fast.parameters())


def test_a_frozen_backbone_without_input_gradient_builds_no_graph() -> None:
    _, fast, x = case(small_net)
    fast[:5].requires_grad_(False)
    assert fast[:5](x).grad_fn is None
    fast(x).sum().backward()
    assert fast[7].weight.grad is not None


# --- torch.func, checkpointing, precision ---------------------------------------------------------


@pytest.mark.parametrize("build", INPUTS)
def test_functional_call(build: Callable[[], nn.Module]) -> None:
    model, fast, x = case(build)
    other = {name: torch.randn_like(p) * 0.1 for name, p in model.named_parameters()}
    close(
        torch.func.functional_call(fast, other, (x,)), torch.func.functional_call(model, other, x)
    )
    assert not torch.allclose(torch.func.functional_call(fast, other, (x,)), fast(x))


def test_per_sample_gradients() -> None:
    model, fast, x = case(small_net)
    params = dict(model.named_parameters())

    def gradient(net: nn.Module) -> dict[str, Tensor]:
        def loss(p: dict[str, Tensor], sample: Tensor) -> Tensor:
            return torch.func.functional_call(net, p, (sample.unsqueeze(0),)).square().sum()

        return torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, x)

    for (name, theirs), ours in zip(gradient(model).items(), gradient(fast).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("build", INPUTS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(build: Callable[[], nn.Module], reentrant: bool) -> None:
    _, fast, x = case(build)
    plain = gradients(fast, x)

    def checkpointed(t: Tensor) -> Tensor:
        return checkpoint(fast, t, use_reentrant=reentrant)

    leaf = x.clone().requires_grad_()
    fast.zero_grad()
    checkpointed(leaf).square().mean().backward()
    assert torch.equal(leaf.grad, plain["input"])
    for name, parameter in fast.named_parameters():
        assert torch.equal(parameter.grad, plain[name]), name


def test_grad_scaler_and_autocast() -> None:
    model, fast, x = case(small_net)
    weights = []
    for net in (model, fast):
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        if net is fast:
            fastconv.accelerate(net, optimizer=optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = net(x).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        weights.append([p.detach().clone() for p in net.parameters()])
    for ours, theirs in zip(weights[1], weights[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_inference_mode_and_second_derivatives() -> None:
    model, fast, x = case(small_net)
    with torch.inference_mode():
        close(fast(x), model(x))
    results = []
    for net in (model, fast):
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(net(leaf).square().sum(), leaf, create_graph=True)
        net.zero_grad()
        grad.square().sum().backward()
        results.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_channels_last() -> None:
    model, fast, x = case(small_net)
    x = x.contiguous(memory_format=torch.channels_last)
    close(fast(x), model(x))
    close(fast.to(memory_format=torch.channels_last)(x), model(x))


# --- Compilers and exporters ----------------------------------------------------------------------


def test_compile_fullgraph_forward_and_backward() -> None:
    _, fast, x = case(small_net)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    eager = gradients(fast, x)
    for ours, theirs in zip(gradients(compiled, x).values(), eager.values(), strict=True):
        close(ours, theirs)
    fast[0].register_forward_hook(lambda module, args, output: output + 1)
    close(compiled(x), fast(x))


def test_compile_dynamic_batches() -> None:
    _, fast, x = case(small_net)
    compiled = torch.compile(fast, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (4, 2, 7):
        close(compiled(x[:1].expand(batch, -1, -1, -1)), fast(x[:1].expand(batch, -1, -1, -1)))


def test_compile_an_lstm() -> None:
    """Dynamo breaks the graph at every torch.nn.LSTM, ours or not, unless it is told otherwise."""
    _, fast, x = case(TinyCrnn)
    close(torch.compile(fast, backend="eager")(x), fast(x))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        close(torch.compile(fast, backend="aot_eager", fullgraph=True)(x), fast(x))
    torch._dynamo.reset()


@pytest.mark.parametrize("build", INPUTS)
@pytest.mark.parametrize("strict", [False, True])
def test_export(build: Callable[[], nn.Module], strict: bool) -> None:
    _, fast, x = case(build)
    program = torch.export.export(fast, (x,), strict=strict)
    targets = {str(node.target) for node in program.graph.nodes}
    assert any(target.startswith("fastconv.") for target in targets)
    close(program.module()(x), fast(x))
    assert {*program.state_dict} == {*fast.state_dict()}


@pytest.mark.parametrize("build", INPUTS)
def test_onnx_after_restore(build: Callable[[], nn.Module], tmp_path: Any) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    _, fast, x = case(build)
    fastconv.restore(fast.eval())
    program = torch.onnx.export(fast, (x,), dynamo=True, verbose=False)
    program.save(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size > 0


@pytest.mark.parametrize("build", INPUTS)
def test_torchscript_traces(build: Callable[[], nn.Module]) -> None:
    _, fast, x = case(build)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(fast, x, check_trace=False)
    close(traced(x), fast(x))


@pytest.mark.parametrize("fold_bn", [False, True])
def test_torchscript_traces_alike_with_and_without_gradients(fold_bn: bool) -> None:
    """What tracing checks: that a second trace, which it makes without gradients, is the same."""
    entry = ZOO["resnet18"]
    model = entry.small().eval()
    fast = copy.deepcopy(model)
    fastconv.accelerate(fast, fold_bn=fold_bn)
    x = entry.small_task(2, torch.Generator().manual_seed(0)).inputs[0]
    traced = torch.jit.trace(fast, x)
    close(traced(x), model(x))
    with torch.no_grad():
        close(torch.jit.trace(fast, x)(x), model(x))


@pytest.mark.parametrize("build", [small_net, lambda: nn.Conv2d(1, 1, 1), lambda: nn.LSTM(2, 2)])
def test_torchscript_refuses_to_compile_with_advice(build: Callable[[], nn.Module]) -> None:
    model = build()
    fastconv.accelerate(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(AttributeError, match=r"call fastconv\.restore\(model\)"):
            torch.jit.script(model)
        torch.jit.script(fastconv.restore(model))


def test_fx_sees_the_layers() -> None:
    """As quantization in graph mode does, which replaces them by their exact types."""
    _, fast, x = case(small_net)
    graph = torch.fx.symbolic_trace(fast)
    kinds = [
        type(graph.get_submodule(str(n.target))) for n in graph.graph.nodes if n.op == "call_module"
    ]
    assert kinds[:3] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    close(graph(x), fast(x))


def test_signatures_are_torchs() -> None:
    for build in (lambda: nn.LSTM(2, 2), lambda: nn.Conv2d(1, 1, 1)):
        module = build()
        before = inspect.signature(module.forward)
        fastconv.accelerate(module)
        assert "forward" in module.__dict__
        assert inspect.signature(module.forward) == before


# --- Quantization ---------------------------------------------------------------------------------


def test_dynamic_quantization_of_an_lstm() -> None:
    model, fast, x = case(TinyCrnn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize = torch.ao.quantization.quantize_dynamic
        ours = quantize(fast, {nn.LSTM, nn.Linear}, dtype=torch.qint8)
        theirs = quantize(model, {nn.LSTM, nn.Linear}, dtype=torch.qint8)
        assert type(ours.lstm) is type(theirs.lstm) is not nn.LSTM
        close(ours(x), theirs(x))


def test_static_quantization() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    x = torch.randn(4, 3, 8, 8)
    model(x)
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for accelerated in (False, True):
            net = torch.ao.quantization.QuantWrapper(copy.deepcopy(model).eval())
            if accelerated:
                fastconv.accelerate(net, fold_bn=True)
            net.qconfig = torch.ao.quantization.get_default_qconfig("x86")
            net = torch.ao.quantization.fuse_modules(net, [["module.0", "module.1", "module.2"]])
            torch.ao.quantization.prepare(net, inplace=True)
            net(x)
            net = torch.ao.quantization.convert(net)
            assert "quantized" in type(net.module[0]).__module__
            results.append(net(x))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0.05)


# --- Counting -------------------------------------------------------------------------------------


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), dilation=(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def flops(model: nn.Module, x: Tensor, backward: bool) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        y = model(x)
        if backward:
            (y[0] if isinstance(y, tuple) else y).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (Conv, (3, 4, 9, 9)),
        (small_net, (4, 3, 18, 14)),
        (lambda: nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 5)), (7, 9)),
    ],
)
def test_flops_are_those_of_the_model_before(
    build: Callable[[], nn.Module], shape: tuple[int, ...], backward: bool
) -> None:
    model = build()
    x = torch.randn(shape)
    expected = flops(model, x, backward)
    assert expected > 0
    fastconv.accelerate(model)
    assert flops(model, x, backward) == expected


def test_flops_of_the_fused_operators() -> None:
    """Called as functions, where no hook of the counter makes a model fall back to its layers."""
    x, weight = torch.randn(2, 3, 10, 10), torch.randn(4, 3, 3, 3, requires_grad=True)
    convolution = 2 * 2 * 4 * 64 * 27
    F = fastconv.functional
    with FlopCounterMode(display=False) as counter:
        y = F.conv_block2d(x, weight, activation="relu", pool="max")
    assert counter.get_total_flops() == convolution
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == convolution
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        F.conv_block2d(x, weight, activation="relu", pool="max")
    assert counter.get_total_flops() == convolution
    w = [torch.randn(8, 9, requires_grad=True), torch.randn(5, 8, requires_grad=True)]
    b = [torch.randn(8, requires_grad=True), torch.randn(5, requires_grad=True)]
    with FlopCounterMode(display=False) as counter:
        y = F.mlp(torch.randn(7, 9), w, b)
    assert counter.get_total_flops() == 2 * 7 * (72 + 40)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * 7 * (72 + 2 * 40)


@pytest.mark.parametrize("proj_size", [0, 3])
def test_flops_of_an_lstm(proj_size: int) -> None:
    lstm = nn.LSTM(5, 6, proj_size=proj_size)
    fastconv.accelerate(lstm)
    x = torch.randn(7, 2, 5, requires_grad=True)
    out = proj_size or 6
    forward = 2 * 14 * (24 * 5 + 24 * out + proj_size * 6)
    assert flops(lstm, x, False) == forward
    assert flops(lstm, x, True) == 3 * forward
    assert flops(lstm, x.detach(), True) == 3 * forward - 2 * 14 * 24 * 5


# --- Threads and processes ------------------------------------------------------------------------


def test_one_model_in_many_threads() -> None:
    """The recipe for Optuna's threads and for servers: one torch thread per worker."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)).eval()
    fastconv.accelerate(model, fold_bn=True)
    inputs = [torch.randn(2, 3, 20, 20) for _ in range(40)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]

    def infer(x: Tensor) -> Tensor:
        with torch.no_grad():
            return model(x)

    torch.set_num_threads(1)
    with ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(pool.map(infer, inputs), expected, strict=True):
            close(ours, theirs)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def join(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )


def steps(model: nn.Module, accelerate: bool, x: Tensor) -> list[Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    if accelerate:
        assert fastconv.accelerate(model, optimizer=optimizer).swapped
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def ddp_worker(rank: int, port: int, queue: Any) -> None:
    join(rank, port)
    results = []
    for accelerate in (False, True):
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(TinyCrnn())
        torch.manual_seed(rank)
        results.append(steps(model, accelerate, torch.randn(3, 1, 8, 12)))
    queue.put([[p.numpy() for p in side] for side in results])
    torch.distributed.destroy_process_group()


def fsdp_worker(rank: int, port: int, queue: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    join(rank, port)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    results = []
    for accelerate in (False, True):
        torch.manual_seed(0)
        model = small_net()
        if accelerate:
            assert fastconv.accelerate(model).swapped
        fully_shard(model[3], mesh=mesh)
        fully_shard(model, mesh=mesh)
        torch.manual_seed(rank)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        x = torch.randn(4, 3, 18, 14)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        results.append([p.full_tensor().detach().numpy() for p in model.parameters()])
    queue.put(results)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("worker", [ddp_worker, fsdp_worker])
def test_two_processes(worker: Callable[[int, int, Any], None]) -> None:
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    port = free_port()
    processes = [context.Process(target=worker, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=240) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for theirs, ours in results:
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-3, atol=1e-5)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert (a == b).all()
