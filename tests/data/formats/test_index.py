"""A large annotation file is read once: an index of it is kept, and records are made when they are asked for."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from instseg.core.errors import DataError
from instseg.data import open as opened
from instseg.data import opening
from instseg.data.batch import collate
from instseg.data.dataset import InstanceDataset
from instseg.data.formats import cache
from instseg.data.formats.cache import read_index
from instseg.data.open import open_dataset


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Every data set counts as large: indexed on the disk, read lazily. Returns the cache's folder."""
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MIN_BYTES", 0)
    monkeypatch.setattr(opened, "_KEPT_BYTES", 0)
    monkeypatch.setattr(opening, "HEADERS", 0)
    cache._remembered.cache_clear()
    return tmp_path / "cache" / "index"


def same(one: InstanceDataset, other: InstanceDataset) -> bool:
    return list(one.records) == list(other.records) and one.fingerprint() == other.fingerprint()


def test_a_lazy_data_set_is_the_same_as_an_eager_one(folder: Any, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.annotate(iscrowd=1)
    folder.annotate(segmentation={"size": [30, 40], "counts": [0, 600, 600]}, bbox=None)
    folder.save()
    lazy = open_dataset(folder.path, crowd="ignore")
    monkeypatch.undo()
    cache._remembered.cache_clear()
    eager = open_dataset(folder.path, crowd="ignore")
    assert same(lazy, eager)
    assert np.array_equal(lazy.sizes, eager.sizes)
    assert np.array_equal(np.array(lazy.objects()), np.array(eager.objects()))
    assert [lazy.file_name(i) for i in range(2)] == ["1.png", "2.png"]


def test_the_second_opening_reads_the_cache(folder: Any, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_dataset(folder.path)
    cache._remembered.cache_clear()  # another process
    monkeypatch.setattr(cache, "build_index", lambda file: pytest.fail("read again"))
    assert same(open_dataset(folder.path), first)
    assert len(list(large.glob("*.npz"))) == 1


def test_a_changed_file_is_read_again_and_its_old_index_goes(folder: Any, large: Path) -> None:
    open_dataset(folder.path)
    folder.annotate()
    folder.save()
    assert len(open_dataset(folder.path)[0].labels) == 2
    assert len(list(large.glob("*.npz"))) == 1


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 torn", None])
def test_a_damaged_index_is_made_again(folder: Any, large: Path, damage: bytes | None) -> None:
    first = open_dataset(folder.path)
    (file,) = large.glob("*.npz")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage is None else damage)
    cache._remembered.cache_clear()
    assert same(open_dataset(folder.path), first)


def test_a_cache_that_cannot_be_written_is_done_without(
    folder: Any, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path / "file" / "cache"))
    assert len(open_dataset(folder.path)) == 2


def test_problems_are_remembered_too(folder: Any, large: Path) -> None:
    folder.annotate(segmentation=[])
    folder.annotate(category_id=7)
    folder.save()
    for _ in range(2):
        with pytest.raises(DataError, match="has category 7"):
            open_dataset(folder.path)
        cache._remembered.cache_clear()
    index = read_index(folder.json)
    assert sorted((p.severity, p.kind) for p in index.problems.kept) == [
        ("error", "unknown_category"),
        ("left_out", "no_mask"),
    ]


def test_a_file_that_changes_while_it_is_used_is_one_clear_line(folder: Any, large: Path) -> None:
    opened = open_dataset(folder.path)
    folder.json.write_text(json.dumps(folder.content, indent=2))
    with pytest.raises(DataError, match="has changed while it was in use"):
        opened[0]
    folder.json.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        opened[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_found_while_reading_is_counted_once_in_whatever_process(
    folder: Any, large: Path, workers: int
) -> None:
    folder.annotate(segmentation=[[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]])  # some extent, but no pixel
    folder.annotate(segmentation={"size": [30, 40], "counts": "~"})
    folder.annotate(image_id=2, segmentation=[[2.0, 2, 12, 2, 12, 10, 2, 10]])  # as the one before, written otherwise
    opened = open_dataset(folder.save())
    assert opened.left_out_line() is None
    for _ in range(2):
        for _ in DataLoader(opened, batch_size=1, num_workers=workers, collate_fn=collate):
            pass
    assert opened.left_out_line() == "cells, train: left out 3 annotations: 3 found defective while reading"


def test_an_image_of_another_size_is_found_when_it_is_read(
    folder: Any, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_SAMPLE", 1)
    folder.content["images"][1].update(width=41)
    opened = open_dataset(folder.save())
    with pytest.raises(DataError, match="the record says 41 x 30"):
        opened[1]
    assert len(opened[0].labels) == 1


def test_two_processes_build_one_index(folder: Any, large: Path, tmp_path: Path) -> None:
    """The second waits and reads what the first has written."""
    import subprocess
    import sys

    script = tmp_path / "open.py"
    script.write_text(
        "import sys, time\nfrom pathlib import Path\nfrom instseg.data.formats import cache\n"
        "cache.MIN_BYTES, build = 0, cache.build_index\n"
        "def slow(file):\n    print('built'); time.sleep(1); return build(file)\n"
        "cache.build_index = slow\nprint(len(cache.read_index(Path(sys.argv[1])).labels))\n"
    )
    command = [sys.executable, str(script), str(folder.json)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ.copy()) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].split() for process in running]
    assert sorted(said) == [["2"], ["built", "2"]]


def test_subsets_and_classes_are_views_of_the_same_records(folder: Any) -> None:
    folder.content["categories"] = [{"id": n, "name": name} for n, name in ((3, "cell"), (5, "dog"), (9, "cat"))]
    folder.content["annotations"] = []
    for image, category in ((1, 3), (1, 5), (2, 9), (2, 5)):
        folder.annotate(image_id=image, category_id=category)
    opened = open_dataset(folder.save())
    chosen = opened.with_classes(["dog", "cell"])
    assert (chosen.categories.names, chosen.categories.ids) == (("dog", "cell"), (5, 3))
    assert [chosen[i].labels.tolist() for i in range(2)] == [[1, 0], [0]]
    rows, labels = chosen.subset([1, 0, 1]).objects()
    assert (rows.tolist(), labels.tolist()) == ([0, 1, 1, 2], [0, 1, 0, 0])
    assert chosen.fingerprint() != opened.fingerprint()
    assert opened.subset([1]).image_ids.tolist() == [2]
    with pytest.raises(DataError, match=r'has no class "dogs"\. Did you mean "dog"'):
        open_dataset(folder.path, classes=["dogs"])
    with pytest.raises(DataError, match="each once"):
        open_dataset(folder.path, classes=["dog", "dog"])


def test_classes_of_one_name_are_selected_together(folder: Any) -> None:
    folder.content["categories"] = [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}, {"id": 3, "name": "b"}]
    folder.annotate(category_id=2)
    folder.annotate(category_id=3)
    opened = open_dataset(folder.save(), classes=["a", "b"])
    assert opened[0].labels.tolist() == [0, 0, 1]


def test_the_fingerprint_follows_the_annotations_and_not_the_place(folder: Any, tmp_path: Path) -> None:
    before = open_dataset(folder.path).fingerprint()
    shutil.copytree(folder.path, tmp_path / "moved" / "cells")
    assert open_dataset(tmp_path / "moved" / "cells").fingerprint() == before
    folder.content["annotations"][0]["segmentation"][0][0] += 1
    assert open_dataset(folder.save()).fingerprint()["annotations"] != before["annotations"]


def test_annotations_of_a_box_alone_count_where_no_masks_are_asked_for(folder: Any, large: Path) -> None:
    folder.annotate(segmentation=[])
    folder.annotate(segmentation=[], bbox=[1, 1, 0, 4])
    folder.save()
    with pytest.warns(UserWarning, match="left out 2 annotations: 2 without a mask"):
        masked = open_dataset(folder.path)
    with pytest.warns(UserWarning, match="left out 1 annotation: 1 without a mask"):
        boxed = open_dataset(folder.path, needs=frozenset())
    rows, _ = masked.objects()
    boxes, _ = boxed.objects()
    assert len(boxes) == len(rows) + 1
    assert [a.has_mask for a in boxed.records[0].annotations] == [True, False]
    assert boxed[0].shapes is None and len(boxed[0].boxes) == 2
    assert masked.fingerprint() != boxed.fingerprint()


def test_no_mask_is_decoded_where_only_boxes_are_read(
    folder: Any, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.save()
    monkeypatch.setattr("instseg.data.formats.index.read_segmentation", None)
    dataset = open_dataset(folder.path, needs=frozenset(), read_shapes=False)
    sample = dataset[0]
    x0, y0, x1, y1 = sample.boxes[0].tolist()
    x, y, w, h = folder.content["annotations"][0]["bbox"]
    assert (x0, y0, x1 - x0, y1 - y0) == (x, y, w, h)
