# SPDX-License-Identifier: MIT
"""Mutation gate: plants one bug at a time in a copy of the CUDA kernels, runs the emulator's tests
of the op, and reports the bugs that no test noticed.

    python csrc/tests/cuda_shim/mutate.py [--op OP ...] [--per-rule N] [--seed S] [--out FILE]
        [--work FOLDER] [--quick]

Cheapest first, and the first that fails ends it: the op's C++ tests, its Python tests, its C++
tests under ThreadSanitizer (before the Python tests where the bug is about order).
Every barrier is removed and every wait weakened; of the other rules N places per op are drawn with
a fixed seed: an index off by one, a comparison that lets one more pass, a predicate dropped. Bugs
in what stands in for instructions must be noticed too. A mutant that does not compile, or that
EXPLAINED says is harmless, counts for nothing.

Needs what the tests need. A mutant takes from two seconds to two minutes, an op from ten minutes
to an hour. FILE keeps its records of ops that are not run; FOLDER keeps the builds for next time.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
KERNELS = ROOT / "csrc" / "cuda"

# Tests of an op that do not bear its name: csrc/tests/test_cuda_<test>.cpp and
# python_tests/test_cuda_shim_<test>*.py.
TESTS = {"conv2d": ["conv2d", "depthwise"], "gemm": ["lstm"]}


@dataclass(frozen=True)
class Rule:
    """A kind of bug: what is found and what takes its place."""

    name: str
    pattern: str
    replacement: str
    every: bool = False  # all places, not a draw


RULES = [
    Rule("barrier removed", r"__sync(threads|warp)\(\);", ";", every=True),
    Rule("wait weakened", r"cp_async_wait<([^>]+)>\(\)", r"cp_async_wait<(\1) + 1>()", every=True),
    Rule("fence removed", r"__threadfence\(\);", ";", every=True),
    Rule(
        "lane mask of another shuffle", r"(__shfl_xor_sync\([^;]*?), (\d+)\)", r"\1, 2 * \2 % 32)"
    ),
    Rule("comparison lets one more pass", r"(?<=[\w\])]) < (?=[\w(])", " <= "),
    Rule("index one too far", r"(?<=[\w\])]) \+ 1(?=[\])/; ,])", " + 2"),
    Rule("index one too low", r"(?<=[\w\])]) - 1(?=[\])/; ,])", ""),
    Rule(
        "predicate dropped",
        r"\bif \((?!constexpr)[^;{}]*\) (?=continue|return|break)",
        "if (false) ",
    ),
    Rule("condition half dropped", r" && [^&|;{}()?]+(?=[;)])", ""),
    Rule("factor dropped", r"(?<=[\w\])]) \* (?:k[A-Z]\w+|stride|2)(?=[ ;)\]])", ""),
    Rule("sum overwritten", r"(?<=\w|\]) \+= (?!threads|blockDim|step|k[A-Z])", " = "),
]

# What ThreadSanitizer is likely to see first.
ABOUT_ORDER = ("barrier removed", "fence removed")

PTX = "csrc/cuda/common/ptx.cuh"
EMULATOR = "csrc/tests/cuda_shim"

# Bugs in what stands in for an instruction: its name in kernels, the file, exact text, replacement.
EMULATED = [
    ("ldmatrix_x4(", PTX, "(r, shared_row, false, where)", "(r, shared_row, true, where)"),
    ("mma_m16n8k16", PTX, "mma_m16n8k16_bf16(d,", "mma_m16n8k16_half(d,"),
    (
        "cp_async_16",
        PTX,
        "(shared, global, valid_bytes, where)",
        "(shared, global, valid_bytes | 16, where)",
    ),
    ("to_tf32", PTX, "return cuda_shim::to_tf32(x);", "return __float_as_uint(x);"),
    ("mma_", f"{EMULATOR}/mma.cpp", "a[g + 8 * (i / 2)]", "a[g + 8 * (i % 2)]"),
    ("mma_", f"{EMULATOR}/mma.cpp", "[k + 4 * halves * i]", "[k + 4 * halves * (1 - i)]"),
    ("_trans(", f"{EMULATOR}/collectives.cpp", "warp, m, 2 * t, g)", "warp, m, 2 * t + 1, g)"),
]


# Bugs that change nothing, by their rule and line of code, and why.
EXPLAINED = {
    ("index one too far", "const Index end = padded / stride + 1;"): "a window that begins after "
    "the position has a negative tap there and is skipped",
    ("barrier removed", "__syncthreads();  // the caller may come again"): "the ticket that every "
    "caller passes in between has barriers of its own",
    ("wait weakened", "cp_async_wait<0>();"): "the group committed last, in the last turn of the "
    "loop, is always empty",
    (
        "condition half dropped",
        "if (call.c.tail != nullptr && row >= call.c.tail_begin)",
    ): "a later product of the same sequence stores the rows before again",
    (
        "index one too far",
        "if (step.tensors[i].group >= groups) groups = step.tensors[i].group + 1;",
    ): "the larger table is taken one group early, with the same results",
    (
        "index one too low",
        "p.tile.columns = 2 * p.tile_columns + p.kernel_width - 1;",
    ): "the tile gets one column more, which is loaded and never read",
    (
        "index one too far",
        "const int columns = ((left + tile.columns - 1) >> 1) - first_column + 1;",
    ): "a window beyond the tile has no pixel in it",
    (
        "comparison lets one more pass",
        "return rounded < kLeast ? kLeast : rounded > kMost ? kMost : rounded;",
    ): "both sides of the choice are equal there",
}


@dataclass(frozen=True)
class Mutant:
    op: str
    rule: str
    file: str  # from the repository's root
    line: int
    before: str
    after: str
    source: str  # the whole line
    start: int
    end: int

    def apply(self, text: str) -> str:
        return text[: self.start] + self.after + text[self.end :]


def code_places(text: str, pattern: str) -> Iterator[re.Match[str]]:
    """Matches outside comments, preprocessor lines and static assertions."""
    for match in re.finditer(pattern, text):
        begin = text.rfind("\n", 0, match.start()) + 1
        before = text[begin : match.start()]
        if "//" in before or before.lstrip().startswith("#") or "static_assert" in before:
            continue
        if "template" in before:
            continue
        yield match


def mutants_of(op: str, per_rule: int, rng: random.Random) -> list[Mutant]:
    found: dict[str, list[Mutant]] = {rule.name: [] for rule in RULES}
    for path in sorted(KERNELS.joinpath(op).glob("*.cu*")):
        text = path.read_text()
        for rule in RULES:
            for match in code_places(text, rule.pattern):
                after = match.expand(rule.replacement)
                line = text.count("\n", 0, match.start()) + 1
                source = text.splitlines()[line - 1].strip()
                name = str(path.relative_to(ROOT))
                found[rule.name].append(
                    Mutant(op, rule.name, name, line, match[0], after, source, *match.span())
                )
    chosen: list[Mutant] = []
    for rule in RULES:
        places = found[rule.name]
        if not rule.every and len(places) > per_rule:
            places = sorted(rng.sample(places, per_rule), key=lambda m: (m.file, m.start))
        chosen.extend(places)
    return chosen


def emulated_mutants(op: str) -> list[Mutant]:
    """Bugs in the instructions that the op is the first to use."""
    chosen = []
    for instruction, file, before, after in EMULATED:
        users = [
            path.parent.name
            for path in sorted(KERNELS.glob("*/*.cu*"))
            if path.parent.name != "common" and instruction in path.read_text()
        ]
        if not users or users[0] != op:
            continue
        text = (ROOT / file).read_text()
        start = text.index(before)
        line = text.count("\n", 0, start) + 1
        end = start + len(before)
        source = text.splitlines()[line - 1].strip()
        chosen.append(Mutant(op, "emulated branch", file, line, before, after, source, start, end))
    return chosen


def cpu_limit(seconds: int) -> Callable[[], None]:
    """In seconds of processor time, so that a busy machine changes nothing."""
    return lambda: resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))


class Copy:
    """A copy of the tree with builds of its own, in which one file at a time is changed."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self.root = folder / "tree"
        self.quick = quick
        self.limits: dict[str, int] = {}

    def sync(self, op: str) -> None:
        """Makes it the tree as it is, without the kernels that the op's tests do not need: they
        would be compiled too."""
        self.limits.clear()
        needed = {op, "common"}
        for test in TESTS.get(op, [op]):
            for entry in (test, "conv2d" if test == "depthwise" else test):
                if KERNELS.joinpath(entry).exists():
                    needed |= {entry, *self._uses(entry)}
        wanted = set()
        for name in ("csrc", "python_tests", "fastconv", "CMakeLists.txt", "pyproject.toml"):
            path = ROOT / name
            for file in path.rglob("*") if path.is_dir() else [path]:
                if file.is_file() and "__pycache__" not in file.parts:
                    wanted.add(file.relative_to(ROOT))
        dropped = {p.name for p in KERNELS.iterdir() if p.is_dir()} - needed
        shim = Path("csrc/tests/cuda_shim")
        for name in dropped:
            wanted = {f for f in wanted if Path("csrc/cuda", name) not in f.parents}
            wanted.discard(shim / f"{name}_entry.cpp")
        for file in wanted:
            copy = self.root / file
            if not copy.exists() or not filecmp.cmp(ROOT / file, copy, shallow=False):
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes((ROOT / file).read_bytes())
        for file in list(self.root.rglob("*")):
            relative = file.relative_to(self.root)
            if file.is_file() and relative.parts[0] != "build" and relative not in wanted:
                file.unlink()

    @staticmethod
    def _uses(op: str) -> set[str]:
        text = "".join(path.read_text() for path in KERNELS.joinpath(op).iterdir())
        return set(re.findall(r'"cuda/(\w+)/', text))

    def measure(self, op: str, stage: Callable[[str], tuple[str, str]]) -> None:
        """Runs tests without a bug, which must pass, and sets the limit of those with one."""
        stage(op)  # builds
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        outcome, proof = stage(op)
        if outcome != "passed":
            sys.exit(f"{op}: the tests fail without any bug planted: {outcome} {proof}")
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = ended.ru_utime - began.ru_utime + ended.ru_stime - began.ru_stime
        self.limits[stage.__name__] = 20 + 3 * int(used)

    def _run(self, *command: str, limit: int | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.root,
            capture_output=True,
            text=True,
            errors="replace",
            preexec_fn=None if limit is None else cpu_limit(limit),
        )

    def _programs(self, op: str, build: str, *options: str) -> list[Path] | None:
        """Builds the op's C++ tests."""
        tests = [f"test_cuda_{test}" for test in TESTS.get(op, [op])]
        configure = ["cmake", "-S", ".", "-B", build, "-G", "Ninja", "-DFASTCONV_TESTS=ON"]
        compile_ = ["cmake", "--build", build, "--target", *tests]
        for command in ([*configure, *options], compile_):
            if self._run(*command).returncode != 0:
                return None
        return [self.root / build / "csrc" / "tests" / "cuda_shim" / test for test in tests]

    def cpp_tests(self, op: str) -> tuple[str, str]:
        """What became of the tests: passed, failed, stuck or not built; and the proof. In the
        build of the Python tests, which share the objects."""
        return self._run_programs("cpp_tests", self._programs(op, "build/cuda_shim"))

    def race_tests(self, op: str) -> tuple[str, str]:
        """ThreadSanitizer sees what no value shows, a fence or barrier that is missing and two
        threads that write the same."""
        programs = self._programs(op, "build/thread", "-DFASTCONV_SANITIZE=thread")
        return self._run_programs("race_tests", programs)

    def _run_programs(self, stage: str, programs: list[Path] | None) -> tuple[str, str]:
        if programs is None:
            return "not built", ""
        for program in programs:
            done = self._run(str(program), limit=self.limits.get(stage, 3600))
            if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
                return "stuck", f"{program.name}: no end within {self.limits[stage]} s"
            if done.returncode != 0:
                race = "ThreadSanitizer: data race" in done.stderr
                return "failed", f"{program.name}: {'data race' if race else 'failed checks'}"
        return "passed", ""

    def python_tests(self, op: str) -> tuple[str, str]:
        files = [
            str(file.relative_to(self.root))
            for test in TESTS.get(op, [op])
            for file in sorted(self.root.glob(f"python_tests/test_cuda_shim_{test}*.py"))
        ]
        options = ["-q", "-x", "--no-header", "-p", "no:cacheprovider"]
        limit = self.limits.get("python_tests", 3600)
        done = self._run(sys.executable, "-m", "pytest", *options, *files, limit=limit)
        if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            return "stuck", f"no end within {limit} s of processor time"
        if "--build" in done.stdout and "failed:" in done.stdout:
            return "not built", ""
        if done.returncode == 0:
            return "passed", ""
        failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.MULTILINE)
        return "failed", failed[0][:200] if failed else f"exit code {done.returncode}"

    def with_mutant(self, mutant: Mutant) -> tuple[str, str]:
        path = self.root / mutant.file
        original = path.read_text()
        stages = [self.cpp_tests, self.python_tests, self.race_tests]
        if mutant.rule in ABOUT_ORDER:
            stages = [self.cpp_tests, self.race_tests, self.python_tests]
        if self.quick:
            stages = stages[:1]
        try:
            for stage in stages:
                if stage.__name__ not in self.limits:
                    path.write_text(original)
                    self.measure(mutant.op, stage)
                path.write_text(mutant.apply(original))
                outcome, proof = stage(mutant.op)
                if outcome != "passed":
                    return outcome, proof
            return ("open", "only the C++ tests have run") if self.quick else ("passed", "")
        finally:
            path.write_text(original)


def run(ops: list[str], per_rule: int, seed: int, out: Path | None, copy: Copy) -> int:
    records: list[dict] = []
    for op in ops:
        copy.sync(op)
        mutants = mutants_of(op, per_rule, random.Random(f"{seed} {op}")) + emulated_mutants(op)
        # By file: what the one before changed is compiled again. Last what all kernels include.
        for mutant in sorted(mutants, key=lambda m: (f"/{op}/" not in m.file, m.file, m.start)):
            began = time.monotonic()
            outcome, proof = copy.with_mutant(mutant)
            if outcome in ("passed", "open") and (mutant.rule, mutant.source) in EXPLAINED:
                proof = EXPLAINED[mutant.rule, mutant.source]
                outcome = "harmless"
            records.append({**asdict(mutant), "outcome": outcome, "proof": proof})
            place = f"{mutant.file}:{mutant.line}"
            took = f"({time.monotonic() - began:.0f} s)"
            print(
                f"{outcome:9} {mutant.rule}: {place}: {mutant.before!r} {proof} {took}", flush=True
            )
            if out is not None:
                write_report(records, ops, per_rule, seed, out)
    planted, survivors = bugs_and_survivors(records)
    print(f"{len(planted)} bugs planted, {len(planted) - len(survivors)} noticed")
    return 1 if survivors else 0


def bugs_and_survivors(records: list[dict]) -> tuple[list[dict], list[dict]]:
    planted = [r for r in records if r["outcome"] not in ("not built", "harmless")]
    return planted, [r for r in planted if r["outcome"] in ("passed", "open")]


def write_report(records: list[dict], ops: list[str], per_rule: int, seed: int, out: Path) -> None:
    """Puts the records in the place of what the file says of these ops."""
    before = json.loads(out.read_text())["mutants"] if out.exists() else []
    records = [
        *(r for r in before if r["op"] not in ops),
        *({k: v for k, v in r.items() if k not in ("start", "end")} for r in records),
    ]
    planted, survivors = bugs_and_survivors(records)
    summary = {
        "per_rule": per_rule,
        "seed": seed,
        "planted": len(planted),
        "noticed": len(planted) - len(survivors),
        "harmless": sum(r["outcome"] == "harmless" for r in records),
        "mutants": records,
    }
    out.write_text(json.dumps(summary, indent=1) + "\n")


def main() -> int:
    every = sorted(p.name for p in KERNELS.iterdir() if p.is_dir() and p.name != "common")
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--op", action="append", choices=every, help="all by default")
    parser.add_argument("--per-rule", type=int, default=2, help="places per op and drawn rule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file, rewritten after every mutant")
    parser.add_argument("--work", type=Path, help="folder that keeps the builds")
    parser.add_argument(
        "--quick", action="store_true", help="C++ tests only, what they miss is open"
    )
    arguments = parser.parse_args()
    ops = arguments.op or every
    settings = (ops, arguments.per_rule, arguments.seed, arguments.out)
    if arguments.work is not None:
        return run(*settings, Copy(arguments.work.resolve(), arguments.quick))
    with tempfile.TemporaryDirectory() as folder:
        return run(*settings, Copy(Path(folder), arguments.quick))


if __name__ == "__main__":
    sys.exit(main())
