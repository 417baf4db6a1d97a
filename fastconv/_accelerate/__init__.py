# SPDX-License-Identifier: MIT
"""Parts of ``fastconv.accelerate``: what stands in for a layer's forward, chains of layers inside
``nn.Sequential``, exchange of the optimizer, reports."""
