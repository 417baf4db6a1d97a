# SPDX-License-Identifier: MIT
"""Adam and AdamW."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fastconv.optim.one_call import OneCallStep


class Adam(OneCallStep):
    """Adam, a drop-in for :class:`torch.optim.Adam` whose step is one C++ call.

    ``m += (1 - b1) (g - m)``, ``v = b2 v + (1 - b2) g^2``,
    ``p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)``, with ``g`` the gradient plus
    ``weight_decay * p``, or, with ``decoupled_weight_decay``, ``p`` multiplied by
    ``1 - lr * weight_decay`` first.

    Parameters of any shape and layout without gaps on the CPU, and on a GPU where fastconv was
    built with its CUDA kernels, float32, float64, bfloat16 and complex, mixed at will, run on
    fastconv's kernels; all others (float16, tensor subclasses, parameters with gaps,
    ``differentiable=True``) are stepped by torch's own code. The averages have the parameter's
    dtype, but float32 for bfloat16 parameters, where torch's bfloat16 ones stop moving. On the CPU
    subnormal numbers count as zero within a step. On a GPU ``step`` is a float32 tensor there, as
    with torch's ``fused=True``, and a step can be captured in a CUDA graph.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize, differentiable,
        decoupled_weight_decay: as in torch.
        foreach, fused, capturable: accepted; the kernels need no such choice.
        max_grad_norm: clip the norm of all gradients together to this within the step, with the
            result of :func:`torch.nn.utils.clip_grad_norm_` before it. The gradients themselves
            stay as they are. An attribute, too, which may change between steps.
        skip_nonfinite: leave out a step whose gradients hold an infinity or NaN: parameters and
            states stay, ``skipped_steps`` counts. Also an attribute.

    Attributes:
        grad_norm: norm of all gradients of the last step, before clipping, as a float; None unless
            ``max_grad_norm`` or ``skip_nonfinite`` asked for it.
        skipped_steps: number of steps left out by ``skip_nonfinite``.

    ``state_dict`` is torch's: checkpoints move both ways, in the middle of training. ``grad_scale``
    and ``found_inf``, which ``torch.amp.GradScaler`` sets, are honoured.

    Raises:
        ValueError, RuntimeError, TypeError: as torch, e.g. for sparse gradients or
            "Invalid learning rate: -1.0"; and "Invalid max_grad_norm value: ...".

    Method: Kingma, Ba, Adam: A Method for Stochastic Optimization
    (https://arxiv.org/abs/1412.6980); amsgrad: https://openreview.net/forum?id=ryQu7f-RZ.

    Example::

        optimizer = fastconv.optim.Adam(model.parameters(), lr=1e-3, max_grad_norm=1.0)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )
        self._set_up(max_grad_norm, skip_nonfinite)


class AdamW(OneCallStep, torch.optim.AdamW):
    """AdamW, a drop-in for :class:`torch.optim.AdamW` whose step is one C++ call.

    :class:`Adam` with decoupled weight decay, of 0.01 unless another is given; everything said
    there holds.

    Method: Loshchilov, Hutter, Decoupled Weight Decay Regularization
    (https://arxiv.org/abs/1711.05101).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        self._set_up(max_grad_norm, skip_nonfinite)
