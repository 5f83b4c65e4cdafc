"""The order of the images: a function of (seed, epoch), cut into batches that every process can work out alone."""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from instseg.core.environment import cores
from instseg.core.errors import InstsegError
from instseg.data.batch import Batch
from instseg.data.dataset import InstanceDataset, Readable, collate_readable
from instseg.data.workers import Reader

if TYPE_CHECKING:
    from instseg.training.recipe import Recipe


def seed_of(*position: int) -> int:
    """A 32-bit seed that differs for every tuple of non-negative integers."""
    return int(np.random.SeedSequence(position).generate_state(1)[0])


def epoch_batches(
    wide: Sequence[bool] | npt.NDArray[np.bool_], batch: int, group: int, seed: int, epoch: int, by_aspect: bool = False
) -> list[list[int]]:
    """Batches of one epoch: each image at least once, in an order drawn from (seed, epoch).

    ``wide`` says of each image whether it is wider than tall; with ``by_aspect`` no batch holds both kinds. The
    last batches are filled up from the front of the order, so that all batches are full and their number is a
    multiple of ``group`` (processes × accumulation).
    """
    rng = np.random.default_rng(seed_of(seed, epoch))
    kinds = [np.flatnonzero(np.asarray(wide) == kind) for kind in (True, False)] if by_aspect else []
    batches: list[list[int]] = []
    unit = batch if by_aspect else batch * group
    for members in [kind for kind in kinds if len(kind)] or [np.arange(len(wide))]:
        order = rng.permutation(members)
        order = np.resize(order, -(-len(order) // unit) * unit)
        batches += order.reshape(-1, batch).tolist()
    order = rng.permutation(len(batches)) if by_aspect else np.arange(len(batches))
    return [batches[i] for i in np.resize(order, -(-len(order) // group) * group)]


def loader_processes(workers: int | None, processes: int) -> int:
    """``workers``, or by default one loader process a free core, at most four."""
    if workers is not None:
        return workers
    return min(4, cores() // processes)


class EpochLoader:
    """Loads one epoch after the other, in this process or in loader processes that live as long as the run.

    The processes see each epoch's order, since it is handed to them batch by batch, and its number, which the data set
    shares with them.
    """

    def __init__(self, data: InstanceDataset, recipe: "Recipe", processes: int, pin: bool) -> None:
        workers = loader_processes(recipe.workers, processes)
        self._reader = Reader(Readable(data), workers, collate_readable, pin)

    def batches(self, order: list[list[int]]) -> Generator[Batch]:
        """The given batches. Raises what a sample could not be read for."""
        for batch in self._reader.batches(order):
            if isinstance(batch, InstsegError):
                raise batch
            yield batch

    def close(self) -> None:
        """Ends the loader processes."""
        self._reader.close()
