"""ResNet encoders for waveforms (1-D) and time-frequency pictures (2-D), one definition for both.

He et al., "Deep residual learning for image recognition", 2016, basic blocks; the paper uses ResNet-18. Convolution
in 1-D follows the released code: kernel 7 in the stem, 9 in the blocks.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clar.config import Input, Pooling, Variant
from clar.features import Statistics


def make(
    input: Input,
    width: int = 64,
    blocks: Sequence[int] = (2, 2, 2, 2),
    in_channels: int = 3,
    variant: Variant = "paper",
    pooling: Pooling = "mean",
    bins: int = 128,
) -> "ResNet | Passing":
    """The encoder for one kind of input: features -> representation (B, 8 * width), if pooled over all.

    Args:
        input: `raw` takes (B, 1, T), `spectrogram` takes (B, in_channels, F, T').
        width: channels of the first stage; each of the four stages doubles it.
        blocks: residual blocks in each stage; (2, 2, 2, 2) at width 64 is ResNet-18 with 512 dimensions.
        in_channels: pictures of a spectrogram.
        variant: `released` pools the maximum of 9 samples in the 1-D stem, a window's length apart as is usual where
            no stride is given. `paper`, and 2-D either way, is ResNet's own: of 3, 2 apart.
        pooling: `time` keeps the last stage's F / 32 heights apart: (B, 8 * width * F / 32), rounded up.
        bins: F.
    """
    if input == "statistics":
        return Passing()
    if input == "raw":
        pool = 9 if variant == "released" else 3
        return ResNet(dimensions=1, in_channels=1, kernel_size=9, width=width, blocks=blocks, pool_size=pool)
    heights = math.ceil(bins / 32) if pooling == "time" else 1
    return ResNet(dimensions=2, in_channels=in_channels, kernel_size=3, width=width, blocks=blocks, heights=heights)


class Passing(nn.Identity):
    """No encoder: the features are the representation."""

    out_features = Statistics.out_features


class ResNet(nn.Module):
    """Stem (stride 4 in all, 18 with a max pool of 9), four residual stages (stride 8 more), global average pooling.

    The input is taken as it comes; what brings decibels to a fitting scale is `clar.features`.
    """

    def __init__(
        self,
        dimensions: int,
        in_channels: int,
        kernel_size: int,
        width: int,
        blocks: Sequence[int] = (2, 2, 2, 2),
        pool_size: int = 3,
        heights: int = 1,
    ) -> None:
        super().__init__()
        conv = nn.Conv1d if dimensions == 1 else nn.Conv2d
        norm = nn.BatchNorm1d if dimensions == 1 else nn.BatchNorm2d
        pool = nn.MaxPool1d if dimensions == 1 else nn.MaxPool2d
        self.out_features, self.heights = 8 * width * heights, heights
        self.stem = nn.Sequential(
            conv(in_channels, width, 7, stride=2, padding=3, bias=False),
            norm(width),
            nn.ReLU(inplace=True),
            pool(pool_size, stride=2 if pool_size == 3 else pool_size, padding=pool_size // 2),
        )
        stages: list[nn.Module] = []
        channels = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(conv, norm, channels, width * 2**stage, kernel_size, stride))
                channels = width * 2**stage
        self.stages = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, *) -> (B, 8 * width * heights)."""
        if features.ndim == 4:
            features = features.contiguous(memory_format=torch.channels_last)
        out = self.stages(self.stem(features))
        return out.mean(dim=3).flatten(1) if self.heights > 1 else out.flatten(2).mean(dim=2)


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut, ReLU after the sum."""

    def __init__(
        self,
        conv: type[nn.Conv1d] | type[nn.Conv2d],
        norm: type[nn.BatchNorm1d] | type[nn.BatchNorm2d],
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv1 = conv(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.norm1 = norm(out_channels)
        self.conv2 = conv(out_channels, out_channels, kernel_size, 1, padding, bias=False)
        self.norm2 = norm(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                conv(in_channels, out_channels, 1, stride, bias=False),
                norm(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *) -> (B, C', *)."""
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu_(self.norm2(self.conv2(out)) + self.shortcut(x))
