"""SOLOv2 against arrays recorded from mmdetection 3.3, at the tolerances measured for them."""

import pytest
import torch

from instseg.core.geometry import View
from instseg.models.solov2 import SOLOv2, SOLOv2Config

from .recorded import load, rename_solov2, unpack_masks

FILES = ["solov2", "solov2_light"]


@pytest.fixture(scope="module", params=FILES)
def reference(request, references):
    return load(references.root / "mmdet" / f"{request.param}.pt")


@pytest.fixture(scope="module")
def net(reference):
    return build(reference)


def build(reference, **changes):
    head, test = reference["config"]["head"], reference["config"]["test_cfg"]
    feature = head["mask_feature_head"]
    config = SOLOv2Config(
        backbone="resnet10t",
        num_classes=head["num_classes"],
        fpn_channels=head["in_channels"],
        tower_channels=head["feat_channels"],
        tower_convs=head["stacked_convs"],
        mask_hidden=feature["feat_channels"],
        mask_channels=feature["out_channels"],
        grids=head["num_grids"],
        scale_ranges=[tuple(r) for r in head["scale_ranges"]],
        centre_region=head["pos_scale"],
        score_threshold=test["score_thr"],
        mask_threshold=test["mask_thr"],
        keep_threshold=test["filter_thr"],
        nms_pre=test["nms_pre"],
        nms_kernel=test["kernel"],
        nms_sigma=test["sigma"],
        max_instances=test["max_per_img"],
        **changes,
    )
    net = SOLOv2(config)
    state = rename_solov2(reference["state_dict"])
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.startswith(("backbone.", "fpn.")) for key in missing)
    return net


def features(reference, name, requires_grad=False):
    return [f.float().requires_grad_(requires_grad) for f in reference["inputs"][name]["feats"]]


def targets_of(reference):
    images = reference["train_inputs"]["gt"]
    return [{"boxes": g["bboxes"], "labels": g["labels"], "masks": unpack_masks(g["masks"])} for g in images]


@pytest.mark.parametrize("name", ["a", "b"])
def test_raw_outputs_are_those_of_the_reference(net, reference, name):
    raw = reference["raw_outputs"][name]
    with torch.no_grad():
        out = net.predict_pyramid(features(reference, name))
    for ours, theirs in zip(out.categories, raw["cls_preds"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=8e-6, rtol=0)
    for ours, theirs in zip(out.kernels, raw["kernel_preds"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=8e-6, rtol=0)
    channels = raw["mask_feats_channels"][0] if "mask_feats_channels" in raw else slice(None)
    theirs = raw["mask_feats"][0] if isinstance(raw["mask_feats"], list) else raw["mask_feats"]
    torch.testing.assert_close(out.mask_feature[:, channels], theirs, atol=8e-6, rtol=0)


@pytest.mark.parametrize("name", ["a", "b"])
def test_results_are_those_of_the_reference(net, reference, name):
    views = [
        View(tuple(m["img_shape"][:2]), *[tuple(m["ori_shape"][:2])] * 2) for m in reference["inputs"][name]["metas"]
    ]
    with torch.no_grad():
        results = net.decode(net.predict_pyramid(features(reference, name)), views)
    for ours, theirs in zip(results, reference["results"][name], strict=True):
        assert len(ours) > 0
        assert ours.labels.tolist() == theirs["labels"].tolist()
        torch.testing.assert_close(ours.scores, theirs["scores"], atol=6e-5, rtol=0)
        masks = unpack_masks(theirs["masks"])
        assert int((ours.masks.bool() != masks).sum()) <= 5


def test_targets_are_those_of_the_reference(net, reference):
    padded = tuple(reference["config"]["train_image"])
    grids = net.config.grids
    for target, theirs in zip(targets_of(reference), reference["targets"], strict=True):
        assignment = net.assign(target, padded)
        first = 0
        labels = torch.cat([target["labels"], torch.tensor([net.config.num_classes])])[assignment.owner]
        for level, s in enumerate(grids):
            inside = (assignment.cells >= first) & (assignment.cells < first + s * s)
            assert (assignment.cells[inside] - first).tolist() == list(theirs["pos_indexes"][level])
            assert torch.equal(labels[first : first + s * s].view(s, s), theirs["labels"][level])
            first += s * s


def close(ours, theirs, tolerance):
    torch.testing.assert_close(ours.detach(), torch.as_tensor(theirs), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("shared_cells", ["mmdet", "all"])
def test_losses_and_gradients_are_those_of_the_reference(reference, shared_cells):
    net = build(reference, shared_cells=shared_cells)
    inputs = features(reference, "b", requires_grad=True)
    losses = net.loss(net.predict_pyramid(inputs), targets_of(reference))
    recorded = reference["losses"]
    original = torch.cat(recorded["dice_per_call"]).mean()  # over all masks, as the authors' own code
    close(losses["loss_mask"], recorded["loss_mask"] if shared_cells == "mmdet" else original, 2e-6)
    close(losses["loss_category"], recorded["loss_cls"], 2e-6)
    if shared_cells == "mmdet":
        (losses["loss_mask"] + losses["loss_category"]).backward()
        norms = rename_solov2({k: torch.tensor(v) for k, v in recorded["grads"]["norms"].items()})
        parameters = dict(net.named_parameters())
        for name, norm in norms.items():
            close(parameters[name].grad.norm(), norm, 1e-4)
        for ours, theirs in zip(inputs, recorded["grads"]["input_norms"], strict=True):
            close(ours.grad.norm(), theirs, 1e-4)


def test_a_batch_without_objects_costs_what_the_reference_says(net, reference):
    empty = [{k: v[:0] for k, v in target.items()} for target in targets_of(reference)]
    losses = net.loss(net.predict_pyramid(features(reference, "b")), empty)
    assert losses["loss_mask"] == 0
    close(losses["loss_category"], reference["losses"]["losses_empty"]["loss_cls"], 1e-5)


def test_one_mask_a_cell_when_only_the_last_object_is_trained_on(net, reference):
    target, padded = targets_of(reference)[0], tuple(reference["config"]["train_image"])
    every = net.assign(target, padded)
    last = build(reference, shared_cells="last").assign(target, padded)
    assert len(last.cells.unique()) == len(last.cells) == len(every.cells.unique())
