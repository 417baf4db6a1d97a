# SPDX-License-Identifier: MIT
# What csrc/cmake/_build.py.in becomes.
TORCH_VERSION: str
COMPILER: str
CUDA: str | None
CUDA_ARCHITECTURES: list[str]
