"""What the verbs print of a report."""

from typing import Any

from instseg.cli.tables import metrics_table

FIGURES = {"ap": 0.4, "ap50": 0.6, "ap75": 0.5, "ap_small": None, "ap_medium": -1.0, "ap_large": 0.4, "ar": 0.5}
CLASSES = [{"name": name, "instances": 3, "ap": None, "ap50": None, "box_ap": 0.4, "box_ap50": 0.6} for name in "ab"]


def report(**kinds: Any) -> dict[str, Any]:
    return {**kinds, "per_class": CLASSES, "images": 2, "instances": 6, "max_dets": 100}


def test_a_box_detector_has_box_ap_and_no_mask_ap() -> None:
    text = metrics_table(report(bbox=FIGURES))
    assert "boxes  0.400" in text and "masks" not in text and "mask AP" not in text
    assert text.splitlines()[-1].split() == ["b", "3", "0.400", "0.600"]


def test_masks_come_first_and_nothing_to_measure_is_a_dash() -> None:
    lines = metrics_table(report(segm=FIGURES, bbox=FIGURES)).splitlines()
    assert lines[2].split()[0] == "masks" and lines[3].split()[0] == "boxes" and " - " in lines[2]
