"""Annotation files as people have them: ids, sizes and text of every kind are read where their meaning is clear."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from instseg.core.errors import DataError
from instseg.data.dataset import ground_truth
from instseg.data.images.read import ImageRule
from instseg.data.open import open_dataset
from instseg.inspect.check import check_dataset


def reopened(folder: Any, text: str | bytes) -> Any:
    folder.json.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_dataset(folder.path)


def test_a_byte_order_mark_comments_trailing_commas_and_nan_are_read_over(folder: Any) -> None:
    text = json.dumps(folder.content)
    for changed in (
        b"\xef\xbb\xbf" + text.encode(),
        text.encode("utf-16"),
        "// written by hand\n" + text.replace('"images"', '/* all */ "images"', 1),
        text.replace('"categories"', ' "note": "http://no.comment", // here\n "categories"', 1),
        text[:-1].rstrip("]") + ",],}",
        text.replace('"area": 80', '"area": NaN'),
        text.replace('"area": 80', '"area": Infinity, "score": -Infinity'),
    ):
        dataset = reopened(folder, changed)
        assert [len(dataset[i].labels) for i in range(2)] == [1, 1]
        assert dataset[0].masks.sum() == 80


def test_records_by_id_instead_of_lists_are_read(folder: Any) -> None:
    for key in ("images", "annotations"):
        folder.content[key] = {str(entry["id"]): entry for entry in folder.content[key]}
    assert [len(open_dataset(folder.save())[i].labels) for i in range(2)] == [1, 1]


def test_a_windows_encoding_is_read(folder: Any) -> None:
    folder.content["categories"][0]["name"] = "Gerät"
    text = json.dumps(folder.content, ensure_ascii=False)
    assert reopened(folder, text.encode("cp1252")).categories.names == ("Gerät",)


@pytest.mark.parametrize("kind", [str, float, lambda v: f" {v} "])
def test_ids_and_sizes_are_read_as_text_and_as_floats(folder: Any, kind: Any) -> None:
    for image in folder.content["images"]:
        image.update(id=kind(image["id"]), width=kind(image["width"]), height=kind(image["height"]))
    for entry in folder.content["annotations"]:
        entry.update(id=kind(entry["id"]), image_id=kind(entry["image_id"]), category_id=kind(1))
    folder.content["categories"] = [{"id": kind(1), "name": "cell"}]
    dataset = open_dataset(folder.save())
    assert dataset.image_ids.tolist() == [1, 2]
    assert dataset.categories.ids == (1,)
    assert [len(dataset[i].labels) for i in range(2)] == [1, 1]
    assert check_dataset(folder.path).ok


@pytest.mark.parametrize("absent", [None, 0, -1, "", float("nan")])
def test_sizes_that_a_record_lacks_come_from_the_picture(folder: Any, absent: Any) -> None:
    folder.content["images"][0].update(width=absent, height=absent)
    del folder.content["images"][1]["width"]
    dataset = open_dataset(folder.save())
    assert dataset.sizes.tolist() == [[30, 40], [30, 40]]
    assert dataset[0].masks.sum() == 80


def test_one_known_side_is_compared_alone(folder: Any) -> None:
    del folder.content["images"][0]["width"]
    folder.content["images"][1].update(width=None, height=31)
    with pytest.raises(DataError, match=r"image 2 .*the record says 0 x 31"):
        open_dataset(folder.save())


def test_a_broken_size_is_taken_from_the_picture_and_reported(folder: Any) -> None:
    folder.content["images"][0]["width"] = 40.5
    assert open_dataset(folder.save()).sizes[0].tolist() == [30, 40]
    (problem,) = check_dataset(folder.path).problems
    assert (problem.kind, problem.severity) == ("image_size", "warning")
    assert "40.5 x 30" in problem.message


def test_swapped_sides_are_said_to_be(folder: Any) -> None:
    folder.content["images"][0].update(width=30, height=40)
    with pytest.raises(DataError, match=r"40 x 30, the record says 30 x 40.*are width and height swapped"):
        open_dataset(folder.save())


def test_ids_that_are_text_are_numbered_and_this_is_said(folder: Any) -> None:
    for number, image in enumerate(folder.content["images"]):
        image["id"] = f"img-{number}"
        folder.content["annotations"][number]["image_id"] = f"img-{number}"
        folder.content["annotations"][number]["category_id"] = "cell"
    folder.content["categories"] = [{"id": "cell", "name": "cell"}, {"id": "dog", "name": "dog"}]
    dataset = open_dataset(folder.save())
    assert dataset.image_ids.tolist() == [1, 2]
    assert (dataset.categories.names, dataset.categories.ids) == (("cell", "dog"), (1, 2))
    assert [len(dataset[i].labels) for i in range(2)] == [1, 1]
    kinds = {problem.kind for problem in check_dataset(folder.path).problems}
    assert kinds == {"text_ids"}


@pytest.mark.parametrize("ids", [(-3, -2), (-33, 2**63 - 1), (2**64 + 7, 2**64 + 8)])
def test_negative_and_huge_ids_are_kept(folder: Any, ids: tuple[int, int]) -> None:
    for number, image in zip(ids, folder.content["images"], strict=True):
        for entry in folder.content["annotations"]:
            if entry["image_id"] == image["id"]:
                entry["image_id"] = number
        image["id"] = number
    folder.content["categories"] = [{"id": -1, "name": "cell"}]
    for entry in folder.content["annotations"]:
        entry["category_id"] = -1
    truth = ground_truth(open_dataset(folder.save()))
    assert [image["id"] for image in truth["images"]] == list(ids)
    assert [a["category_id"] for a in truth["annotations"]] == [-1, -1]


def test_text_ids_that_differ_are_two_ids(folder: Any) -> None:
    for old, new in ((1, "1"), (2, "01")):
        for entry in folder.content["annotations"]:
            entry["image_id"] = new if entry["image_id"] == old else entry["image_id"]
        folder.content["images"][old - 1]["id"] = new
    assert [len(open_dataset(folder.save())[i].labels) for i in range(2)] == [1, 1]


def test_a_category_that_stands_twice_alike_is_one(folder: Any) -> None:
    folder.content["categories"] *= 2
    assert open_dataset(folder.save()).categories.names == ("cell",)


def test_a_lost_part_is_counted_and_the_rest_is_used(folder: Any) -> None:
    folder.annotate(segmentation=[[20, 20, 30, 20, 30, 25, 20, 25], [1, 1, 2, 2]], bbox=None)
    with pytest.warns(UserWarning, match="left out 1 annotation: 1 with a part of fewer than three points"):
        dataset = open_dataset(folder.save())
    assert dataset[0].masks[1].sum() == 50


def test_a_picture_named_by_address_alone_is_found(folder: Any) -> None:
    for image in folder.content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/images/{image.pop('file_name')}"
    assert len(open_dataset(folder.save())) == 2


def test_a_box_that_is_xyxy_is_said_to_be_and_no_other(folder: Any) -> None:
    folder.content["annotations"][0].update(bbox=[2, 2, 12, 10])
    folder.content["annotations"][1].update(bbox=[2, 2, 9, 7])  # a pixel short, as several tools write it
    report = check_dataset(folder.save())
    assert [(p.kind, p.record) for p in report.problems] == [("bbox", "annotation 1 of image 1")]
    assert "xyxy" in report.problems[0].message
    assert open_dataset(folder.path).records[0].annotations[0].box == (2, 2, 12, 10)


def test_a_thin_object_with_a_pixel_less_is_not_called_xyxy(folder: Any) -> None:
    folder.annotate(segmentation=[[20, 20, 22, 20, 22, 21, 20, 21]], bbox=[20, 20, 1, 0])
    folder.annotate(segmentation=[[20, 25, 30, 25, 30, 26, 20, 26]], bbox=[20, 25, 9, 0])
    assert "xyxy" not in check_dataset(folder.save()).text()


def test_annotation_918_does_not_stop_the_training(folder: Any) -> None:
    """COCO's own train2017 has a polygon of no height."""
    folder.annotate(id=918, segmentation=[[10.0, 20.0, 30.0, 20.0, 25.0, 20.0]])
    with pytest.warns(UserWarning, match=r"left out 1 annotation: 1 without a pixel; `instseg data check` lists them"):
        dataset = open_dataset(folder.save())
    assert len(dataset[0].labels) == 1
    report = check_dataset(folder.path)
    assert report.ok
    assert "left out [zero_area]" in report.text()
    assert "annotation 918 of image 1" in report.text()


def exif_rotated(path: Path) -> None:
    """The stored pixels stay 40 x 30, a viewer shows 30 x 40."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.load()
        image.save(path, exif=exif)


def test_a_set_annotated_on_stored_pixels_is_read_so_and_the_set_remembers(folder: Any) -> None:
    for number in (1, 2):
        exif_rotated(folder.path / "images" / f"{number}.png")
    dataset = open_dataset(folder.path)
    assert dataset.image_rule.exif is False
    assert dataset[0].image.shape == (3, 30, 40)


def test_a_set_annotated_as_shown_is_turned(folder: Any) -> None:
    for number in (1, 2):
        exif_rotated(folder.path / "images" / f"{number}.png")
        folder.content["images"][number - 1].update(width=30, height=40)
        folder.content["annotations"][number - 1].update(segmentation=[[2, 2, 10, 2, 10, 12, 2, 12]])
    dataset = open_dataset(folder.save())
    assert dataset.image_rule.exif is True
    assert dataset[0].image.shape == (3, 40, 30)


def test_the_majority_decides_and_each_record_still_fits(folder: Any) -> None:
    for number in (3, 4):
        image = folder.path / "images" / f"{number}.png"
        Image.new("RGB", (40, 30)).save(image)
        folder.content["images"].append({"id": number, "file_name": image.name, "width": 40, "height": 30})
    for number in (1, 2, 3):
        exif_rotated(folder.path / "images" / f"{number}.png")
    folder.content["images"][0].update(width=30, height=40)
    dataset = open_dataset(folder.save())
    assert dataset.image_rule.exif is False
    assert [tuple(dataset[i].image.shape[1:]) for i in range(4)] == [(40, 30), (30, 40), (30, 40), (30, 40)]


def test_a_picture_whose_size_is_the_same_either_way_follows_the_rule_it_is_read_with(folder: Any) -> None:
    """As the validation images of a run, which are read by the rule of its training images."""
    upright = open_dataset(folder.path)[0].image
    orientation = Image.Exif()
    orientation[0x0112] = 3
    path = folder.path / "images" / "1.png"
    with Image.open(path) as image:
        image.load()
        image.save(path, exif=orientation)
    exif_rotated(folder.path / "images" / "2.png")
    dataset = open_dataset(folder.path)
    assert [record.exif for record in dataset.records] == [None, False]
    for rule, expected in ((False, upright), (True, upright.flip(1, 2))):
        dataset.image_rule = ImageRule(exif=rule)
        assert torch.equal(dataset[0].image, expected)
        assert dataset[1].image.shape == (3, 30, 40)  # its size shows which way it is
