"""Methods that the house has never heard of pass through all of it: see ``toys``."""

import csv
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.contract.toys import TOYS, ToyBoxes, ToyMatte, ToyTwoStage
from torch import Tensor

import instseg
from instseg.cli import main
from instseg.core.categories import Categories
from instseg.core.shapes import Shapes
from instseg.model.instance_model import InstanceModel
from instseg.model.load import create_model, load
from instseg.model.with_config import reconfigure
from instseg.models.base import LossTerms, Net, Step, Target
from instseg.models.zoo import MODELS
from instseg.training.checkpoint import load_state
from instseg.training.run import train

NAMES = tuple(TOYS)
SIZES = ((64, 64), (48, 80), (80, 56), (64, 72))


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Iterator[None]:
    """The toys in the zoo, and one thread: threads cost tiny tensors more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, entry in TOYS.items():
            patch.setitem(MODELS, name, entry)
        yield
    torch.set_num_threads(threads)


def draw(number: int) -> tuple[np.ndarray[Any, Any], list[tuple[int, tuple[int, int, int, int]]]]:
    """A noisy picture with up to three squares, white (class 0) or red (class 1); every fifth has none."""
    rng = np.random.default_rng(number)
    height, width = SIZES[number % len(SIZES)]
    pixels = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    objects = []
    for k in range(0 if number % 5 == 4 else 1 + number % 3):
        side = int(rng.integers(16, 28))
        x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        label = (number + k) % 2
        pixels[y : y + side, x : x + side] = (230, 230, 230) if label == 0 else (230, 20, 20)
        objects.append((label, (x, y, x + side, y + side)))
    return pixels, objects


def write_data(
    folder: Path, splits: dict[str, Sequence[int]], names: tuple[str, ...] = ("white", "red"), bare: str = "none"
) -> Path:
    """A COCO folder of drawn pictures. ``bare`` says which annotations have no segmentation: none, all or half."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    categories = [{"id": 10 + k, "name": name} for k, name in enumerate(names)]
    for split, numbers in splits.items():
        images, annotations = [], []
        for number in numbers:
            pixels, objects = draw(number)
            Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
            images.append(
                {"id": number, "file_name": f"{number}.png", "width": pixels.shape[1], "height": pixels.shape[0]}
            )
            for label, (x0, y0, x1, y1) in objects:
                one: dict[str, Any] = {"id": len(annotations) + 1, "image_id": number, "category_id": 10 + label}
                one |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
                if bare == "none" or (bare == "half" and number % 2):
                    one["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
                annotations.append(one)
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures to train on, three to evaluate on."""
    return write_data(tmp_path_factory.mktemp("toys") / "data", {"train": range(10), "val": range(10, 13)})


PLAIN: dict[str, Any] = {
    "epochs": 2, "batch": 3, "lr": 3e-3, "base_batch": None, "warmup_iterations": 0, "schedule": "constant",
    "workers": 0, "ema_decay": 0.5, "flip": 0.5,
}  # fmt: skip


def run(data: Path, out: Path, name: str | None, **fields: Any) -> dict[str, Any]:
    named = {k: fields.pop(k) for k in ("resume", "weights") if k in fields}
    return train(data, name, out=out, device="cpu", progress=False, overrides={**PLAIN, **fields}, **named)


def words(**fields: Any) -> list[str]:
    """Fields as the command line takes them."""
    return [f"{key}={'null' if value is None else value}" for key, value in fields.items()]


@pytest.fixture(scope="module", params=NAMES)
def trained(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A toy and the run folder in which the command line has trained it."""
    out = tmp_path_factory.mktemp("run") / request.param
    call = ["train", str(data), "--model", request.param, "--out", str(out), "--device", "cpu", "--workers", "0"]
    plain = {k: v for k, v in PLAIN.items() if k != "workers"}
    assert main([*call, *words(**plain)]) == 0
    return request.param, out


def build(name: str, **fields: Any) -> InstanceModel:
    torch.manual_seed(0)
    return instseg.create_model(name, num_classes=2, **fields)


def example(number: int, net: type[Net[Any]], masks: bool = True) -> tuple[Tensor, Target]:
    """A picture (3, h, w) uint8, and its target at the same size."""
    pixels, objects = draw(number)
    size = (pixels.shape[0], pixels.shape[1])
    drawn = torch.zeros(len(objects), *size, dtype=torch.uint8)
    for mask, (_, (x0, y0, x1, y1)) in zip(drawn, objects, strict=True):
        mask[y0:y1, x0:x1] = 1
    wanted = net.needs | net.optional
    shapes = Shapes.from_masks(drawn.float() if "mattes" in wanted else drawn) if wanted and masks else None
    labels = torch.tensor([label for label, _ in objects], dtype=torch.int64)
    boxes = torch.tensor([box for _, box in objects], dtype=torch.float32).view(-1, 4)
    return torch.from_numpy(pixels).permute(2, 0, 1), Target(size, labels, boxes, shapes)


def terms_of(model: InstanceModel, numbers: Sequence[int], step: Step, masks: bool = True) -> LossTerms:
    pairs = [example(number, type(model.net), masks) for number in numbers]
    return model.loss_terms([image for image, _ in pairs], [target for _, target in pairs], step)


def total(terms: LossTerms) -> Tensor:
    return torch.stack(list(terms.losses.values())).sum()


def rows_of(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without what the clock decides."""
    with open(folder / "metrics.csv", newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in csv.DictReader(file)
        ]


# --- the networks by themselves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_finite_for_two_sizes_in_a_batch_and_an_empty_image(name: str) -> None:
    model = build(name).train()
    for numbers in ((0, 1), (4,), (4, 3)):  # the fourth is empty
        terms = terms_of(model, numbers, Step(epoch=1))
        assert all(loss.shape == () and torch.isfinite(loss) for loss in terms.losses.values())
        total(terms).backward()


@pytest.mark.parametrize("name", NAMES)
def test_steps_lower_the_loss_of_their_batch(name: str) -> None:
    model = build(name).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    values = []
    for _ in range(15):
        loss = total(terms_of(model, (0, 1, 2), Step(epoch=1, generator=torch.Generator().manual_seed(0))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_found_lies_in_the_image_whatever_its_padding(name: str) -> None:
    model = build(name, score=0.0, overlap=1.0).eval()
    images = [example(number, type(model.net))[0] for number in range(4)]
    for image, found in zip(images, model.predict_batch(images), strict=True):
        assert len(found) and found.image_size == tuple(image.shape[1:])
        height, width = found.image_size
        assert (found.boxes >= 0).all() and (found.boxes <= torch.tensor([width, height] * 2)).all()
        assert (found.scores.diff() <= 0).all()
        assert found.masks is None or len(found.masks.rle()) == len(found)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_has_the_same_objects_whatever_others_are_given_with_it(name: str) -> None:
    model = build(name, score=0.0).eval()
    images = [example(number, type(model.net))[0] for number in range(4)]
    together = model.predict_batch(images)
    for image, found in zip(images, together, strict=True):
        alone = model.predict_batch([image])[0]
        torch.testing.assert_close(alone.boxes, found.boxes)
        torch.testing.assert_close(alone.scores, found.scores)


def test_sampling_follows_the_steps_generator() -> None:
    model = build("toy_two_stage", proposals=60).train()
    first, again, other = (
        total(terms_of(model, (0, 1), Step(generator=torch.Generator().manual_seed(seed)))) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_stage_rests_in_the_first_epoch() -> None:
    model = build("toy_two_stage").train()
    assert isinstance(model.net, ToyTwoStage)
    total(terms_of(model, (0, 1), Step(epoch=0))).backward()
    assert model.net.mask.weight.grad is None
    total(terms_of(model, (0, 1), Step(epoch=1))).backward()
    assert model.net.mask.weight.grad is not None


def test_images_without_masks_train_the_boxes_alone() -> None:
    model = build("toy_two_stage").train()
    assert isinstance(model.net, ToyTwoStage)
    terms = terms_of(model, (0, 1), Step(epoch=1), masks=False)
    assert terms.losses["loss_mask"] == 0 and terms.losses["loss_box"] > 0
    total(terms).backward()
    assert model.net.mask.weight.grad is None and model.net.box.weight.grad is not None


def test_what_evaluation_caches_can_be_trained_with() -> None:
    model = build("toy_two_stage").eval()
    assert isinstance(model.net, ToyTwoStage)
    model.predict_batch([example(0, ToyTwoStage)[0]])
    assert model.net.anchors
    model.train()
    total(terms_of(model, (0,), Step())).backward()
    assert model.net.rpn.weight.grad is not None


@pytest.mark.parametrize("name", NAMES)
def test_the_dictionaries_of_torchvision_train_too(name: str) -> None:
    model = build(name).train()
    image, target = example(0, ToyBoxes)
    given = {"boxes": target.boxes, "labels": target.labels}
    if name == "toy_matte":
        given["masks"] = example(0, ToyMatte)[1].masks * 0.75
    assert all(torch.isfinite(loss) for loss in model([image], [given]).values())


# --- settings, files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_is_changed_without_building_a_net(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name).eval()
    model.has_weights = True

    def refuse(*_: Any) -> None:
        raise AssertionError("a net is built")

    monkeypatch.setattr(MODELS[name].net, "__init__", refuse)
    strict = reconfigure(model, {"score": 1.0, "max_instances": 3})
    image = example(0, type(model.net))[0]
    assert len(strict.predict_batch([image])[0]) == 0 and len(model.predict_batch([image])[0]) > 0
    assert next(strict.parameters()) is next(model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_predicts_the_same(name: str, tmp_path: Path) -> None:
    model = build(name, score=0.0).eval()
    model.set_categories(Categories(("white", "red"), (10, 11)))
    model.save(tmp_path / "toy.safetensors")
    again = load(tmp_path / "toy.safetensors")
    assert again.config == model.config and again.category_ids == (10, 11)
    image = example(1, type(model.net))[0]
    a, b = model.predict_batch([image])[0], again.predict_batch([image])[0]
    assert torch.equal(a.scores, b.scores) and torch.equal(a.boxes, b.boxes)


@pytest.mark.parametrize("name", NAMES)
def test_classes_of_the_same_name_keep_their_rows(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.set_categories(Categories.from_names(("white", "red")))
    model.has_weights = True
    model.save(tmp_path / "toy.safetensors")
    names = Categories.from_names(("green", "red", "white"))
    with pytest.warns(UserWarning, match="2 of 3 classes are known"):
        more = create_model(name, weights=tmp_path / "toy.safetensors", categories=names)
    old, new = model.net.state_dict(), more.net.state_dict()
    for key, layout in model.net.class_layers().items():
        n = layout.repeat
        assert torch.equal(new[key][n : 2 * n], old[key][n : 2 * n])  # red
        assert torch.equal(new[key][2 * n : 3 * n], old[key][:n])  # white
        assert key.endswith("bias") or not torch.equal(new[key][:n], old[key][:n])  # green
        if layout.background == "last":
            assert torch.equal(new[key][-1], old[key][-1])
    shared = set(old) - set(model.net.class_layers())
    assert shared and all(torch.equal(new[key], old[key]) for key in shared)


def test_predictions_of_boxes_and_masks_travel_between_processes() -> None:
    for name in NAMES:
        model = build(name, score=0.0).eval()
        model.has_weights = True
        prediction = model.predict(example(0, type(model.net))[0])
        again = pickle.loads(pickle.dumps(prediction))
        assert len(again) == len(prediction) > 0 and torch.equal(again.boxes, prediction.boxes)
        assert (again.masks is None) == (name == "toy_boxes")


def test_boxes_of_tiles_are_joined() -> None:
    whole = build("toy_boxes", score=0.0, overlap=1.0, input_scale=1.0, max_instances=500)
    tiled = reconfigure(whole.eval(), {"tile": 64, "tile_overlap": 32})
    image = torch.cat([example(0, ToyBoxes)[0]] * 3, dim=2)  # 64 x 192
    found = tiled.predict_batch([image])[0]
    assert len(found) and found.masks is None and found.image_size == (64, 192)
    assert float(found.boxes[:, 2].max()) > 128  # of the last tile


# --- the whole way ----------------------------------------------------------------------------------------------------


def test_a_run_is_complete_and_shows_what_the_method_counts(trained: tuple[str, Path]) -> None:
    name, out = trained
    there = {path.name for path in out.iterdir()}
    assert {"config.yaml", "metrics.csv", "last.ckpt", "last.safetensors", "best.safetensors", "log.txt"} <= there
    rows = rows_of(out)
    logs = {"toy_boxes": {"positives"}, "toy_two_stage": {"sampled", "with_masks"}, "toy_matte": {"opacity"}}[name]
    assert len(rows) == 2 and logs <= set(rows[0])
    for row in rows:
        losses = sum(float(value) for key, value in row.items() if key.startswith("loss_"))
        assert float(row["loss"]) == pytest.approx(losses, rel=1e-3)
        assert all(float(row[key]) >= 0 for key in logs)
    if name == "toy_two_stage":
        assert float(rows[0]["loss_mask"]) == 0 < float(rows[1]["loss_mask"])


def test_val_reports_what_the_method_finds(trained: tuple[str, Path], data: Path, tmp_path: Path) -> None:
    name, out = trained
    call = ["val", str(out), str(data), "--out", str(tmp_path / "val"), "--device", "cpu", "--workers", "0"]
    assert main([*call, "--batch", "3", "score=0.0"]) == 0
    report = json.loads((tmp_path / "val" / "metrics.json").read_text())
    kind, best, title = ("bbox", "box_ap", "box AP") if name == "toy_boxes" else ("segm", "ap", "mask AP")
    assert 0 <= report["bbox"]["ap"] <= 1 and report["predictions"] > 0
    value = report[kind]["ap"]
    assert report["best"] == {"name": best, "value": value, "direction": "max"}
    with open(out / "metrics.csv", newline="") as file:
        assert best in next(csv.reader(file))
    assert title in (out / "log.txt").read_text()
    results = json.loads((tmp_path / "val" / "results.json").read_text())
    assert results and all(("segmentation" in row) != (name == "toy_boxes") for row in results)
    if name == "toy_boxes":
        assert all(len(row["bbox"]) == 4 for row in results)
        assert "segm" not in report


def test_a_detector_that_finds_nothing_is_measured_by_its_boxes(tmp_path: Path, data: Path) -> None:
    model = build("toy_boxes", score=1.0)
    model.set_categories(Categories.from_names(("white", "red")))
    model.has_weights = True
    report = instseg.evaluate(model, data, device="cpu", progress=False)
    assert report["predictions"] == 0 and report["bbox"]["ap"] == 0 and "segm" not in report
    assert report["best"] == {"name": "box_ap", "value": 0.0, "direction": "max"}


def test_predict_writes_results_and_pictures(trained: tuple[str, Path], data: Path, tmp_path: Path) -> None:
    name, out = trained
    call = ["predict", str(out), str(data / "images"), "--out", str(tmp_path / "found"), "--device", "cpu"]
    assert main([*call, "--batch", "4", "score=0.0"]) == 0
    rows = json.loads((tmp_path / "found" / "predictions.json").read_text())
    rows = rows if isinstance(rows, list) else rows["annotations"]
    assert rows and all(("segmentation" in row) != (name == "toy_boxes") for row in rows)
    if name == "toy_boxes":
        assert all(row["bbox"][2] > 0 for row in rows)
    assert len(list((tmp_path / "found" / "overlays").iterdir())) >= 10


def test_a_run_with_more_epochs_resumes(trained: tuple[str, Path], data: Path, tmp_path: Path) -> None:
    """On the command line."""
    name, _ = trained
    call = ["train", str(data), "--out", str(tmp_path / "run"), "--device", "cpu", "--workers", "0"]
    plain = words(**{k: v for k, v in PLAIN.items() if k not in ("workers", "epochs")})
    assert main([*call, "--model", name, "epochs=1", *plain]) == 0
    assert main([*call, "epochs=2", "--resume"]) == 0
    assert len(rows_of(tmp_path / "run")) == 2


class Killed(BaseException):
    """As a kill is: nothing that a run may catch."""


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_resumes_to_the_same_bits(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"epochs": 2, "checkpoint_minutes": 0, "batch": 2, "accumulate": 2}
    run(data, tmp_path / "whole", name, **fields)
    net = TOYS[name].net
    loss, calls = net.loss, [0]

    def dying(self: Net[Any], outputs: Any, targets: Sequence[Target], step: Step) -> LossTerms:
        calls[0] += 1
        if calls[0] == 10:  # in the second epoch
            raise Killed
        return loss(self, outputs, targets, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(net, "loss", dying)
        run(data, tmp_path / "cut", name, **fields)
    torch.manual_seed(99)
    run(data, tmp_path / "cut", name, resume=True, **fields)
    a, b = (load_state(tmp_path / folder / "last.ckpt")[0] for folder in ("whole", "cut"))
    assert a["model"].keys() == b["model"].keys()
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "cut")


def test_mattes_reach_the_loss_unrounded(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    loss = ToyMatte.loss

    def seeing(self: ToyMatte, outputs: Any, targets: Sequence[Target], step: Step) -> LossTerms:
        seen.extend(target.masks for target in targets)
        return loss(self, outputs, targets, step)

    monkeypatch.setattr(ToyMatte, "loss", seeing)
    run(data, tmp_path / "run", "toy_matte", epochs=1, evaluate_every=0, train_short=[50], train_long=90)
    values = torch.cat([alpha.flatten() for alpha in seen])
    assert ((values > 0) & (values < 1)).any() and values.min() >= 0 and values.max() <= 1


@pytest.mark.parametrize("bare", ["all", "half"])
def test_boxes_alone_are_data_enough(bare: str, tmp_path: Path) -> None:
    """For a method that uses no masks, or uses them where they are."""
    folder = write_data(tmp_path / "data", {"train": range(6), "val": range(6, 8)}, bare=bare)
    for name in ("toy_boxes", "toy_two_stage"):
        result = run(folder, tmp_path / name, name, epochs=2)
        assert result["epochs"] == 2
    rows = rows_of(tmp_path / "toy_two_stage")
    assert (float(rows[1]["loss_mask"]) > 0) == (bare == "half")
    assert all(float(row["loss_box"]) > 0 for row in rows)
    report = instseg.evaluate(tmp_path / "toy_boxes", folder, device="cpu", progress=False)
    assert report["instances"] == sum(len(draw(number)[1]) for number in (6, 7)) and report["bbox"]["ap"] >= 0


@pytest.mark.parametrize("name", ["toy_boxes", "toy_two_stage"])
@pytest.mark.parametrize("classes", [None, ["red"]])
def test_pasting_objects_that_have_no_mask_is_refused_before_anything_is_done(
    name: str, classes: list[str] | None, tmp_path: Path
) -> None:
    folder = write_data(tmp_path / "data", {"train": range(4)}, bare="all")
    with pytest.raises(instseg.InstsegError, match=f"copy_paste=0.5 .* {name} .*: set copy_paste=0\\.") as refused:
        run(folder, tmp_path / "run", name, copy_paste=0.5, classes=classes)
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_objects_are_pasted_where_some_have_masks(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data", {"train": range(6)}, bare="half")
    run(folder, tmp_path / "run", "toy_two_stage", copy_paste=0.5, epochs=1, evaluate_every=0)
    with pytest.raises(instseg.InstsegError, match="toy_boxes sees boxes alone"):  # it never looks at a mask
        run(folder, tmp_path / "boxes", "toy_boxes", copy_paste=0.5, epochs=1, evaluate_every=0)


def test_masks_that_a_method_needs_are_missed_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_data(tmp_path / "data", {"train": range(4)}, bare="all")
    call = ["train", str(folder), "--model", "toy_matte", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*call, "--workers", "0", "epochs=1"]) == 1
    error = capsys.readouterr().err
    assert "segmentation" in error or "mask" in error


@pytest.mark.parametrize("name", NAMES)
def test_fine_tuning_on_other_classes(name: str, data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "first", name, epochs=1, evaluate_every=0)
    other = write_data(tmp_path / "other", {"train": range(20, 24)}, names=("green", "white", "red"))
    run(other, tmp_path / "second", None, weights=tmp_path / "first", epochs=1, evaluate_every=0)
    model = load(tmp_path / "second" / "last.safetensors")
    assert model.name == name and model.categories.names == ("green", "white", "red")


def test_other_verbs_take_any_method(
    trained: tuple[str, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, out = trained
    assert main(["models"]) == 0
    assert name in capsys.readouterr().out
    assert main(["models", name]) == 0
    assert "width" in capsys.readouterr().out
    assert main(["benchmark", str(out), "--device", "cpu", "--repeat", "1"]) == 0
    image = str(data / "images" / "0.png")
    assert main(["explain", str(out), image, "--out", str(tmp_path / "why"), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert name in error and "unexpected" not in error


# --- several processes ------------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from tests.contract.toys import TOYS
from instseg.models.zoo import MODELS
from instseg.training.run import train
MODELS.update(TOYS)
name, data, out, resume, fields = json.loads(sys.argv[2])
train(data, name, out=out, resume=resume, device="cpu", progress=False, overrides=fields)
"""


def _launch(
    processes: int, folder: Path, name: str, data: Path, out: str, fields: dict[str, Any], resume: bool = False
) -> None:
    """A run in ``folder / out`` in several processes."""
    script = folder / "go.py"
    script.write_text(SCRIPT)
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    call += [
        str(script),
        str(Path(__file__).parents[2]),
        json.dumps([name, str(data), str(folder / out), resume, fields]),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True) as process:
        try:
            _, errors = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the processes that it started too
            raise
    assert process.returncode == 0, errors[-3000:]


def _weights(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = load_state(folder / "last.ckpt")[0]["model"]
    return state


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_image_in_one_of_two_processes(name: str, tmp_path: Path) -> None:
    """In every update; a run that stopped in between resumes to the same bits."""
    folder = write_data(tmp_path / "data", {"train": [0, 4], "val": [10]})
    fields = {**PLAIN, "batch": 1, "epochs": 4}
    _launch(2, tmp_path, name, folder, "whole", fields)
    _launch(2, tmp_path, name, folder, "cut", {**fields, "epochs": 2})
    _launch(2, tmp_path, name, folder, "cut", fields, resume=True)
    whole, cut = _weights(tmp_path / "whole"), _weights(tmp_path / "cut")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    assert len(rows_of(tmp_path / "whole")) == 4 and rows_of(tmp_path / "whole") == rows_of(tmp_path / "cut")


@pytest.mark.slow
def test_two_processes_normalize_together(tmp_path: Path) -> None:
    """By the mean of the positives over the processes: the weights are those of one process with both halves."""
    fields = {**PLAIN, "optimizer": "sgd", "lr": 0.01, "evaluate_every": 0, "average_normalizers": True}
    data = write_data(tmp_path / "data", {"train": range(0, 24, 4)})  # of one size: no padding
    _launch(2, tmp_path, "toy_boxes", data, "two", {**fields, "batch": 1})
    run(data, tmp_path / "one", "toy_boxes", **{**fields, "batch": 2})
    one, two = _weights(tmp_path / "one"), _weights(tmp_path / "two")
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=1e-5, rtol=1e-4)
