"""Batches reach the training loop unchanged, and light."""

import io
import pickle

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.core.shapes import Shapes, pack_masks, unpack_masks
from instseg.data.batch import Batch, Sample, collate


def sample(index: int, objects: int, height: int = 40, width: int = 50) -> Sample:
    masks = torch.zeros(objects, height, width, dtype=torch.uint8)
    for i, mask in enumerate(masks):
        mask[i : i + 5, 2 * i : 2 * i + 7] = 1
    boxes = torch.rand(objects, 4)
    labels = torch.arange(objects)
    image = torch.full((3, height, width), index, dtype=torch.uint8)
    return Sample(image, boxes, labels, Shapes.from_masks(masks), image_id=100 + index, index=index)


def same(one: Batch, other: Batch) -> bool:
    pairs = zip(one.targets, other.targets, strict=True)
    return (
        one.image_ids == other.image_ids
        and all(torch.equal(a, b) for a, b in zip(one.images, other.images, strict=True))
        and all(
            a.size == b.size
            and torch.equal(a.labels, b.labels)
            and torch.equal(a.boxes, b.boxes)
            and torch.equal(a.masks, b.masks)
            for a, b in pairs
        )
    )


def test_samples_of_different_sizes_lie_side_by_side() -> None:
    batch = collate([sample(0, 3), sample(1, 0, 20, 30)])
    assert len(batch) == 2
    assert batch.image_ids == [100, 101]
    assert batch.targets[1].masks.shape == (0, 20, 30)


def test_a_pickled_batch_is_the_same_and_does_not_grow_with_the_image() -> None:
    batch = collate([sample(0, 12, 400, 500), sample(1, 0)])
    data = pickle.dumps(batch)
    assert same(pickle.loads(data), batch)
    images = sum(image.numel() for image in batch.images)
    assert len(data) - images < 20_000  # 12 masks of 400 x 500 are 2.4 MB


def test_a_saved_batch_is_the_same() -> None:
    batch, stream = collate([sample(0, 2)]), io.BytesIO()
    torch.save(batch, stream)
    stream.seek(0)
    assert same(torch.load(stream, weights_only=False), batch)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 9999), st.integers(0, 4), st.integers(1, 9), st.integers(1, 9))
def test_any_masks_survive_packing(seed: int, count: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = (torch.rand(count, height, width, generator=generator) < 0.2).to(torch.uint8)
    assert torch.equal(unpack_masks(*pack_masks(masks)), masks)


def test_a_batch_moves_to_a_device_whole() -> None:
    moved = collate([sample(0, 2)]).to("meta")
    target = moved.targets[0]
    assert {t.device.type for t in (*moved.images, target.boxes, target.labels, target.masks)} == {"meta"}
