#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# For the day a GPU is at hand: everything that the emulator cannot tell, in one command.
#
#   benchmarks/on_gpu.sh [--quick]
#
# 1. the tests on the device (parity, graph capture and replay, 1,000-run determinism)
# 2. the same under compute-sanitizer's four tools, on small cases
# 3. timings against torch eager, torch in a CUDA graph, and cuDNN with `benchmark` on and off
#
# Run from a checkout in an environment where fastconv is installed with its CUDA kernels. Writes
# benchmarks/results/gpu-<name of the GPU>.json and the log beside it; any failure stops it.
# --quick leaves out compute-sanitizer and times the small shapes only.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tests=$here/../python_tests
quick=
if [[ ${1:-} == --quick ]]; then
  quick=--quick
elif [[ $# -gt 0 ]]; then
  echo "usage: benchmarks/on_gpu.sh [--quick]" >&2
  exit 2
fi
# Away from the checkout, whose folder fastconv holds no compiled extension.
cd "$(mktemp -d)"
# cuBLAS gives the same bits on every stream only with workspaces of its own.
export CUBLAS_WORKSPACE_CONFIG=:4096:8

python - <<'PYTHON' || exit 1
import sys

import torch

import fastconv

if fastconv.runtime.info()["cuda"] is None:
    sys.exit("on_gpu.sh: expected a build of fastconv with CUDA kernels, got a CPU-only one")
if not torch.cuda.is_available():
    sys.exit("on_gpu.sh: expected a GPU that torch can use, found none")
print(torch.cuda.get_device_name(), fastconv.runtime.info())
PYTHON

name=$(python -c 'import re, torch; print(re.sub(r"\W+", "-", torch.cuda.get_device_name().lower()))')
log=$here/results/gpu-$name.log
mkdir -p "$here/results"
exec > >(tee "$log") 2>&1

step() { printf '\n=== %s (after %d s) ===\n' "$1" "$SECONDS"; }

step "tests on the device"
python -m pytest "$tests/test_cuda_device.py" --rootdir "$here/.." -p no:cacheprovider -rs
# Skipped tests would be no tests. (The project's own -q would leave out the line that counts.)
collected=$(python -m pytest "$tests/test_cuda_device.py" --rootdir "$here/.." -p no:cacheprovider \
  -o addopts= --collect-only -q | tail -n 1)
if [[ ! $collected =~ ^[0-9]+\ tests\ collected ]]; then
  echo "on_gpu.sh: expected tests of test_cuda_device.py, pytest says: $collected" >&2
  exit 1
fi

if [[ -z $quick ]]; then
  if ! command -v compute-sanitizer >/dev/null; then
    echo "on_gpu.sh: compute-sanitizer not found; it is part of the CUDA toolkit (or run with --quick)" >&2
    exit 1
  fi
  sanitized() {
    # Torch's caching allocator would hide writes beside a tensor.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer "$@" \
      python -m pytest "$tests/test_cuda_device.py" --rootdir "$here/.." -p no:cacheprovider \
      -o timeout=0 -k "not thousand and not graph and not compiled and not scaler"
  }
  for tool in memcheck racecheck synccheck; do
    step "compute-sanitizer: $tool"
    sanitized --tool "$tool" --error-exitcode 1 --kernel-name kernel_substring=fastconv
  done
  # What torch's kernels write counts as written only if they are watched too; what they read does
  # not concern us.
  step "compute-sanitizer: initcheck"
  reports=$PWD/initcheck.txt
  sanitized --tool initcheck --error-exitcode 0 --log-file "$reports"
  if grep -A 1 Uninitialized "$reports" | grep fastconv; then
    echo "on_gpu.sh: initcheck: kernels of fastconv read what nobody wrote, see $reports" >&2
    exit 1
  fi
fi

step "timings"
python "$here/bench_gpu.py" $quick --output "$here/results/gpu-$name.json"
step "done: $here/results/gpu-$name.json"
