from __future__ import annotations

import pytest

from instseg.core.categories import Categories
from instseg.core.category_matching import match_categories
from instseg.core.errors import ConfigError, DataError


def classes(**pairs: int) -> Categories:
    return Categories(tuple(pairs), tuple(pairs.values()))


def test_classes_pair_by_name_whatever_case_spaces_and_order() -> None:
    model = Categories(("Traffic_Light", "person", "zebra"), (0, 1, 2))
    data = Categories(("PERSON", "traffic light", "kite"), (1, 10, 38))
    match = match_categories(model, data)
    assert match.ids == (10, 1, None)
    assert match.by == "names"
    assert match.only_model == ("zebra",) and match.only_data == ("kite",)


def test_nothing_in_common_is_one_line_that_names_both_sides() -> None:
    with pytest.raises(DataError) as caught:
        match_categories(classes(nucleus=1), classes(pedestrian=1))
    text = str(caught.value)
    assert "nucleus" in text and "pedestrian" in text and "no class in common" in text and "\n" not in text


def test_names_that_say_nothing_pair_by_id_when_all_ids_agree() -> None:
    model = Categories(("class 0", "class 1"), (1, 3))
    assert match_categories(model, classes(cat=1, dog=3)).ids == (1, 3)
    assert match_categories(model, classes(cat=1, dog=3)).by == "ids"
    with pytest.raises(DataError, match="no class in common"):
        match_categories(model, classes(cat=1, dog=2))


def test_user_can_pair_by_id_or_insist_on_names() -> None:
    assert match_categories(classes(cell=1), classes(nucleus=1), "ids").ids == (1,)
    with pytest.raises(DataError):
        match_categories(classes(class_1=1), classes(nucleus=1), "names")
    with pytest.raises(ConfigError, match="unknown"):
        match_categories(classes(a=1), classes(a=1), "color")  # type: ignore[arg-type]


def test_a_category_is_given_to_one_class_only() -> None:
    model = Categories(("cat", "Cat"), (0, 1))
    assert match_categories(model, classes(cat=5)).ids == (5, None)


@pytest.mark.parametrize(
    ("model", "data", "ids"),
    [
        (("car", "Car"), ("Car", "car"), (2, 1)),  # equal names first, whatever their order
        (("Car",), ("car", "Car"), (2,)),
        (("car", "Car"), ("Car",), (None, 1)),
        (("t shirt", "t-shirt"), ("t-shirt", "t shirt"), (2, 1)),
        (("t_shirt",), ("T-Shirt",), (1,)),  # loosely where one is left on either side
        (("car", "Car", "bus"), ("CAR", "bus"), (None, None, 2)),  # two may be meant: neither is
        (("bus", "car"), ("CAR", "Car", "bus"), (3, None)),
        (("traffic light",), ("TrafficLight",), (1,)),
        (("caf\u00e9",), ("cafe\u0301",), (1,)),  # composed and decomposed
        (("cat ",), ("cat",), (1,)),
        (("cat", "cat"), ("cat", "cat"), (1, 2)),  # the same name twice: in order
        (("cat", "cat"), ("cat",), (1, None)),
        (("STRASSE",), ("stra\u00dfe",), (1,)),
        (("\u8eca", "bus"), ("bus", "\u8eca"), (2, 1)),
    ],
)
def test_equal_names_come_first_and_similar_ones_only_where_one_is_left(
    model: tuple[str, ...], data: tuple[str, ...], ids: tuple[int | None, ...]
) -> None:
    one = Categories(model, tuple(range(10, 10 + len(model))))
    other = Categories(data, tuple(range(1, 1 + len(data))))
    assert match_categories(one, other).ids == ids


def test_no_category_is_lost_that_an_equal_name_claims() -> None:
    model = Categories(("Car", "car", "Truck", "truck "), (0, 1, 2, 3))
    data = Categories(("truck", "car", "Car", "Truck"), (1, 2, 3, 4))
    match = match_categories(model, data)
    assert match.ids == (3, 2, 4, 1) and not match.only_model and not match.only_data
