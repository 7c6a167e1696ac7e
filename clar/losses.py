"""NT-Xent over the views of all processes, cross-entropy over the labelled ones, and their sum (paper, section 3).

N clips a process, D dimensions of the projection, C classes.
"""

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

UNLABELLED = -1
"""Label of a clip whose class the loss may not see."""


def nt_xent(z1_ND: Tensor, z2_ND: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy (Chen et al. 2020, SimCLR) over 2N views.

    -log( exp(sim(z_i, z_j) / t) / sum over k != i of exp(sim(z_i, z_k) / t) ), with cosine similarity, averaged over
    the views i whose positive is j. In float32 or better also under mixed precision: at t = 0.05 logits reach 20,
    where bf16 steps are 1/8.

    With torch.distributed the negatives come from all processes, which must hold equally many clips. The mean of the
    processes' losses is then the loss of the whole batch, and so is the gradient that DistributedDataParallel averages.

    Args:
        z1_ND: (N, D) projections of the first views, any scale.
        z2_ND: (N, D) projections of the second views, in the same order.
        temperature: t > 0.

    Returns:
        Scalar, mean over this process's 2N views.
    """
    if z1_ND.shape != z2_ND.shape or z1_ND.ndim != 2:
        raise ValueError(f"two views of the same clips have one shape (N, D); got {z1_ND.shape} and {z2_ND.shape}")
    with torch.autocast(z1_ND.device.type, enabled=False):
        own_2ND = torch.cat([_normalised(z1_ND), _normalised(z2_ND)])
        views, first = own_2ND.shape[0], 0
        all_MD = own_2ND
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            from torch.distributed.nn.functional import all_gather

            all_MD = torch.cat(all_gather(own_2ND))
            first = distributed.get_rank() * views
        row = torch.arange(views, device=own_2ND.device)
        logits = own_2ND @ all_MD.T / temperature
        itself = torch.zeros_like(logits, dtype=torch.bool)
        itself[row, first + row] = True
        positive = first + (row + views // 2) % views
        return F.cross_entropy(logits.masked_fill(itself, -torch.inf), positive)


def _normalised(z_ND: Tensor) -> Tensor:
    return F.normalize(z_ND if z_ND.dtype == torch.float64 else z_ND.float(), dim=1)


def cross_entropy(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled clips of a batch; 0, with a gradient of 0, where there is none.

    Args:
        logits_BC: (B, C).
        labels_B: (B,) int64, UNLABELLED where the class may not be seen.
    """
    with torch.autocast(logits_BC.device.type, enabled=False):
        total = F.cross_entropy(logits_BC.float(), labels_B, ignore_index=UNLABELLED, reduction="sum")
        return total / (labels_B != UNLABELLED).sum().clamp(min=1)
