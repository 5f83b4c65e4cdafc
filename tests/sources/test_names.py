"""What images are called in results."""

from instseg.sources.names import clear_of


def test_names_whose_results_are_kept_are_not_given_again() -> None:
    names, stems = clear_of(["a/2.png", "2.png", "3.png"], ["a/2", "2", "3"], ["2.png"])
    assert names == ["a/2.png", "2-2.png", "3.png"] and stems == ["a/2", "2-2", "3"]


def test_a_number_is_not_the_name_of_another_image() -> None:
    names, stems = clear_of(["x.png", "x-2.png"], ["x", "x-2"], ["X.png"])
    assert names == ["x-3.png", "x-2.png"] and stems == ["x-3", "x-2"]


def test_pictures_of_kept_images_are_not_replaced_whatever_their_suffix() -> None:
    names, stems = clear_of(["x.jpg"], ["x"], ["x.png"])
    assert names == ["x.jpg"] and stems == ["x-2"]
