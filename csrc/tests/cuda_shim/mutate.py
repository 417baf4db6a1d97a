# SPDX-License-Identifier: MIT
"""Mutation gate: plants one bug at a time in a copy of the CUDA kernels, runs the emulator's tests
of the op, and reports the bugs that no test noticed.

    python csrc/tests/cuda_shim/mutate.py [--op OP ...] [--per-rule N] [--seed S] [--out FILE]

A bug that the Python tests do not notice is shown to the op's C++ test under ThreadSanitizer.
Every barrier is removed and every wait weakened; of the other rules N places per op are drawn with
a fixed seed: an index off by one, a comparison that lets one more pass, a predicate dropped. Bugs
in what stands in for instructions must be noticed too. Needs what the tests need; takes hours for
everything, so run it per op. A mutant that does not compile, or that EXPLAINED says is harmless,
counts for nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
KERNELS = ROOT / "csrc" / "cuda"


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

PTX = "csrc/cuda/common/ptx.cuh"
EMULATOR = "csrc/tests/cuda_shim"

# Bugs in what stands in for an instruction: its name in kernels, the file, exact text, replacement.
EMULATED = [
    ("ldmatrix_x4(", PTX, "(r, shared_row, false, where)", "(r, shared_row, true, where)"),
    ("mma_m16n8k16", PTX, "mma_m16n8k16_bf16(d,", "mma_m16n8k16_half(d,"),
    ("cp_async_16", PTX, "(shared, global, valid_bytes, where)", "(shared, global, 16, where)"),
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
    (
        "index one too far",
        "if (step.tensors[i].group >= groups) groups = step.tensors[i].group + 1;",
    ): "the larger table is taken one group early, with the same results",
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


def emulated_mutants(op: str, done: set[str]) -> list[Mutant]:
    """Those whose instruction the op's kernels use and that are not in `done` yet."""
    source = "".join(path.read_text() for path in KERNELS.joinpath(op).glob("*.cu*"))
    chosen = []
    for instruction, file, before, after in EMULATED:
        if instruction not in source or before in done:
            continue
        done.add(before)
        text = (ROOT / file).read_text()
        start = text.index(before)
        line = text.count("\n", 0, start) + 1
        end = start + len(before)
        source = text.splitlines()[line - 1].strip()
        chosen.append(Mutant(op, "emulated branch", file, line, before, after, source, start, end))
    return chosen


class Copy:
    """A copy of the tree with a build of its own, in which one file at a time is changed."""

    def __init__(self, folder: Path, ops: list[str]) -> None:
        self.root = folder / "tree"
        wanted = ("csrc", "python_tests", "CMakeLists.txt", "pyproject.toml", "fastconv")
        self.root.mkdir()
        for name in wanted:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.root / name)
            else:
                shutil.copy(source, self.root / name)
        self._drop_ops(ops)

    def _drop_ops(self, kept: list[str]) -> None:
        """Removes kernels that the tests of these ops do not need: they would be compiled too."""
        needed = set(kept) | {"common"}
        for op in kept:
            for path in KERNELS.joinpath(op).iterdir():
                needed |= set(re.findall(r'"cuda/(\w+)/', path.read_text()))
        for path in (self.root / "csrc" / "cuda").iterdir():
            if path.is_dir() and path.name not in needed:
                shutil.rmtree(path)
                entry = self.root / "csrc" / "tests" / "cuda_shim" / f"{path.name}_entry.cpp"
                entry.unlink(missing_ok=True)

    def test(self, op: str, limit: int) -> tuple[str, str]:
        """What became of the tests of the op: passed, failed, stuck or not built; and the proof.
        `limit` is in seconds of processor time, so that a busy machine changes nothing."""
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "--no-header",
            "-p",
            "no:cacheprovider",
        ]
        command += [f"python_tests/test_cuda_shim_{op}.py"]
        done = subprocess.run(
            command,
            cwd=self.root,
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5)),
        )
        if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            return "stuck", f"no end within {limit} s of processor time"
        if "--build" in done.stdout and "failed:" in done.stdout:
            return "not built", ""
        failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.MULTILINE)
        if done.returncode == 0:
            return "passed", ""
        return "failed", failed[0][:200] if failed else f"exit code {done.returncode}"

    def race_test(self, op: str) -> tuple[str, str]:
        """The same of the op's C++ test under ThreadSanitizer: it sees what no value shows, a fence
        or barrier that is missing and two threads that write the same."""
        if not (ROOT / f"csrc/tests/test_cuda_{op}.cpp").exists():
            return "passed", ""
        build = self.root / "build" / "thread"
        configure = ["cmake", "-S", ".", "-B", str(build), "-G", "Ninja", "-DFASTCONV_TESTS=ON"]
        configure.append("-DFASTCONV_SANITIZE=thread")
        compile_ = ["cmake", "--build", str(build), "--target", f"test_cuda_{op}"]
        for command in (configure, compile_):
            if subprocess.run(command, cwd=self.root, capture_output=True).returncode != 0:
                return "not built", ""
        program = build / "csrc" / "tests" / "cuda_shim" / f"test_cuda_{op}"
        done = subprocess.run([str(program)], capture_output=True, text=True)
        if done.returncode == 0:
            return "passed", ""
        race = "ThreadSanitizer: data race" in done.stderr
        return "failed", f"test_cuda_{op}: {'data race' if race else 'failed checks'}"

    def with_mutant(self, mutant: Mutant, limit: int) -> tuple[str, str]:
        path = self.root / mutant.file
        original = path.read_text()
        path.write_text(mutant.apply(original))
        try:
            outcome, proof = self.test(mutant.op, limit)
            return self.race_test(mutant.op) if outcome == "passed" else (outcome, proof)
        finally:
            path.write_text(original)


def run(ops: list[str], per_rule: int, seed: int, out: Path | None) -> int:
    records = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder), ops)
        emulated: set[str] = set()
        for op in ops:
            began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            outcome, proof = copy.test(op, 3600)
            if outcome != "passed":
                print(f"{op}: the tests fail without any bug planted: {outcome} {proof}")
                return 2
            used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began
            limit = 60 + 3 * int(used)
            mutants = mutants_of(op, per_rule, random.Random(f"{seed} {op}"))
            for mutant in mutants + emulated_mutants(op, emulated):
                outcome, proof = copy.with_mutant(mutant, limit)
                if outcome == "passed":
                    proof = EXPLAINED.get((mutant.rule, mutant.source), "")
                    outcome = "harmless" if proof else outcome
                records.append({**asdict(mutant), "outcome": outcome, "proof": proof})
                place = f"{mutant.file}:{mutant.line}"
                print(f"{outcome:9} {mutant.rule}: {place}: {mutant.before!r} {proof}", flush=True)
                if out is not None:
                    write_report(records, per_rule, seed, out)
    planted, survivors = bugs_and_survivors(records)
    print(f"{len(planted)} bugs planted, {len(planted) - len(survivors)} noticed")
    return 1 if survivors else 0


def bugs_and_survivors(records: list[dict]) -> tuple[list[dict], list[dict]]:
    planted = [r for r in records if r["outcome"] not in ("not built", "harmless")]
    return planted, [r for r in planted if r["outcome"] == "passed"]


def write_report(records: list[dict], per_rule: int, seed: int, out: Path) -> None:
    planted, survivors = bugs_and_survivors(records)
    summary = {
        "per_rule": per_rule,
        "seed": seed,
        "planted": len(planted),
        "noticed": len(planted) - len(survivors),
        "harmless": sum(r["outcome"] == "harmless" for r in records),
        "mutants": [{k: v for k, v in r.items() if k not in ("start", "end")} for r in records],
    }
    out.write_text(json.dumps(summary, indent=1) + "\n")


def main() -> int:
    every = sorted(p.name for p in KERNELS.iterdir() if p.is_dir() and p.name != "common")
    tested = [op for op in every if (ROOT / f"python_tests/test_cuda_shim_{op}.py").exists()]
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--op", action="append", choices=tested, help="all by default")
    parser.add_argument("--per-rule", type=int, default=2, help="places per op and drawn rule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file, rewritten after every mutant")
    arguments = parser.parse_args()
    return run(arguments.op or tested, arguments.per_rule, arguments.seed, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
