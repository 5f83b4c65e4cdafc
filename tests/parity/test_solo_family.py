"""The SOLO family against arrays recorded from mmdetection 3.3, at the tolerances measured for them."""

import copy
import zlib
from functools import partial

import numpy as np
import pytest
import torch

from instseg.core.geometry import InputGeometry
from instseg.models.base import Step
from instseg.models.solo import decode
from instseg.models.solo.decoupled_solo import DecoupledSOLO, DecoupledSOLOConfig
from instseg.models.solo.solo import SOLO, SOLOConfig, all_masks
from instseg.models.solo.solov2 import SOLOv2, SOLOv2Config
from instseg.ops.point_nms import point_nms
from instseg.ops.resize import resize

from .recorded import load, rename_head, target_of, unpack_masks

FILES = ["solo", "decoupled_solo", "decoupled_solo_light", "solov2", "solov2_light"]


@pytest.fixture(scope="module", params=FILES)
def reference(request, references):
    return load(references.root / "mmdet" / f"{request.param}.pt")


@pytest.fixture(scope="module")
def net(reference):
    return build(reference)


def is_dynamic(reference):
    return "mask_feature_head" in reference["config"]["head"]


def build(reference, **changes):
    head, test = reference["config"]["head"], reference["config"]["test_cfg"]
    fields = {
        "backbone": "resnet10t",
        "num_classes": head["num_classes"],
        "fpn_channels": head["in_channels"],
        "tower_channels": head["feat_channels"],
        "tower_convs": head["stacked_convs"],
        "grids": head["num_grids"],
        "scale_ranges": [tuple(r) for r in head["scale_ranges"]],
        "center_region": head["pos_scale"],
        "candidate_threshold": test["score_thr"],
        "mask_threshold": test["mask_thr"],
        "min_score": test["filter_thr"],
        "nms_pre": test["nms_pre"],
        "nms_kernel": test["kernel"],
        "nms_sigma": test["sigma"],
        "max_instances": test["max_per_img"],
        **changes,
    }
    if is_dynamic(reference):
        feature = head["mask_feature_head"]
        fields |= {"mask_hidden": feature["feat_channels"], "mask_channels": feature["out_channels"]}
        net = SOLOv2(SOLOv2Config(**fields))
    elif "conv_mask_list.0.weight" in reference["state_dict"]:
        net = SOLO(SOLOConfig(**fields))
    else:
        shared = "mask_convs.0.conv.weight" in reference["state_dict"]
        net = DecoupledSOLO(DecoupledSOLOConfig(**fields, shared_tower=shared))
    missing, unexpected = net.load_state_dict(rename_head(reference["state_dict"]), strict=False)
    assert not unexpected
    assert all(key.startswith(("backbone.", "fpn.")) for key in missing)
    return net.eval()


def features(reference, name, requires_grad=False):
    return [f.float().requires_grad_(requires_grad) for f in reference["inputs"][name]["feats"]]


def targets_of(reference):
    images = reference["train_inputs"]["gt"]
    return [target_of(g) for g in images]


def run(net, reference, name, inputs=None):
    """Raw outputs of the recorded pyramid, and how each image was shown."""
    views = [
        InputGeometry(tuple(m["img_shape"][:2]), *[tuple(m["ori_shape"][:2])] * 2)
        for m in reference["inputs"][name]["metas"]
    ]
    sizes = torch.tensor([view.content for view in views])
    return net.predict_pyramid(features(reference, name) if inputs is None else inputs, sizes), views


def near(ours, theirs, tolerance, relative=0.0):
    torch.testing.assert_close(ours.detach(), torch.as_tensor(theirs), atol=tolerance, rtol=relative)


def chosen(raw, kind, level):
    """The channels that were recorded of a level's maps."""
    channels = raw.get(f"{kind}_channels")
    return slice(None) if channels is None else channels[level]


@pytest.mark.parametrize("name", ["a", "b"])
def test_raw_outputs_are_those_of_the_reference(net, reference, name):
    compare_raw(net, reference, name)


def compare_raw(net, reference, name):
    raw = reference["raw_outputs"][name]
    with torch.no_grad():
        out, _ = run(net, reference, name)
        for ours, theirs in zip(out.cls_logits, raw["cls_preds"], strict=True):
            near(ours if is_dynamic(reference) else point_nms(ours.sigmoid()), theirs, 8e-6)
        if is_dynamic(reference):
            for ours, theirs in zip(out.kernels, raw["kernel_preds"], strict=True):
                near(ours, theirs, 8e-6)
            theirs = raw["mask_feats"][0] if isinstance(raw["mask_feats"], list) else raw["mask_feats"]
            near(out.mask_features[0][:, chosen(raw, "mask_feats", 0)], theirs, 8e-6)
            return
        maps = {"mask_preds": all_masks(out.features, net.mask_output)} if isinstance(net, SOLO) else {}
        if isinstance(net, DecoupledSOLO):
            maps = {"mask_preds_x": out.x, "mask_preds_y": out.y}
        for kind, levels in maps.items():
            for level, ours in enumerate(levels):
                near(resize(ours.sigmoid(), out.size)[:, chosen(raw, kind, level)], raw[kind][level], 4e-6)


@pytest.mark.parametrize("name", ["a", "b"])
def test_results_are_those_of_the_reference(net, reference, name):
    compare_results(net, reference, name)


def compare_results(net, reference, name):
    with torch.no_grad():
        out, views = run(net, reference, name)
        results = [f.instances.to_image(view) for f, view in zip(net.decode(out), views, strict=True)]
    for ours, theirs in zip(results, reference["results"][name], strict=True):
        assert len(ours) > 0
        assert ours.labels.tolist() == theirs["labels"].tolist()
        near(ours.scores, theirs["scores"], 6e-5)
        masks = unpack_masks(theirs["masks"])
        assert int((ours.masks.bool() != masks).sum()) <= 20  # what the recording advises; its own two runs differ by 5


@pytest.mark.parametrize("name", ["a", "b"])
def test_candidates_before_nms_are_those_of_the_reference(net, reference, name):
    compare_candidates(net, reference, name)


def compare_candidates(net, reference, name):
    with torch.no_grad():
        out, _ = run(net, reference, name)
        scores = torch.cat([point_nms(p.sigmoid()).flatten(2) for p in out.cls_logits], dim=2)
        for image, theirs in enumerate(reference["results"][name]):
            cells, labels = (net.config.candidate_threshold < scores[image].T).nonzero(as_tuple=True)
            assert len(cells) == theirs["n_above_score_thr"]
            soft = decode.ImageMasks(image, out.size, net.maps, partial(net.mask_probabilities, out))
            best, kept, binary, _ = decode.candidates(net.config, soft, cells, scores[image].T[cells, labels])
            recorded = theirs["nms"]
            order = recorded["in_scores"].argsort(descending=True, stable=True)[: net.config.nms_pre]
            near(best, recorded["in_scores"][order], 6e-5)
            assert labels[kept].tolist() == recorded["in_labels"][order].tolist()
            areas = binary.sum(dim=(1, 2))
            assert (areas - recorded["in_mask_area"][order]).abs().max() <= 1


def compare_targets(net, reference):
    padded = tuple(reference["config"]["train_image"])
    for image, (target, theirs) in enumerate(zip(targets_of(reference), reference["targets"], strict=True)):
        assignment = net.assign(target, padded)
        labels = torch.cat([target.labels, torch.tensor([net.config.num_classes])])[assignment.matched_gt]
        first = 0
        for level, s in enumerate(net.config.grids):
            inside = (assignment.cells >= first) & (assignment.cells < first + s * s)
            cells = assignment.cells[inside] - first
            if is_dynamic(reference):
                assert cells.tolist() == list(theirs["pos_indexes"][level]), image
            elif "pos_masks" in theirs:
                assert sorted(cells.tolist()) == theirs["pos_masks"][level].flatten().nonzero()[:, 0].tolist()
            else:
                rows_columns = theirs["xy_pos_indexes"][level]
                assert sorted(cells.tolist()) == sorted((rows_columns[:, 0] * s + rows_columns[:, 1]).tolist())
            assert torch.equal(labels[first : first + s * s].view(s, s), theirs["labels"][level])
            first += s * s


def test_targets_are_those_of_the_reference(net, reference):
    compare_targets(net, reference)


@pytest.mark.parametrize("shared_cells", ["mmdet", "all"])
def test_losses_and_gradients_are_those_of_the_reference(reference, shared_cells):
    if not is_dynamic(reference) and shared_cells == "all":
        pytest.skip("only SOLOv2 lets objects share a cell")
    net = build(reference, **({"shared_cells": shared_cells} if is_dynamic(reference) else {})).train()
    compare_losses(net, reference, shared_cells == "mmdet")


def compare_losses(net, reference, as_mmdet):
    inputs = features(reference, "b", requires_grad=True)
    losses = net.loss(run(net, reference, "b", inputs)[0], targets_of(reference), Step()).losses
    recorded = reference["losses"]
    original = torch.cat(recorded["dice_per_call"]).mean()  # over all masks, as the authors' own code
    near(losses["loss_mask"], recorded["loss_mask"] if as_mmdet else original, 2e-6, 2e-6)
    near(losses["loss_category"], recorded["loss_cls"], 2e-6, 2e-6)
    if as_mmdet:
        (losses["loss_mask"] + losses["loss_category"]).backward()
        norms = rename_head({k: torch.as_tensor(v) for k, v in recorded["grads"]["norms"].items()})
        parameters = dict(net.named_parameters())
        for name, norm in norms.items():
            near(parameters[name].grad.norm(), norm, 1e-4, 1e-4)
        for ours, theirs in zip(inputs, recorded["grads"]["input_norms"], strict=True):
            near(ours.grad.norm(), theirs, 1e-4, 1e-4)


def test_a_batch_without_objects_costs_what_the_reference_says(net, reference):
    empty = [target_of(g, 0) for g in reference["train_inputs"]["gt"]]
    losses = net.loss(run(net, reference, "b")[0], empty, Step()).losses
    assert losses["loss_mask"] == 0
    near(losses["loss_category"], reference["losses"]["losses_empty"]["loss_cls"], 1e-5, 1e-5)


def test_one_mask_a_cell_when_only_the_last_object_is_trained_on(net, reference):
    if not is_dynamic(reference):
        pytest.skip("only SOLOv2 lets objects share a cell")
    target, padded = targets_of(reference)[0], tuple(reference["config"]["train_image"])
    every = net.assign(target, padded)
    last = build(reference, shared_cells="last").assign(target, padded)
    assert len(last.cells.unique()) == len(last.cells) == len(every.cells.unique())


def test_arrays_moved_by_ten_times_their_tolerance_are_noticed(net, reference):
    """Each comparison above can fail."""
    moved = copy.deepcopy(reference)
    raw = moved["raw_outputs"]["a"]
    first = next(k for k in ("mask_preds", "mask_preds_x", "mask_feats") if k in raw)
    maps = raw[first][0] if isinstance(raw[first], list) else raw[first]
    maps += 8e-5 if is_dynamic(reference) else 4e-5
    with pytest.raises(AssertionError):
        compare_raw(net, moved, "a")
    moved = copy.deepcopy(reference)
    moved["raw_outputs"]["a"]["cls_preds"][0] += 8e-5
    with pytest.raises(AssertionError):
        compare_raw(net, moved, "a")
    moved = copy.deepcopy(reference)
    moved["results"]["a"][0]["scores"] += 6e-4
    with pytest.raises(AssertionError):
        compare_results(net, moved, "a")
    moved = copy.deepcopy(reference)
    masks = unpack_masks(moved["results"]["a"][0]["masks"])
    masks.view(-1)[:200] ^= True
    packed = zlib.compress(np.packbits(masks.numpy().reshape(-1)).tobytes())
    moved["results"]["a"][0]["masks"]["zlib_packbits"] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    with pytest.raises(AssertionError):
        compare_results(net, moved, "a")
    moved = copy.deepcopy(reference)
    moved["results"]["a"][0]["nms"]["in_scores"] += 6e-4
    with pytest.raises(AssertionError):
        compare_candidates(net, moved, "a")
    moved = copy.deepcopy(reference)
    moved["targets"][0]["labels"][0][0, 0] += 1
    with pytest.raises(AssertionError):
        compare_targets(net, moved)
    trained = build(reference, **({"shared_cells": "mmdet"} if is_dynamic(reference) else {})).train()
    for key in ("loss_mask", "loss_cls"):
        moved = copy.deepcopy(reference)
        moved["losses"][key] = moved["losses"][key] * (1 + 4e-5)
        with pytest.raises(AssertionError):
            compare_losses(trained, moved, True)
    moved = copy.deepcopy(reference)
    norms = moved["losses"]["grads"]["norms"]
    norms[next(iter(norms))] *= 1.002
    with pytest.raises(AssertionError):
        compare_losses(trained, moved, True)
