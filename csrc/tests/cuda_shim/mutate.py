# SPDX-License-Identifier: MIT
"""Mutation gate: plants one bug at a time in a copy of the CUDA kernels, runs the emulator's tests
of the op, and reports the bugs that no test noticed.

    python csrc/tests/cuda_shim/mutate.py [--op OP ...] [--per-rule N] [--seed S] [--out FILE]
        [--work FOLDER] [--quick] [--resume]

Cheapest first, and the first that fails ends it: the op's C++ tests, its Python tests, its C++
tests under ThreadSanitizer (before the Python tests where the bug is about order).
Every barrier is removed and every wait weakened; of the other rules N places per op are drawn with
a fixed seed: an index off by one, a comparison that lets one more pass, a predicate dropped. The op
"common" is what the kernels share, and the emulator: there an operand of each instruction is
swapped, and each check dropped. A mutant that does not compile, or that EXPLAINED says is harmless,
counts for nothing.

Needs what the tests need. A mutant takes from two seconds to two minutes, an op from ten minutes
to an hour. FILE keeps its records of ops that are not run, and with --resume those of bugs whose
line of code has not changed since; FOLDER keeps the builds for next time.
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
COMMON = "common"  # csrc/cuda/common and the emulator's side of it
TESTS = {
    "conv2d": ["conv2d", "depthwise"],
    "gemm": ["lstm"],
    COMMON: ["common", "instructions", "warp", "shim"],
}


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
DEVICE = f"{EMULATOR}/device.h"
MEETING = f"{EMULATOR}/collectives.cpp"
MMA = f"{EMULATOR}/mma.cpp"
GUARDS = f"{EMULATOR}/guarded_memory.cpp"

# Bugs in what stands in for an instruction, and in what the emulator checks: the file, text that it
# has once, and replacement.
EMULATED = {
    "operand of an emulated instruction": [
        (PTX, "(r, shared_row, false, where)", "(r, shared_row, true, where)"),
        (PTX, "(r, shared_row, true, where)", "(r, shared_row, false, where)"),
        (PTX, "mma_m16n8k16_bf16(d,", "mma_m16n8k16_half(d,"),
        (PTX, "mma_m16n8k16_half(d,", "mma_m16n8k16_bf16(d,"),
        (PTX, "(shared, global, valid_bytes, where)", "(shared, global, valid_bytes | 16, where)"),
        (PTX, "cp_async_wait(Pending, where)", "cp_async_wait(Pending + 1, where)"),
        (PTX, "cuda_shim::cp_async_commit(where);", "static_cast<void>(where);"),
        (PTX, "return cuda_shim::to_tf32(x);", "return __float_as_uint(x);"),
        (DEVICE, "words[i] = a[i]", "words[i] = a[i ^ 1]"),
        (DEVICE, "words[4 + i] = b[i]", "words[4 + i] = b[1 - i]"),
        (DEVICE, "(uint32_t, d[i])", "(uint32_t, d[i ^ 2])"),
        (DEVICE, "i < copy.valid_bytes ? from[i] : 0", "i < copy.valid_bytes ? from[i] : 0xff"),
        (DEVICE, "(row)[i]", "(row)[i ^ 1]"),
        (DEVICE, "+ 0x1000u", "+ 0x0fffu"),
        (DEVICE, "lane ^ bits", "lane | bits"),
        (DEVICE, "inside ? lane + delta", "inside ? lane + 1"),
        (DEVICE, "inside ? lane - delta", "inside ? lane - 1"),
        (DEVICE, "segment + (source & (width - 1))", "segment + (source & width)"),
        (DEVICE, "old >= limit", "old > limit"),
        (DEVICE, "predicate != 0", "predicate == 1"),
        (
            DEVICE,
            "__ballot_sync(mask, predicate, where) == mask",
            "__any_sync(mask, predicate, where)",
        ),
        (MMA, "a[g + 8 * (i / 2)]", "a[g + 8 * (i % 2)]"),
        (MMA, "b[2 * t + i % 2]", "b[2 * t + i / 2]"),
        (MMA, "a[g + 8 * (i % 2)]", "a[g + 8 * (i / 2)]"),
        (MMA, "[k + 4 * halves * (i / 2)]", "[k + 4 * halves * (i % 2)]"),
        (MMA, "[k + 4 * halves * i]", "[k + 4 * halves * (1 - i)]"),
        (MMA, "halves * t + half", "halves * half + t"),
        (MMA, "bits & ~0x1fffu", "bits"),
        (MMA, "a, b, depth / 2, 24)", "a, b, depth / 2, 25)"),
        (MMA, "a + depth / 2, b + depth / 2,", "a + depth / 2, b,"),
        (MMA, "a, b, depth, 25)", "a, b, depth, 24)"),
        (MMA, "std::trunc(", "std::nearbyint("),
        (MMA, "std::nextafter(nearest, 0.0f)", "nearest"),
        (MEETING, "(warp, m, 2 * t, g)", "(warp, m, 2 * t + 1, g)"),
        (MEETING, "(warp, m, g, 2 * t)", "(warp, m, t, 2 * g)"),
        (MEETING, "warp[8 * matrix + row]", "warp[4 * row + matrix]"),
        (MEETING, "(16 * (column % 2))", "(16 - 16 * (column % 2))"),
        (MEETING, ">= queue.group - pending", "> queue.group - pending"),
        (MEETING, "warp[lane].in[0] << lane", "warp[lane].in[0] << (31 - lane)"),
        (MEETING, "= warp[source].in[i]", "= warp[source ^ 1].in[i]"),
    ],
    "check of the emulator dropped": [
        (MEETING, "if (!same_line(other.where, where))", "if (false)"),
        (MEETING, "if (block.done > 0)", "if (false)"),
        (MEETING, "if (other.mask != caller.mask ||", "if ("),
        (MEETING, "!same_line(other.where, caller.where)", "false"),
        (MEETING, "if (other.state == State::kDone)", "if (false)"),
        (MEETING, "if (number >= caller.block->thread_count)", "if (number > kMaxThreads)"),
        (MEETING, "if ((mask >> thread.lane() & 1) == 0)", "if (false)"),
        (MEETING, "|| (mask >> source_lane & 1) == 0", ""),
        (MEETING, "% bytes != 0)", "% bytes > bytes)"),
        (MEETING, "at < begin || at + bytes >", "at < begin || at >"),
        (MEETING, "at < begin || ", ""),
        (MEETING, "copy.valid_bytes > 16", "copy.valid_bytes > 17"),
        (MEETING, "reinterpret_cast<uintptr_t>(copy.shared) % 16 != 0 ||", ""),
        (MEETING, "||\n      reinterpret_cast<uintptr_t>(copy.global) % 16 != 0", ""),
        (f"{EMULATOR}/engine.cpp", "if (thread.copies.count != 0)", "if (false)"),
        (f"{EMULATOR}/engine.cpp", "if (!progress) {", "if (!progress && block.done == 0) {"),
        (
            f"{EMULATOR}/engine.cpp",
            "if (intact || launch.failed) return;",
            "if (intact || true) return;",
        ),
        (f"{EMULATOR}/engine.cpp", "reversed ? blocks - 1 - started : started", "started"),
        (
            f"{EMULATOR}/engine.cpp",
            "descending ? block.thread_count - 1 - t : t",
            "descending ? t : t",
        ),
        (f"{EMULATOR}/engine.cpp", "int slots = reversed ? kMaxLiveBlocks : 1", "int slots = 1"),
        (DEVICE, "static_cast<unsigned char*>(shared)[i] = 0xff", "break"),
        (DEVICE, "if (!copies_run_at_issue()) run_copy(copy)", "run_copy(copy)"),
        (GUARDS, "kPoison = 0xff", "kPoison = 0"),
        (GUARDS, "same && byte == kGap", "same || byte == kGap"),
        (GUARDS, "flush == Flush::kStart ? 0 :", "flush == Flush::kStart ? 16 :"),
        (GUARDS, "mprotect(pages, page_bytes,", "mprotect(pages, page_bytes + page,"),
        (f"{EMULATOR}/runtime_api.cpp", "launches_until_failure-- == 0", "false"),
    ],
}


# Bugs that change nothing, by their rule and line of code, and why.
EXPLAINED = {
    (
        "index one too far",
        "multiplier_ = static_cast<uint32_t>(numerator / divisor_ + 1);",
    ): "n (2 d) <= 2^(32 + l) for every n < 2^31: the larger multiplier divides exactly, too",
    (
        "index one too far",
        "multiplier_ = static_cast<uint64_t>(numerator / divisor_ + 1);",
    ): "n (2 d) <= 2^(64 + l) for every n < 2^63: the larger multiplier divides exactly, too",
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


def places_of(op: str) -> list[Mutant]:
    """Every bug that the rules can plant."""
    found = []
    for path in sorted(KERNELS.joinpath(op).glob("*" if op == COMMON else "*.cu*")):
        if path == ROOT / PTX:
            continue  # asm; what is emulated of it is in EMULATED
        text = path.read_text()
        for rule in RULES:
            for match in code_places(text, rule.pattern):
                after = match.expand(rule.replacement)
                line = text.count("\n", 0, match.start()) + 1
                source = text.splitlines()[line - 1].strip()
                name = str(path.relative_to(ROOT))
                found.append(
                    Mutant(op, rule.name, name, line, match[0], after, source, *match.span())
                )
    return found


def drawn_of(places: list[Mutant], per_rule: int, rng: random.Random) -> list[Mutant]:
    chosen: list[Mutant] = []
    for rule in RULES:
        of_rule = [place for place in places if place.rule == rule.name]
        if not rule.every and len(of_rule) > per_rule:
            of_rule = sorted(rng.sample(of_rule, per_rule), key=lambda m: (m.file, m.start))
        chosen.extend(of_rule)
    return chosen


def emulated_mutants(op: str) -> list[Mutant]:
    """Bugs in the emulator, which all ops share."""
    chosen = []
    for rule, places in EMULATED.items() if op == COMMON else ():
        for file, before, after in places:
            text = (ROOT / file).read_text()
            if text.count(before) != 1:
                sys.exit(f"EMULATED: expected {before!r} once in {file}, got {text.count(before)}")
            start = text.index(before)
            line = text.count("\n", 0, start) + 1
            end = start + len(before)
            source = text.splitlines()[line - 1].strip()
            chosen.append(Mutant(op, rule, file, line, before, after, source, start, end))
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
        self.changed = ""
        self.error = ""

    def sync(self, op: str) -> None:
        """Makes it the tree as it is, without the kernels that the op's tests do not need: they
        would be compiled too."""
        self.limits.clear()
        needed = {op, COMMON}
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
        if stage == self.python_tests:
            self._run("cmake", "--build", "build/cuda_shim", "--target", "fastconv_cuda_shim")
        else:
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

    def _tests(self, op: str) -> list[str]:
        """The op's tests, those first that bear the name of the changed file."""
        tests = TESTS.get(op, [op])
        return sorted(tests, key=lambda test: f"_{test}" not in self.changed)

    def _programs(self, op: str, build: str, *options: str) -> list[Path] | None:
        """Builds the op's C++ tests."""
        tests = [f"test_cuda_{test}" for test in self._tests(op)]
        configure = ["cmake", "-S", ".", "-B", build, "-G", "Ninja", "-DFASTCONV_TESTS=ON"]
        compile_ = ["cmake", "--build", build, "--target", *tests]
        for command in ([*configure, *options], compile_):
            done = self._run(*command)
            if done.returncode != 0:
                # Anything but the bug is no reason: a full disk, no more processes.
                error = re.search(r" error: (.*)", done.stdout)
                if error is None:
                    sys.exit(f"{op}: {' '.join(command)} failed:\n{done.stdout}{done.stderr}")
                self.error = error[1][:100]
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
            return "not built", self.error
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
            for test in self._tests(op)
            for file in sorted(self.root.glob(f"python_tests/test_cuda_shim_{test}*.py"))
        ]
        if not files:
            return "passed", ""
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
        self.changed = mutant.file
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


@dataclass(frozen=True)
class Draw:
    """Which bugs, and where their records go."""

    ops: list[str]
    per_rule: int
    seed: int
    out: Path | None
    resume: bool


def run(draw: Draw, copy: Copy) -> int:
    known = records_of(draw.out)
    records = [r for r in known if r["op"] not in draw.ops]
    for op in draw.ops:
        copy.sync(op)
        rng = random.Random(f"{draw.seed} {op}")
        places, emulated = places_of(op), emulated_mutants(op)
        mutants = drawn_of(places, draw.per_rule, rng) + emulated
        kept = still_true(known, places + emulated) if draw.resume else {}
        records.extend(kept.values())
        # By file: what the one before changed is compiled again. Last what all kernels include.
        mutants = [mutant for mutant in mutants if mutant not in kept]
        for mutant in sorted(mutants, key=lambda m: (f"/{op}/" not in m.file, m.file, m.start)):
            began = time.monotonic()
            outcome, proof = copy.with_mutant(mutant)
            if outcome in ("passed", "open") and (mutant.rule, mutant.source) in EXPLAINED:
                proof = EXPLAINED[mutant.rule, mutant.source]
                outcome = "harmless"
            record = {**asdict(mutant), "outcome": outcome, "proof": proof}
            records.append({k: v for k, v in record.items() if k not in ("start", "end")})
            place = f"{mutant.file}:{mutant.line}"
            took = f"({time.monotonic() - began:.0f} s)"
            print(
                f"{outcome:9} {mutant.rule}: {place}: {mutant.before!r} {proof} {took}", flush=True
            )
            if draw.out is not None:
                write_report(records, draw)
    if draw.out is not None:
        write_report(records, draw)
    planted, survivors = bugs_and_survivors([r for r in records if r["op"] in draw.ops])
    print(f"{len(planted)} bugs planted, {len(planted) - len(survivors)} noticed")
    return 1 if survivors else 0


def records_of(out: Path | None) -> list[dict]:
    return json.loads(out.read_text())["mutants"] if out is not None and out.exists() else []


def still_true(known: list[dict], places: list[Mutant]) -> dict[Mutant, dict]:
    """The records of bugs that ran and did not survive, by the place where each would be planted
    today: the same line of the same file, wherever in it. Where all places of a rule are wanted,
    equal lines count as the same only if there are as many as then."""
    kept = {}
    for key, here in by_text(places, lambda place: asdict(place)).items():
        then = [r for r in by_text(known, dict).get(key, ()) if r["outcome"] != "passed"]
        then = sorted((r for r in then if r["outcome"] != "open"), key=lambda r: r["line"])
        every = any(rule.every for rule in RULES if rule.name == here[0].rule)
        if len(then) > len(here) or (every and len(then) != len(here)):
            continue
        for place, record in zip(here, then, strict=False):
            kept[place] = {**record, "line": place.line}
    return kept


def by_text(items: list, fields: Callable[[object], dict]) -> dict[tuple, list]:
    groups: dict[tuple, list] = {}
    for item in items:
        of = fields(item)
        key = tuple(of[name] for name in ("op", "rule", "file", "source", "before", "after"))
        groups.setdefault(key, []).append(item)
    return groups


def bugs_and_survivors(records: list[dict]) -> tuple[list[dict], list[dict]]:
    planted = [r for r in records if r["outcome"] not in ("not built", "harmless")]
    return planted, [r for r in planted if r["outcome"] in ("passed", "open")]


def write_report(records: list[dict], draw: Draw) -> None:
    planted, survivors = bugs_and_survivors(records)
    summary = {
        "seed": draw.seed,
        "planted": len(planted),
        "noticed": len(planted) - len(survivors),
        "harmless": sum(r["outcome"] == "harmless" for r in records),
        "mutants": records,
    }
    draw.out.write_text(json.dumps(summary, indent=1) + "\n")


def main() -> int:
    every = sorted(p.name for p in KERNELS.iterdir() if p.is_dir())
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--op", action="append", choices=every, help="all by default")
    parser.add_argument("--per-rule", type=int, default=2, help="places per op and drawn rule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file, rewritten after every mutant")
    parser.add_argument("--work", type=Path, help="folder that keeps the builds")
    parser.add_argument(
        "--quick", action="store_true", help="C++ tests only, what they miss is open"
    )
    parser.add_argument(
        "--resume", action="store_true", help="only what FILE does not have or says survived"
    )
    arguments = parser.parse_args()
    ops = arguments.op or every
    draw = Draw(ops, arguments.per_rule, arguments.seed, arguments.out, arguments.resume)
    if arguments.work is not None:
        return run(draw, Copy(arguments.work.resolve(), arguments.quick))
    with tempfile.TemporaryDirectory() as folder:
        return run(draw, Copy(Path(folder), arguments.quick))


if __name__ == "__main__":
    sys.exit(main())
