"""The configuration fields that all methods of the SOLO family share."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from instseg.models.config import Depth, Fraction, InferenceSettings, ModelConfig, Positive
from instseg.nn.deform import Version
from instseg.ops.nms import NMSKind, NMSOptions
from instseg.ops.voting import Voting

# Strides of the (re-strided) levels that enter the head; also the least area of a mask, in pixels at stride 4.
STRIDES = (8, 8, 16, 32, 32)


class GridSettings(InferenceSettings):
    """What decoding does; published values by default."""

    candidate_threshold: Fraction = 0.1  # candidates score above it, before masks
    mask_threshold: Fraction = 0.5
    nms: NMSKind = "matrix"
    nms_kernel: Literal["gaussian", "linear"] = "gaussian"  # of Matrix and Soft NMS
    nms_sigma: Annotated[float, Field(gt=0)] = 2.0  # multiplier in the Gaussian; the paper's 0.5 divides
    nms_threshold: Fraction = 0.5  # IoU above which Hard and Fast NMS drop a mask, and linear Soft NMS lowers it
    nms_pre: Positive = 500  # candidates that enter NMS
    class_agnostic: bool = False  # masks of different classes suppress each other
    min_score: Fraction = 0.05  # objects score at least this after NMS
    voting: Voting = "none"  # final masks: mean of the candidates that NMS compared with them (SODAR, table II)
    voting_threshold: Fraction = 0.85  # IoU with a final mask from which a candidate votes on it

    @property
    def nms_options(self) -> NMSOptions:
        """The fields that :func:`~instseg.ops.nms.nms` takes."""
        return NMSOptions(self.nms, self.nms_kernel, self.nms_sigma, self.nms_threshold, self.class_agnostic)


class GridConfig(ModelConfig, GridSettings):
    """Published values by default."""

    fpn_channels: Positive = 256
    tower_convs: Depth = 7
    tower_channels: Positive = 256
    dcn_towers: Literal["none", "last", "all"] = "none"  # deformable convolutions in the towers, of version dcn

    grids: tuple[Positive, ...] = (40, 36, 24, 16, 12)  # S of each level, fine to coarse; one to five levels
    scale_ranges: tuple[tuple[float, float], ...] = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
    center_region: Fraction = 0.2  # side of the positive region around the center of mass, share of the box

    min_pixels: Positive = 1  # objects with fewer, at the network's input size, are not trained on

    mask_loss: Literal["dice", "bce", "focal"] = "dice"
    mask_weight: float | None = None  # None: the paper's for that loss: dice 3, BCE 10, focal 20
    category_weight: float = 1.0
    focal_alpha: Fraction = 0.25
    focal_gamma: float = 2.0

    @property
    def strides(self) -> tuple[int, ...]:
        """Of each level."""
        return STRIDES[: len(self.grids)]

    def tower_dcn(self, depth: int) -> tuple[Version, int]:
        """Version of the deformable convolutions in a tower of ``depth`` blocks, and the first that is one."""
        if self.dcn_towers == "none":
            return 0, 0
        return self.dcn, depth - 1 if self.dcn_towers == "last" else 0

    @model_validator(mode="after")
    def _levels(self) -> Self:
        if not 1 <= len(self.grids) <= len(STRIDES) or len(self.grids) != len(self.scale_ranges):
            raise ValueError(f"grids and scale_ranges must have one entry for each of 1 to {len(STRIDES)} levels")
        if self.dcn_towers != "none" and not self.dcn:
            raise ValueError("dcn_towers needs the version of the deformable convolutions: dcn=1 or dcn=2")
        return self
