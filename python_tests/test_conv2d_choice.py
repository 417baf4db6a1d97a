# SPDX-License-Identifier: MIT
"""Which algorithm serves which convolution, and that each of them is reached."""

from __future__ import annotations

import pytest
import torch

import fastconv.functional as F
from fastconv import runtime

BEST = runtime.available_isas()[-1]

# input [N, C, H, W], out channels, kernel, options, algorithms of forward, grad input, grad weight
CHOICES = {
    "lenet-conv1": ((64, 1, 28, 28), 6, 5, {"padding": 2}, "image_vectors", None, "image_vectors"),
    "lenet-conv2": ((64, 6, 14, 14), 16, 5, {}, *["image_vectors"] * 3),
    "few-images": ((8, 6, 14, 14), 16, 5, {}, "channel_vectors", "shifted", "direct"),
    "resnet-3x3": ((2, 64, 28, 28), 64, 3, {"padding": 1}, *["winograd_4x4"] * 3),
    "odd-3x3": ((2, 128, 10, 10), 128, 3, {"padding": 1}, *["winograd"] * 3),
    "resnet-1x1": ((2, 64, 28, 28), 256, 1, {}, "panel", None, "panel"),
    "stem": ((1, 3, 64, 64), 64, 7, {"stride": 2, "padding": 3}, "pixel_vectors", None, "rows"),
    "depthwise": ((2, 32, 56, 56), 32, 3, {"padding": 1, "groups": 32}, *["depthwise"] * 3),
}


def run(name: str, layout: torch.memory_format) -> tuple[torch.Tensor, list[str | None]]:
    size, out, kernel, options, *_ = CHOICES[name]
    x = torch.randn(size).contiguous(memory_format=layout).requires_grad_()
    w = torch.randn(out, size[1] // options.get("groups", 1), kernel, kernel, requires_grad=True)
    y = F.conv2d(x, w, **options)
    y.sum().backward()
    kernels = ("conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight")
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, w, **options), rtol=1e-4, atol=1e-4)
    return y, [runtime.last_used_algorithm(kernel) for kernel in kernels]


@pytest.mark.parametrize("name", CHOICES)
def test_algorithm(name: str) -> None:
    if BEST != "avx512":
        pytest.skip("the table was measured on AVX-512")
    *_, forward, grad_input, grad_weight = CHOICES[name]
    with runtime.force_cpu_isa("avx512"):
        used = run(name, torch.contiguous_format)[1]
    for want, got in zip((forward, grad_input, grad_weight), used, strict=True):
        assert want is None or got == want


def test_channels_last_reads_pixels_in_place() -> None:
    """Strided and 1x1 layers of channels_last networks run on rows, without a copy of the input."""
    if BEST != "avx512":
        pytest.skip("the table was measured on AVX-512")
    used = run("resnet-1x1", torch.channels_last)[1]
    assert used == ["rows"] * 3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_torch_serves_what_it_computes_faster(layout: torch.memory_format) -> None:
    """Depthwise convolutions of narrow maps, unless an instruction set is forced."""
    x = torch.randn(2, 24, 14, 14).contiguous(memory_format=layout)
    w = torch.randn(24, 1, 3, 3)
    F.conv2d(x, w, groups=24)
    assert runtime.last_used_algorithm("conv2d_forward") == "torch"
    with runtime.force_cpu_isa(BEST):
        F.conv2d(x, w, groups=24)
    assert runtime.last_used_algorithm("conv2d_forward") == "depthwise"


@pytest.mark.parametrize(("kernel", "served"), [(3, "torch"), (5, "depthwise")])
def test_gradients_of_narrow_depthwise_maps(kernel: int, served: str) -> None:
    """torch's forward pass is the faster one for all of them, its gradients only for few taps."""
    x = torch.randn(2, 24, 14, 14, requires_grad=True)
    w = torch.randn(24, 1, kernel, kernel, requires_grad=True)
    y = F.conv2d(x, w, padding=kernel // 2, groups=24)
    assert runtime.last_used_algorithm("conv2d_forward") == "torch"
    y.square().sum().backward()
    for name in ("conv2d_grad_input", "conv2d_grad_weight"):
        assert runtime.last_used_algorithm(name) == served
    a, b = (t.detach().double().requires_grad_() for t in (x, w))
    torch.nn.functional.conv2d(a, b, padding=kernel // 2, groups=24).square().sum().backward()
    for got, want in ((x.grad, a.grad), (w.grad, b.grad)):
        torch.testing.assert_close(
            got.double(), want, rtol=1e-4, atol=1e-4 * want.abs().max().item()
        )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CHOICES)
def test_torch_serves_none_of_the_others(name: str, layout: torch.memory_format) -> None:
    assert "torch" not in run(name, layout)[1]


def test_results_of_both_servers_agree() -> None:
    torch.manual_seed(0)
    ours = run("depthwise", torch.channels_last)[0]
    torch.manual_seed(0)
    with runtime.force_algorithm("conv2d_forward", "torch"):
        by_torch = run("depthwise", torch.channels_last)[0]
        assert runtime.last_used_algorithm("conv2d_forward") == "torch"
    assert by_torch.stride() == ours.stride()
    torch.testing.assert_close(by_torch, ours, rtol=1e-5, atol=1e-5)
