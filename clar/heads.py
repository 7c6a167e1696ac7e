"""What sits on the encoder during training: projection, supervised and joint heads (paper, section 3).

B views, H dimensions of the representation, D of the projection, C classes.
"""

from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from clar.config import Loss, Variant


class Outputs(NamedTuple):
    """What a head gives the loss; a part that the head lacks is None."""

    projection_BD: Tensor | None
    logits_BC: Tensor | None


class Head(nn.Module):
    """Fully connected layers with ReLU between them; what the last one means depends on the loss.

    Three layers for `self_supervised`, whose last gives the projection that NT-Xent compares, and for `supervised`,
    whose last has one output a class. `clar` has one more layer, from the projection to the classes.

    `released` puts a batch norm before each ReLU, drops the last layer's bias and L2-normalises the self-supervised
    projection. Its `clar` has three layers in all: the second gives the projection, and the third goes from there to
    the classes. Between the two there is neither batch norm nor ReLU: NT-Xent and the classes see the same vector, as
    it leaves the second layer, not normalised (NT-Xent itself does that).

    Args:
        loss: which of the three.
        in_features: H.
        hidden: width of the hidden layers.
        projection_dim: D; a supervised head has none.
        classes: C.
        variant: `paper` or `released`.
    """

    def __init__(
        self, loss: Loss, in_features: int, hidden: int, projection_dim: int, classes: int, variant: Variant = "paper"
    ) -> None:
        super().__init__()
        joint, released = loss == "clar", variant == "released"
        self.loss, self.normalise = loss, released and not joint
        widths = [in_features, hidden] if released and joint else [in_features, hidden, hidden]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers.append(nn.Linear(width_in, width_out))
            if released:
                layers.append(nn.BatchNorm1d(width_out))
            layers.append(nn.ReLU(inplace=True))
        outputs = classes if loss == "supervised" else projection_dim
        layers.append(nn.Linear(hidden, outputs, bias=joint or not released))
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(projection_dim, classes, bias=not released) if joint else None

    def forward(self, representation_BH: Tensor) -> Outputs:
        """(B, H) -> projection (B, D) and logits (B, C), as far as the head has them."""
        out = self.layers(representation_BH)
        if self.loss == "supervised":
            return Outputs(None, out)
        if self.normalise:
            out = F.normalize(out, dim=1)
        return Outputs(out, self.classifier(out) if self.classifier is not None else None)
