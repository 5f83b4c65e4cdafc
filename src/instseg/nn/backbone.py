"""Any timm feature extractor as the backbone."""

import re
import socket
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from instseg.core.errors import CheckpointError, ConfigError, did_you_mean
from instseg.nn.deform import DeformConv2d, Version

# The short names of the zoo; the ImageNet weights the papers start from are torchvision's first ones.
SHORT_NAMES = {
    "r18": "resnet18.tv_in1k",
    "r34": "resnet34.tv_in1k",
    "r50": "resnet50.tv_in1k",
    "r101": "resnet101.tv_in1k",
    "x101_64x4d": "resnext101_64x4d.tv_in1k",
    "x101_32x8d": "resnext101_32x8d.tv_in1k",
}
STRIDES = (4, 8, 16, 32)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*")


class Backbone(nn.Module):
    """C2 to C5, strides 4 to 32, of a timm model.

    Args:
        name: one of the short names (``r18``, ``r34``, ``r50``, ``r101``) or any timm model with features at
            strides 4, 8, 16 and 32.
        frozen_stages: 0 freezes nothing, 1 the stem and the first stage, 2 also the second, ...
        norm_eval: batch norms keep their running statistics while training.
        norm_fixed: with ``norm_eval``, their scale and shift do not train either.
        dcn: version of the deformable convolutions in place of the 3x3 ones of the bottlenecks of stages 2 to 4;
            0 for none.
        stride_in_1x1: a stage halves its input in the first 1x1 convolution, as Caffe's and detectron2's ResNets do,
            and not in the 3x3 one.

    Raises:
        ConfigError: timm does not know the name, or the model has no such pyramid, or no bottlenecks to change.
    """

    def __init__(
        self,
        name: str,
        frozen_stages: int = 0,
        norm_eval: bool = False,
        dcn: Version = 0,
        stride_in_1x1: bool = False,
        norm_fixed: bool = False,
    ) -> None:
        super().__init__()
        self.timm_name = SHORT_NAMES.get(name, name)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.body, self.levels = _create(name, self.timm_name)
        info: Any = self.body.feature_info
        self.channels: list[int] = [info.channels()[i] for i in self.levels]
        self._frozen: list[str] = []
        if dcn or stride_in_1x1:
            _change_bottlenecks(self.body, self.timm_name, dcn, stride_in_1x1)
        if frozen_stages:
            self._freeze([info.module_name()[i] for i in self.levels])
        if norm_eval and norm_fixed:
            for module in self.body.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.requires_grad_(False)

    def _freeze(self, modules: list[str]) -> None:
        last = modules[min(self.frozen_stages, len(modules)) - 1].replace(".", "_")
        names = [child for child, _ in self.body.named_children()]
        if last not in names:
            raise ConfigError(f'backbone "{self.timm_name}" cannot be frozen by stages: set frozen_stages=0.')
        for child in names[: names.index(last) + 1]:
            self.body.get_submodule(child).requires_grad_(False)
        self._frozen = names[: names.index(last) + 1]

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        if mode and (self.norm_eval or self.frozen_stages):
            for name, module in self.body.named_modules():
                frozen = self.frozen_stages and name.split(".")[0] in self._frozen
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and (self.norm_eval or frozen):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W), sides multiples of 32, to [C2, C3, C4, C5]."""
        features: list[Tensor] = self.body(x)
        return [features[i] for i in self.levels]


def _create(name: str, timm_name: str) -> tuple[nn.Module, list[int]]:
    """The extractor, and which of its features are C2 to C5."""
    import timm

    if _NAME.fullmatch(timm_name) is None:  # timm fetches "hf-hub:owner/name" and reads "local-dir:folder"
        raise ConfigError(
            f'backbone "{" ".join(name.split())[:80]}" is not the name of a timm model; addresses and paths are not '
            "followed: give a name such as resnet50, and its weights as backbone_weights=FILE."
        )
    try:
        body: nn.Module = timm.create_model(timm_name, features_only=True, pretrained=False)
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        known = [*SHORT_NAMES, *timm.list_models()]
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f'backbone "{name}" is not a timm feature extractor ({reason}).{did_you_mean(name, known)}'
        ) from None
    info: Any = body.feature_info
    reductions = list(info.reduction())
    if any(stride not in reductions for stride in STRIDES):
        raise ConfigError(
            f'backbone "{name}" has features at strides {reductions}, but strides {list(STRIDES)} are needed: '
            "choose a model with a pyramid, such as a ResNet, ConvNeXt or Swin."
        )
    return body, [reductions.index(stride) for stride in STRIDES]


def _change_bottlenecks(body: nn.Module, name: str, dcn: Version, stride_in_1x1: bool) -> None:
    for stage in ("layer2", "layer3", "layer4"):
        blocks: Any = getattr(body, stage, None)
        if blocks is None or not all(hasattr(block, "conv3") for block in blocks):
            raise ConfigError(f'backbone "{name}" has no ResNet bottlenecks: set dcn=0 and stride_in_1x1=false.')
        for block in blocks:
            if stride_in_1x1:
                block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
            if dcn:
                old = block.conv2
                block.conv2 = DeformConv2d(
                    old.in_channels, old.out_channels, 3, version=dcn, stride=old.stride[0], groups=old.groups
                )


def load_backbone_weights(backbone: Backbone, weights: str) -> str:
    """Fills ``backbone`` and returns what was loaded, for the record.

    Args:
        weights: ``"imagenet"`` (timm's weights of this model, cached or downloaded) or a file: safetensors, or a
            ``.pth`` of tensors only.

    Raises:
        CheckpointError: the download cannot be made, or the file does not fit.
    """
    if weights == "imagenet":
        state, source = _imagenet(backbone), f"timm {backbone.timm_name}"
    else:
        state, source = _read(Path(weights)), weights
    wanted = backbone.body.state_dict()
    state = {k.removeprefix("module.").removeprefix("backbone.").removeprefix("body."): v for k, v in state.items()}
    # Offsets of deformable convolutions are never pretrained: they start at zero.
    known = ("num_batches_tracked", "conv_offset.weight", "conv_offset.bias")
    missing = [k for k in wanted if k not in state and not k.endswith(known)]
    wrong = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    if missing or wrong:
        raise CheckpointError(
            f"{source} does not fit backbone {backbone.timm_name}: {len(missing)} tensors missing"
            f"{f' (first: {missing[0]})' if missing else ''}, {len(wrong)} of another shape"
            f"{f' (first: {wrong[0]})' if wrong else ''}: give the weights of that model."
        )
    backbone.body.load_state_dict({k: state[k] for k in wanted if k in state}, strict=False)
    return source


def _imagenet(backbone: Backbone) -> dict[str, Tensor]:
    import timm

    try:
        full = timm.create_model(backbone.timm_name, pretrained=True)
    except Exception as error:
        config = timm.get_pretrained_cfg(backbone.timm_name)
        where = (config and (config.hf_hub_id or config.url)) or "no published weights"
        raise CheckpointError(
            f"ImageNet weights of {backbone.timm_name} cannot be had ({type(error).__name__}): wanted from "
            f'"{where}"; download that file by hand and give its path as backbone_weights=FILE, '
            "or use backbone_weights=none."
        ) from None
    state: dict[str, Tensor] = full.state_dict()
    return state


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"backbone weights {path} do not exist: give a file, imagenet or none.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        import torch

        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"backbone weights {path} cannot be read ({reason}): give a file of tensors only."
        ) from None
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


def imagenet_reachable(backbone: Backbone, seconds: float = 3.0) -> bool:
    """Whether timm's weights are in the local cache, or their host answers within ``seconds``."""
    import timm

    config = timm.get_pretrained_cfg(backbone.timm_name)
    if config is None or not (config.hf_hub_id or config.url):
        return False
    if config.hf_hub_id:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.constants import HF_HUB_OFFLINE

        if isinstance(try_to_load_from_cache(config.hf_hub_id, "model.safetensors"), str):
            return True
        if HF_HUB_OFFLINE:
            return False
    host = "huggingface.co" if config.hf_hub_id else str(config.url).split("/")[2]
    try:
        socket.create_connection((host, 443), timeout=seconds).close()
    except OSError:
        return False
    return True
