"""LARS around Adam, AdamW, and warm-up followed by cosine decay (released code)."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from clar.config import Optimizer as OptimizerName


def make(name: OptimizerName, model: nn.Module, learning_rate: float, weight_decay: float) -> Optimizer:
    """The optimizer over all parameters of `model`; biases and batch norms are neither decayed nor rescaled."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0, "adapt": False},
    ]
    if name == "lars":
        return LARS(groups, lr=learning_rate)
    for group in groups:
        group.pop("adapt", None)
    return AdamW(groups, lr=learning_rate)


def learning_rate_at(step: int, base: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of step `step` (from 0): linear from base / warmup_steps to base, then cosine down towards 0.

    A function of the step alone, so a resumed run has nothing to restore.
    """
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return base * 0.5 * (1 + math.cos(math.pi * progress))


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017) of Adam's direction (Kingma and Ba 2015).

    Each matrix w moves by lr * trust * |w| / |u| against u, where u is Adam's direction plus weight decay: at lr 1 a
    layer changes by the share `trust` of its own norm, whatever its gradient's scale. The released code wraps Adam too;
    it rescales the gradient before Adam, whose own normalisation undoes that. Here the rescaling comes last and acts.

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
