"""What the networks of the SOLO family share: a backbone with its pyramid; assignment, loss and decoding of cells.

A method adds its branches: ``predict_pyramid`` makes its raw outputs, ``mask_probabilities`` the soft masks of chosen
cells. Cells that neither hold an object (training) nor a candidate (prediction) are never made into masks.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

from instseg.core.instances import Instances
from instseg.models.base import ClassLayout, Found, ImageBatch, LossTerms, Net, Step, Target
from instseg.models.solo.assign import Assignment, assign_cells
from instseg.models.solo.config import GridConfig
from instseg.models.solo.decode import decode_grid, fuse
from instseg.models.solo.grids import MASK_STRIDE, GridOutputs, LevelSpec, head_levels, level_maps
from instseg.models.solo.loss import grid_loss
from instseg.nn.backbone import Backbone
from instseg.nn.fpn import FPN

G = TypeVar("G", bound=GridOutputs)


class GridNet(Net[G]):
    """A backbone with its pyramid; a subclass builds the branches and says which ``maps`` its masks live on."""

    may_leave_unused = True  # a level without an object teaches its own parameters nothing
    watched_loss = "loss_mask"  # where all masks vanish a dice loss has hardly any gradient

    config: GridConfig
    maps: list[LevelSpec]

    def __init__(self, config: GridConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.backbone = Backbone(
            c.backbone, c.frozen_stages, c.norm_eval, c.dcn, c.stride_in_1x1, norm_fixed=c.norm_fixed
        )
        self.fpn: nn.Module = FPN(self.backbone.channels, config.fpn_channels)
        self.maps = level_maps(config.grids)

    def forward(self, batch: ImageBatch) -> G:
        return self.predict_pyramid(self.fpn(self.backbone(batch.pixels)), batch.sizes)

    @abstractmethod
    def predict_pyramid(self, pyramid: Sequence[Tensor], sizes: Tensor) -> G:
        """[P2, ..., P6] at strides 4 to 64, of images whose content is ``sizes`` (B, 2), to raw outputs."""

    @abstractmethod
    def mask_probabilities(
        self, outputs: G, image: int, level: int, cells: Tensor, size: tuple[int, int] | None = None
    ) -> Tensor:
        """As :class:`~instseg.models.solo.grids.CellMasks`."""

    def class_layers(self) -> Mapping[str, ClassLayout]:
        return {f"category.output.{kind}": ClassLayout() for kind in ("weight", "bias")}

    @abstractmethod
    def stages(self) -> Mapping[str, nn.Module]:
        """As :class:`~instseg.models.base.Staged`."""

    def as_published(self, batch: ImageBatch) -> None:
        """Everything that the published code computes for a batch: for counting operations."""
        self(batch)

    def head_levels(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """The re-strided levels, one for each grid."""
        return head_levels(pyramid, len(self.config.grids))

    def assign(self, target: Target, padded: tuple[int, int]) -> Assignment:
        """The positive cells of one image in a batch of ``padded`` (H, W); the last of the objects that share a cell
        has it."""
        return assign_target(self.config, target, padded).owned()

    def loss(self, outputs: G, targets: Sequence[Target], step: Step) -> LossTerms:
        padded = (outputs.size[0] * MASK_STRIDE, outputs.size[1] * MASK_STRIDE)
        assigned = [self.assign(target, padded) for target in targets]
        supervised = {"loss_mask": partial(self.mask_probabilities, outputs)}
        return grid_loss(self.config, outputs.cls_logits, self.maps, targets, assigned, supervised, step)

    def decode(self, outputs: G) -> list[Found]:
        return decode_grid(self.config, outputs, self.maps, partial(self.mask_probabilities, outputs))

    def fuse(self, parts: Sequence[Instances], size: tuple[int, int]) -> Instances:
        """As :class:`~instseg.models.base.Fuses`."""
        return fuse(self.config, parts, size)


def assign_target(c: GridConfig, target: Target, padded: tuple[int, int]) -> Assignment:
    """The positive cells of one image in a batch of ``padded`` (H, W)."""
    return assign_cells(target.boxes, target.masks, padded, c.grids, c.scale_ranges, c.center_region, c.min_pixels)
