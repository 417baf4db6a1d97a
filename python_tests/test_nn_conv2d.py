# SPDX-License-Identifier: MIT
"""fastconv.nn.Conv2d is torch.nn.Conv2d in everything but the kernel."""

from __future__ import annotations

import copy
import io
import pickle
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from reference import assert_parity
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize

import fastconv
from fastconv import nn, runtime

PADDING_MODES = ["zeros", "reflect", "replicate", "circular"]

# Constructor arguments of the layers under test.
CONFIGS: dict[str, tuple[tuple, dict]] = {
    "plain": ((3, 8, 3), {}),
    "no-bias": ((3, 8, 3), {"bias": False}),
    "strided": ((3, 8, (3, 5)), {"stride": (2, 1), "padding": (1, 2)}),
    "same": ((3, 8, 4), {"padding": "same", "dilation": (1, 2)}),
    "valid": ((3, 8, 3), {"padding": "valid"}),
    "groups": ((6, 12, 3), {"groups": 3, "padding": 1}),
    "depthwise": ((6, 6, 3), {"groups": 6, "padding": 1}),
    **{
        f"{mode}-{padding}": (
            (3, 4, (3, 4)), {"padding_mode": mode, "padding": padding, "dilation": (1, 1)}
        )
        for mode in PADDING_MODES
        for padding in (0, 2, (1, 2), "same")
    },
}  # fmt: skip


def both(name: str, **extra) -> tuple[nn.Conv2d, torch.nn.Conv2d]:
    """Our layer and torch's, made with the same random numbers."""
    arguments, options = CONFIGS[name]
    layers = []
    for module in (nn, torch.nn):
        torch.manual_seed(7)
        layers.append(module.Conv2d(*arguments, **options, **extra))
    return layers[0], layers[1]


def input_for(layer: torch.nn.Conv2d, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, layer.in_channels, 9, 11, generator=generator, dtype=dtype)


@pytest.mark.parametrize("name", CONFIGS)
def test_same_initialisation_and_state_dict_both_ways(name: str) -> None:
    ours, theirs = both(name)
    assert isinstance(ours, torch.nn.Conv2d)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
    torch.manual_seed(8)
    other = torch.nn.Conv2d(*CONFIGS[name][0], **CONFIGS[name][1])
    ours.load_state_dict(other.state_dict(), strict=True)
    assert torch.equal(ours.weight, other.weight)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(theirs.weight, other.weight)


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_and_gradients(name: str, isa: str) -> None:
    ours, theirs = both(name)
    exact = copy.deepcopy(theirs).double()
    results = []
    for layer, dtype in ((ours, torch.float32), (theirs, torch.float32), (exact, torch.float64)):
        x = input_for(layer).to(dtype).requires_grad_()
        output = layer(x)
        output.square().sum().backward()
        results.append([output.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for a, b, oracle in zip(*results, strict=True):
        assert_parity(a, b, oracle, name)
        assert a.stride() == b.stride()
    assert runtime.last_used_isa("conv2d_forward") == isa


@pytest.mark.parametrize("name", CONFIGS)
def test_unbatched_and_channels_last(name: str) -> None:
    ours, theirs = both(name)
    x = input_for(ours)
    torch.testing.assert_close(ours(x[0]), theirs(x[0]))
    nhwc = x.to(memory_format=torch.channels_last)
    ours.to(memory_format=torch.channels_last)
    theirs.to(memory_format=torch.channels_last)
    torch.testing.assert_close(ours(nhwc), theirs(nhwc))
    assert ours(nhwc).stride() == theirs(nhwc).stride()


@pytest.mark.parametrize("name", ["plain", "groups", "circular-2"])
def test_repr_and_extra_repr(name: str) -> None:
    ours, theirs = both(name)
    assert ours.extra_repr() == theirs.extra_repr()
    assert repr(ours) == repr(theirs)


def test_constructor_errors_are_torchs() -> None:
    for arguments, options in [
        ((3, 8, 3), {"groups": 2}),
        ((3, 8, 3), {"padding_mode": "mirror"}),
        ((3, 8, 3), {"padding": "full"}),
        ((3, 8, 3), {"padding": "same", "stride": 2}),
    ]:
        with pytest.raises(ValueError, match=r"\w") as theirs:
            torch.nn.Conv2d(*arguments, **options)
        with pytest.raises(ValueError, match=r"\w") as ours:
            nn.Conv2d(*arguments, **options)
        assert str(ours.value) == str(theirs.value)


def test_device_dtype_and_meta_construction() -> None:
    layer = nn.Conv2d(2, 3, 3, dtype=torch.float64)
    assert layer(torch.ones(1, 2, 4, 4, dtype=torch.float64)).dtype == torch.float64
    meta = nn.Conv2d(2, 3, 3, device="meta")
    assert meta(torch.ones(1, 2, 4, 4, device="meta")).shape == (1, 3, 2, 2)
    real = meta.to_empty(device="cpu")
    real.reset_parameters()
    assert real(torch.ones(1, 2, 4, 4)).isfinite().all()
    assert nn.Conv2d(2, 3, 3).bfloat16()(torch.ones(1, 2, 4, 4).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["same", "no-bias", "reflect-2"])
def test_deepcopy_pickle_and_save(name: str, tmp_path: Path) -> None:
    layer, _ = both(name)
    x = input_for(layer)
    expected = layer(x)
    torch.save(layer, tmp_path / "layer.pt")
    copies = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(tmp_path / "layer.pt", weights_only=False),
    ]
    for twin in copies:
        assert type(twin) is type(layer)
        assert twin.weight is not layer.weight
        assert torch.equal(twin(x), expected)
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh = nn.Conv2d(*CONFIGS[name][0], **CONFIGS[name][1])
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), expected)


def test_results_survive_serialisation() -> None:
    """Outputs are ordinary tensors with ordinary storage."""
    layer, _ = both("plain")
    output = layer(input_for(layer)).detach()
    buffer = io.BytesIO()
    torch.save(output, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer), output)
    output += 1  # writable in place


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_weights(norm: Callable) -> None:
    """The weight is computed at every call: nothing may be remembered by its identity."""
    ours, theirs = (norm(layer) for layer in both("strided"))
    theirs.load_state_dict(ours.state_dict())
    ours.eval()
    theirs.eval()
    for _ in range(2):
        grads = []
        for layer in (ours, theirs):
            layer.zero_grad()
            layer(input_for(layer)).square().sum().backward()
            grads.append([p.grad.clone() for p in layer.parameters()])
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            for layer in (ours, theirs):
                for p in layer.parameters():
                    p.mul_(1.25)
    assert parametrize.is_parametrized(ours, "weight")
    parametrize.remove_parametrizations(ours, "weight")
    torch.testing.assert_close(ours(input_for(ours)), theirs(input_for(theirs)))


def test_replaced_and_overwritten_weight() -> None:
    layer, _ = both("plain")
    x = input_for(layer)
    layer.weight = torch.nn.Parameter(torch.zeros_like(layer.weight))
    layer.bias.data.zero_()
    assert layer(x).count_nonzero() == 0
    layer.weight.data.fill_(1.0)  # in place, behind autograd's back
    torch.testing.assert_close(layer(x)[:, 0], layer(x)[:, 5])
    assert layer(x).count_nonzero() > 0


def test_hooks_fire_with_torchs_values() -> None:
    seen: dict[str, list[Tensor]] = {}
    for key, layer in zip(("ours", "theirs"), both("plain"), strict=True):
        values: list[Tensor] = []
        layer.register_forward_pre_hook(lambda m, args, v=values: v.append(args[0]))
        layer.register_forward_hook(lambda m, args, output, v=values: v.append(output.detach()))
        layer.register_full_backward_hook(
            lambda m, grad_input, grad_output, v=values: v.extend([*grad_input, *grad_output])
        )
        layer.weight.register_hook(lambda grad, v=values: v.append(grad))
        x = input_for(layer).requires_grad_()
        layer(x).square().sum().backward()
        seen[key] = values
    assert len(seen["ours"]) == 5
    for a, b in zip(seen["ours"], seen["theirs"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_frozen_backbone(isa: str) -> None:
    """Transfer learning: no weight gradient of a frozen layer, no input gradient of the first."""
    backbone, head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)
    backbone.requires_grad_(False)
    net = torch.nn.Sequential(backbone, torch.nn.ReLU(), head)
    with runtime.force_cpu_isa("scalar"):  # leaves a mark that any later run overwrites
        full = nn.Conv2d(1, 1, 1)
        full(torch.ones(1, 1, 2, 2, requires_grad=True)).sum().backward()
    net(torch.randn(2, 3, 9, 9)).sum().backward()
    assert backbone.weight.grad is None
    assert head.weight.grad is not None
    assert runtime.last_used_isa("conv2d_grad_weight") == isa
    assert runtime.last_used_isa("conv2d_grad_input") == "scalar"


def test_training_follows_torch() -> None:
    """The same network, data and seed: the same loss curve, step by step."""
    curves = []
    for layers in (nn, torch.nn):
        torch.manual_seed(3)
        net = torch.nn.Sequential(
            layers.Conv2d(1, 6, 5, padding=2), torch.nn.Tanh(), torch.nn.AvgPool2d(2),
            layers.Conv2d(6, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 5 * 5, 4),
        )  # fmt: skip
        x, labels = torch.randn(32, 1, 14, 14), torch.randint(0, 4, (32,))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(x), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < 0.2 * curves[0][0]
    torch.testing.assert_close(
        torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-3, atol=1e-4
    )


# --- Two processes -------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _data(rank: int) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(rank))


def _ddp_worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    torch.manual_seed(rank)  # DDP must broadcast rank 0's parameters
    net = DistributedDataParallel(
        torch.nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), nn.Conv2d(4, 2, 3))
    )
    net(_data(rank)).square().mean().backward()
    torch.save([p.grad for p in net.parameters()], Path(folder) / f"grads{rank}.pt")
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel(tmp_path: Path) -> None:
    """Both ranks end with the mean of their gradients, as one process over all data computes it."""
    mp.spawn(_ddp_worker, args=(_free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"grads{rank}.pt") for rank in (0, 1))
    torch.manual_seed(0)
    net = torch.nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), nn.Conv2d(4, 2, 3))
    net(torch.cat([_data(0), _data(1)])).square().mean().backward()
    for a, b, p in zip(first, second, net.parameters(), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, p.grad, rtol=1e-5, atol=1e-6)


def test_fork_after_use() -> None:
    """A DataLoader worker forks after the kernels have run; convolutions in it must not hang."""
    layer, _ = both("plain")
    x = input_for(layer)
    expected = layer(x).detach()

    class Convolved(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Tensor:
            with torch.no_grad():
                return layer(x)

    loader = torch.utils.data.DataLoader(Convolved(), num_workers=1, batch_size=None, timeout=60)
    for output in loader:
        assert torch.equal(output, expected)


def test_exports() -> None:
    assert fastconv.nn is nn
    assert "Conv2d" in nn.__all__
