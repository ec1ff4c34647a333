"""The dense networks whose layers are replaced, as plain modules.

Sizes and batch normalisation are our choice where published descriptions do not give them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn


class Network(nn.Sequential):
    """A sequence of named layers, which can be split before any of them."""

    def cut(self, first: str) -> tuple[nn.Sequential, nn.Sequential]:
        """Split the network before the layer ``first``; both parts have the same modules as the network."""
        named = list(self.named_children())
        at = [name for name, _ in named].index(first)
        return nn.Sequential(OrderedDict(named[:at])), nn.Sequential(OrderedDict(named[at:]))


class _Parts:
    """A builder that names layers as they are added."""

    def __init__(self, channels: int) -> None:
        self.layers: list[tuple[str, nn.Module]] = []
        self.channels = channels
        self.convs = self.pools = 0

    def conv(self, n: int, k: int, stride: int = 1, padding: int | None = None, norm: bool = True) -> _Parts:
        self.convs += 1
        pad = k // 2 if padding is None else padding
        self.layers.append((f"conv{self.convs}", nn.Conv2d(self.channels, n, k, stride, pad, bias=not norm)))
        if norm:
            self.layers.append((f"norm{self.convs}", nn.BatchNorm2d(n)))
        self.layers.append((f"relu{self.convs}", nn.ReLU()))
        self.channels = n
        return self

    def pool(self) -> _Parts:
        self.pools += 1  # rounded up, as training may begin with smaller images
        self.layers.append((f"pool{self.pools}", nn.MaxPool2d(2, ceil_mode=True)))
        return self

    def head(self, *sizes: int, dropout: float = 0.0) -> Network:
        self.layers.append(("flatten", nn.Flatten()))
        for n, (a, b) in enumerate(pairwise(sizes), 1):
            self.layers.append((f"fc{n}", nn.Linear(a, b)))
            if n < len(sizes) - 1:
                self.layers.append((f"act{n}", nn.ReLU()))
                if dropout:
                    self.layers.append((f"drop{n}", nn.Dropout(dropout)))
        return Network(OrderedDict(self.layers))


def fc2(classes: int = 10, width: int = 1024) -> Network:
    """Build 784-1024-1024-10."""
    return _Parts(1).head(784, width, width, classes)


def fc2_narrow(classes: int = 10) -> Network:
    """Build 784-64-64-10, which has no redundant layer."""
    return fc2(classes, 64)


def lenet5(classes: int = 10) -> Network:
    """Build LeNet-5 (LeCun et al. 1998) with ReLU and max pooling: 6 and 16 channels of 5x5, then 400-120-84-10."""
    parts = _Parts(1).conv(6, 5, norm=False).pool().conv(16, 5, padding=0, norm=False).pool()
    return parts.head(400, 120, 84, classes)


def alexnet(classes: int = 10) -> Network:
    """Build AlexNet's five convolutions for 32x32 images, then 1024-4096-4096."""
    parts = _Parts(3).conv(64, 3, 2).pool().conv(192, 3).pool().conv(384, 3).conv(256, 3).conv(256, 3).pool()
    return parts.head(1024, 4096, 4096, classes, dropout=0.5)


def zfnet(classes: int = 10) -> Network:
    """Build ZFNet's five convolutions (Zeiler, Fergus 2014) for 32x32 images, then 1024-4096-4096."""
    parts = _Parts(3).conv(96, 5, 2).pool().conv(256, 5).pool().conv(384, 3).conv(384, 3).conv(256, 3).pool()
    return parts.head(1024, 4096, 4096, classes, dropout=0.5)


def vgg16(classes: int = 10) -> Network:
    """Build VGG-16's thirteen convolutions (Simonyan, Zisserman 2015) with batch normalisation, then 512-4096-4096."""
    parts = _Parts(3)
    for block in ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3):
        for n in block:
            parts.conv(n, 3)
        parts.pool()
    return parts.head(512, 4096, 4096, classes, dropout=0.5)


class _Block(nn.Module):
    """Two convolutions and a shortcut without parameters (option A of He et al. 2016)."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(a, b, 3, b // a, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(b)
        self.conv2 = nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(b)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if y.shape != x.shape:
            more = y.shape[1] - x.shape[1]
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more // 2, more - more // 2))
        return torch.relu(x + y)


class ResNet(nn.Module):
    """A ResNet for CIFAR (He et al. 2016) of ``6 blocks + 2`` layers, with the names of the common implementation."""

    def __init__(self, classes: int = 10, blocks: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for n in (1, 2, 3):
            a, b = widths[n - 1], widths[n]
            setattr(self, f"layer{n}", nn.Sequential(_Block(a, b), *(_Block(b, b) for _ in range(blocks - 1))))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images to logits."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))  # type: ignore[operator]
        return self.linear(x.mean((2, 3)))

    def cut(self, first: str) -> tuple[nn.Sequential, nn.Sequential]:
        """Split the network before the layer ``first``; both parts have the same modules as the network."""
        modules = dict(self.named_children())
        order = ["conv1", "bn1", "relu1", "layer1", "layer2", "layer3", "pool", "flatten", "linear"]
        modules |= {"relu1": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
        at = order.index(first)
        return tuple(nn.Sequential(OrderedDict((n, modules[n]) for n in part)) for part in (order[:at], order[at:]))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "fc2": fc2,
    "fc2-narrow": fc2_narrow,
    "lenet5": lenet5,
    "alexnet": alexnet,
    "zfnet": zfnet,
    "vgg16": vgg16,
    "resnet20": ResNet,
    "resnet56": lambda classes: ResNet(classes, 9),
}
