from __future__ import annotations

import pytest

from instseg.core.errors import ConfigError, DataError
from instseg.core.meta import Categories
from instseg.infer.classes import match_categories


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
        match_categories(classes(a=1), classes(a=1), "colour")  # type: ignore[arg-type]


def test_a_category_is_given_to_one_class_only() -> None:
    model = Categories(("cat", "Cat"), (0, 1))
    assert match_categories(model, classes(cat=5)).ids == (5, None)
