"""What a model takes over from a checkpoint of other classes: the rows of the classes that both know."""

import warnings

import pytest
import torch

import instseg
from instseg.core.categories import Categories
from instseg.model.load import create_model

NARROW = {
    "backbone": "resnet10t",
    "fpn_channels": 16,
    "tower_convs": 1,
    "tower_channels": 32,
    "grids": (8, 6, 4, 3, 2),
    "input_short": 64,
    "input_long": 96,
}
HEADS = {"solov2_r18": "head.category.", "solo_r50": "category.output.", "decoupled_solo_r50": "category.output."}
OLD = ("car", "bus", "person", "kite", "dog")


def checkpoint(tmp_path, name="solov2_r18", classes=OLD):
    torch.manual_seed(0)
    categories = Categories(tuple(classes), tuple(range(1, 1 + len(classes))))
    model = create_model(name, len(classes), overrides=NARROW, categories=categories)
    for key, value in model.net.state_dict().items():
        if HEADS[name] in key:
            value += torch.arange(len(classes)).reshape(-1, *[1] * (value.dim() - 1))
    model.save(tmp_path / "m.safetensors")
    return model.net.state_dict(), tmp_path / "m.safetensors"


def start(path, classes, name="solov2_r18"):
    """The state of a model that starts from a checkpoint, what it would be without, and the lines that were said."""
    categories = Categories(tuple(classes), tuple(range(100, 100 + len(classes))))
    torch.manual_seed(1)
    plain = create_model(name, overrides=NARROW, categories=categories)
    torch.manual_seed(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = create_model(name, weights=path, categories=categories)
    assert model.categories == tuple(classes) and model.category_ids == categories.ids
    said = [str(w.message) for w in caught if "classes" in str(w.message)]
    return model.net.state_dict(), plain.net.state_dict(), said


@pytest.mark.parametrize("name", HEADS)
def test_equal_names_keep_their_rows_in_their_new_places_and_the_others_start_new(tmp_path, name):
    old, path = checkpoint(tmp_path, name)
    new, fresh, said = start(path, ("Person", "tree", "car", "cat", "bus"), name)
    for part in ("weight", "bias"):
        key = f"{HEADS[name]}{part}"
        for here, there in {0: 2, 2: 0, 4: 1}.items():
            assert torch.equal(new[key][here], old[key][there])
        for here in (1, 3):
            assert torch.equal(new[key][here], fresh[key][here])
    assert all(torch.equal(new[key], old[key]) for key in new if HEADS[name] not in key)
    assert said == [
        f"3 of 5 classes are known to {path} and keep their weights: Person, car, bus; the others start new: tree, cat."
    ]


def test_another_number_of_classes_keeps_those_that_are_known(tmp_path):
    old, path = checkpoint(tmp_path)
    new, _, said = start(path, ("person", "car"))
    assert torch.equal(new["head.category.weight"], old["head.category.weight"][[2, 0]])
    assert said == [f"2 of 2 classes are known to {path} and keep their weights: person, car."]


def test_other_names_start_new_even_where_there_are_as_many(tmp_path):
    _, path = checkpoint(tmp_path)
    new, fresh, said = start(path, ("a", "b", "c", "d", "e"))
    assert torch.equal(new["head.category.weight"], fresh["head.category.weight"])
    assert said == [
        f"0 of 5 classes are known to {path}, which has car, bus, person, kite, dog; "
        "the others start new: a, b, c, d, e."
    ]


def test_the_same_classes_start_where_they_were_without_a_word(tmp_path):
    old, path = checkpoint(tmp_path)
    new, _, said = start(path, OLD)
    assert all(torch.equal(new[key], old[key]) for key in old) and not said


@pytest.mark.parametrize(
    ("before", "now"), [(("class 0", "class 1"), ("cat", "dog")), (("cat", "dog"), ("class_1", "class_2"))]
)
def test_names_that_say_nothing_keep_everything_where_there_are_as_many(tmp_path, before, now):
    old, path = checkpoint(tmp_path, classes=before)
    new, _, said = start(path, now)
    assert torch.equal(new["head.category.weight"], old["head.category.weight"]) and not said
    new, fresh, said = start(path, (*now, "class 9") if "class" in now[0] else (*now, "cow"))
    assert torch.equal(new["head.category.weight"], fresh["head.category.weight"])
    assert said == [f"{path} has 2 classes and the model 3: head.category.weight, head.category.bias start new."]


def test_without_names_of_its_own_a_model_has_the_names_of_the_checkpoint(tmp_path):
    _, path = checkpoint(tmp_path)
    assert instseg.create_model("solov2_r18", weights=path).categories == OLD
    with pytest.warns(UserWarning, match="has 5 classes and the model 3"):
        assert instseg.create_model("solov2_r18", 3, weights=path).categories[0] == "class 0"
