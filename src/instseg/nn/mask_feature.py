"""The unified mask feature: SOLO (journal) section 3.2.3, "Mask feature F"."""

from collections.abc import Sequence

from torch import Tensor, nn

from instseg.nn.blocks import ConvGNReLU, Upsample2x
from instseg.nn.deform import Version
from instseg.ops.coords import append_coordinates


class MaskFeature(nn.Module):
    """P2 to P5 merged into one map at 1/4 of the input.

    Level ``l`` passes ``l`` times (one for P2) a 3x3 block and a doubling; the sum passes a 1x1 block. P5 is given
    its coordinates first, which is what makes the map position-sensitive.

    Args:
        in_channels: of the pyramid.
        hidden: of the sum.
        out_channels: of F.
        coordinates: give P5 its coordinates (table 5b: without, the map knows where it is only by the padding).
        dcn: version of the deformable convolutions, of the output's 1x1 too; 0 for plain ones.
        norm: group norm in the 3x3 blocks.
    """

    def __init__(
        self,
        in_channels: int = 256,
        hidden: int = 128,
        out_channels: int = 256,
        coordinates: bool = True,
        dcn: Version = 0,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.coordinates = coordinates
        self.levels = nn.ModuleList()
        for level in range(4):
            inputs = in_channels + 2 if level == 3 and coordinates else in_channels
            chain: list[nn.Module] = []
            for i in range(max(level, 1)):
                chain.append(ConvGNReLU(inputs if i == 0 else hidden, hidden, dcn=dcn, norm=norm))
                if level:
                    chain.append(Upsample2x())
            self.levels.append(nn.Sequential(*chain))
        self.output = ConvGNReLU(hidden, out_channels, kernel_size=1, dcn=dcn)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """[P2, P3, P4, P5, ...] to F: (B, out_channels, H/4, W/4), not negative."""
        total: Tensor = self.levels[0](pyramid[0])
        for level in (1, 2, 3):
            x = append_coordinates(pyramid[level]) if level == 3 and self.coordinates else pyramid[level]
            total = total + self.levels[level](x)  # out of place: the terms' ReLU needs them for its gradient
        f: Tensor = self.output(total)
        return f
