"""Published checkpoints of the SOLO family: where each lies, what its authors state, and how to have it here."""

import os
from dataclasses import dataclass
from pathlib import Path

from instseg.core.cache import cache_folder
from instseg.core.errors import CheckpointError
from instseg.weights.download import Download, FetchError, digest_of, download
from instseg.weights.published import open_published

__all__ = ["CATALOGUE", "COCO", "PublishedFile", "address_of", "cache_folder", "obtain", "place_of", "published_for"]

_AUTHORS = "https://huggingface.co/xinlongwang/SOLO/resolve/main/"
_MMDET = "https://download.openmmlab.com/mmdetection/v2.0/"
_ADELAIDET = "https://huggingface.co/ZjuCv/AdelaiDet/resolve/main/"
_NON_COMMERCIAL = "non-commercial use only (license of the code base)"


@dataclass(frozen=True)
class PublishedFile:
    """A file that others published.

    Attributes:
        name: what ``weights=`` calls it.
        model: the zoo's name of its model.
        code: whose it is: ``mmdetection``, ``SOLO`` (the authors' repository) or ``AdelaiDet``.
        url: where it lies.
        license: as its publishers state it.
        ap: COCO val2017 mask AP that they state.
        recipe: ours for the same schedule.
        sha256: the beginning of its digest where the publishers state it, else None.
        size: bytes where the publishers state it, else None.
    """

    name: str
    model: str
    code: str
    url: str
    license: str
    ap: float
    recipe: str
    sha256: str | None = None
    size: int | None = None

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[1]


def _authors(name: str, model: str, file: str, ap: float, recipe: str) -> PublishedFile:
    return PublishedFile(name, model, "SOLO", f"{_AUTHORS}{file}.pth", _NON_COMMERCIAL, ap, recipe)


def _mmdet(name: str, model: str, folder: str, config: str, stamp: str, ap: float, recipe: str) -> PublishedFile:
    url = f"{_MMDET}{folder}/{config}/{config}_{stamp}.pth"
    return PublishedFile(f"{name}_mmdet", model, "mmdetection", url, "Apache-2.0", ap, recipe, stamp.rsplit("-", 1)[1])


def _adelaidet(name: str, model: str, file: str, ap: float) -> PublishedFile:
    url = f"{_ADELAIDET}{file}.pth"
    return PublishedFile(f"{name}_adelaidet", model, "AdelaiDet", url, _NON_COMMERCIAL, ap, "solov2_3x")


_FILES = (
    _authors("solo_r50_1x", "solo_r50", "SOLO_R50_1x", 32.9, "solo_1x"),
    _authors("solo_r50_3x", "solo_r50", "SOLO_R50_3x", 35.8, "solo_3x"),
    _authors("solo_r101_3x", "solo_r101", "SOLO_R101_3x", 37.1, "solo_3x"),
    _authors("decoupled_solo_r50_1x", "decoupled_solo_r50", "DECOUPLED_SOLO_R50_1x", 33.9, "solo_1x"),
    _authors("decoupled_solo_r50_3x", "decoupled_solo_r50", "DECOUPLED_SOLO_R50_3x", 36.4, "solo_3x"),
    _authors("decoupled_solo_r101_3x", "decoupled_solo_r101", "DECOUPLED_SOLO_R101_3x", 37.9, "solo_3x"),
    _authors(
        "decoupled_solo_light_r50_3x",
        "decoupled_solo_light_r50",
        "DECOUPLED_SOLO_LIGHT_R50_3x",
        33.0,
        "solo_light_3x",
    ),
    _authors(
        "decoupled_solo_light_r50_dcn_3x",
        "decoupled_solo_light_r50_dcn",
        "DECOUPLED_SOLO_LIGHT_DCN_R50_3x",
        35.0,
        "solo_light_3x",
    ),
    _authors("solov2_r50_1x", "solov2_r50", "SOLOv2_R50_1x", 34.8, "solov2_1x"),
    _authors("solov2_r50_3x", "solov2_r50", "SOLOv2_R50_3x", 37.5, "solov2_3x"),
    _authors("solov2_r101_3x", "solov2_r101", "SOLOv2_R101_3x", 39.1, "solov2_3x"),
    _authors("solov2_r101_dcn_3x", "solov2_r101_dcn", "SOLOv2_R101_DCN_3x", 41.4, "solov2_3x"),
    _authors("solov2_x101_dcn_3x", "solov2_x101_dcn", "SOLOv2_X101_DCN_3x", 42.4, "solov2_3x"),
    _authors("solov2_light_448_r18_3x", "solov2_light_448_r18", "SOLOv2_LIGHT_448_R18_3x", 29.6, "solov2_light_3x"),
    _authors("solov2_light_448_r34_3x", "solov2_light_448_r34", "SOLOv2_LIGHT_448_R34_3x", 32.0, "solov2_light_3x"),
    _authors("solov2_light_448_r50_3x", "solov2_light_448_r50", "SOLOv2_LIGHT_448_R50_3x", 33.7, "solov2_light_3x"),
    _authors(
        "solov2_light_512_r50_dcn_3x",
        "solov2_light_512_r50_dcn",
        "SOLOv2_LIGHT_512_DCN_R50_3x",
        36.4,
        "solov2_light_512_3x",
    ),
    _mmdet("solo_r50_1x", "solo_r50", "solo", "solo_r50_fpn_1x_coco", "20210821_035055-2290a6b8", 33.1, "solo_1x"),
    _mmdet("solo_r50_3x", "solo_r50", "solo", "solo_r50_fpn_3x_coco", "20210901_012353-11d224d7", 35.9, "solo_3x"),
    _mmdet(
        "decoupled_solo_r50_1x",
        "decoupled_solo_r50",
        "solo",
        "decoupled_solo_r50_fpn_1x_coco",
        "20210820_233348-6337c589",
        33.9,
        "solo_1x",
    ),
    _mmdet(
        "decoupled_solo_r50_3x",
        "decoupled_solo_r50",
        "solo",
        "decoupled_solo_r50_fpn_3x_coco",
        "20210821_042504-7b3301ec",
        36.7,
        "solo_3x",
    ),
    _mmdet(
        "decoupled_solo_light_r50_3x",
        "decoupled_solo_light_r50",
        "solo",
        "decoupled_solo_light_r50_fpn_3x_coco",
        "20210906_142703-e70e226f",
        32.9,
        "solo_light_3x",
    ),
    _mmdet(
        "solov2_r50_1x", "solov2_r50", "solov2", "solov2_r50_fpn_1x_coco", "20220512_125858-a357fa23", 34.8, "solov2_1x"
    ),
    _mmdet(
        "solov2_r50_3x", "solov2_r50", "solov2", "solov2_r50_fpn_3x_coco", "20220512_125856-fed092d4", 37.5, "solov2_3x"
    ),
    _mmdet(
        "solov2_r101_3x",
        "solov2_r101",
        "solov2",
        "solov2_r101_fpn_3x_coco",
        "20220511_095119-c559a076",
        39.1,
        "solov2_3x",
    ),
    _mmdet(
        "solov2_r101_dcn_3x",
        "solov2_r101_dcn",
        "solov2",
        "solov2_r101_dcn_fpn_3x_coco",
        "20220513_214734-16c966cb",
        41.2,
        "solov2_3x",
    ),
    _mmdet(
        "solov2_x101_dcn_3x",
        "solov2_x101_dcn",
        "solov2",
        "solov2_x101_dcn_fpn_3x_coco",
        "20220513_214337-aef41095",
        42.4,
        "solov2_3x",
    ),
    _mmdet(
        "solov2_light_448_r18_3x",
        "solov2_light_448_r18",
        "solov2",
        "solov2_light_r18_fpn_3x_coco",
        "20220511_083717-75fa355b",
        29.7,
        "solov2_light_3x",
    ),
    _mmdet(
        "solov2_light_448_r34_3x",
        "solov2_light_448_r34",
        "solov2",
        "solov2_light_r34_fpn_3x_coco",
        "20220511_091839-e51659d3",
        31.9,
        "solov2_light_3x",
    ),
    _mmdet(
        "solov2_light_448_r50_3x",
        "solov2_light_448_r50",
        "solov2",
        "solov2_light_r50_fpn_3x_coco",
        "20220512_165256-c93a6074",
        33.7,
        "solov2_light_3x",
    ),
    _adelaidet("solov2_r50_3x", "solov2_r50", "SOLOv2_R50_3x", 37.6),
    _adelaidet("solov2_r101_3x", "solov2_r101", "SOLOv2_R101_3x", 39.0),
)

COCO = "coco"
"""The checkpoint for everyday photographs: the 80 categories of COCO, Apache-2.0."""

CATALOGUE: dict[str, PublishedFile] = {entry.name: entry for entry in _FILES}
CATALOGUE[COCO] = CATALOGUE["solov2_r50_3x_mmdet"]


def published_for(model: str) -> list[PublishedFile]:
    """The files for a model of the zoo."""
    return [entry for entry in _FILES if entry.model == model]


def place_of(entry: PublishedFile) -> Path:
    """Where a catalogued file lies on this machine once it has been fetched, or has been put by hand."""
    return cache_folder() / entry.code / entry.file  # files of different publishers may have the same name


def address_of(entry: PublishedFile) -> str:
    """Where a catalogued file is fetched from: its publishers, or the mirror that ``$INSTSEG_MIRROR`` names."""
    mirror = os.environ.get("INSTSEG_MIRROR")
    return f"{mirror.rstrip('/')}/{entry.code}/{entry.file}" if mirror else entry.url


def obtain(name: str) -> Path:
    """The local path of a catalogued file, downloaded once where it is not there yet.

    The size is said before, a progress bar shows how far it is, an interrupted download resumes, and the file gets its
    name only when its digest is the published one and its tensors can be read.

    Raises CheckpointError, with the file wanted, where from and where to put it by hand, when it cannot be had, and
    when the file that is there is not the published one.
    """
    entry = CATALOGUE[name]
    path = place_of(entry)
    if path.is_file():
        _check_digest(path, entry)
        return path
    wanted = Download(address_of(entry), path, name, entry.sha256)
    try:
        download(wanted, lambda part: open_published(part, entry.model))
    except FetchError as error:
        raise CheckpointError(
            f"weights {name} cannot be downloaded ({error}): get {entry.file} from {wanted.url} by hand and put it at "
            f"{path}, or give its path in place of the name. The bundled nuclei, and training, work without it."
        ) from None
    return path


def _check_digest(path: Path, entry: PublishedFile) -> None:
    if entry.sha256 is None:
        return
    try:
        digest = digest_of(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; make it readable or delete it.") from None
    if not digest.startswith(entry.sha256):
        raise CheckpointError(
            f"{path} is not the published file (sha256 begins with {digest[:8]}, not {entry.sha256}): it is truncated "
            "or another one; delete it, and it is downloaded again."
        )
