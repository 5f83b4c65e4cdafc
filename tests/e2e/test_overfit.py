"""A network that can learn reproduces a handful of pictures."""

import pytest
import torch

import instseg
from instseg.data.shapes import ShapesConfig, shapes
from instseg.data.transforms import Augment, build_transform
from instseg.infer.evaluate import evaluate


@pytest.mark.slow
def test_solov2_on_resnet18_from_scratch_reproduces_eight_pictures():
    """Mask AP50 of at least 0.90 and AP of at least 0.70; about a minute on two cores."""
    torch.manual_seed(0)
    config = ShapesConfig(image_size=160, count=(2, 4), min_size=40, max_size=70, overlap=False)
    data = shapes("train", 8, config, seed=0)
    model = instseg.create_model(
        "solov2_r18",
        num_classes=len(data.categories),
        fpn_channels=64,
        tower_convs=2,
        tower_channels=64,
        mask_hidden=64,
        mask_channels=64,
        grids=(12, 8, 6),
        scale_ranges=((1, 56), (44, 96), (80, 999)),
        input_scale=1.0,
    )
    model.set_categories(data.categories)
    samples = list(data.with_transform(build_transform(Augment(flip=0.0), train=True)))
    images = [s.image for s in samples]
    targets = [{"boxes": s.boxes, "labels": s.labels, "masks": s.masks} for s in samples]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    updates = 150
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
    figures = evaluate(model, data, progress=False)["segm"]
    assert figures["ap50"] >= 0.90, figures
    assert figures["ap"] >= 0.70, figures
