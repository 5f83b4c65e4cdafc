"""What a model finds, collected by one process or several."""

import pickle
from typing import Any

import pytest
import torch

from instseg.core.errors import DataError
from instseg.evaluation.best import Best, better, measured
from instseg.evaluation.collect import Part, Share, batches_of_share
from instseg.evaluation.evaluate import evaluate, score_results


@pytest.mark.parametrize(("images", "batch", "count"), [(7, 2, 2), (1, 4, 3), (12, 3, 4), (0, 2, 2)])
def test_processes_share_the_batches_that_one_would_make(images: int, batch: int, count: int) -> None:
    alone = batches_of_share(images, batch)
    shares = [batches_of_share(images, batch, index, count) for index in range(count)]
    assert [i for part in alone.values() for i in part] == list(range(images))
    assert {n: part for share in shares for n, part in share.items()} == alone
    assert sum(map(len, shares)) == len(alone) and max(map(len, shares)) - min(map(len, shares)) <= 1


def test_what_two_processes_find_is_scored_as_one_found_it(oracle: Any, dataset: Any) -> None:
    model = oracle
    whole = evaluate(model, dataset, batch=2, progress=False)
    parts: list[list[Part]] = []

    def second(work: Any) -> list[list[Part]]:
        parts.append(pickle.loads(pickle.dumps(work())))
        return parts

    def first(work: Any) -> list[list[Part]]:
        return [work(), *parts]

    assert evaluate(model, dataset, batch=2, progress=False, share=Share(1, 2, second)) == {}
    shared = evaluate(model, dataset, batch=2, progress=False, share=Share(0, 2, first))
    clocks = {"seconds"}
    assert {k: v for k, v in shared.items() if k not in clocks} == {k: v for k, v in whole.items() if k not in clocks}


def truth() -> dict[str, Any]:
    boxes = [(1, 1, [10, 10, 20, 20]), (1, 2, [40, 10, 15, 30])]
    return {
        "images": [{"id": 1, "height": 64, "width": 64}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": k, "image_id": i, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for k, (i, c, box) in enumerate(boxes, 1)
        ],
    }


def test_boxes_alone_are_scored_without_a_mask_in_sight() -> None:
    rows = [
        {"image_id": 1, "category_id": a["category_id"], "score": 0.9, "bbox": a["bbox"]}
        for a in truth()["annotations"]
    ]
    report = score_results(truth(), rows, 100)
    assert "segm" not in report and report["bbox"]["ap"] == pytest.approx(1.0)
    value = report["bbox"]["ap"]
    assert report["best"] == {"name": "box_ap", "value": value, "direction": "max"}
    assert [row["box_ap"] for row in report["per_class"]] == pytest.approx([1.0, 1.0]) and report["confusion"][
        "matrix"
    ][0][0] == 1
    found = measured(report)
    assert found.columns == pytest.approx({"box_ap": 1.0, "box_ap50": 1.0, "box_ap75": 1.0})
    assert score_results(truth(), [], 100, masks=False)["bbox"]["ap"] == 0.0


def test_predicted_boxes_count_instead_of_those_of_the_masks(oracle: Any, dataset: Any, tmp_path: Any) -> None:
    model = oracle
    plain = model.predict_batch

    def with_boxes(images: Any, **options: Any) -> Any:
        found = plain(images, **options)
        for one in found:
            one.predicted_boxes = torch.zeros(len(one), 4) + torch.tensor([0.0, 0.0, 2.0, 2.0])
        return found

    model.predict_batch = with_boxes
    report = evaluate(model, dataset, progress=False, out=tmp_path)
    assert report["segm"]["ap"] == pytest.approx(1.0) and report["bbox"]["ap"] == 0.0 and report["best"]["name"] == "ap"
    assert "bbox" not in (tmp_path / "results.json").read_text()


def test_a_figure_has_a_direction() -> None:
    assert better(0.2, 0.1, "max") and not better(0.1, 0.1, "max")
    assert better(0.1, 0.2, "min") and not better(0.2, 0.1, "min")
    assert Best("mse", 1.0, "min").to_json()["direction"] == "min"


def test_what_fails_in_one_process_fails_in_all(oracle: Any, dataset: Any) -> None:
    def gather(work: Any) -> Any:
        raise DataError("9.png: cut short; replace it.")

    with pytest.raises(DataError, match=r"9\.png"):
        evaluate(oracle, dataset, progress=False, share=Share(1, 2, gather))
