"""Matrix NMS against arrays recorded from mmdetection 3.3."""

import copy

import pytest
import torch

from instseg.ops.mask_iou import mask_iou
from instseg.ops.matrix_nms import matrix_nms

from .recorded import load, unpack_masks


@pytest.fixture(scope="module")
def recorded(references):
    return load(references.root / "mmdet" / "matrix_nms.pt")


@pytest.mark.parametrize("case", range(6))
def test_decayed_scores_are_those_of_the_reference(recorded, case):
    compare(recorded["inputs"], recorded["results"]["cases"][case])


def test_scores_moved_by_ten_times_the_tolerance_are_noticed(recorded):
    moved = copy.deepcopy(recorded["results"]["cases"][0])
    moved["scores"] += 1e-5
    with pytest.raises(AssertionError):
        compare(recorded["inputs"], moved)


def compare(inputs, expected):
    params = expected["params"]
    order = inputs["scores"].argsort(descending=True, stable=True)[: params.get("nms_pre") or None]
    masks, labels = unpack_masks(inputs["masks"])[order], inputs["labels"][order]
    decayed = matrix_nms(
        inputs["scores"][order], labels, mask_iou(masks), params.get("kernel", "gaussian"), params.get("sigma", 2.0)
    )
    again = decayed.argsort(descending=True, stable=True)
    again = again[decayed[again] >= params.get("filter_thr", -1)]
    again = again[: params.get("max_num") or None]
    torch.testing.assert_close(decayed[again], expected["scores"], atol=1e-6, rtol=0)
    assert order[again].tolist() == expected["keep_inds"].tolist()
    assert labels[again].tolist() == expected["labels"].tolist()
