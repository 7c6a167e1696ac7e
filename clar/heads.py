"""What sits on the encoder during training: projection, supervised and joint heads (paper, section 3).

B views, H dimensions of the representation, D of the projection, C classes.
"""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from clar.config import Loss, Variant


class Outputs(NamedTuple):
    """What a head gives the loss; a part that the head lacks is None."""

    projection_BD: Tensor | None
    logits_BC: Tensor | None


class Head(nn.Module):
    """Three fully connected layers with ReLU; what the last one means depends on the loss.

    `self_supervised`: the projection that NT-Xent compares. `supervised`: one output a class. `clar`: the projection,
    and one more layer from it to the classes.

    Args:
        loss: which of the three.
        in_features: H.
        hidden: width of the two hidden layers.
        projection_dim: D; a supervised head has none.
        classes: C.
        variant: `released` puts a batch norm before each ReLU, drops the last bias and L2-normalises the projection.
    """

    def __init__(
        self, loss: Loss, in_features: int, hidden: int, projection_dim: int, classes: int, variant: Variant = "paper"
    ) -> None:
        super().__init__()
        self.loss, self.released = loss, variant == "released"
        outputs = classes if loss == "supervised" else projection_dim
        layers: list[nn.Module] = []
        for width_in, width_out in ((in_features, hidden), (hidden, hidden)):
            layers.append(nn.Linear(width_in, width_out))
            if self.released:
                layers.append(nn.BatchNorm1d(width_out))
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.Linear(hidden, outputs, bias=not self.released))
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(projection_dim, classes) if loss == "clar" else None

    def forward(self, representation_BH: Tensor) -> Outputs:
        """(B, H) -> projection (B, D) and logits (B, C), as far as the head has them."""
        out = self.layers(representation_BH)
        if self.loss == "supervised":
            return Outputs(None, out)
        if self.released:
            out = F.normalize(out, dim=1)
        return Outputs(out, self.classifier(out) if self.classifier is not None else None)
