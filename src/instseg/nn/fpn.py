"""Feature pyramid network."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FPN(nn.Module):
    """P2 to P6 from C2 to C5: 1x1 laterals, top-down sum with nearest enlargement, 3x3 outputs, no norm.

    P6 is every second pixel of P5. Weights Xavier-uniform, biases 0 (SOLO spec: as in mmdetection).
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # Conv2d declares its bias optional

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[C2, C3, C4, C5] at strides 4 to 32 to [P2, ..., P6] at strides 4 to 64, each (B, channels, h, w)."""
        merged = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
        pyramid = [output(x) for output, x in zip(self.output, merged, strict=True)]
        return [*pyramid, pyramid[-1][:, :, ::2, ::2]]
