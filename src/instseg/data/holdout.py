"""Holding images out of a data set that has no validation split: by image, seeded, in proportion to the classes."""

import base64
import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from instseg.data.dataset import InstanceDataset

KEY = "val_split"
"""Where ``model.extra`` keeps the record of a split."""
LEAST_IMAGES = 4
"""Of fewer images none is held out."""

IntArray = npt.NDArray[np.int64]


def hold_out(dataset: InstanceDataset, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """Split a data set by image: positions of the training and of the validation part, each ascending.

    Every class appears in both parts in proportion to its images, and so do images without objects; a class that occurs
    in two or more images keeps at least one in training. Records of one file stay together, whatever they call it. The
    split follows from the seed and from names and labels, not from the order of the records.

    Args:
        dataset: what is split.
        fraction: part of the images that is held out, at least one image of four or more; less
            where training would lose a class.
        seed: decides which.

    Returns:
        (T,) and (V,) positions; V is 0 for fewer than four images or a fraction of 0.
    """
    names, unit = np.unique(np.asarray(_files(dataset), dtype=object).astype(str), return_inverse=True)
    wanted = _number_held_out(len(names), fraction)
    rows, labels = dataset.objects()
    chosen = _Chooser(unit[rows], np.asarray(labels), len(names), seed).choose(wanted, fraction)
    held = chosen[unit]
    return np.flatnonzero(~held), np.flatnonzero(held)


def make_record(dataset: InstanceDataset, held: IntArray, fraction: float, seed: int) -> dict[str, Any]:
    """What a checkpoint remembers of a split, so that :func:`held_out` finds the same images again; JSON values.

    Args:
        dataset: the whole of it.
        held: (V,) positions of the images held out.
        fraction: as asked for.
        seed: as asked for.
    """
    order = _order(dataset)
    mask = np.zeros(len(dataset), dtype=bool)
    mask[held] = True
    packed = base64.b85encode(zlib.compress(np.packbits(mask[order]).tobytes())).decode("ascii")
    return {
        "seed": seed,
        "fraction": fraction,
        "images": len(dataset),
        "held_out": len(held),
        "names": _digest(dataset, order),
        "fingerprint": dataset.fingerprint()["annotations"],
        "mask": packed,
    }


def parts(dataset: InstanceDataset, record: Mapping[str, Any] | None) -> tuple[IntArray, IntArray] | None:
    """Positions of the training and the validation part of a recorded split.

    Returns:
        (T,) and (V,) positions, ascending, or None where there is no record or the data set has other images. Labels
        and masks may have been corrected since.
    """
    if record is None or len(dataset) != record["images"]:
        return None
    order = _order(dataset)
    if _digest(dataset, order) != record["names"]:
        return None
    packed = np.frombuffer(zlib.decompress(base64.b85decode(record["mask"])), dtype=np.uint8)
    mask = np.zeros(len(dataset), dtype=bool)
    mask[order] = np.unpackbits(packed, count=len(dataset)).astype(bool)
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def held_out(dataset: InstanceDataset, record: Mapping[str, Any] | None) -> InstanceDataset | None:
    """The images of a data set that a training run did not see.

    Args:
        dataset: the data set that the run was given, opened with all its images (``keep_empty=True``).
        record: ``model.extra.get(KEY)`` of the run's model.

    Returns:
        the part that was held out, or None where nothing was, or this is not the run's data set.
    """
    found = parts(dataset, record)
    return dataset.subset(found[1]) if found is not None and len(found[1]) else None


def file_names(dataset: InstanceDataset, positions: Sequence[int] | IntArray) -> list[str]:
    """The names of some images."""
    return [dataset.file_name(int(i)) for i in positions]


def _names(dataset: InstanceDataset) -> list[str]:
    return [dataset.file_name(i) for i in range(len(dataset))]


def _files(dataset: InstanceDataset) -> list[str]:
    """One name for each file: the first in order of those that it has in the records."""
    folders: dict[str, str] = {}
    keys, first = [], dict[str, str]()
    for i, name in enumerate(_names(dataset)):
        path = dataset.path(i)
        key = f"name {name}" if path is None else f"path {_resolved(os.fspath(path), folders)}"
        keys.append(key)
        first[key] = min(name, first.get(key, name))
    return [first[key] for key in keys]


def _resolved(path: str, folders: dict[str, str]) -> str:
    """A path without links and dots. ``folders`` keeps those of folders, which many files share."""
    folder, name = os.path.split(path)
    if name in ("", ".", "..") or os.path.islink(path):
        return os.path.realpath(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name)


def _order(dataset: InstanceDataset) -> IntArray:
    """Positions by file name, then by id: the same for the same images in any order of the records."""
    ids = [str(i) for i in dataset.image_ids.tolist()]
    keys = list(zip(_names(dataset), ids, strict=True))
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def _digest(dataset: InstanceDataset, order: IntArray) -> str:
    digest = hashlib.sha256()
    sizes = dataset.sizes
    for i in order.tolist():
        digest.update(f"{dataset.file_name(i)}\0{sizes[i][0]}\0{sizes[i][1]}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


def _number_held_out(images: int, fraction: float) -> int:
    if images < LEAST_IMAGES or fraction <= 0:
        return 0
    return min(max(1, int(fraction * images + 0.5)), images - 1)


class _Chooser:
    """Chooses units (files) class by class, the rarest first, as iterative stratification does (Sechidis, Tsoumakas and
    Vlahavas, On the Stratification of Multi-label Data, 2011)."""

    def __init__(self, rows: IntArray, labels: IntArray, count: int, seed: int) -> None:
        """
        Args:
            rows: (K,) unit of each object.
            labels: (K,) its label.
            count: of units.
            seed: of the order in which units are looked at.
        """
        classes = int(labels.max()) + 1 if len(labels) else 0
        pairs = np.unique(rows.astype(np.int64) * max(1, classes) + labels)
        units, kinds = pairs // max(1, classes), pairs % max(1, classes)
        ends = np.searchsorted(units, np.arange(count + 1))
        self.classes_of = [kinds[ends[i] : ends[i + 1]].tolist() for i in range(count)]
        self.total = np.bincount(kinds, minlength=classes)
        self.held = np.zeros(classes, dtype=np.int64)
        self.chosen = np.zeros(count, dtype=bool)
        self.number = 0  # chosen so far
        self.order = np.random.default_rng([seed, 1]).permutation(count).tolist()
        self.members: list[list[int]] = [[] for _ in range(classes)]
        for i in self.order:
            for kind in self.classes_of[i]:
                self.members[kind].append(i)
        self.empty = [i for i in self.order if not self.classes_of[i]]

    def choose(self, wanted: int, fraction: float) -> npt.NDArray[np.bool_]:
        """(count,) True for the ``wanted`` units that are held out."""
        if not wanted:
            return self.chosen
        self._by_class(wanted, fraction)
        self._fill(wanted, fraction)
        return self.chosen

    def _by_class(self, wanted: int, fraction: float) -> None:
        carry, settled = 0.0, np.zeros(len(self.chosen), dtype=bool)
        kinds = sorted(np.flatnonzero(self.total).tolist(), key=lambda kind: (self.total[kind], kind))
        for kind in kinds:
            need = max(0.0, fraction * float(self.total[kind]) - float(self.held[kind])) + carry
            number = min(int(need + 0.5), wanted - self.number)
            for i in self.members[kind]:
                if number > 0 and not settled[i] and self._may_leave(i):
                    self._take(i)
                    number, need = number - 1, need - 1
                settled[i] = True
            carry = min(0.5, max(-0.5, need))  # a class too rare for an image of its own adds to the next one's share

    def _fill(self, wanted: int, fraction: float) -> None:
        """Images without objects in proportion, then whatever may leave, until there are ``wanted``."""
        missing = wanted - self.number
        with_objects = [i for i in self.order if self.classes_of[i] and not self.chosen[i] and self._may_leave(i)]
        share = int(fraction * len(self.empty) + 0.5)
        if with_objects and not self.held.any():
            share = min(share, wanted - 1)  # an AP needs something to find
        for i in self.empty[: min(share, missing)]:
            self._take(i)
        least_surplus = sorted(with_objects, key=lambda i: self._surplus(i, fraction))
        rest = [*least_surplus, *self.empty[share:], *self.order]
        for singles in (False, True):  # a class that one image shows is given up before too few are held out
            for i in rest:
                if self.number >= wanted:
                    return
                if not self.chosen[i] and self._may_leave(i, singles):
                    self._take(i)

    def _surplus(self, i: int, fraction: float) -> float:
        """By how much the classes of a unit are held out beyond their share already."""
        return max((float(self.held[k]) - fraction * float(self.total[k]) for k in self.classes_of[i]), default=0.0)

    def _may_leave(self, i: int, singles: bool = False) -> bool:
        """Whether training keeps an image of every class without this unit; with ``singles``, of every class
        that more than one image shows."""
        return all(self.total[k] - self.held[k] >= 2 or (singles and self.total[k] == 1) for k in self.classes_of[i])

    def _take(self, i: int) -> None:
        self.chosen[i] = True
        self.number += 1
        self.held[self.classes_of[i]] += 1
