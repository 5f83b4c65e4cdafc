import pytest
import torch

import instseg
from instseg.core.geometry import InputGeometry
from instseg.core.shapes import Shapes
from instseg.models.base import ImageBatch, Step, Target
from instseg.models.solo.solov2 import SOLOv2, SOLOv2Config, SOLOv2Outputs


def tiny(**changes):
    fields = {
        "backbone": "resnet10t",
        "num_classes": 2,
        "fpn_channels": 16,
        "tower_convs": 1,
        "tower_channels": 16,
        "mask_hidden": 16,
        "mask_channels": 2,
        "grids": (4,),
        "scale_ranges": ((1, 999),),
    }
    return SOLOv2(SOLOv2Config(**{**fields, **changes}))


def outputs(cells, feature):
    """Raw outputs of one image on a 4 x 4 grid: ``cells`` maps (row, column, class) to (logit, kernel)."""
    categories, kernels = torch.full((1, 2, 4, 4), -9.0), torch.zeros(1, 2, 4, 4)
    for (row, column, label), (logit, kernel) in cells.items():
        categories[0, label, row, column] = logit
        kernels[0, :, row, column] = torch.tensor(kernel)
    size = tuple(feature.shape[1:])
    sizes = torch.tensor([[4 * size[0], 4 * size[1]]])
    return SOLOv2Outputs([categories], size, sizes, [kernels], [feature[None]])


def halves():
    """Two channels: the left and the right half of a 16 x 16 map, 1 inside and -1 outside after the kernel's sum."""
    feature = torch.zeros(2, 16, 16)
    feature[0, :, :8] = 1.0
    feature[1, :, 8:] = 1.0
    return feature


VIEW = InputGeometry((64, 64), (64, 64), (64, 64))


def decoded(net, outputs):
    (found,) = net.decode(outputs)
    return found.instances.to_image(VIEW)


LEFT, RIGHT = (8.0, -8.0), (-8.0, 8.0)


def test_each_confident_cell_gives_its_own_mask_with_its_class():
    found = decoded(tiny(), outputs({(0, 0, 0): (3.0, LEFT), (2, 3, 1): (2.0, RIGHT)}, halves()))
    assert found.labels.tolist() == [0, 1]
    assert found.boxes.tolist() == [[0, 0, 32, 64], [32, 0, 64, 64]]
    assert (found.scores.diff() <= 0).all()


def test_a_duplicate_of_the_same_class_decays_and_one_of_another_class_does_not():
    same = decoded(tiny(), outputs({(0, 0, 0): (3.0, LEFT), (2, 2, 0): (2.0, LEFT)}, halves()))
    other = decoded(tiny(), outputs({(0, 0, 0): (3.0, LEFT), (2, 2, 1): (2.0, LEFT)}, halves()))
    assert float(same.scores[1]) == pytest.approx(float(other.scores[1]) * 0.1353, rel=1e-3)
    agnostic = tiny(class_agnostic=True)
    both = decoded(agnostic, outputs({(0, 0, 0): (3.0, LEFT), (2, 2, 1): (2.0, LEFT)}, halves()))
    torch.testing.assert_close(both.scores, same.scores)


def test_masks_no_larger_than_the_stride_are_dropped():
    feature = torch.full((2, 16, 16), 0.0)
    feature[1] = 1.0
    feature[:, 0, :8] = torch.tensor([[1.0], [0.0]])  # eight pixels: not more than the stride of eight
    assert len(decoded(tiny(), outputs({(0, 0, 0): (3.0, LEFT)}, feature))) == 0
    feature[:, 0, 8] = torch.tensor([1.0, 0.0])
    assert len(decoded(tiny(), outputs({(0, 0, 0): (3.0, LEFT)}, feature))) == 1


def test_the_score_is_the_category_score_times_the_mean_of_the_mask():
    kernel = (1.0, -8.0)
    found = decoded(tiny(), outputs({(0, 0, 0): (1.5, kernel)}, halves()))
    expected = torch.sigmoid(torch.tensor(1.5)) * torch.sigmoid(torch.tensor(1.0))
    torch.testing.assert_close(found.scores[0], expected)


def test_more_objects_than_the_cap_are_flagged():
    cells = {(0, 0, 0): (3.0, LEFT), (2, 3, 1): (2.0, RIGHT)}
    assert not decoded(tiny(max_instances=2), outputs(cells, halves())).truncated
    found = decoded(tiny(max_instances=1), outputs(cells, halves()))
    assert found.truncated and len(found) == 1


def test_chunks_of_candidates_do_not_change_the_result(monkeypatch):
    cells = {(0, 0, 0): (3.0, LEFT), (2, 3, 1): (2.0, RIGHT), (3, 0, 1): (1.0, LEFT)}
    whole = decoded(tiny(), outputs(cells, halves()))
    monkeypatch.setattr("instseg.models.solo.decode.CHUNK_VALUES", 1)
    parts = decoded(tiny(), outputs(cells, halves()))
    torch.testing.assert_close(parts.scores, whole.scores)
    assert parts.masks.rle() == whole.masks.rle()


@pytest.mark.parametrize("changes", [{"kernel_size": 3}, {"grids": (6, 4), "scale_ranges": ((1, 40), (20, 999))}])
def test_other_kernel_sizes_and_fewer_levels_train_and_predict(changes):
    net = tiny(**changes)
    mask = torch.zeros(1, 64, 96, dtype=torch.uint8)
    mask[0, 10:40, 20:60] = 1
    boxes = torch.tensor([[20.0, 10, 60, 40]])
    target = Target((64, 96), torch.tensor([1]), boxes, Shapes.from_masks(mask))
    batch = ImageBatch.of(torch.randn(1, 3, 64, 96))
    losses = net.loss(net(batch), [target], Step()).losses
    assert losses["loss_mask"] > 0
    with torch.no_grad():
        net.eval().decode(net(batch))


def test_levels_and_ranges_must_match():
    with pytest.raises(instseg.InstsegError, match="one entry for each"):
        instseg.create_model("solov2_r18", grids=(8, 8))


def test_published_freezing_keeps_the_stem_the_first_stage_and_all_statistics():
    net = tiny(frozen_stages=1, norm_eval=True)
    frozen = {name.split(".")[2] for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
    net.train()
    assert not any(m.training for m in net.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert all(m.training for m in tiny().train().backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
