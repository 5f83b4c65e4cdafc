"""Names by label, with the ids of the user's file."""

import copy
import pickle

import pytest

from instseg.core.categories import Categories
from instseg.core.errors import ConfigError

PETS = Categories(("cat", "dog"), (3, 7))


def test_it_is_a_tuple_of_names_that_knows_their_ids() -> None:
    assert PETS == ("cat", "dog") and PETS == ("cat", "dog") and PETS[1] == "dog" and len(PETS) == 2
    assert PETS.names == ("cat", "dog") and type(PETS.names) is tuple
    assert PETS.ids == (3, 7)
    assert Categories.from_names(["a", "b"]).ids == (0, 1)


def test_two_are_equal_when_names_and_ids_are() -> None:
    assert Categories(["cat", "dog"], [3, 7]) == PETS
    assert Categories(("cat", "dog"), (3, 8)) != PETS and Categories(("cat", "cow"), (3, 7)) != PETS
    assert hash(PETS) == hash(("cat", "dog"))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_keep_the_ids(again) -> None:
    assert again(PETS) == PETS and again(PETS).ids == (3, 7)


def test_ids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 category names but 1 category ids"):
        Categories(("a", "b"), (1,))
    with pytest.raises(ConfigError, match="not unique"):
        Categories(("a", "b"), (1, 1))
