"""From an annotation file's index to images that can be read: files, sizes, EXIF."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from instseg.core.errors import DataError
from instseg.data.formats.files import Found, ImageFinder
from instseg.data.formats.index import Index, Pictures, image_name
from instseg.data.formats.layout import SPLIT_WORDS, Located
from instseg.data.images.read import ImageRule, find_full_scale, image_size
from instseg.data.records import Problem, Report, Severity

# Of a data set of at most so many images every header is read when it is opened; of a larger one some of them, and the
# others when they are used.
HEADERS = 5_000
_SAMPLE = 300

Sizes = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Opened:
    """The images of an index.

    Attributes:
        pictures: files, sizes and orientation of each.
        rule: how the files of this data set become pixels.
    """

    pictures: Pictures
    rule: ImageRule


def open_pictures(index: Index, located: Located, report: Report) -> Opened:
    """Find the image files of an index, and what their headers say.

    Files are looked up in listings of folders, so that 120,000 of them take a second. Defects go to ``report``; what
    they concern is marked as not usable.
    """
    opener = _Opener(index, report)
    others = [word for split, words in SPLIT_WORDS.items() if located.split not in (None, split) for word in words]
    finder = ImageFinder(located.root, located.annotations.parent, located.folders, others)
    paths = opener.paths(finder.find_all(index.file_names), located)
    headers = opener.headers(paths)
    exif = _fits_shown(index, headers)
    opener.settle(headers, exif)
    pictures = Pictures(paths, opener.sizes, opener.exif, opener.usable)
    there = [path for path, usable in zip(paths, opener.usable, strict=True) if path is not None and usable]
    return Opened(pictures, ImageRule(exif, find_full_scale(there)))


class _Opener:
    """What is known of each image so far, and how to say what is wrong with it."""

    def __init__(self, index: Index, report: Report) -> None:
        self.index = index
        self.report = report
        self.sizes: npt.NDArray[np.int32] = index.sizes.copy()
        self.exif = np.full(len(index), -1, dtype=np.int8)
        self.usable = np.ones(len(index), dtype=bool)

    def note(self, kind: str, severity: Severity, image: int, message: str) -> None:
        self.report(Problem(kind, severity, str(self.index.file), image_name(self.index, image), message))

    def paths(self, found: Sequence[Found], located: Located) -> list[Path | None]:
        missing = [i for i, file in enumerate(found) if file.path is None]
        self.usable[missing] = False
        if len(missing) == len(found) > 1:
            message = (
                f'none of its {len(found)} images is here: the first is "{self.index.file_names[0]}", '
                f"{found[0].reason}."
            )
            if "files fit" not in found[0].reason:
                message += f" Copy the images into {located.root / 'images'}."
            self.report(Problem("missing_image", "error", str(self.index.file), "", message))
        else:
            for i in missing:
                self.note("missing_image", "error", i, f"{found[i].reason}; add the image or remove the record.")
        return [file.path for file in found]

    def headers(self, paths: Sequence[Path | None]) -> dict[int, Sizes]:
        """((H, W) as shown, (H, W) as stored) of the images whose header is worth reading now."""
        there = np.flatnonzero(self.usable)
        unknown = (self.sizes == 0).any(axis=1)
        all_now = len(there) <= HEADERS
        if not all_now:
            some = there[np.linspace(0, len(there) - 1, _SAMPLE).astype(int)]
            there = np.unique(np.concatenate([some, there[unknown[there]]]))

        def look(i: int) -> Sizes | DataError:
            try:
                path = paths[i]
                assert path is not None
                return image_size(path)
            except DataError as error:
                return error

        headers = {}
        with ThreadPoolExecutor() as pool:
            for i, found in zip(there.tolist(), pool.map(look, there.tolist()), strict=True):
                if not isinstance(found, DataError):
                    headers[i] = found
                elif all_now or unknown[i]:  # else it is found when it is read, as those that were not looked at
                    self.usable[i] = False
                    self.note("broken_image", "error", i, str(found))
        return headers

    def settle(self, headers: dict[int, Sizes], exif: bool) -> None:
        """Sizes and orientation of the images whose headers were read.

        The orientation of the others, and of those whose size is the same either way, follows the data set's rule.
        """
        for i, (shown, stored) in headers.items():
            height, width = self.sizes[i].tolist()
            if not (height and width):  # the side that is known, if one is, decides which way it is
                either = (shown, stored) if exif else (stored, shown)
                fitting = [size for size in either if height in (0, size[0]) and width in (0, size[1])]
                height, width = fitting[0] if fitting else (height, width)
                self.sizes[i] = height, width
            if (height, width) not in (shown, stored):
                self.usable[i] = False
                found = f"{shown[1]} x {shown[0]}, the record says {width} x {height} (width x height)"
                swapped = "; are width and height swapped?" if (width, height) == shown else ""
                self.note(
                    "image_size", "error", i, f"image is {found}{swapped or '; correct the record or the image.'}"
                )
                continue
            if shown != stored:
                self.exif[i] = (height, width) == shown
                if not self.exif[i]:
                    self.note("exif", "warning", i, "annotated without its EXIF rotation; the image is used as stored.")


def _fits_shown(index: Index, headers: dict[int, Sizes]) -> bool:
    """Whether the objects of a data set were drawn on the images as they are shown: what more of them fit, of those
    that are turned by their EXIF orientation."""
    turned = [(i, shown, stored) for i, (shown, stored) in headers.items() if shown != stored]
    as_shown = sum(tuple(index.sizes[i].tolist()) == shown for i, shown, _ in turned)
    as_stored = sum(tuple(index.sizes[i].tolist()) == stored for i, _, stored in turned)
    return as_shown >= as_stored
