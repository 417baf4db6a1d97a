# SPDX-License-Identifier: MIT
"""csrc/tests/cuda_budgets: every kind of finding, planted into what the tools print. The kernels
themselves are checked where nvcc is: see .ci/run."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "csrc" / "tests" / "cuda_budgets"
NAME = "fastconv::cuda::(anonymous namespace)::adam_update_kernel<(fastconv::AdamType)0, int>"
SHORT = "adam_update_kernel<(AdamType)0, int>"

RESOURCES = f"""
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function void {NAME}(fastconv::cuda::AdamTable<float, 40, 4>, int):
  REG:52 STACK:0 SHARED:16 LOCAL:0 CONSTANT[0]:3368 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = f"""
arch = sm_80
\t\tFunction : void {NAME}(fastconv::cuda::AdamTable<float, 40, 4>, int)
        /*0000*/                   MOV R1, c[0x0][0x28] ;      /* 0x00000a0000017a02 */
                                                               /* 0x000fe40000000f00 */
        /*0010*/              @!P0 LDG.E.128 R8, [R10.64] ;    /* 0x000000080a087981 */
        /*0020*/               @P1 STG.E.128 [R10.64], R8 ;    /* 0x000000080a087981 */
        /*0030*/                   ATOMG.E.INC.STRONG.GPU PT, R5, [R2.64], R5 ;
"""
ELF = """
arch = sm_80
   7   460c    1b0  0  4   CUDA_INFO        0    3        0 .nv.info
.nv.info.mangled
\t<0x1>
\tAttribute:\tEIATTR_MAX_THREADS
\tFormat:\tEIFMT_SVAL
\tValue:\t0x100 0x1 0x1
\tAttribute:\tEIATTR_SOMETHING
\tValue:\t0x200 0x1 0x1
"""


@pytest.fixture(scope="module")
def budgets() -> ModuleType:
    spec = importlib.util.spec_from_file_location("budgets", FOLDER / "budgets.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["budgets"] = module  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module


def read(budgets: ModuleType, resources: str = RESOURCES, sass: str = SASS) -> dict:
    kernels: dict = {}
    budgets.parse_resources(resources, kernels)
    budgets.parse_sass(sass, kernels)
    budgets.parse_threads(ELF, kernels, {"mangled": f"void {NAME}(int)"})
    return kernels


def test_reading(budgets: ModuleType) -> None:
    kernels = read(budgets)
    assert [*kernels] == [("sm_80", SHORT)]
    kernel = kernels["sm_80", SHORT]
    assert (kernel.registers, kernel.stack, kernel.shared, kernel.threads) == (52, 0, 16, 256)
    assert kernel.opcodes["LDG.E.128"] == kernel.opcodes["STG.E.128"] == 1
    assert budgets.problems_of_code(kernels) == []


@pytest.mark.parametrize(
    ("resources", "sass", "message"),
    [
        (("STACK:0", "STACK:32"), ("", ""), "no stack and no local memory, got 32 and 0 bytes"),
        (("LOCAL:0", "LOCAL:8"), ("", ""), "no stack and no local memory, got 0 and 8 bytes"),
        (("", ""), ("MOV R1, c[0x0]", "LDL.64 R1, [R1]"), "no local memory, got LDL.64"),
        (("", ""), ("MOV R1, c[0x0]", "STL R1, [R1]"), "no local memory, got STL"),
        (("", ""), ("ATOMG.E.INC.STRONG.GPU", "RED.E.ADD.F32.FTZ.RN.STRONG.GPU"), "float atomic"),
        (("", ""), ("ATOMG.E.INC.STRONG.GPU", "ATOMS.ADD.F64"), "float atomic"),
        (("", ""), ("LDG.E.128", "LDG.E"), "expected an instruction LDG"),
        (("", ""), ("STG.E.128", "STG.E.64"), "expected an instruction STG"),
    ],
)
def test_forbidden_and_missing_instructions(
    budgets: ModuleType, resources: tuple[str, str], sass: tuple[str, str], message: str
) -> None:
    kernels = read(budgets, RESOURCES.replace(*resources), SASS.replace(*sass))
    (problem,) = budgets.problems_of_code(kernels)
    assert problem.startswith(f"sm_80 {SHORT}: ")
    assert message in problem


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([52, 16, 256, 4], None),
        ([44, 16, 256, 4], None),
        ([43, 16, 256, 4], "at most 43 + 8 registers, got 52"),
        ([52, 15, 256, 4], "at most 15 bytes of static shared memory, got 16"),
        ([52, 16, 128, 4], "expected 128 threads, got 256"),
        ([52, 16, 256, 5], "at least 5 blocks per multiprocessor, got 4"),
    ],
)
def test_cost(budgets: ModuleType, line: list[int], message: str | None) -> None:
    kernels = read(budgets)
    found = budgets.problems_of_cost(kernels, {("sm_80", SHORT): 4}, {"sm_80": {SHORT: line}})
    assert len(found) == (message is not None)
    assert message is None or message in found[0]


def test_unknown_and_vanished_kernels(budgets: ModuleType) -> None:
    kernels, blocks = read(budgets), {("sm_80", SHORT): 4}
    found = budgets.problems_of_cost(kernels, blocks, {"sm_80": {"gone": [1, 0, 1, 1]}})
    assert found == [
        "sm_80 gone: in budgets.json, but not compiled",
        f"sm_80 {SHORT}: compiled, but not in budgets.json",
    ]
    # An architecture that was not compiled this time is no finding.
    other = {"sm_80": {SHORT: [52, 16, 256, 4]}, "sm_90": {"gone": [1, 0, 1, 1]}}
    assert budgets.problems_of_cost(kernels, blocks, other) == []


def test_architectures_without_budgets(budgets: ModuleType) -> None:
    """They are no finding beside others, but a library of nothing else has not been checked."""
    kernels, blocks = read(budgets), {("sm_80", SHORT): 4}
    found = budgets.problems_of_cost(kernels, blocks, {"sm_90": {SHORT: [52, 16, 256, 4]}})
    assert found == ["none of sm_80 is in budgets.json"]
    kernels["sm_120", "new"] = budgets.Kernel(registers=200, threads=64)
    line = {"sm_80": {SHORT: [52, 16, 256, 4]}}
    assert budgets.problems_of_cost(kernels, blocks, line) == []
    kernels["sm_120", "new"].stack = 16
    assert "no stack" in budgets.problems_of_code(kernels)[0]


def test_writing(budgets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "BUDGETS", tmp_path / "budgets.json")
    before = {"sm_120": {"other": [1, 0, 32, 8]}, "sm_80": {"gone": [1, 0, 32, 8]}}
    line = {SHORT: [52, 16, 256, 4]}
    for partial, left in ((True, {"gone": [1, 0, 32, 8], **line}), (False, line)):
        budgets.BUDGETS.write_text(json.dumps(before))
        budgets.write(read(budgets), {("sm_80", SHORT): 4}, partial=partial)
        after = json.loads(budgets.BUDGETS.read_text())
        assert after == {"sm_80": left, "sm_120": before["sm_120"]}
        assert [*after] == ["sm_80", "sm_120"]


def test_committed_budgets(budgets: ModuleType) -> None:
    """Every kernel of the sources has a line for both architectures that CI compiles, at least."""
    lines = json.loads(budgets.BUDGETS.read_text())
    assert set(lines) >= {"sm_80", "sm_90"}
    for names in lines.values():
        assert set(names) == set(lines["sm_80"])
        for registers, _, threads, blocks in names.values():
            assert 0 < registers <= 255
            assert 0 < threads <= 1024
            assert blocks > 0


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs CUDA's headers")
def test_blocks_per_multiprocessor(budgets: ModuleType) -> None:
    """65,536 registers, handed out to warps by 256: three blocks of 256 threads with 72 each."""
    kernels = read(budgets)
    kernels["sm_80", SHORT].registers = 72
    if budgets.shutil.which("nvdisasm") is None:
        budgets.tool = lambda name: shutil.which(name) or name
    assert budgets.blocks_per_multiprocessor(kernels) == {("sm_80", SHORT): 3}
