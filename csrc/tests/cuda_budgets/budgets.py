#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the compiled CUDA kernels may cost, and which instructions they must and must not hold.

    budgets.py check LIBRARY...    compare with budgets.json and the rules below; exit status 1 on
                                   any kernel over its budget, unknown, gone, or against a rule
    budgets.py write LIBRARY...    write budgets.json anew for the architectures of LIBRARY, which
                                   holds all kernels
    budgets.py update OBJECT...    write only the lines of the kernels in OBJECT, for a few changed
                                   ones; gone ones stay until the next ``write``

LIBRARY is libfastconv_cuda.a or an object file. Of architectures that are in the library but not in
budgets.json (or the other way round) only the rules are checked, stack and spills among them. Needs
``cuobjdump`` and ``nvdisasm`` (the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm),
``c++filt``, nvcc and a C++ compiler; no GPU.

A budget line is [registers of a thread, bytes of static shared memory, threads of a block, blocks
per multiprocessor], the last from cuda_occupancy.h for those three numbers. What a launch asks for
on top, dynamic shared memory, is its plan's business. Stack and spills have no budget: there are
none.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUDGETS = HERE / "budgets.json"
REGISTERS_ALLOWED_MORE = 8

# Opcodes that no kernel may hold: local memory (spills, arrays that are not registers), and atomic
# arithmetic on floats, whose order is not fixed.
FORBIDDEN = {
    "local memory": re.compile(r"(LDL|STL)\b"),
    "a float atomic": re.compile(r"(ATOM|ATOMG|ATOMS|RED)\..*\b(F16|F32|F64|BF16)"),
}

# Kernels by name, and what each of them must hold at least once. Instructions of sm_80 and newer.
COPY_128 = re.compile(r"LDGSTS\.E\.(BYPASS\.)?(LTC\w+\.)?128")
LOAD_128 = re.compile(r"LDG\.E\.(CONSTANT\.)?128|LDG\.E\.128(\.CONSTANT)?|LDG\.E\.ENL2\.256")
STORE_128 = re.compile(r"STG\.E\.(ENL2\.)?(128|256)")
TENSOR_CORE = re.compile(r"HMMA\.")
FROM_SHARED_MATRIX = re.compile(r"LDSM\.")
REQUIRED = [
    (re.compile(r"adam_update_kernel"), [LOAD_128, STORE_128]),
    (re.compile(r"adam_norm_kernel"), [LOAD_128]),
    (
        re.compile(r"conv2d_gemm_kernel"),
        [TENSOR_CORE, FROM_SHARED_MATRIX, COPY_128, STORE_128],
    ),
    (re.compile(r"conv2d_grad_weight_gemm_kernel"), [TENSOR_CORE, COPY_128]),
    (re.compile(r"conv2d_grad_weight_gemm_kernel<HalfMath"), [FROM_SHARED_MATRIX]),
    # Vectors of channels; of one channel there are none.
    (re.compile(r"pool2d_backward_kernel<(?!1,)"), [LOAD_128, STORE_128]),
    (re.compile(r"pool2d_backward_(rows|windows)_kernel"), [STORE_128]),
    (re.compile(r"MmaTile<MmaUnit16"), [TENSOR_CORE, FROM_SHARED_MATRIX, LOAD_128]),
    (re.compile(r"MmaTile<MmaUnitTf32"), [TENSOR_CORE, LOAD_128]),
    (re.compile(r"SimtTile"), [LOAD_128]),
    (re.compile(r"lstm_persistent_\w+_kernel<__"), [TENSOR_CORE, FROM_SHARED_MATRIX]),
    (re.compile(r"lstm_persistent_forward_kernel<\d"), [LOAD_128, STORE_128]),
    (re.compile(r"lstm_persistent_backward_kernel<\d"), [LOAD_128, STORE_128]),
]


@dataclass
class Kernel:
    """One kernel for one architecture."""

    registers: int = 0
    stack: int = 0
    shared: int = 0
    local: int = 0
    threads: int = 0
    opcodes: Counter[str] = field(default_factory=Counter)


Kernels = dict[tuple[str, str], Kernel]  # by (architecture, name)


def short_name(demangled: str) -> str:
    """Without namespaces, return type and parameters."""
    name = re.sub(r"^void ", "", demangled)
    name = re.sub(r"\(anonymous namespace\)::|_INTERNAL_\w+::", "", name)
    name = re.sub(r"\bfastconv::(cuda::)?", "", name)
    depth = 0
    for i, letter in enumerate(name):
        if letter == "<":
            depth += 1
        elif letter == ">":
            depth -= 1
        elif letter == "(" and depth == 0:
            return name[:i]
    return name


def parse_resources(text: str, kernels: Kernels) -> None:
    """Output of ``cuobjdump -res-usage``, demangled."""
    architecture, name = "", ""
    for line in text.splitlines():
        if found := re.match(r"\s*arch = (sm_\d+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function (.+):\s*$", line):
            name = short_name(found[1])
        elif found := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            kernel = kernels.setdefault((architecture, name), Kernel())
            kernel.registers, kernel.stack, kernel.shared, kernel.local = map(int, found.groups())


def parse_sass(text: str, kernels: Kernels) -> None:
    """Output of ``cuobjdump -sass``, demangled."""
    architecture, kernel = "", None
    for line in text.splitlines():
        if found := re.match(r"\s*arch = (sm_\d+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function : (.+?)\s*$", line):
            kernel = kernels.setdefault((architecture, short_name(found[1])), Kernel())
        elif kernel is not None and (
            found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)", line)
        ):
            kernel.opcodes[found[1]] += 1


def parse_threads(text: str, kernels: Kernels, demangled: dict[str, str]) -> None:
    """Output of ``cuobjdump -elf``: the launch bounds."""
    architecture, kernel, bounds = "", None, False
    for line in text.splitlines():
        if found := re.match(r"arch = (sm_\d+)", line):
            architecture = found[1]
        elif found := re.match(r"\.nv\.info\.(\S+)", line):
            name = short_name(demangled.get(found[1], found[1]))
            kernel, bounds = kernels.get((architecture, name)), False
        elif found := re.match(r"\s*Attribute:\s+(\w+)", line):
            bounds = found[1] == "EIATTR_MAX_THREADS"
        elif (
            bounds
            and kernel is not None
            and (found := re.match(r"\s*Value:\s+0x(\w+) 0x(\w+) 0x(\w+)", line))
        ):
            x, y, z = (int(part, 16) for part in found.groups())
            kernel.threads = x * y * z


def problems_of_code(kernels: Kernels) -> list[str]:
    """Stack, spills, and instructions against the rules."""
    problems = []
    for (architecture, name), kernel in sorted(kernels.items()):
        where = f"{architecture} {name}"
        if kernel.stack or kernel.local:
            problems.append(
                f"{where}: expected no stack and no local memory, got {kernel.stack} and "
                f"{kernel.local} bytes"
            )
        for what, pattern in FORBIDDEN.items():
            found = sorted(op for op in kernel.opcodes if pattern.match(op))
            if found:
                problems.append(f"{where}: expected no {what}, got {', '.join(found)}")
        if int(architecture.removeprefix("sm_")) < 80:
            continue
        for pattern, required in REQUIRED:
            if not pattern.search(name):
                continue
            problems += [
                f"{where}: expected an instruction {wanted.pattern}"
                for wanted in required
                if not any(wanted.match(op) for op in kernel.opcodes)
            ]
    return problems


def problems_of_cost(
    kernels: Kernels, blocks: dict[tuple[str, str], int], budgets: dict[str, dict[str, list[int]]]
) -> list[str]:
    """Kernels against their lines in budgets.json."""
    compiled = {architecture for architecture, _ in kernels}
    architectures = compiled & set(budgets)
    if not architectures:
        return [f"none of {', '.join(sorted(compiled))} is in budgets.json"]
    problems = []
    kernels = {key: kernel for key, kernel in kernels.items() if key[0] in architectures}
    known = {(a, name) for a in architectures for name in budgets[a]}
    for architecture, name in sorted(known - set(kernels)):
        problems.append(f"{architecture} {name}: in budgets.json, but not compiled")
    for (architecture, name), kernel in sorted(kernels.items()):
        where = f"{architecture} {name}"
        if (architecture, name) not in known:
            problems.append(f"{where}: compiled, but not in budgets.json")
            continue
        registers, shared, threads, least_blocks = budgets[architecture][name]
        if kernel.registers > registers + REGISTERS_ALLOWED_MORE:
            problems.append(
                f"{where}: expected at most {registers} + {REGISTERS_ALLOWED_MORE} registers, "
                f"got {kernel.registers}"
            )
        if kernel.shared > shared:
            problems.append(
                f"{where}: expected at most {shared} bytes of static shared memory, "
                f"got {kernel.shared}"
            )
        if kernel.threads != threads:
            problems.append(f"{where}: expected {threads} threads, got {kernel.threads}")
        if blocks[architecture, name] < least_blocks:
            problems.append(
                f"{where}: expected at least {least_blocks} blocks per multiprocessor, "
                f"got {blocks[architecture, name]}"
            )
    return problems


# --- Tools ---------------------------------------------------------------------------------------


def tool(name: str) -> str:
    """A program on PATH, or where the Python package of that name puts it."""
    found = shutil.which(name)
    if found is None:
        purelib = Path(sysconfig.get_paths()["purelib"])
        found = next((str(p) for p in sorted(purelib.glob(f"nvidia/*/bin/{name}"))), None)
    if found is None:
        sys.exit(f"budgets.py: {name} not found; needed are nvcc and the packages "
                 "nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm")  # fmt: skip
    return found


def run(*command: str, text: str | None = None) -> str:
    path = os.pathsep.join([str(Path(tool("nvdisasm")).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    if done.returncode != 0:
        sys.exit(f"budgets.py: {' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr}")
    return done.stdout


def read_kernels(libraries: list[str]) -> Kernels:
    kernels: Kernels = {}
    for library in libraries:
        for option, parse in (("-res-usage", parse_resources), ("-sass", parse_sass)):
            parse(run("c++filt", text=run(tool("cuobjdump"), option, library)), kernels)
        elf = run(tool("cuobjdump"), "-elf", library)
        mangled = sorted(set(re.findall(r"\.nv\.info\.(\S+)", elf)))
        plain = run("c++filt", text="\n".join(mangled)).splitlines()
        parse_threads(elf, kernels, dict(zip(mangled, plain, strict=True)))
    return kernels


def cuda_includes() -> list[str]:
    """Options of the C++ compiler by which it finds CUDA's headers."""
    done = subprocess.run(
        [tool("nvcc"), "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True
    )
    found = re.search(r'INCLUDES="(.*?)"', done.stderr)
    return found[1].split() if found else []


def blocks_per_multiprocessor(kernels: Kernels) -> dict[tuple[str, str], int]:
    keys = sorted(kernels)
    lines = []
    for architecture, name in keys:
        k = kernels[architecture, name]
        lines.append(f"{architecture.removeprefix('sm_')} {k.registers} {k.shared} {k.threads}")
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/occupancy"
        compiler = os.environ.get("CXX", "c++").split()
        source = str(HERE / "occupancy.cpp")
        run(*compiler, "-std=c++20", "-O1", *cuda_includes(), source, "-o", program)
        counts = run(program, text="\n".join(lines) + "\n").split()
    return dict(zip(keys, map(int, counts), strict=True))


def write(kernels: Kernels, blocks: dict[tuple[str, str], int], partial: bool) -> None:
    """Replaces the lines of the architectures that ``kernels`` are compiled for, or with
    ``partial`` those of the kernels themselves."""
    budgets: dict[str, dict[str, list[int]]] = json.loads(BUDGETS.read_text())
    if not partial:
        for architecture in {architecture for architecture, _ in kernels}:
            budgets[architecture] = {}
    for (architecture, name), k in kernels.items():
        line = [k.registers, k.shared, k.threads, blocks[architecture, name]]
        budgets.setdefault(architecture, {})[name] = line
    parts = []
    for architecture in sorted(budgets, key=lambda a: int(a.removeprefix("sm_"))):
        lines = sorted(budgets[architecture].items())
        rows = ",\n".join(f"    {json.dumps(n)}: {json.dumps(v)}" for n, v in lines)
        parts.append(f"  {json.dumps(architecture)}: {{\n{rows}\n  }}")
    BUDGETS.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def main(arguments: list[str]) -> int:
    if len(arguments) < 2 or arguments[0] not in ("check", "write", "update"):
        print(__doc__, file=sys.stderr)
        return 2
    kernels = read_kernels(arguments[1:])
    if not kernels:
        print(f"budgets.py: no kernels in {' '.join(arguments[1:])}", file=sys.stderr)
        return 1
    blocks = blocks_per_multiprocessor(kernels)
    if arguments[0] != "check":
        write(kernels, blocks, partial=arguments[0] == "update")
    problems = problems_of_code(kernels)
    if arguments[0] != "update":
        problems += problems_of_cost(kernels, blocks, json.loads(BUDGETS.read_text()))
    for problem in problems:
        print(problem)
    print(f"{len(kernels)} kernels, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
