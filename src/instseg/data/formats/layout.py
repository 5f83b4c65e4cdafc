"""Where the annotation file and the images of a split lie."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instseg.core.errors import DataError, did_you_mean

# The words by which folders and files call a split.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
ROBOFLOW_FILE = "_annotations.coco.json"
_ACCEPTED = 'give a folder, a COCO .json, a data .yaml, "shapes" or "nuclei-mini"'
_YAML_FIELDS = ("root", "train", "val", "test", "images", "train_images", "val_images", "test_images")


@dataclass(frozen=True)
class Located:
    """The files of one split.

    Attributes:
        annotations: the COCO JSON.
        folders: where its images may lie, the likeliest first.
        name: of the data set, for people.
    """

    annotations: Path
    folders: tuple[Path, ...]
    name: str


def locate(data: Path, split: str) -> Located:
    """Find a split of a folder, a COCO JSON (which is every split), or a data YAML.

    Folders: ``annotations/{split}.json`` with ``images/``; Roboflow's ``{split}/_annotations.coco.json`` with
    the images beside it; COCO's ``annotations/instances_{split}2017.json`` (any year) with ``{split}2017/``;
    either JSON directly in the folder. ``valid`` and ``validation`` are ``val``.

    Raises:
        DataError: nothing there, or not this split; says which splits there are.
    """
    if not data.exists():
        raise DataError(f"{data}: no such data set; {_ACCEPTED}.")
    if data.is_dir():
        found = _in_folder(data, split)
        if found is not None:
            return found
        have = ", ".join(splits(data))
        hint = f"it has: {have}" if have else "expected annotations/train.json and images/, or another COCO layout"
        raise DataError(f'{data}: found no annotation file for split "{split}"; {hint}.')
    if data.suffix.lower() in (".yaml", ".yml"):
        return _from_yaml(data, split)
    if data.suffix.lower() == ".json":
        return Located(data, _image_folders(data), data.parent.name if data.stem in SPLIT_WORDS else data.stem)
    raise DataError(f"{data}: not a data set; {_ACCEPTED}.")


def splits(data: Path) -> tuple[str, ...]:
    """The splits that a folder or data YAML has, of train, val, test; a single JSON counts as ``train``."""
    if data.is_dir():
        return tuple(split for split in SPLIT_WORDS if _in_folder(data, split) is not None)
    if data.suffix.lower() in (".yaml", ".yml"):
        fields = _yaml_fields(data)
        return tuple(split for split in SPLIT_WORDS if split in fields)
    return ("train",)


def _in_folder(folder: Path, split: str) -> Located | None:
    for candidate in _candidates(folder, SPLIT_WORDS.get(split, (split,))):
        if candidate.is_file():
            return Located(candidate, _image_folders(candidate), folder.name)
    return None


def _candidates(folder: Path, words: tuple[str, ...]) -> list[Path]:
    paths = [folder / "annotations" / f"{word}.json" for word in words]
    paths += [folder / word / ROBOFLOW_FILE for word in words]
    for place in (folder / "annotations", folder):
        for word in words:
            paths += [*sorted(place.glob(f"instances_{word}[0-9]*.json")), place / f"instances_{word}.json"]
    paths += [folder / f"{word}.json" for word in words]
    if folder.name in words:
        paths.append(folder / ROBOFLOW_FILE)
    return paths


def _image_folders(annotations: Path) -> tuple[Path, ...]:
    """Folders that hold the images of an annotation file in the layouts we know."""
    here = annotations.parent
    word = re.sub(r"^instances_", "", annotations.stem)
    plain = re.sub(r"\d+$", "", word)
    names = list(dict.fromkeys([word, plain, *SPLIT_WORDS.get(plain, ())]))
    if annotations.name == ROBOFLOW_FILE:
        return (here,)
    roots = (here.parent, here) if here.name == "annotations" else (here, here.parent)
    places: list[Path] = []
    for root in roots:
        places += [root / "images" / name for name in names] + [root / "images"]
        places += [root / name for name in names]
    return tuple(place for place in dict.fromkeys([*places, *roots]) if place.is_dir())


def _from_yaml(path: Path, split: str) -> Located:
    fields = _yaml_fields(path)
    if split not in fields:
        have = ", ".join(name for name in SPLIT_WORDS if name in fields)
        raise DataError(f'{path}: has no field "{split}"; it has: {have}.')
    root = (path.parent / str(fields.get("root", "."))).resolve()
    annotations = root / str(fields[split])
    if not annotations.is_file() or annotations.suffix.lower() != ".json":
        raise DataError(f'{path}: field "{split}" gives {annotations}, which is not a COCO JSON file.')
    images = fields.get(f"{split}_images", fields.get("images"))
    folders = _image_folders(annotations)
    if images is not None:
        folder = root / str(images)
        if not folder.is_dir():
            raise DataError(f"{path}: the images' folder {folder} does not exist; correct the field.")
        folders = (folder, *folders)
    return Located(annotations, folders, path.stem)


def _yaml_fields(path: Path) -> dict[str, Any]:
    import yaml

    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: not a readable YAML file ({' '.join(str(error).split())}).") from None
    if not isinstance(fields, dict) or not any(split in fields for split in SPLIT_WORDS):
        raise DataError(f"{path}: a data YAML has the fields root, train, val (COCO JSON files) and images.")
    for field in fields:
        if field not in _YAML_FIELDS:
            known = ", ".join(_YAML_FIELDS)
            raise DataError(f'{path}: unknown field "{field}".{did_you_mean(str(field), _YAML_FIELDS)} Known: {known}.')
    return fields
