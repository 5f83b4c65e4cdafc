"""Where the annotation file and the images of a split lie, found by looking."""

import mmap
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instseg.core.errors import DataError, did_you_mean

# The words by which folders and files call a split.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
# Folders of annotation files; their pictures lie beside such a folder.
_ANNOTATION_FOLDERS = re.compile(r"^(annotations?|anns?|labels?|jsons?)$", re.IGNORECASE)
_TELLING = re.compile(r"coco|annotation|instances|labels|result|dataset|output", re.IGNORECASE)
_PICTURE_FOLDERS = ("images", "image", "imgs", "img", "data", "JPEGImages", "pictures", "photos")
_ACCEPTED = 'give a folder, a COCO .json, a data .yaml, "shapes" or "nuclei-mini"'
_YAML_FIELDS = ("root", "train", "val", "test", "images", "train_images", "val_images", "test_images")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_OTHER_KINDS = ("panoptic segments", "captions")
# A folder is searched for annotation files this deep, and this many JSON files of one folder are looked into.
_DEPTH = 4
_FIRST = 100_000
_LOOKED_INTO = 40


@dataclass(frozen=True)
class Located:
    """The files of one split.

    Attributes:
        annotations: the COCO JSON.
        folders: where its images may lie, the likeliest first.
        name: of the data set, for people.
        root: the folder of the data set: no image is taken from above it.
        split: which the file's name or folder says it is; None where they say nothing.
    """

    annotations: Path
    folders: tuple[Path, ...]
    name: str
    root: Path
    split: str | None = None


def locate(data: Path, split: str) -> Located:
    """Find a split of a folder, a COCO JSON (which is every split), or a data YAML.

    A folder is recognized by looking: any JSON with ``images`` and ``annotations``, at most four folders deep. Words
    in its name or in those of its folders say which split it is (``instances_train2017.json``,
    ``Validation/labels.json``, ``valid/_annotations.coco.json``); a single one without such a word is ``train``.

    Raises:
        DataError: nothing there, or not this split; says which splits there are, or what lies there instead.
    """
    if not data.exists():
        raise DataError(f"{data}: no such data set; {_ACCEPTED}.")
    if data.is_dir():
        return _in_folder(data, split)
    if data.suffix.lower() in (".yaml", ".yml"):
        return _from_yaml(data, split)
    if data.suffix.lower() == ".json":
        if data.parent == Path("."):
            data = Path.cwd() / data  # whose folder above has a name then
        root = _root_of(data)
        name = data.parent.name if _of_words(data.stem) else data.stem
        return Located(data, _image_folders(data, root), name, root, _of_words(data.stem))
    if data.suffix.lower() in _ARCHIVES:
        raise DataError(f"{data}: is an archive; unpack it and give the folder.")
    raise DataError(f"{data}: not a data set; {_ACCEPTED}.")


def splits(data: Path) -> tuple[str, ...]:
    """The splits that a folder or data YAML has, of train, val, test; a single JSON counts as ``train``."""
    if data.is_dir():
        found = _recognized(data)
        return tuple(split for split in SPLIT_WORDS if split in found)
    if data.suffix.lower() in (".yaml", ".yml"):
        fields = _yaml_fields(data)
        return tuple(split for split in SPLIT_WORDS if split in fields)
    return ("train",)


# -- folders ---------------------------------------------------------------------------------------------------


def _in_folder(folder: Path, split: str) -> Located:
    found = _recognized(folder)
    for name, words in SPLIT_WORDS.items():
        split = name if split.lower() in words else split
    files = found.get(split, [])
    if not files and set(found) == {"train"} and _of_words(folder.resolve().name) == split:
        files = found["train"]  # a split's own folder was given
    if len(files) == 1:
        named = _split_of(files[0], folder)
        return Located(files[0], _image_folders(files[0], folder), folder.resolve().name, folder, named)
    if files:
        shown = ", ".join(str(file.relative_to(folder)) for file in files[:5])
        raise DataError(
            f'{folder}: {len(files)} annotation files fit split "{split}" ({shown}); give one of them as DATA, or a '
            "data YAML that names one for each split."
        )
    if found:
        have = ", ".join(name for name in SPLIT_WORDS if name in found)
        raise DataError(f'{folder}: found no annotation file for split "{split}"; it has: {have}.')
    others = [(file, kind) for file in _json_files(folder) if (kind := _looks_like(file)) in _OTHER_KINDS]
    if others:
        file, kind = others[0]
        raise DataError(
            f"{folder}: found no instance annotations; {file.relative_to(folder)} holds {kind}, which is another kind "
            "of COCO file. Export instances (COCO with segmentation)."
        )
    raise DataError(
        f"{folder}: found no data set: looked for a JSON file with COCO's lists images, annotations and categories, "
        f"{_DEPTH} folders deep; {_lies_there(folder)}. Export as COCO, or give the file itself."
    )


def _recognized(folder: Path) -> dict[str, list[Path]]:
    """The annotation files of each split; more than one where none of them is likelier than the others."""
    ranked: dict[str, list[tuple[tuple[int, ...], Path]]] = {}
    looked = [(file, _looks_like(file)) for file in _json_files(folder)]
    if any(kind not in (None, "predictions") for _, kind in looked):
        looked = [(file, kind) for file, kind in looked if kind != "predictions"]
    for file, kind in looked:
        if kind is None and file.parent in (folder, folder / "annotations") and _of_words(file.stem):
            kind = "damaged"  # reading it says what is wrong
        if kind is None or kind in _OTHER_KINDS:
            continue
        split = _split_of(file, folder)
        ranked.setdefault(split or "", []).append((_rank(file, folder, split, kind), file))
    unnamed = ranked.pop("", [])
    if unnamed and "train" not in ranked:
        ranked["train"] = unnamed
    found = {}
    for split, entries in ranked.items():
        best = min(rank for rank, _ in entries)
        found[split] = sorted(file for rank, file in entries if rank == best)
    return found


def _json_files(folder: Path) -> list[Path]:
    found = []
    base = len(folder.parts)
    for place, folders, names in os.walk(folder, followlinks=True):
        path = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if len(path.parts) - base >= _DEPTH:
            folders.clear()
        jsons = sorted(name for name in names if name.lower().endswith(".json") and not name.startswith("."))
        if len(jsons) > _LOOKED_INTO:  # one a picture: those whose names say a split, and a few
            telling = [name for name in jsons if _of_words(Path(name).stem) or _TELLING.search(name)]
            large = sorted(jsons[:10_000], key=lambda name: -os.path.getsize(path / name))
            jsons = list(dict.fromkeys([*telling[:_LOOKED_INTO], *large[:5], *jsons[:_LOOKED_INTO]]))
        found += [path / name for name in jsons]
    return found


def _looks_like(file: Path) -> str | None:
    """``instances``, or what else of COCO's kinds a JSON file seems to be; None for everything that is not COCO."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
                return None
            if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
                return "instances" if "annotations" in content[:].decode("utf-16", errors="replace") else None
            at = content.find(b'"annotations"')
            if at < 0 or content.find(b'"images"') < 0:
                return None
            if b'"instseg predictions"' in content[:200]:
                return "predictions"
            first = content[at : at + _FIRST]  # of the records; the whole may be half a gigabyte
            for key, kind in ((b'"segments_info"', "panoptic segments"), (b'"caption"', "captions")):
                if key in first and b'"segmentation"' not in first:
                    return kind
            return "keypoints" if b'"keypoints"' in first else "instances"
    except (OSError, ValueError):
        return None


def _rank(file: Path, folder: Path, split: str | None, kind: str) -> tuple[int, ...]:
    """The likelier an annotation file, the smaller."""
    stem = file.stem.lower()
    known = ("instances", "keypoints", "predictions", "damaged").index(kind)
    plain = 0 if stem in SPLIT_WORDS.get(split or "", ()) else 1 if stem.startswith("instances") else 2
    in_place = 0 if file.parent in (folder / "annotations", folder) else 1
    odd = int(any(word in stem for word in ("stuff", "person_keypoints", "caption", "panoptic", "backup", "old")))
    return known, odd, plain if in_place == 0 else 2, in_place


def _split_of(file: Path, folder: Path) -> str | None:
    """The split that an annotation file's name says, else the nearest of its folders."""
    named = _of_words(file.stem)
    if named is not None:
        return named
    steps = file.parent.relative_to(folder).parts
    for step in reversed(steps):
        plain = re.sub(r"[\d_\-. ]+$", "", step.lower())
        for split, words in SPLIT_WORDS.items():
            if plain in words:
                return split
    return None


def _of_words(stem: str) -> str | None:
    """The split that the words of a name say; None for none, or for two."""
    words = set(re.split(r"[^a-z]+", stem.lower()))
    found = [split for split, known in SPLIT_WORDS.items() if words & set(known)]
    return found[0] if len(found) == 1 else None


def _lies_there(folder: Path) -> str:
    """What a folder holds, in a few words."""
    counts: Counter[str] = Counter()
    inside = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            inside.append(f"{path.name}/")
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        counts.update(Path(name).suffix.lower() or "files without suffix" for name in names)
        if sum(counts.values()) > 10_000:
            break
    if not counts:
        return "it holds no file"
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(6))
    return f"it holds {kinds}" + (f" in {', '.join(inside[:6])}{' ...' if len(inside) > 6 else ''}" if inside else "")


def _root_of(annotations: Path) -> Path:
    """The folder of the data set that a lone annotation file belongs to."""
    here = annotations.parent
    return here.parent if _ANNOTATION_FOLDERS.match(here.resolve().name) else here


def _image_folders(annotations: Path, root: Path) -> tuple[Path, ...]:
    """Folders that hold the images of an annotation file in the layouts we know, the likeliest first."""
    here = annotations.parent
    word = re.sub(r"^(instances|lvis_v\d|coco)_", "", annotations.stem)
    plain = re.sub(r"\d+$", "", word)
    split = _of_words(annotations.stem)
    spoken = SPLIT_WORDS.get(split, ()) if split else ()
    names = list(dict.fromkeys([word, plain, *spoken, *(name.capitalize() for name in spoken), "default"]))
    beside = here.parent if _ANNOTATION_FOLDERS.match(here.resolve().name) else here
    places = [here] if annotations.name.startswith("_annotations") else []
    for base in dict.fromkeys((beside, here, root)):
        for pictures in _PICTURE_FOLDERS:
            places += [base / pictures / name for name in names] + [base / pictures]
        places += [base / name / pictures for name in names for pictures in _PICTURE_FOLDERS[:1]]
        places += [base / name for name in names]
        places.append(base)
    unique = dict.fromkeys(places)
    # Not resolved: a link in the data set may lead anywhere.
    return tuple(place for place in unique if (place == root or root in place.parents) and place.is_dir())


# -- YAML ------------------------------------------------------------------------------------------------------


def _from_yaml(path: Path, split: str) -> Located:
    fields = _yaml_fields(path)
    if split not in fields:
        have = ", ".join(name for name in SPLIT_WORDS if name in fields)
        raise DataError(f'{path}: has no field "{split}"; it has: {have}.')
    root = (path.parent / str(fields.get("root", "."))).resolve()
    annotations = root / str(fields[split])
    if not annotations.is_file() or annotations.suffix.lower() != ".json":
        raise DataError(f'{path}: field "{split}" is {annotations}, which is not a COCO JSON file.')
    images = fields.get(f"{split}_images", fields.get("images"))
    inside = root if root in annotations.parents else _root_of(annotations)
    folders = _image_folders(annotations, inside)
    if images is not None:
        folder = root / str(images)
        if not folder.is_dir():
            raise DataError(f"{path}: the images' folder {folder} does not exist; correct the field.")
        folders = (folder, *folders)
    return Located(annotations, folders, path.stem, inside)


def _yaml_fields(path: Path) -> dict[str, Any]:
    import yaml

    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: not a readable YAML file ({' '.join(str(error).split())}).") from None
    if isinstance(fields, dict):
        fields = {key: value for key, value in fields.items() if value is not None}
    if not isinstance(fields, dict) or not any(split in fields for split in SPLIT_WORDS):
        raise DataError(f"{path}: a data YAML has the fields root, train, val (COCO JSON files) and images.")
    for field in fields:
        if field not in _YAML_FIELDS:
            known = ", ".join(_YAML_FIELDS)
            raise DataError(f'{path}: unknown field "{field}".{did_you_mean(str(field), _YAML_FIELDS)} Known: {known}.')
    return fields
