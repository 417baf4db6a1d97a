# SPDX-License-Identifier: MIT
"""What Adam and AdamW share: a step that is one C++ call, and torch's own step where it must be."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam as torch_adam
from torch.optim.optimizer import (
    Optimizer,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

from fastconv.ops.adam import AdamStepper

_STATE_KEYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class OneCallStep(torch.optim.Adam):
    """torch's Adam, or before torch's AdamW as a mix-in, with another ``step``.

    A step without closure or hooks over parameters that the kernels know goes straight to C++.
    Everything else takes ``_hooked_step``, which does what torch's wrapper of ``step`` does, and
    parameters that the kernels do not know are stepped by ``torch.optim.adam.adam``.
    """

    max_grad_norm: float | None
    skip_nonfinite: bool
    _stepper: AdamStepper

    @property
    def grad_norm(self) -> float | None:
        """Norm of all gradients of the last step, before clipping; None if it was not computed."""
        return self._stepper.grad_norm

    @property
    def skipped_steps(self) -> int:
        """How many steps ``skip_nonfinite`` left out."""
        return self._stepper.skipped_steps

    def _set_up(self, max_grad_norm: float | None, skip_nonfinite: bool) -> None:
        if max_grad_norm is not None and not max_grad_norm >= 0.0:
            raise ValueError(f"Invalid max_grad_norm value: {max_grad_norm}")
        if self.defaults["differentiable"] and (max_grad_norm is not None or skip_nonfinite):
            raise ValueError(
                "max_grad_norm and skip_nonfinite are not supported with differentiable=True"
            )
        self.max_grad_norm = None if max_grad_norm is None else float(max_grad_norm)
        self.skip_nonfinite = skip_nonfinite
        self._make_stepper()

    def _make_stepper(self) -> None:
        self._stepper = AdamStepper(
            f"Optimizer.step#{type(self).__name__}.step",
            f"Optimizer.zero_grad#{type(self).__name__}.zero_grad",
            _global_optimizer_pre_hooks,
            _global_optimizer_post_hooks,
        )
        # GradScaler then leaves unscaling to step(). Without clipping of its own it need not, and
        # programs that clip between unscaling and stepping (Lightning) refuse optimizers that do.
        self._step_supports_amp_scaling = self.max_grad_norm is not None

    # --- Stepping --------------------------------------------------------------------------------

    @functools.wraps(Optimizer.step)
    def step(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        if args or kwargs or not self._stepper.step(self):
            return self._unusual_step(*args, **kwargs)
        self._optimizer_step_code()  # where torch.profiler looks in
        return None

    step.hooked = True  # type: ignore[attr-defined]  # torch: has no need of a wrapper

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, to None or to zeros, as :meth:`torch.optim.Optimizer.zero_grad`."""
        if not (set_to_none and self._stepper.drop_gradients(self)):
            super().zero_grad(set_to_none)

    def _unusual_step(self, *args: Any, **kwargs: Any) -> Any:
        if type(self).step is not OneCallStep.step:  # a subclass's, which torch has wrapped
            return self._plain_step(*args, **kwargs)
        return self._hooked_step(*args, **kwargs)

    def _plain_step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._stepper.has_others or self._stepper.step_without_hooks(self, 0.0, True) is None:
            self._step_anew()
        return loss

    _hooked_step = Optimizer.profile_hook_step(_plain_step)

    def _step_anew(self) -> None:
        """Look at parameters and states afresh, and step."""
        for group in self.param_groups:
            self._init_states(group)
            if not group["differentiable"]:
                self._adapt_states(group["params"])
        others = {id(param) for param in self._stepper.prepare(self)}
        if others:
            self._step_with_torch(others)
        elif self._stepper.step_without_hooks(self, 0.0, True) is None:
            raise RuntimeError("Adam: the optimizer changed while it was stepped")

    def _adapt_states(self, params: list[Tensor]) -> None:
        """Give states the parameter's layout, those of bfloat16 parameters float32, and the steps
        of parameters on a GPU a place there: the kernels count them."""
        for param in params:
            state = self.state.get(param)
            on_gpu = param.device.type == "cuda" and self._stepper.built_for_cuda
            if not state or not (on_gpu or param.device.type == "cpu"):
                continue
            if param.layout != torch.strided:
                continue
            if on_gpu and isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].to(param.device, torch.float32)
            for key in _STATE_KEYS:
                value = state.get(key)
                if not isinstance(value, Tensor) or value.shape != param.shape:
                    continue
                low = param.dtype == torch.bfloat16 and value.dtype == torch.bfloat16
                if low or value.stride() != param.stride():
                    dtype = torch.float32 if low else value.dtype
                    state[key] = torch.empty_like(param.detach(), dtype=dtype).copy_(value)

    def _step_with_torch(self, others: set[int]) -> None:
        """Step the parameters in ``others`` by torch's functions, the rest by the kernels."""
        self._accelerator_graph_capture_health_check()
        groups = [self._torch_lists(group, others) for group in self.param_groups]
        grads = [grad for lists in groups for grad in lists[1]]
        scale = getattr(self, "grad_scale", None)
        unscale = 1.0 if scale is None else 1.0 / float(scale)
        squares, finite = 0.0, True
        if self.max_grad_norm is not None or self.skip_nonfinite:
            with torch.no_grad():
                squares = math.fsum(
                    float(
                        torch.linalg.vector_norm(
                            grad, dtype=torch.promote_types(grad.dtype, torch.float64)
                        )
                    )
                    ** 2
                    for grad in grads
                )
                finite = all(bool(grad.isfinite().all()) for grad in grads)
        outcome = self._stepper.step_without_hooks(self, squares * unscale**2, finite)
        if outcome is None:
            raise RuntimeError("Adam: the optimizer changed while it was stepped")
        stepped, factor = outcome
        if not stepped:
            return
        if scale is not None:
            torch._foreach_mul_(grads, unscale)
        for group, lists in zip(self.param_groups, groups, strict=True):
            self._call_torch(group, lists, factor)

    def _init_states(self, group: dict[str, Any]) -> list[list[Tensor]]:
        """Make missing states, as torch does.

        Returns:
            Parameters with a gradient, their gradients, exp_avg, exp_avg_sq, max_exp_avg_sq, step.
        """
        lists: list[list[Tensor]] = [[] for _ in range(6)]
        with torch.set_grad_enabled(bool(self.defaults["differentiable"])):
            self._init_group(group, *lists)
        return lists

    def _torch_lists(self, group: dict[str, Any], others: set[int]) -> list[list[Tensor]]:
        lists = self._init_states(group)
        keep = [i for i, param in enumerate(lists[0]) if id(param) in others]
        return [[tensors[i] for i in keep] if tensors else [] for tensors in lists]

    def _call_torch(self, group: dict[str, Any], lists: list[list[Tensor]], factor: float) -> None:
        params, grads, *states = lists
        if not params:
            return
        beta1, beta2 = group["betas"]
        with torch.set_grad_enabled(bool(self.defaults["differentiable"])):
            if factor != 1.0:
                grads = [grad * factor for grad in grads]
            torch_adam(
                params,
                grads,
                states[0],
                states[1],
                states[2],
                states[3],
                amsgrad=group["amsgrad"],
                has_complex=any(torch.is_complex(param) for param in params),
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=group["maximize"],
                foreach=group["foreach"],
                capturable=group["capturable"],
                differentiable=group["differentiable"],
                fused=group["fused"],
                decoupled_weight_decay=group["decoupled_weight_decay"],
            )

    # --- Saving and loading ----------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "max_grad_norm": self.max_grad_norm,
            "skip_nonfinite": self.skip_nonfinite,
            "skipped_steps": self.skipped_steps,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        skipped = state.pop("skipped_steps", None)
        super().__setstate__(state)
        self.__dict__.setdefault("max_grad_norm", None)
        self.__dict__.setdefault("skip_nonfinite", False)
        if "_stepper" not in self.__dict__:
            self._make_stepper()
        self._stepper.reset()
        if skipped is not None:
            self._stepper.skipped_steps = skipped

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a ``state_dict`` of this class or of its namesake in ``torch.optim``.

        As ``torch.optim.Optimizer.load_state_dict``, except that float32 averages of bfloat16
        parameters stay float32.
        """
        loaded: dict[str, Any] = {}
        handle = self.register_load_state_dict_pre_hook(lambda _, state: loaded.update(state))
        post = self.register_load_state_dict_post_hook(
            lambda _: self._restore_precision(loaded), prepend=True
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            post.remove()

    def _restore_precision(self, loaded: dict[str, Any]) -> None:
        saved_ids = (index for group in loaded["param_groups"] for index in group["params"])
        params = (param for group in self.param_groups for param in group["params"])
        for index, param in zip(saved_ids, params, strict=True):
            if param.dtype != torch.bfloat16 or index not in loaded["state"]:
                continue
            for key in _STATE_KEYS:
                value = loaded["state"][index].get(key)
                if isinstance(value, Tensor) and value.dtype == torch.float32:
                    self.state[param][key] = value.to(device=param.device, copy=True)
