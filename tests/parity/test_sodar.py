"""SODAR against arrays recorded from the authors' released heads (AggMask), at the tolerances measured for them."""

import copy
import os

import pytest
import torch

from instseg.core.geometry import InputGeometry
from instseg.models.base import Step
from instseg.models.sodar.sodar import SODAR, SODARConfig, SODARSOLOv2, SODARSOLOv2Config
from instseg.ops.neighbors import Locations, neighbor_cells
from instseg.ops.point_nms import point_nms
from instseg.weights.published import code_base

from .recorded import load, target_of, unpack_masks

# The repository holds two recordings with one of their inputs itself.
COMPLETE = bool(os.environ.get("INSTSEG_FIXTURES"))
FILES = ["agg_cls_mask", "star_mask"]
if COMPLETE:
    FILES += ["agg_plain", "agg_cls", "agg_mask", "agg_mask_plus5", "agg_square9", "agg_self1", "agg_none0"]
    FILES += ["agg_noctx", "star_plain", "star_ctxmask"]
INPUTS = ["a", "b"] if COMPLETE else ["b"]


def near(ours, theirs, tolerance, relative=0.0):
    torch.testing.assert_close(ours.detach().float(), torch.as_tensor(theirs).float(), atol=tolerance, rtol=relative)


@pytest.fixture(scope="module", params=FILES)
def reference(request, references):
    return read(references.root / "aggmask", request.param)


def read(folder, name):
    recorded = load(folder / f"{name}.pt")
    recorded["inputs"] = load(folder / recorded["inputs"])
    return recorded


@pytest.fixture(scope="module")
def net(reference):
    return build(reference)


def renamed(tensors, reference):
    """The head's names to ours; with all its names, for a part of them says too little of whose they are."""
    named = dict.fromkeys(reference["state_dict"]) | tensors
    theirs = {f"bbox_head.{name}": value for name, value in named.items()}
    code = code_base(theirs)
    found = code.convert(theirs)
    assert code.NAME == "AggMask" and not found.unknown
    return {name: value for name, value in found.state.items() if value is not None}


def build(reference):
    """The network that the recorded head is, from its constructor's arguments."""
    head, test, state = (reference["config"]["head"], reference["config"]["test_cfg"], reference["state_dict"])
    star, n = reference["config"]["kind"] == "star", reference["config"]["gathered"]
    context_layers = head["context_agg_layer"] if n == 0 or "context_fusion_convs.0.weight" in state else 0
    fields = {
        "backbone": "resnet10t",
        "num_classes": head["num_classes"] - 1,
        "fpn_channels": head["in_channels"],
        "tower_channels": head["seg_feat_channels"],
        "tower_convs": head["stacked_convs"],
        "grids": head["cls_grid_number"],
        "mask_grids": head["mask_grid_number"],
        "scale_ranges": [tuple(r) for r in head["scale_ranges"]],
        "center_region": head["sigma"],
        "candidate_threshold": test["score_thr"],
        "mask_threshold": test["mask_thr"],
        "min_score": test["update_thr"],
        "nms_pre": test["nms_pre"],
        "max_instances": test["max_per_img"],
        "min_pixels": 10,
        "neighbors": {0: 4, 1: 0, 4: 4, 5: 4, 9: 8}[n],
        "neighbor_cells": "plus" if n == 5 else "released",
        "aggregation_layers": head["conv_layer_for_comb"],
        "aggregation_kernel": head["conv_kernel_for_comb"],
        "aggregation_width": head["conv_intermediate_channel_number_for_comb"],
        "context": "only" if n == 0 else "with" if context_layers else "without",
        "context_layers": max(context_layers, 1),
        "context_channels": max(head["context_feature_channel"], 1),
        "weight_kernel": state["learned_weights.weight"].shape[-1],
        "weight_activation": "none" if star or reference["config"]["name"] == "agg_cls_mask" else "tanh",
    }
    if star:
        small = {"mask_hidden": head["seg_feat_channels"], "mask_channels": head["seg_feat_channels"]}
        source = "mask_feature" if state["context_fusion_convs.0.weight"].shape[1] == head["in_channels"] else "pyramid"
        net = SODARSOLOv2(SODARSOLOv2Config(**fields, **small, context_source=source))
    else:
        net = SODAR(SODARConfig(**fields))
    missing, unexpected = net.load_state_dict(
        {k: v.float() for k, v in renamed(state, reference).items()}, strict=False
    )
    assert not unexpected
    assert all(key.startswith(("backbone.", "fpn.")) for key in missing)
    assert net.aggregation.aggregate.maps == n
    return net.eval()


def features(reference, name, requires_grad=False):
    return [f.float().requires_grad_(requires_grad) for f in reference["inputs"][name]["feats"]]


def targets_of(reference):
    return [target_of(g) for g in reference["inputs"]["gt"]]


def run(net, reference, name, inputs=None):
    """Raw outputs of the recorded pyramid, and how each image was shown."""
    views = [
        InputGeometry(tuple(m["img_shape"][:2]), *[tuple(m["ori_shape"][:2])] * 2)
        for m in reference["inputs"][name]["metas"]
    ]
    sizes = torch.tensor([view.content for view in views])
    return net.predict_pyramid(features(reference, name) if inputs is None else inputs, sizes), views


def same_statistics(ours, recorded, tolerance):
    """Compares with the shape, sums and range that stand for a large tensor."""
    assert list(ours.shape) == list(recorded["shape"])
    x = ours.detach().double()
    for key, value in {"sum": x.sum(), "abs_sum": x.abs().sum()}.items():
        assert abs(float(value) - recorded[key]) <= tolerance * x.numel(), key
    assert abs(float((x**2).sum()) - recorded["sq_sum"]) <= 2 * tolerance * float(x.abs().sum()) + tolerance
    assert abs(float(x.min()) - recorded["min"]) <= tolerance and abs(float(x.max()) - recorded["max"]) <= tolerance


def representations(net, out, level):
    """All raw maps of a level, (B, S' S', h, w)."""
    first, s = out.aggregation.targets.first[level], net.config.map_grids[level]
    cells = torch.arange(s * s) + (first if len(net.maps) == 1 else 0)
    at = 0 if len(net.maps) == 1 else level
    return torch.stack([net.representations(out, image, at, cells) for image in range(len(out.cls_logits[0]))])


@pytest.mark.parametrize("name", INPUTS)
def test_raw_outputs_are_those_of_the_reference(net, reference, name):
    compare_raw(net, reference, name)


def compare_raw(net, reference, name):
    raw = reference["raw_outputs"][name]
    with torch.no_grad():
        out, _ = run(net, reference, name)
        for ours, logits in zip(out.cls_logits, raw["cls_logits"], strict=True):
            near(ours, logits, 5e-5)
        for ours, scores in zip(out.cls_logits, raw.get("cls_scores", []), strict=False):
            near(point_nms(ours.sigmoid()).permute(0, 2, 3, 1), scores, 5e-5)
        if raw.get("context_stats"):
            same_statistics(out.aggregation.context, raw["context_stats"], 5e-5)
        if "context" in raw and raw["context"] is not None:
            near(out.aggregation.context[:, raw["context_channels"]], raw["context"], 5e-5)
        if "kernel_preds" in raw:
            for ours, theirs in zip(out.kernels, raw["kernel_preds"], strict=True):
                near(ours[:, raw["kernel_preds_channels"]], theirs, 1e-4)
            near(out.mask_features[0][:, raw["mask_feats_channels"]], raw["mask_feats"][0], 1e-4)
        for level in range(len(net.config.grids)):
            compare_level(net, raw, out, level)


def compare_level(net, raw, out, level):
    config, aggregation = net.config, net.aggregation
    s = config.grids[level]
    first = out.aggregation.sources.first[level]
    cells = first + torch.arange(s * s)
    if config.context != "only":
        recorded, t = raw["spatial_index"][level].long(), config.map_grids[level]
        ours = neighbor_cells(torch.arange(s * s), (s, s), (t, t), config.pattern, config.mapping)
        assert torch.equal(ours, recorded[:, 2:3] if config.pattern == "self" else recorded)
        maps = representations(net, out, level)
        same_statistics(maps, raw["mask_preds_stats"][level], 1e-4)
        if "mask_preds" in raw:
            near(maps[:, raw["mask_preds_channels"][level]], raw["mask_preds"][level], 1e-4)
    images = range(len(out.cls_logits[0]))
    weights = torch.stack([aggregation.weights(out.aggregation, image, cells) for image in images])
    weights = weights.transpose(1, 2).unflatten(2, (s, s))  # B, D, S, S
    same_statistics(weights, raw["agg_weights_stats"][level], 5e-5)
    if "agg_weights" in raw:
        near(weights[:, raw["agg_weights_channels"]], raw["agg_weights"][level], 5e-5)
    for image in images:
        chosen = torch.as_tensor(raw["agg_cells"][level][image]).long()
        whole = len(net.maps) == 1
        logits = net.mask_logits(out, image, 0 if whole else level, chosen + (first if whole else 0))
        for ours, recorded in zip(logits, raw["agg_logits_stats"][level][image], strict=True):
            same_statistics(ours, recorded, 1e-3)
        if "agg_logits" in raw:
            near(logits[:, ::2, ::2], raw["agg_logits"][level][image], 1e-3)
        if "agg_logits_full" in raw:
            near(logits[:1], raw["agg_logits_full"][level][image], 1e-3)


@pytest.mark.parametrize("name", INPUTS)
def test_results_are_those_of_the_reference(net, reference, name):
    compare_results(net, reference, name)


def compare_results(net, reference, name):
    with torch.no_grad():
        out, views = run(net, reference, name)
        results = [f.instances.to_image(view) for f, view in zip(net.decode(out), views, strict=True)]
        scores = torch.cat([point_nms(p.sigmoid()).flatten(2) for p in out.cls_logits], dim=2)
    for image, (ours, theirs) in enumerate(zip(results, reference["results"][name], strict=True)):
        assert int((scores[image] > net.config.candidate_threshold).sum()) == theirs["n_above_score_thr"]
        assert ours.labels.tolist() == theirs["labels"].tolist()
        near(ours.scores, theirs["scores"], 5e-4)
        masks = unpack_masks(theirs["masks"])
        assert int((ours.masks.bool()[: len(masks)] != masks).sum()) <= 20
        assert (ours.masks.areas() - theirs["mask_areas"]).abs().max() <= 5


def test_targets_are_those_of_the_reference(net, reference):
    compare_targets(net, reference)


def compare_targets(net, reference):
    padded = tuple(reference["config"]["train_image"])
    for target, theirs in zip(targets_of(reference), reference["targets"], strict=True):
        assignment = net.assign(target, padded)
        labels = torch.cat([target.labels + 1, torch.tensor([0])])[assignment.matched_gt]
        for level, s in enumerate(net.config.grids):
            first, last = Locations.square(net.config.grids).first[level : level + 2]
            inside = (assignment.cells >= first) & (assignment.cells < last)
            cells = assignment.cells[inside] - first
            assert sorted(cells.tolist()) == theirs["pos_masks"][level].nonzero()[:, 0].tolist()
            assert torch.equal(labels[first:last].view(s, s), theirs["labels"][level].long())


def test_losses_and_gradients_are_those_of_the_reference(reference):
    compare_losses(build(reference).train(), reference)


def compare_losses(net, reference):
    inputs = features(reference, "b", requires_grad=True)
    losses = net.loss(run(net, reference, "b", inputs)[0], targets_of(reference), Step()).losses
    theirs = reference["losses"]
    near(losses["loss_mask"], theirs["loss_mask"], 1e-5, 1e-5)
    near(losses["loss_category"], theirs["loss_cls"], 1e-5, 1e-5)
    sum(losses.values()).backward()
    parameters = dict(net.named_parameters())
    norms = renamed({k: torch.as_tensor(v) for k, v in theirs["grads"]["norms"].items()}, reference)
    for name, norm in norms.items():
        near(parameters[name].grad.norm(), norm, 1e-6, 2e-3)
    for name, gradient in renamed(theirs["grads"]["tensors"], reference).items():
        near(parameters[name].grad, gradient, 1e-3)
    for ours, norm in zip(inputs, theirs["grads"]["input_norms"], strict=True):
        near(ours.grad.norm(), norm, 1e-6, 1e-3)


def test_arrays_moved_by_ten_times_their_tolerance_are_noticed(net, reference):
    """Each comparison above can fail."""

    def moved(change):
        other = copy.deepcopy(reference)
        change(other)
        return other

    def raw(key, amount):
        def change(other):
            values = other["raw_outputs"]["b"][key]
            first = values[0] if isinstance(values, list) else values
            (first[0] if isinstance(first, list) else first).add_(amount)

        return change

    amounts = {"cls_logits": 5e-4, "mask_preds": 1e-3, "agg_weights": 5e-4, "agg_logits": 1e-2, "spatial_index": 1}
    amounts |= {"kernel_preds": 1e-3, "mask_feats": 1e-3} if "kernel_preds" in reference["raw_outputs"]["b"] else {}
    for key, amount in amounts.items():
        if key in ("mask_preds", "spatial_index") and net.config.context == "only":
            continue
        with pytest.raises(AssertionError):
            compare_raw(net, moved(raw(key, amount)), "b")
    if "context" in reference["raw_outputs"]["b"] and net.config.context != "without":
        with pytest.raises(AssertionError):
            compare_raw(net, moved(raw("context", 5e-4)), "b")
    with pytest.raises(AssertionError):
        compare_results(net, moved(lambda other: other["results"]["b"][0]["scores"].add_(5e-3)), "b")
    with pytest.raises(AssertionError):
        compare_results(net, moved(lambda other: other["results"]["b"][0]["mask_areas"].add_(50)), "b")
    with pytest.raises(AssertionError):
        compare_targets(net, moved(lambda other: other["targets"][0]["labels"][0].add_(1)))
    for key in ("loss_mask", "loss_cls"):
        with pytest.raises(AssertionError):
            compare_losses(
                build(reference).train(),
                moved(lambda other, key=key: other["losses"].update({key: other["losses"][key] * 1.0002})),
            )
    name, norm = max(reference["losses"]["grads"]["norms"].items(), key=lambda item: item[1])
    with pytest.raises(AssertionError):
        compare_losses(
            build(reference).train(),
            moved(lambda other: other["losses"]["grads"]["norms"].update({name: 1.02 * norm})),
        )
