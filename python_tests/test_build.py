# SPDX-License-Identifier: MIT
"""What was built and what it loads: one OpenMP runtime, no libpython, no code of a wide instruction
set where a narrow machine could meet it, and a wheel that is tied to its torch."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from subprocesses import run_python

import fastconv

ROOT = Path(__file__).resolve().parent.parent
CMAKE = (ROOT / "CMakeLists.txt").read_text()


def needed_libraries(path: Path) -> list[str]:
    """DT_NEEDED of a 64-bit little-endian ELF file, read without binutils."""
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"
    (header_offset,) = struct.unpack_from("<Q", data, 32)
    entry_size, entries = struct.unpack_from("<HH", data, 54)
    loads, dynamic = [], None
    for i in range(entries):
        kind, _, offset, address, _, size = struct.unpack_from(
            "<IIQQQQ", data, header_offset + i * entry_size
        )
        if kind == 1:  # PT_LOAD
            loads.append((address, size, offset))
        elif kind == 2:  # PT_DYNAMIC
            dynamic = (offset, size)
    assert dynamic
    tags = [struct.unpack_from("<QQ", data, dynamic[0] + 16 * i) for i in range(dynamic[1] // 16)]
    (table,) = (value for tag, value in tags if tag == 5)  # DT_STRTAB
    (start,) = (o + table - a for a, size, o in loads if a <= table < a + size)
    names = [start + value for tag, value in tags if tag == 1]  # DT_NEEDED
    return [data[name : data.index(b"\0", name)].decode() for name in names]


def test_extension_links_no_openmp_and_no_libpython() -> None:
    spec = importlib.util.find_spec("fastconv._C")
    needed = needed_libraries(Path(spec.origin))
    assert any(name.startswith("libtorch_cpu") for name in needed), needed
    unwanted = [n for n in needed if re.match(r"lib(gomp|iomp|omp|python)", n)]
    assert not unwanted, unwanted


def test_one_openmp_runtime_is_loaded() -> None:
    """In a process of its own, since other packages (scikit-learn) bring their own copy."""
    done = run_python(
        "import re, torch, fastconv\n"
        "torch.set_num_threads(2)\n"
        "x = torch.randn(32, 8, 32, 32, requires_grad=True)\n"
        "fastconv.functional.conv2d(x, torch.randn(16, 8, 3, 3)).sum().backward()\n"
        "maps = open('/proc/self/maps').read()\n"
        "found = set(re.findall(r'/\\S*/(lib(?:gomp|iomp5|omp)[^/\\s]*)$', maps, re.M))\n"
        "print(*found)\n"
        "print(*fastconv.runtime.info()['openmp'])\n"
    )
    assert done.returncode == 0, done.stderr
    loaded, reported = done.stdout.splitlines()
    assert len(loaded.split()) == 1, loaded
    assert reported == loaded


def test_kernels_use_torchs_threads() -> None:
    """As many threads exist after a parallel convolution as after a parallel matrix product."""
    done = run_python(
        "import os, torch, fastconv\n"
        "torch.set_num_threads(2)\n"
        "a = torch.randn(1024, 1024)\n"
        "(a @ a).add_(a)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "x, w = torch.randn(32, 8, 32, 32), torch.randn(16, 8, 3, 3)\n"
        "for _ in range(3): fastconv.functional.conv2d(x, w)\n"
        "print(before, len(os.listdir('/proc/self/task')))\n"
    )
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after <= max(before, 2)


# --- Instruction sets ----------------------------------------------------------------------------


def cmake_flags(name: str) -> list[str]:
    return re.search(rf"set\({name} ([^)]*)\)", CMAKE)[1].split()


ISA_FLAGS = {isa: cmake_flags(f"FASTCONV_{isa.upper()}_FLAGS") for isa in ("avx2", "avx512")}
ISA_FILES = [
    pytest.param(file, isa, id=file.name)
    for isa in ISA_FLAGS
    for file in sorted((ROOT / "csrc").glob(f"cpu/*/*_ukernels_{isa}.cpp"))
]


def test_isa_flags_touch_only_their_files() -> None:
    # Outside the two lists, no compiler flag chooses a machine.
    rest = re.sub(r"set\(FASTCONV_AVX(2|512)_FLAGS [^)]*\)", "", CMAKE)
    assert not re.findall(r"-m(?:arch|tune|avx|sse|fma|cpu)\S*", rest)
    assert "-mavx512f" not in ISA_FLAGS["avx2"]
    uses = re.findall(r"\$\{FASTCONV_AVX(?:2|512)_FLAGS\}", rest)
    assert len(uses) == 2, "each list is used once, for the files named after it"
    assert r'MATCHES "_avx2\\.cpp$"' in rest
    assert r'MATCHES "_avx512\\.cpp$"' in rest


@pytest.fixture(scope="module")
def isa_objects(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """Every ISA file as an object: out of the build of this tree where there is one, else compiled
    with the project's flags."""
    folder = tmp_path_factory.mktemp("objects")
    library = up_to_date_library()
    if library:
        subprocess.run(["ar", "x", str(library)], cwd=folder, check=True)
        return {file: folder / f"{file.name}.o" for file, _ in (p.values for p in ISA_FILES)}

    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    assert compiler, "no C++ compiler found; set CXX"
    base = "-std=c++20 -O3 -DNDEBUG -O2 -fPIC -fvisibility=hidden -fvisibility-inlines-hidden"
    base += " -fno-math-errno -fno-trapping-math -w"

    def compile_one(file: Path, isa: str) -> tuple[Path, Path]:
        target = folder / f"{file.name}.o"
        command = [*compiler.split(), *base.split(), *ISA_FLAGS[isa], f"-I{ROOT / 'csrc'}"]
        subprocess.run([*command, "-c", str(file), "-o", str(target)], check=True)
        return file, target

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(compile_one, *param.values) for param in ISA_FILES]
        return dict(job.result() for job in jobs)


def up_to_date_library() -> Path | None:
    """The kernels' library that `pip install .` left in this tree, if no source is newer."""
    sources = [ROOT / "CMakeLists.txt", *(ROOT / "csrc" / "cpu").rglob("*.*")]
    changed = max(source.stat().st_mtime for source in sources)
    libraries = ROOT.glob("build/cp*/libfastconv_cpu.a")
    return next((path for path in libraries if path.stat().st_mtime >= changed), None)


@pytest.mark.parametrize(("file", "isa"), ISA_FILES)
def test_isa_file_shares_no_code(file: Path, isa: str, isa_objects: dict[Path, Path]) -> None:
    """A weak symbol here could be the copy the linker keeps for all callers: SIGILL on another
    machine. The only symbols others see are tables that carry the instruction set in their name."""
    listing = subprocess.run(
        ["nm", "--demangle", isa_objects[file]], capture_output=True, text=True, check=True
    ).stdout
    symbols = re.findall(r"^[0-9a-f ]{16} (\w) (.+)$", listing, re.MULTILINE)
    assert symbols
    weak = [name for kind, name in symbols if kind in "WwVvu"]
    assert not weak, weak
    shared = [name for kind, name in symbols if kind in "TDRBC"]
    assert shared
    assert all(name.lower().endswith(isa) for name in shared), shared
    imported = [name for kind, name in symbols if kind == "U"]
    libc = r"(mem(cpy|set|move)|__stack_chk_fail|_GLOBAL_OFFSET_TABLE_|(exp|log|tanh)f?)"
    assert all(re.fullmatch(libc, name) for name in imported), imported


def test_weak_symbols_would_be_noticed(tmp_path: Path) -> None:
    """Negative control: a shared template instantiation is weak, an anonymous one is not."""
    source = tmp_path / "x_ukernels_avx2.cpp"
    source.write_text(
        "template <class T> __attribute__((noinline)) T twice(T x) { return x + x; }\n"
        "float use(float x) { return twice(x); }\n"
    )
    target = tmp_path / "x.o"
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    subprocess.run([*compiler.split(), "-c", str(source), "-o", str(target)], check=True)
    listing = subprocess.run(["nm", str(target)], capture_output=True, text=True, check=True).stdout
    assert re.search(r"^[0-9a-f]{16} W ", listing, re.MULTILINE)


# --- CUDA ----------------------------------------------------------------------------------------


def ops_with_kernels(key: str) -> set[str]:
    names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return {name for name in names if name.startswith("fastconv::")}


def call_as_cuda(op: object, *arguments: object) -> None:
    """What the dispatcher does when an argument is a CUDA tensor, without one."""
    op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *arguments)


def test_every_operator_answers_cuda_tensors() -> None:
    on_cpu, on_cuda = ops_with_kernels("CPU"), ops_with_kernels("CUDA")
    assert "fastconv::conv2d" in on_cpu
    assert on_cuda == on_cpu


@pytest.mark.skipif(fastconv.runtime.info()["cuda"] is not None, reason="this is a CUDA build")
def test_cpu_only_build_refuses_cuda_tensors_in_one_sentence() -> None:
    x, w = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    with pytest.raises(NotImplementedError) as raised:
        call_as_cuda(torch.ops.fastconv.conv2d.default, x, w)
    assert str(raised.value).splitlines()[0] == (
        "fastconv::conv2d: expected CPU tensors, got CUDA tensors; "
        "this build of fastconv has no CUDA kernels"
    )


@pytest.mark.skipif(fastconv.runtime.info()["cuda"] is None, reason="a CPU-only build")
def test_cuda_kernels_refuse_cpu_tensors() -> None:
    """A kernel that got past the dispatcher by mistake must not read CPU memory."""
    x, w = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    with pytest.raises(ValueError, match=r"^conv2d: expected CUDA tensors, got input on cpu$"):
        call_as_cuda(torch.ops.fastconv.conv2d.default, x, w, None, [1, 1], [0, 0], [1, 1], 1)
    with pytest.raises(ValueError, match=r"^mlp: expected CUDA tensors, got input on cpu$"):
        call_as_cuda(torch.ops.fastconv.mlp.default, x[0, 0], [w[0, 0]], [w[0, 0, 0]], "relu", 0.01)


def test_autocast_on_cuda() -> None:
    """Pooling has no rule there: as torch's, it computes in its input's precision."""
    pools = {f"fastconv::{n}" for n in ("max_pool2d", "max_pool2d_with_indices", "avg_pool2d")}
    assert ops_with_kernels("AutocastCUDA") == ops_with_kernels("AutocastCPU") - pools


def test_cuda_of_this_build() -> None:
    """A CUDA build is one for the CUDA of its torch, and names what it has code for."""
    info = fastconv.runtime.info()
    if info["cuda"] is None:
        assert info["cuda_architectures"] == []
    else:
        assert info["cuda"] == torch.version.cuda
        assert all(re.fullmatch(r"\d{2,3}", name) for name in info["cuda_architectures"])
        assert info["cuda_architectures"]


# --- The wheel and its torch ---------------------------------------------------------------------


def test_metadata_pins_the_torch_minor() -> None:
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    requires = importlib.metadata.requires("fastconv")
    (pin,) = (r for r in requires if re.match(r"torch\b", r) and "extra" not in r)
    assert set(pin.removeprefix("torch").split(",")) == {
        f">={major}.{minor}", f"<{major}.{minor + 1}"
    }  # fmt: skip
    hard = [r for r in requires if "extra ==" not in r]
    assert hard == [pin], "torch is the only hard dependency"


def test_provider_of_the_pin() -> None:
    spec = importlib.util.spec_from_file_location("torch_pin", ROOT / "csrc/cmake/torch_pin.py")
    torch_pin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(torch_pin)
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    assert torch_pin.torch_requirement() == f"torch>={major}.{minor},<{major}.{minor + 1}"


def test_foreign_torch_is_refused_in_one_line() -> None:
    load = importlib.import_module("fastconv._load")
    load.check_torch("2.13.0", "2.13.1+cu130")
    for built, running in [("2.13.0", "2.14.0"), ("2.13.0+cpu", "2.12.1"), ("2.13.0", "3.13.0")]:
        with pytest.raises(ImportError) as raised:
            load.check_torch(built, running)
        message = str(raised.value)
        assert len(message.splitlines()) == 1
        for part in (running, ".".join(built.split(".")[:2]), "pip install"):
            assert part in message


def test_import_beside_a_foreign_torch() -> None:
    done = run_python("import torch; torch.__version__ = '2.99.0'; import fastconv")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: fastconv was built for torch")
    assert "2.99.0" in last


def test_version_is_the_projects() -> None:
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert importlib.metadata.version("fastconv") == declared[1]
