# SPDX-License-Identifier: MIT
"""Who may know whom: every #include and import of the source tree against the tables below."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ISAS = ("scalar", "avx2", "avx512")

# --- C++ -----------------------------------------------------------------------------------------

# Standard headers without containers, threads, streams or functions that the compiler may keep as
# shared copies: what a file compiled for one instruction set may use.
PLAIN_STD = r"cstdint|cstddef|utility|limits|cmath|type_traits"
THREADS = (
    r"thread|mutex|shared_mutex|atomic|future|condition_variable|semaphore|barrier|latch|omp\.h"
)
STD = rf"(?!({THREADS})>)[a-z_]+"
STD_WITH_ATOMIC = r"(?!(thread|mutex|future|omp\.h)>)[a-z_]+"
INTRINSICS = r"immintrin\.h"
TORCH = r"(torch|ATen|c10|pybind11)/.+"


@dataclass(frozen=True)
class Rule:
    """Files whose path (below csrc) matches may include only what matches; the first rule counts.

    Groups of the path pattern can be used in `quoted` as {op} and {isa}.
    """

    path: str
    quoted: str
    angled: str


CPP_RULES = [
    Rule(r"common/.+", r"common/.+", STD),
    Rule(r"cpu/runtime/.+", r"(common|cpu/runtime)/.+", rf"{STD_WITH_ATOMIC}|cpuid\.h"),
    Rule(r"cpu/simd/.+", r"common/.+|cpu/simd/.+", rf"{PLAIN_STD}|{INTRINSICS}"),
    # One file per instruction set: its own vectors, its own op's tables and templates.
    Rule(
        r"cpu/(?P<op>\w+)/\w+_ukernels_(?P<isa>scalar|avx2|avx512)\.cpp",
        r"cpu/simd/simd_({isa}|activations|math_impl)\.h|cpu/{op}/\w+_(ukernels|impl)\.h|common/.+",
        rf"{PLAIN_STD}|{INTRINSICS}",
    ),
    # What those files include: no vectors by name, so that each works for every instruction set.
    Rule(
        r"cpu/(?P<op>\w+)/\w+(_ukernels|_impl|_window)\.h",
        r"cpu/{op}/\w+\.h|cpu/gemm/gemm\.h|cpu/runtime/isa\.h|common/.+",
        PLAIN_STD,
    ),
    # The fused block runs conv2d's register tiles: their tables, never conv2d's algorithms.
    Rule(
        r"cpu/conv_block2d/\w+(?<!_ukernels)(?<!_impl)\.(h|cpp)",
        r"cpu/conv_block2d/\w+(?<!_impl)\.h|cpu/conv2d/conv2d_(ukernels|dots)\.h|"
        r"cpu/gemm/gemm\.h|cpu/runtime/.+|common/.+",
        STD,
    ),
    Rule(r"cpu/gemm/.+", r"cpu/gemm/\w+(?<!_impl)\.h|cpu/runtime/isa\.h|common/.+", PLAIN_STD),
    # Algorithms: blocking and threads, on top of the tables; never another op, never intrinsics.
    Rule(
        r"cpu/(?P<op>\w+)/\w+\.(h|cpp)",
        r"cpu/{op}/\w+(?<!_impl)\.h|cpu/gemm/gemm\.h|cpu/runtime/.+|common/.+",
        STD,
    ),
    Rule(r"cuda/.+\.(h|cpp)", r"(common|cuda)/.+(?<!\.cuh)", rf"{STD}|cuda\w*\.h"),
    Rule(r"cuda/.+\.(cu|cuh)", r"(common|cuda)/.+", rf"{STD}|(cuda|cooperative_groups|mma)\w*\.h"),
    # The one binding that threads share, hence with a lock; it asks how much memory there is.
    Rule(
        r"bindings/block_cache\.cpp",
        r"bindings/block_cache\.h",
        rf"mutex|{STD}|{TORCH}|pthread\.h|sys/mman\.h|unistd\.h",
    ),
    Rule(
        r"bindings/.+",
        r"(bindings|common|cpu/runtime)/.+|(cpu|cuda)/(?P<dir>(?!gemm)\w+)/(?P=dir)(_reference)?\.h|"
        r"cuda/common/device\.h",
        rf"{STD}|{TORCH}|sys/mman\.h",
    ),
    # The emulator of CUDA: knows the seam's headers and, by launchers, the kernels.
    # A program of its own: how many blocks fit a multiprocessor, as CUDA's header reckons.
    Rule(r"tests/cuda_budgets/.+", r"", r"[a-z_]+|cuda_occupancy\.h"),
    Rule(
        r"tests/cuda_shim/.+",
        r"tests/cuda_shim/\w+\.h|common/.+|cuda/common/.+|cuda/\w+/\w+\.h",
        rf"{STD}|cuda\w*\.h|(signal|ucontext|unistd|sys/mman)\.h|sanitizer/\w+\.h",
    ),
    Rule(
        r"tests/.+",
        r"\w+\.h|tests/cuda_shim/\w+\.h|(common|cpu|cuda)/.+",
        r"[a-z_]+|cuda\w*\.h|sys/mman\.h|unistd\.h",
    ),
]

INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"(?P<quoted>[^"]+)"|<(?P<angled>[^>]+)>)', re.MULTILINE)


def cpp_violations(path: str, text: str) -> list[str]:
    """What `path` (relative to csrc) includes and must not; or that no rule knows the file."""
    matches = ((rule, re.fullmatch(rule.path, path)) for rule in CPP_RULES)
    rule, match = next(((rule, match) for rule, match in matches if match), (None, None))
    if rule is None:
        return [f"{path}: no rule says what it may include"]
    quoted = rule.quoted
    for name, value in match.groupdict().items():
        quoted = quoted.replace("{" + name + "}", value)
    found = []
    for include in INCLUDE.finditer(text):
        if include["quoted"] and not re.fullmatch(quoted, include["quoted"]):
            found.append(f'{path} includes "{include["quoted"]}"')
        # The closing bracket lets a look-ahead of the patterns see the end of the name.
        if include["angled"] and not re.match(rf"(?:{rule.angled})>", include["angled"] + ">"):
            found.append(f"{path} includes <{include['angled']}>")
    return found


def cpp_files() -> Iterator[Path]:
    for suffix in ("h", "cpp", "cu", "cuh"):
        yield from sorted((ROOT / "csrc").rglob(f"*.{suffix}"))


def test_cpp_layers() -> None:
    files = [*cpp_files()]
    assert len(files) > 40
    violations = []
    for file in files:
        violations += cpp_violations(file.relative_to(ROOT / "csrc").as_posix(), file.read_text())
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("common/shapes.h", '#include "cpu/runtime/isa.h"'),
        ("common/shapes.h", "#include <torch/library.h>"),
        ("common/shapes.h", "#include <thread>"),
        ("cpu/runtime/isa.cpp", "#include <ATen/ATen.h>"),
        ("cpu/runtime/parallel.cpp", '#include "cpu/conv2d/conv2d.h"'),
        ("cpu/runtime/parallel.cpp", "#include <thread>"),
        ("cpu/simd/simd_avx2.h", "#include <vector>"),
        ("cpu/gemm/gemm_ukernels_avx2.cpp", '#include "cpu/simd/simd_avx512.h"'),
        ("cpu/gemm/gemm_ukernels_avx2.cpp", "#include <algorithm>"),
        ("cpu/gemm/gemm.cpp", '#include "cpu/conv2d/conv2d.h"'),
        ("cpu/gemm/gemm_ukernels_impl.h", "#include <immintrin.h>"),
        ("cpu/conv2d/conv2d_ukernels_avx512.cpp", "#include <atomic>"),
        ("cpu/conv2d/conv2d.cpp", "#include <immintrin.h>"),
        ("cpu/conv2d/conv2d.cpp", "  #  include  <omp.h>"),
        ("cpu/conv2d/conv2d.cpp", '#include "cpu/pool2d/pool2d.h"'),
        ("cpu/conv2d/conv2d.cpp", '#include "cpu/conv2d/conv2d_ukernels_impl.h"'),
        ("cpu/conv2d/conv2d.cpp", '#include "cpu/simd/simd_avx2.h"'),
        ("cpu/pool2d/pool2d.cpp", "#include <c10/util/Exception.h>"),
        ("cpu/conv_block2d/conv_block2d.cpp", '#include "cpu/conv2d/conv2d.h"'),
        ("cpu/conv_block2d/conv_block2d_ukernels.h", '#include "cpu/conv2d/conv2d_ukernels.h"'),
        ("cuda/conv2d/conv2d.cu", "#include <ATen/cuda/CUDAContext.h>"),
        ("bindings/conv2d_cpu.cpp", '#include "cpu/conv2d/conv2d_ukernels.h"'),
        ("bindings/conv2d_cpu.cpp", '#include "cpu/gemm/gemm.h"'),
        ("bindings/conv2d_cpu.cpp", "#include <immintrin.h>"),
        ("bindings/conv2d_cuda.cpp", '#include "cuda/common/ptx.cuh"'),
        ("tests/test_conv2d.cpp", "#include <torch/torch.h>"),
        ("somewhere/new.cpp", "#include <cstdint>"),
    ],
)
def test_cpp_violation_is_noticed(path: str, line: str) -> None:
    assert len(cpp_violations(path, f"// a file\n{line}\n#include <cstdint>\n")) == 1


# --- Python --------------------------------------------------------------------------------------

UPPER = ("fastconv.nn", "fastconv.optim", "fastconv.models", "fastconv.recipes",
         "fastconv.accelerate", "fastconv._accelerate", "fastconv.integrations",
         "fastconv.compile_backend", "fastconv.cli")  # fmt: skip
EXTENSION = ("torch.ops", "fastconv._C")

# Path pattern (below the root): names that must not be imported or reached by attribute.
PYTHON_RULES = [
    (r"fastconv/ops/.+|fastconv/runtime\.py", UPPER),
    (r"fastconv/(_load|__init__)\.py", ()),
    (r"fastconv/functional\.py", (*UPPER, *EXTENSION)),
    (r"fastconv/(nn|optim|models|recipes|_accelerate|integrations)/.+|fastconv/\w+\.py", EXTENSION),
    (r"(python_tests|benchmarks)/.+", ("fastconv._C",)),
]


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := _dotted(node.value)):
        return f"{base}.{node.attr}"
    return None


def names_used(tree: ast.AST, package: str) -> set[str]:
    """Dotted names of everything imported, and of attributes reached through an import."""
    used: set[str] = set()
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                used.add(alias.name)
                bound[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                used.add(f"{base}.{alias.name}")
                bound[alias.asname or alias.name] = f"{base}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (dotted := _dotted(node)):
            first, _, rest = dotted.partition(".")
            if first in bound:
                used.add(f"{bound[first]}.{rest}")
    return used


def python_violations(path: str, text: str) -> list[str]:
    forbidden = next(
        (names for pattern, names in PYTHON_RULES if re.fullmatch(pattern, path)), None
    )
    if forbidden is None:
        return [f"{path}: no rule says what it may import"]
    package = ".".join(Path(path).parent.parts)
    used = names_used(ast.parse(text), package)
    return [
        f"{path} uses {name}"
        for name in sorted(used)
        if any(name == f or name.startswith(f + ".") for f in forbidden)
    ]


def python_files() -> Iterator[Path]:
    for folder in ("fastconv", "python_tests", "benchmarks"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_python_layers() -> None:
    files = [*python_files()]
    assert len(files) > 10
    violations = []
    for file in files:
        if file.name != "_build.py":  # written by the build
            violations += python_violations(file.relative_to(ROOT).as_posix(), file.read_text())
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("fastconv/ops/conv2d.py", "from fastconv.nn import Conv2d"),
        ("fastconv/ops/conv2d.py", "from ..nn import conv"),
        ("fastconv/ops/conv2d.py", "import fastconv.optim"),
        ("fastconv/runtime.py", "from fastconv import models"),
        ("fastconv/nn/conv.py", "import torch\ntorch.ops.fastconv.conv2d(x)"),
        ("fastconv/nn/conv.py", "from torch import ops"),
        ("fastconv/nn/conv.py", "from fastconv import _C"),
        ("fastconv/nn/conv.py", "from fastconv import _C as kernels"),
        ("fastconv/nn/conv.py", "from .. import _C"),
        ("fastconv/models/lenet.py", "import torch as t\ny = t.ops.fastconv"),
        ("fastconv/cli.py", "import fastconv._C"),
        ("benchmarks/bench_conv2d.py", "from fastconv._C import last_record"),
        ("fastconv/new/thing.py", "import torch"),
    ],
)
def test_python_violation_is_noticed(path: str, text: str) -> None:
    assert python_violations(path, text)


def test_python_rules_allow_what_they_should() -> None:
    assert not python_violations(
        "fastconv/ops/conv2d.py", "import torch\ntorch.ops.fastconv.conv2d"
    )
    assert not python_violations("fastconv/nn/conv.py", "from fastconv.ops import conv2d")
    assert not python_violations(
        "python_tests/test_x.py", "import torch\ntorch.ops.fastconv.conv2d"
    )


# --- Every file ----------------------------------------------------------------------------------


def test_licence_line() -> None:
    missing = [
        str(file.relative_to(ROOT))
        for file in [*cpp_files(), *python_files(), *ROOT.glob("csrc/**/CMakeLists.txt")]
        if "SPDX-License-Identifier: MIT" not in file.read_text()[:200] and file.name != "_build.py"
    ]
    assert not missing, missing


def test_one_file_per_instruction_set() -> None:
    """Every *_ukernels_<isa>.cpp comes in all instruction sets, and CMake compiles every source."""
    kernels = {
        file.relative_to(ROOT).as_posix() for file in ROOT.glob("csrc/cpu/*/*_ukernels_*.cpp")
    }
    assert kernels
    for file in kernels:
        stem = re.sub(r"_(scalar|avx2|avx512)\.cpp$", "", file)
        assert {f"{stem}_{isa}.cpp" for isa in ISAS} <= kernels, stem
    listed = (ROOT / "CMakeLists.txt").read_text() + (ROOT / "csrc/cmake/cuda.cmake").read_text()
    sources = ("cpu/**/*.cpp", "cuda/**/*.cu", "cuda/**/*.cpp", "bindings/*.cpp")
    for file in [file for pattern in sources for file in (ROOT / "csrc").glob(pattern)]:
        assert file.relative_to(ROOT).as_posix() in listed, f"{file.name} is not built"
