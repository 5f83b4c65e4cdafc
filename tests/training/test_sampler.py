"""The order of images, and how they are loaded."""

import multiprocessing
from collections import Counter
from collections.abc import Callable
from contextlib import closing

import pytest
import torch

from instseg.core.errors import DataError
from instseg.data.dataset import InstanceDataset
from instseg.data.transforms.augment import build_transform
from instseg.training.recipe import Recipe
from instseg.training.sampler import EpochLoader, epoch_batches, loader_processes


def test_an_epoch_shows_every_image_and_fills_the_last_batches() -> None:
    batches = epoch_batches([True] * 10, batch=4, group=2, seed=0, epoch=0)
    counts = Counter(i for batch in batches for i in batch)
    assert len(batches) == 4 and all(len(batch) == 4 for batch in batches)
    assert set(counts) == set(range(10)) and max(counts.values()) == 2


def test_fewer_images_than_a_batch_are_repeated() -> None:
    assert sorted(set(epoch_batches([True] * 2, batch=4, group=1, seed=0, epoch=0)[0])) == [0, 1]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return epoch_batches([True] * 50, 4, 1, seed, epoch)

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2) and order(0, 1) != order(1, 1)
    assert order(0, 1) != order(1, 0)


def test_processes_share_an_epoch_without_overlap() -> None:
    batches = epoch_batches([True] * 16, batch=2, group=2, seed=0, epoch=0)
    first, second = ({i for batch in batches[rank::2] for i in batch} for rank in range(2))
    assert first | second == set(range(16)) and not first & second


def test_aspect_groups_keep_wide_and_tall_apart() -> None:
    wide = [i % 3 == 0 for i in range(40)]
    batches = epoch_batches(wide, batch=4, group=1, seed=0, epoch=0, by_aspect=True)
    assert all(len({wide[i] for i in batch}) == 1 for batch in batches)
    assert {i for batch in batches for i in batch} == set(range(40))
    kinds = [wide[batch[0]] for batch in batches]
    assert kinds != sorted(kinds) and kinds != sorted(kinds, reverse=True)  # mixed over the epoch


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_one_line(squares: Callable[..., InstanceDataset], workers: int) -> None:
    batches = [[0, 1], [2, 3]]
    with closing(EpochLoader(squares(4, broken=3), Recipe(workers=workers), 1, pin=False)) as loader:
        loaded = loader.batches(batches)
        assert next(loaded).image_ids == [0, 1]
        with pytest.raises(DataError) as error:
            next(loaded)
    assert str(error.value) == "3.png: cut short; replace it."


def test_loading_leaves_the_global_random_state_alone(squares: Callable[..., InstanceDataset]) -> None:
    before = torch.get_rng_state()
    with closing(EpochLoader(squares(4), Recipe(workers=1), 1, pin=False)) as loader:
        list(loader.batches([[0, 1], [2, 3]]))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_are_shared_between_processes() -> None:
    assert loader_processes(3, 2) == 3
    assert 0 <= loader_processes(None, 1) <= 4
    assert loader_processes(None, 10_000) == 0


@pytest.mark.slow
def test_workers_live_on_from_epoch_to_epoch_and_see_its_order_and_number(
    squares: Callable[..., InstanceDataset],
) -> None:
    recipe = Recipe(workers=2, brightness=0.5)
    seen = []
    for workers in (0, 2):
        data = squares(4).with_transform(build_transform(recipe, train=True))
        loader = EpochLoader(data, recipe.model_copy(update={"workers": workers}), 1, pin=False)
        with closing(loader):
            pictures, processes = [], set()
            for epoch, order in enumerate(([[0, 1], [2, 3]], [[3, 0]], [[3, 0]])):
                data.set_epoch(epoch)
                pictures += [image for batch in loader.batches(order) for image in batch.images]
                processes |= {child.pid for child in multiprocessing.active_children()}
        seen.append(torch.stack(pictures))
        assert len(processes) == workers
    assert torch.equal(*seen)
    assert not torch.equal(seen[0][4], seen[0][6])  # the same image in another epoch
