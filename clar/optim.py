"""LARS, LAMB, AdamW, the released code's LARS around Adam, and warm-up followed by cosine decay.

LARS and LAMB are here because torch has neither.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from clar.config import Optimizer as OptimizerName


def make(name: OptimizerName, model: nn.Module, learning_rate: float, weight_decay: float) -> Optimizer:
    """The optimizer over all parameters of `model`; biases and batch norms are neither decayed nor rescaled."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0, "adapt": False},
    ]
    if name == "adamw":
        for group in groups:
            group.pop("adapt", None)
    kinds: dict[OptimizerName, type[Optimizer]] = {
        "lars": LARS, "lamb": LAMB, "adamw": AdamW, "released": RescaledAdam,
    }  # fmt: skip
    return kinds[name](groups, lr=learning_rate)  # type: ignore[call-arg]


def learning_rate_at(step: int, base: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of step `step` (from 0): linear from base / warmup_steps to base, then cosine down towards 0.

    A function of the step alone, so a resumed run has nothing to restore.
    """
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return base * 0.5 * (1 + math.cos(math.pi * progress))


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017) of SGD with momentum, as SimCLR uses it.

    Each matrix w has its own rate, lr * trust * |w| / |u|, u being its gradient plus weight decay. The rate is inside
    of the momentum: v becomes momentum * v + rate * u, and w moves by -v.

    Args:
        params: parameters or groups; a group with `adapt=False` takes plain steps of rate lr.
        lr: learning rate.
        momentum: of v.
        weight_decay: L2 penalty's weight, part of u.
        trust: share of its norm that a layer would move at lr 1 without momentum.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad.add(p, alpha=group["weight_decay"])
                if group["adapt"]:
                    update.mul_(_trust_ratio(p, update.norm(), group["trust"]))
                state = self.state[p]
                if not state:
                    state["velocity"] = torch.zeros_like(p)
                p.sub_(state["velocity"].mul_(group["momentum"]).add_(update, alpha=group["lr"]))


class RescaledAdam(Adam):
    """What the released code calls LARS: the gradient is rescaled layer by layer, and Adam takes it from there.

    Of each matrix w the gradient g becomes trust * |w| / (|g| + weight_decay * |w|) * (g + weight_decay * w). Adam
    divides by the root of the mean square of what it gets, which undoes the rescaling but for its change from step to
    step. A group with `adapt=False` takes plain Adam steps.
    """

    TRUST = 1e-3

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient, which is rescaled in place."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = 0.0  # it is in the gradient, and Adam shall not add it again
            for p in group["params"] if group.get("adapt", True) else ():
                if p.grad is not None:
                    ratio = _trust_ratio(p, p.grad.norm() + decay * p.norm(), self.TRUST)
                    p.grad.add_(p, alpha=decay).mul_(ratio)
        super().step()
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay


def _trust_ratio(p: Tensor, update_norm: Tensor, trust: float) -> Tensor:
    """trust * |p| / update_norm; 1 for a layer of zeros, which could never leave zero, and one without an update."""
    weight_norm = p.norm()
    return torch.where((weight_norm > 0) & (update_norm > 0), trust * weight_norm / update_norm, 1.0)


class LAMB(Optimizer):
    """Layer-wise adaptive rate scaling of Adam's direction (You et al. 2020, with a trust coefficient as in LARS).

    Each matrix w moves by lr * trust * |w| / |u| against u, where u is Adam's direction plus weight decay: at lr 1 a
    layer changes by the share `trust` of its own norm, whatever its gradient's scale.

    Args:
        params: parameters or groups; a group with `adapt=False` takes plain Adam steps of lr * trust.
        lr: learning rate, 1.0 in the released code.
        betas: decay of the running means of the gradient and of its square.
        eps: keeps the divisions finite.
        weight_decay: L2 penalty's weight, coupled into the direction.
        trust: share of its norm that a layer moves at lr 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "trust": trust, "adapt": True,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                state["step"] += 1
                mean: Tensor = state["exp_avg"].lerp_(p.grad, 1 - beta1)
                square: Tensor = state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                unbiased = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
                update = mean / (1 - beta1 ** state["step"]) / unbiased
                if group["weight_decay"]:
                    update.add_(p, alpha=group["weight_decay"])
                rate = group["lr"] * group["trust"]
                if group["adapt"]:
                    weight_norm, update_norm = p.norm(), update.norm()
                    # A layer of zeros could never leave zero: it takes the plain step.
                    scale = torch.where(
                        (weight_norm > 0) & (update_norm > 0), weight_norm / (update_norm + group["eps"]), 1.0
                    )
                    update.mul_(scale)
                p.add_(update, alpha=-rate)
