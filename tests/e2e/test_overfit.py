"""A network that can learn reproduces a handful of pictures."""

from typing import Any

import pytest
import torch

import instseg
from instseg.data.shapes import ShapesConfig, shapes
from instseg.data.transforms.augment import Augment, build_transform
from instseg.evaluation.evaluate import evaluate


def figures_after(name: str, config: ShapesConfig, pictures: int, updates: int, **fields: Any) -> dict[str, Any]:
    """Mask AP on the pictures that a model was trained on, from scratch."""
    torch.manual_seed(0)
    data = shapes("train", pictures, config, seed=0)
    model = instseg.create_model(name, num_classes=len(data.categories), input_scale=1.0, **fields)
    model.set_categories(data.categories)
    samples = list(data.with_transform(build_transform(Augment(flip=0.0), train=True)))
    images = [s.image for s in samples]
    targets = [{"boxes": s.boxes, "labels": s.labels, "masks": s.masks} for s in samples]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=updates, pct_start=0.15)
    model.train().to(memory_format=torch.channels_last)
    for _ in range(updates):
        losses = model(images, targets, resize=False)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35)
        optimizer.step()
        schedule.step()
    model.eval()
    found: dict[str, Any] = evaluate(model, data, progress=False)["segm"]
    return found


@pytest.mark.slow
def test_solov2_on_resnet18_from_scratch_reproduces_eight_pictures() -> None:
    """Mask AP50 of at least 0.90 and AP of at least 0.70; about a minute on two cores."""
    config = ShapesConfig(image_size=160, count=(2, 4), min_size=40, max_size=70, overlap=False)
    figures = figures_after(
        "solov2_r18",
        config,
        8,
        150,
        fpn_channels=64,
        tower_convs=2,
        tower_channels=64,
        mask_hidden=64,
        mask_channels=64,
        grids=(12, 8, 6),
        scale_ranges=((1, 56), (44, 96), (80, 999)),
    )
    assert figures["ap50"] >= 0.90, figures
    assert figures["ap"] >= 0.70, figures


NARROW = {
    "backbone": "resnet10t",
    "fpn_channels": 32,
    "tower_convs": 2,
    "tower_channels": 32,
    "grids": (10, 6),
    "scale_ranges": ((1, 48), (40, 999)),
}
DYNAMIC = {**NARROW, "mask_hidden": 32, "mask_channels": 32}
DEFORMABLE = {"backbone": "resnet14t"}
VARIANTS: dict[str, tuple[str, int, dict[str, Any]]] = {  # model, updates, fields
    "SOLO": ("solo_r50", 150, NARROW),
    "SOLO, single scale": ("solo_r50_single_12", 200, {**NARROW, "grids": (8,), "scale_ranges": ((1, 999),)}),
    "SOLO, BCE": ("solo_r50", 150, {**NARROW, "mask_loss": "bce"}),
    "SOLO, focal": ("solo_r50", 150, {**NARROW, "mask_loss": "focal"}),
    "Decoupled SOLO": ("decoupled_solo_r50", 300, NARROW),
    "Decoupled SOLO-light": ("decoupled_solo_light_r50", 200, NARROW),
    "Decoupled SOLO-light, DCN": ("decoupled_solo_light_r50_dcn", 200, {**NARROW, **DEFORMABLE}),
    "SOLOv2, DCN v1": ("solov2_light_512_r50_dcn", 80, {**DYNAMIC, **DEFORMABLE}),
    "SOLOv2, DCN v2": ("solov2_r101_dcn", 80, {**DYNAMIC, **DEFORMABLE}),
    "SOLOv2, separate features": ("solov2_r18", 150, {**DYNAMIC, "mask_feature": "separate"}),
    "SOLOv2, 3x3 kernels": ("solov2_r18", 150, {**DYNAMIC, "kernel_size": 3, "mask_channels": 8}),
    "Decoupled Dynamic SOLO": ("solov2_decoupled_r101", 150, {**DYNAMIC, "mask_channels": 16}),
    "SODAR": ("sodar_r50", 80, NARROW),
    "SODAR, halved mask grids": ("sodar_r101_mask", 80, {**NARROW, "mask_grids": (5, 3)}),
    "SODAR, +cls, deformable": ("sodar_r101_cls_deform", 80, {**NARROW, "mask_grids": (8, 6)}),
    "SODAR, static": ("sodar_r50", 80, {**NARROW, "aggregation": "static"}),
    "SODAR*": ("sodar_solov2_r50", 80, DYNAMIC),
    "SODAR*, +cls, halved mask grids, deformable": (
        "sodar_solov2_r101_cm_deform",
        80,
        {**DYNAMIC, "base": "solov2", "mask_grids": (5, 3)},
    ),
    "SOLOv2+": ("solov2_plus_r101_dcn", 80, {**DYNAMIC, **DEFORMABLE}),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_reproduces_four_pictures(variant: str) -> None:
    """Mask AP50 of at least 0.90; 15 to 45 s each on two cores."""
    name, updates, fields = VARIANTS[variant]
    config = ShapesConfig(image_size=128, count=(2, 3), min_size=40, max_size=60, overlap=False)
    figures = figures_after(name, config, 4, updates, **fields)
    assert figures["ap50"] >= 0.90, figures
