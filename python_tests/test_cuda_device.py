# SPDX-License-Identifier: MIT
"""The operators and optimizers on a GPU, against torch on the CPU in float64. Everything here is
skipped where there is none: the kernels are then tested in the emulator (test_cuda_shim_*.py)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import fastconv
import fastconv.functional as F
from fastconv import models, nn, optim, runtime

if runtime.info()["cuda"] is None:
    pytest.skip("this build of fastconv has no CUDA kernels", allow_module_level=True)
if not torch.cuda.is_available():
    pytest.skip("this machine has no GPU that torch can use", allow_module_level=True)

DEVICE = torch.device("cuda")
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _float32_means_float32() -> Iterator[None]:
    """No TF32, whose errors are its own; test_tf32 asks for it."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def draw(*sizes: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sizes, generator=generator).to(dtype)  # also without sizes: one number


def assert_parity(ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """At most twice torch's own error on this GPU, plus 1e-6 of the result's rms; of 16-bit results
    the distance of neighbouring numbers near the rms, because torch may round the right way by
    chance."""
    assert ours.shape == exact.shape
    assert ours.device.type == "cuda"
    least = torch.finfo(ours.dtype).eps if ours.dtype.itemsize == 2 else 1e-6
    floor = least * exact.square().mean().sqrt() if exact.numel() else exact.new_zeros(())
    our_error, their_error = ((t.cpu().double() - exact).abs() for t in (ours, theirs))
    if exact.numel():
        assert our_error.max() <= 2 * their_error.max() + floor


def compare(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: list[Tensor]
) -> None:
    """Result and gradients of both on the GPU, against `theirs` in float64 on the CPU."""
    exact_in = [t.detach().double().requires_grad_() for t in inputs]
    exact = theirs(*exact_in)
    grad = draw(*exact.shape, dtype=inputs[0].dtype, seed=9)
    exact_grads = torch.autograd.grad(exact, exact_in, grad.double())
    results = []
    for function in (ours, theirs):
        on_gpu = [t.detach().to(DEVICE).requires_grad_() for t in inputs]
        out = function(*on_gpu)
        results.append([out.detach(), *torch.autograd.grad(out, on_gpu, grad.to(DEVICE))])
    for a, b, e in zip(*results, [exact.detach(), *exact_grads], strict=True):
        assert_parity(a, b, e)


CONVS = [
    ((2, 3, 9, 8), (4, 3, 3, 3), {"padding": 1}),
    ((4, 1, 28, 28), (6, 1, 5, 5), {"padding": 2}),
    ((4, 6, 14, 14), (16, 6, 5, 5), {}),
    ((2, 64, 14, 15), (64, 64, 3, 3), {"padding": 1}),
    ((2, 64, 14, 15), (128, 64, 1, 1), {"stride": 2}),
    ((3, 8, 11, 7), (12, 4, 3, 2), {"groups": 2, "dilation": 2, "padding": (2, 1)}),
    ((2, 32, 13, 13), (32, 1, 3, 3), {"groups": 32, "padding": 1}),
    ((0, 3, 8, 8), (4, 3, 3, 3), {}),
]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("x", "w", "options"), CONVS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_conv2d(
    dtype: torch.dtype, x: tuple[int, ...], w: tuple[int, ...], options: dict, channels_last: bool
) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    inputs = [draw(*x, dtype=dtype).contiguous(memory_format=layout), draw(*w, dtype=dtype, seed=1),
              draw(w[0], dtype=dtype, seed=2)]  # fmt: skip
    compare(
        lambda *a: F.conv2d(*a, **options),
        lambda *a: torch.nn.functional.conv2d(*a, **options),
        inputs,
    )


def test_wrong_tap_is_noticed() -> None:
    """Negative control of compare()."""

    def wrong(x: Tensor, w: Tensor) -> Tensor:
        if w.device.type == "cuda" and w.dtype == torch.float32:
            w = w * torch.ones_like(w).index_put_(
                tuple(torch.zeros(1, dtype=torch.long, device=DEVICE) for _ in range(4)),
                torch.tensor([1.01], device=DEVICE),
            )
        return F.conv2d(x, w)

    inputs = [draw(2, 3, 8, 8), draw(4, 3, 3, 3, seed=1)]
    with pytest.raises(AssertionError):
        compare(wrong, torch.nn.functional.conv2d, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pool", ["none", "max", "avg"])
@pytest.mark.parametrize("activation", ["none", "relu", "tanh"])
def test_conv_block2d(dtype: torch.dtype, activation: str, pool: str) -> None:
    def composed(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        y = torch.nn.functional.conv2d(x, w, b, padding=2)
        y = {"none": lambda t: t, "relu": torch.relu, "tanh": torch.tanh}[activation](y)
        pools = {"max": torch.nn.functional.max_pool2d, "avg": torch.nn.functional.avg_pool2d}
        return pools[pool](y, 2) if pool != "none" else y

    inputs = [draw(4, 1, 28, 28, dtype=dtype), draw(6, 1, 5, 5, dtype=dtype, seed=1),
              draw(6, dtype=dtype, seed=2)]  # fmt: skip
    compare(
        lambda *a: F.conv_block2d(*a, padding=2, activation=activation, pool=pool),
        composed,
        inputs,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("window", [2, 3, (2, 1)], ids=str)
def test_conv_block2d_of_many_channels(
    dtype: torch.dtype, channels_last: bool, window: int | tuple[int, int]
) -> None:
    """Without a graph tensor cores pool where they can: the bits of the separate operators."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, w, b = draw(2, 16, 19, 21), draw(40, 16, 3, 3, seed=1), draw(40, seed=2)
    x, w, b = (t.to(DEVICE, dtype) for t in (x.contiguous(memory_format=layout), w, b))
    for name in ("max", "avg"):
        pool = getattr(F, f"{name}_pool2d")
        separate = pool(F.conv_block2d(x, w, b, activation="relu"), window)
        fused = F.conv_block2d(x, w, b, activation="relu", pool=name, pool_size=window)
        assert torch.equal(fused, separate)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (3, 2), "ceil_mode": True},
    ],
    ids=str,
)
def test_pooling(dtype: torch.dtype, channels_last: bool, options: dict) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = draw(3, 8, 13, 12, dtype=dtype).contiguous(memory_format=layout)
    for name in ("max_pool2d", "avg_pool2d"):
        ours, theirs = getattr(F, name), getattr(torch.nn.functional, name)
        compare(lambda t, f=ours: f(t, **options), lambda t, f=theirs: f(t, **options), [x])


@pytest.mark.parametrize("hidden", [5, 64, 128, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lstm(dtype: torch.dtype, hidden: int) -> None:
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(7, hidden, num_layers=2, bidirectional=True)
    ours = nn.LSTM(7, hidden, num_layers=2, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    exact = copy.deepcopy(theirs).double()
    ours, theirs = ours.to(DEVICE, dtype), theirs.to(DEVICE, dtype)
    exact.load_state_dict({k: v.cpu().double() for k, v in ours.state_dict().items()})
    x = draw(11, 3, 7, dtype=dtype)
    results = []
    for module, moved in ((ours, x.to(DEVICE)), (theirs, x.to(DEVICE)), (exact, x.double())):
        moved = moved.detach().requires_grad_()
        out, (h, c) = module(moved)
        (out.sum() + (h * c).sum()).backward()
        results.append([out.detach(), moved.grad, *(p.grad for p in module.parameters())])
    for a, b, e in zip(*results, strict=True):
        assert_parity(a, b, e)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype: torch.dtype) -> None:
    x, w = draw(2, 16, 8, 8).to(DEVICE), draw(16, 16, 3, 3).to(DEVICE)
    with torch.autocast("cuda", dtype=dtype):
        assert F.conv2d(x, w).dtype == dtype
        assert F.conv_block2d(x, w, activation="relu").dtype == dtype
        assert F.max_pool2d(x, 2).dtype == torch.float32
        out, _ = nn.LSTM(8, 16).to(DEVICE)(draw(5, 2, 8).to(DEVICE))
        assert out.dtype == dtype
    assert F.conv2d(x, w).dtype == torch.float32


# --- Adam ----------------------------------------------------------------------------------------

SHAPES = [(3, 5), (17,), (), (0, 4), (65, 70), (48000,)]


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "weight_decay": 0.1}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam(dtype: torch.dtype, options: dict, clip: float | None) -> None:
    ours = [torch.nn.Parameter(draw(*s, dtype=dtype).to(DEVICE)) for s in SHAPES]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    mine = optim.AdamW(ours, max_grad_norm=clip, **options)
    other = torch.optim.AdamW(theirs, **options)
    for step in range(20):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = draw(*p.shape, dtype=dtype, seed=step).to(DEVICE)
            q.grad = p.grad.clone()
        if clip is not None:
            norm = torch.nn.utils.clip_grad_norm_(theirs, clip)
        mine.step()
        other.step()
        if clip is not None:
            assert mine.grad_norm == pytest.approx(norm.item(), rel=1e-5)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
        assert mine.state[p]["step"].device.type == "cuda"
        assert mine.state[p]["step"].item() == 20


def test_adam_with_a_gradient_scaler() -> None:
    """A step with an infinity is left out, and nobody waits for the GPU; the next one counts."""
    p = torch.nn.Parameter(torch.ones(100, device=DEVICE))
    optimizer = optim.Adam([p], max_grad_norm=1.0)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    for factor, expected in ((float("inf"), 0), (1.0, 1)):
        optimizer.zero_grad()
        scaler.scale((p * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.state[p]["step"].item() == expected


def test_adam_on_two_devices_clips_both_together() -> None:
    ours = [torch.nn.Parameter(draw(50).to(d)) for d in ("cpu", "cuda")]
    optimizer = optim.Adam(ours, max_grad_norm=0.1)
    for p in ours:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.grad_norm == pytest.approx(10.0, rel=1e-6)
    torch.testing.assert_close(ours[0], ours[1].cpu())


def test_adam_skips_what_is_not_finite() -> None:
    p = torch.nn.Parameter(torch.ones(10, device=DEVICE))
    optimizer = optim.Adam([p], skip_nonfinite=True)
    for value in (float("nan"), 1.0, float("inf")):
        p.grad = torch.full_like(p, value)
        optimizer.step()
    assert optimizer.skipped_steps == 2
    assert optimizer.state[p]["step"].item() == 1


# --- Streams, graphs, determinism, errors --------------------------------------------------------


def lenet_step() -> tuple[Callable[[], Tensor], torch.nn.Module]:
    torch.manual_seed(0)
    model = models.LeNet5().to(DEVICE)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    x, y = draw(64, 1, 28, 28).to(DEVICE), (torch.arange(64) % 10).to(DEVICE)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, model


def test_graph_capture_replays_the_same_training() -> None:
    """Forward, loss, backward and Adam in one graph: twenty replays are twenty eager steps."""
    eager, eager_model = lenet_step()
    for _ in range(23):
        eager()
    step, model = lenet_step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(20):
        graph.replay()
    torch.cuda.synchronize()
    for p, q in zip(model.parameters(), eager_model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_thousand_runs_give_the_same_bits() -> None:
    x, w = draw(8, 32, 28, 28).to(DEVICE).requires_grad_(), draw(64, 32, 3, 3).to(DEVICE)
    w.requires_grad_()
    grad = draw(8, 64, 28, 28, seed=3).to(DEVICE)
    first = None
    for _ in range(1000):
        out = F.conv2d(x, w, padding=1)
        got = [out.detach(), *torch.autograd.grad(out, [x, w], grad)]
        first = first or got
        assert all(torch.equal(a, b) for a, b in zip(first, got, strict=True))


def test_current_stream_is_used() -> None:
    """Work queued on a side stream before ours is seen by it."""
    side = torch.cuda.Stream()
    x, w = torch.zeros(8, 16, 64, 64, device=DEVICE), torch.ones(16, 16, 3, 3, device=DEVICE)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        x.fill_(1.0)
        out = F.conv2d(x, w)
    side.synchronize()
    assert (out == 144.0).all()


def test_mixed_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"conv2d: expected all tensors on one GPU, got input on "
                                         r"cuda:0 and weight on cpu"):  # fmt: skip
        F.conv2d(torch.zeros(1, 1, 3, 3, device=DEVICE), torch.zeros(1, 1, 3, 3))


def test_tf32_follows_torchs_switch() -> None:
    x, w = draw(4, 64, 16, 16), draw(64, 64, 3, 3, seed=1)
    exact = torch.nn.functional.conv2d(x.double(), w.double())

    def error() -> float:
        return (F.conv2d(x.to(DEVICE), w.to(DEVICE)).cpu().double() - exact).abs().max().item()

    full = error()
    torch.backends.cudnn.allow_tf32 = True
    if torch.cuda.get_device_capability() >= (8, 0):
        assert error() > 10 * full


def test_compiled_and_checked() -> None:
    model = models.LeNet5().to(DEVICE)
    x = draw(4, 1, 28, 28).to(DEVICE)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))
    torch.library.opcheck(
        torch.ops.fastconv.conv2d.default,
        (draw(2, 3, 8, 8).to(DEVICE), draw(4, 3, 3, 3).to(DEVICE)),
    )


def test_info_names_the_cuda_build() -> None:
    assert fastconv.runtime.info()["cuda"] == torch.version.cuda
