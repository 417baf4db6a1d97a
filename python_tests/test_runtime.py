# SPDX-License-Identifier: MIT
"""Choosing the instruction set, and the facts that fastconv.runtime reports."""

from __future__ import annotations

import importlib.metadata
import threading

import pytest
import torch
from subprocesses import run_python

import fastconv
import fastconv.functional as F
from fastconv import runtime

ALL_ISAS = ["scalar", "avx2", "avx512"]


def small_conv() -> torch.Tensor:
    return F.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3))


def test_available_isas_are_those_of_the_machine() -> None:
    available = runtime.available_isas()
    assert available == ALL_ISAS[: len(available)]
    assert available[0] == "scalar"
    # torch detects on its own; it says AVX512 only when it was built with it, so one-sided.
    torch_level = torch.backends.cpu.get_cpu_capability().lower()
    if torch_level in ALL_ISAS:
        assert torch_level in available


def test_best_is_used_unless_forced() -> None:
    assert runtime.cpu_isa() == runtime.available_isas()[-1]
    small_conv()
    assert runtime.last_used_isa() == runtime.available_isas()[-1]


@pytest.mark.parametrize("name", runtime.available_isas())
def test_force_stays_until_undone(name: str) -> None:
    runtime.force_cpu_isa(name)
    assert runtime.cpu_isa() == name
    small_conv()
    assert runtime.last_used_isa("conv2d_forward") == name
    runtime.force_cpu_isa(None)
    assert runtime.cpu_isa() == runtime.available_isas()[-1]


def test_force_as_context_manager_nests_and_restores() -> None:
    best = runtime.available_isas()[-1]
    with runtime.force_cpu_isa("scalar") as manager:
        assert isinstance(manager, runtime.force_cpu_isa)
        assert runtime.cpu_isa() == "scalar"
        with runtime.force_cpu_isa(best):
            assert runtime.cpu_isa() == best
            with runtime.force_cpu_isa(None):
                assert runtime.cpu_isa() == best
            assert runtime.cpu_isa() == best
        assert runtime.cpu_isa() == "scalar"
    assert runtime.cpu_isa() == best
    runtime.force_cpu_isa("scalar")
    with runtime.force_cpu_isa(best):
        pass
    assert runtime.cpu_isa() == "scalar"


def test_force_is_undone_by_an_exception() -> None:
    with pytest.raises(KeyError), runtime.force_cpu_isa("scalar"):
        raise KeyError
    assert runtime.cpu_isa() == runtime.available_isas()[-1]


@pytest.mark.parametrize("name", ["sse", "AVX2", "", "avx512 ", "none", "avx-512"])
def test_unknown_isa(name: str) -> None:
    with pytest.raises(ValueError, match="expected one of scalar, avx2, avx512, got") as raised:
        runtime.force_cpu_isa(name)
    assert f"'{name}'" in str(raised.value)
    assert runtime.cpu_isa() == runtime.available_isas()[-1]


def test_wrong_type_of_isa() -> None:
    with pytest.raises(TypeError):
        runtime.force_cpu_isa(512)


def test_force_holds_in_other_threads() -> None:
    seen = []

    def work() -> None:
        small_conv()
        seen.append(runtime.cpu_isa())

    with runtime.force_cpu_isa("scalar"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == ["scalar"]


def test_backward_uses_the_isa_forced_at_its_time() -> None:
    w = torch.ones(1, 1, 3, 3, requires_grad=True)
    output = F.conv2d(torch.ones(1, 1, 4, 4), w).sum()
    with runtime.force_cpu_isa("scalar"):
        output.backward()
    assert runtime.last_used_isa("conv2d_grad_weight") == "scalar"


def test_fma_peak_is_that_of_the_active_isa_and_threads() -> None:
    """Wide bounds, since other work may share the machine."""
    torch.set_num_threads(1)
    peaks = {}
    for name in runtime.available_isas():
        with runtime.force_cpu_isa(name):
            peaks[name] = runtime.fma_peak()
    assert all(0.5 < peak < 5000 for peak in peaks.values()), peaks
    if "avx2" in peaks:
        assert peaks["avx2"] > 2 * peaks["scalar"]


# --- FASTCONV_ISA ---------------------------------------------------------------------------------

PRINT_ISA = "import fastconv; print(fastconv.runtime.cpu_isa())"


@pytest.mark.parametrize("name", runtime.available_isas())
def test_environment_forces(name: str) -> None:
    done = run_python(PRINT_ISA, FASTCONV_ISA=name)
    assert (done.returncode, done.stdout.strip()) == (0, name), done.stderr


def test_empty_environment_variable_means_best() -> None:
    done = run_python(PRINT_ISA, FASTCONV_ISA="")
    assert (done.returncode, done.stdout.strip()) == (0, runtime.available_isas()[-1])


def test_invalid_environment_variable_is_one_clear_line() -> None:
    done = run_python("import fastconv", FASTCONV_ISA="sse9")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: FASTCONV_ISA: ")
    assert "scalar, avx2, avx512" in last
    assert "'sse9'" in last
    assert "During handling" not in done.stderr


# --- last_used, info ------------------------------------------------------------------------------


def test_last_used_starts_empty_and_follows_kernels() -> None:
    done = run_python(
        "import torch, fastconv; from fastconv import runtime as r\n"
        "print(r.last_used_isa(), r.last_used_algorithm(), r.last_used_isa('conv2d_forward'))\n"
        "w = torch.ones(1, 1, 2, 2, requires_grad=True)\n"
        "y = fastconv.functional.conv2d(torch.ones(1, 1, 3, 3), w)\n"
        "print(r.last_used_isa() == r.cpu_isa(), r.last_used_isa('conv2d_grad_weight'))\n"
        "y.sum().backward()\n"
        "print(r.last_used_isa('conv2d_grad_weight') == r.cpu_isa(),\n"
        "      r.last_used_isa('conv2d_grad_input'))\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["None None None", "True None", "True None"]


def test_last_used_algorithm_is_a_name() -> None:
    small_conv()
    assert isinstance(runtime.last_used_algorithm("conv2d_forward"), str)
    assert runtime.last_used_algorithm() == runtime.last_used_algorithm("conv2d_forward")


def test_unknown_kernel() -> None:
    for query in (runtime.last_used_isa, runtime.last_used_algorithm):
        with pytest.raises(ValueError, match=r"expected a kernel among conv2d_forward, .* got 'c'"):
            query("c")


def test_info() -> None:
    info = runtime.info()
    assert set(info) >= {
        "version", "torch_built", "torch_running", "compiler", "cpu_isas", "cpu_isa", "threads",
        "openmp", "cuda",
    }  # fmt: skip
    assert info["version"] == fastconv.__version__ == importlib.metadata.version("fastconv")
    assert info["torch_running"] == torch.__version__
    assert info["torch_built"].split(".")[:2] == torch.__version__.split(".")[:2]
    assert info["compiler"]
    assert info["cpu_isas"] == runtime.available_isas()
    assert info["cpu_isa"] == runtime.cpu_isa()
    assert info["threads"] == torch.get_num_threads()
    with runtime.force_cpu_isa("scalar"):
        assert runtime.info()["cpu_isa"] == "scalar"


def test_threads_follow_torch() -> None:
    torch.set_num_threads(1)
    assert runtime.info()["threads"] == 1
    x, w = torch.randn(16, 8, 32, 32), torch.randn(16, 8, 3, 3)
    alone = F.conv2d(x, w)
    torch.set_num_threads(2)
    torch.testing.assert_close(F.conv2d(x, w), alone)
