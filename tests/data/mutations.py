"""Damaged image files, and a program that reads them: `python mutations.py FIRST COUNT`.

Each is read in this one process, which the kernel ends when a single image takes too long. Printed are a line for each
image that was read in a wrong way, and at the end a JSON object with the counts.
"""

import json
import resource
import signal
import struct
import sys
import zlib
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import torch
from image_files import encoded, png16, tiff  # a program: its folder is on the path
from PIL import Image

from instseg.core.errors import DataError
from instseg.data.images.read import image_size, read_image

SECONDS = 120  # for one image, on a machine that is busy with other things
HUGE = (0, 1, 255, 16_383, 40_000, 65_535, 100_000, 2**24, 2**31 - 1, 2**32 - 1)


def originals() -> dict[str, bytes]:
    """Small files of every format and of most kinds of each."""
    rng = np.random.default_rng(0)
    rgb = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((6, 6, 1))).astype(np.uint8)
    deep = rgb.astype(np.uint16) * 16
    picture, other = Image.fromarray(rgb), Image.fromarray(rgb[::-1].copy())
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "png": encoded(picture, "PNG", exif=exif),
        "png-palette": encoded(picture.quantize(16), "PNG", transparency=3),
        "png-alpha": encoded(picture.convert("LA"), "PNG"),
        "png-16": encoded(Image.fromarray(deep[..., 0]), "PNG"),
        "png-rgb16": png16(deep),
        "png-la16": png16(deep[..., :2], interlaced=True),
        "apng": encoded(picture, "PNG", save_all=True, append_images=[other]),
        "jpeg": encoded(picture, "JPEG", exif=exif),
        "jpeg-progressive": encoded(picture, "JPEG", progressive=True),
        "jpeg-cmyk": encoded(picture.convert("CMYK"), "JPEG"),
        "mpo": encoded(picture, "MPO", save_all=True, append_images=[other]),
        "gif": encoded(picture.quantize(16), "GIF"),
        "gif-animated": encoded(picture, "GIF", save_all=True, append_images=[other]),
        "bmp": encoded(picture, "BMP"),
        "bmp-palette": encoded(picture.quantize(16), "BMP"),
        "tiff": encoded(picture, "TIFF"),
        "tiff-lzw": encoded(picture, "TIFF", compression="tiff_lzw", exif=exif),
        "tiff-jpeg": encoded(picture, "TIFF", compression="jpeg"),
        "tiff-bilevel": encoded(picture.convert("1"), "TIFF", compression="group4"),
        "tiff-16": encoded(Image.fromarray(deep[..., 0]), "TIFF"),
        "tiff-float-deflate": encoded(
            Image.fromarray(rgb[..., 0] / np.float32(255)), "TIFF", compression="tiff_deflate"
        ),
        "tiff-rgb16": tiff(deep, compression=8, predictor=2),
        "tiff-planar16": tiff(deep, order=">", planar=True, rows_per_strip=10),
        "tiff-tiled-float": tiff(deep.astype(np.float32) / 4080, compression=8, predictor=3, tile=16, orientation=6),
        "webp": encoded(picture, "WEBP", exif=exif),
        "webp-lossless": encoded(picture.convert("RGBA"), "WEBP", lossless=True),
        "webp-animated": encoded(picture, "WEBP", save_all=True, append_images=[other]),
        "jp2": encoded(picture, "JPEG2000"),
        "jp2-16": encoded(Image.fromarray(deep[..., 0]), "JPEG2000"),
        "ppm": encoded(picture, "PPM"),
        "ppm-16": b"P6 48 36 65535\n" + deep.astype(">u2").tobytes(),
        "pgm-text": b"P2 8 6 4095\n" + b" ".join(str(v).encode() for v in deep[::6, ::6, 0].ravel()),
        "ico": encoded(picture, "ICO", sizes=[(32, 32)]),
    }
    return files


def mutated(number: int, files: dict[str, bytes]) -> tuple[str, bytes]:
    """The damaged file of a number, always the same one."""
    rng = Random(number)
    name = sorted(files)[number % len(files)]
    data = bytearray(files[name])
    kind = rng.choice(("flip", "cut", "head", "swap", "huge", "insert", "delete", "zero", "tail"))
    if kind == "flip":
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "head":
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(min(64, len(data)))] = rng.randrange(256)
    elif kind == "swap":
        length = rng.randint(1, max(1, len(data) // 4))
        a, b = rng.randrange(len(data)), rng.randrange(len(data))
        data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]
    elif kind == "huge":
        _declare(data, name, rng)
    elif kind == "insert":
        at = rng.randrange(len(data))
        data[at:at] = rng.randbytes(rng.randint(1, 300))
    elif kind == "delete":
        at = rng.randrange(len(data))
        del data[at : at + rng.randint(1, 100)]
    elif kind == "zero":
        at = rng.randrange(len(data))
        data[at : at + 100] = bytes(len(data[at : at + 100]))
    else:
        data += rng.randbytes(rng.randint(1, 5000))
    return f"{name} {kind}", bytes(data)


def _declare(data: bytearray, name: str, rng: Random) -> None:
    """Writes a huge, or impossible, size where the format has it."""
    wide, high = rng.choice(HUGE), rng.choice(HUGE)
    if name.startswith(("png", "apng")):
        data[16:24] = struct.pack(">II", wide, high)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif name.startswith(("ppm", "pgm")):
        kind, rest = data[:2], data.split(None, 3)[3]
        data[:] = kind + b" %d %d " % (wide, high) + rest
    elif name.startswith("gif"):
        data[6:10] = struct.pack("<HH", wide & 0xFFFF, high & 0xFFFF)
    elif name.startswith("bmp"):
        data[18:26] = struct.pack("<II", wide, high)
    elif name.startswith(("jpeg", "mpo")):
        start = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        data[start + 5 : start + 9] = struct.pack(">HH", high & 0xFFFF, wide & 0xFFFF)
    elif name.startswith("jp2"):
        for start in (data.find(b"ihdr") + 4, data.find(b"\xff\x4f\xff\x51") + 8):
            data[start : start + 8] = struct.pack(">II", high, wide)
    elif name.startswith("tiff"):
        order = "<" if data[:1] == b"I" else ">"
        for tag, value in ((256, wide), (257, high)):
            start = data.find(struct.pack(f"{order}HHI", tag, 4, 1))
            if start >= 0:
                data[start + 8 : start + 12] = struct.pack(f"{order}I", value)
    else:
        data[20:28] = struct.pack("<II", wide, high)


def complaint(data: bytes) -> tuple[str, str]:
    """What happens with a file, and what is wrong with that, if anything."""
    try:
        shown, stored = image_size(data)
    except DataError as error:
        shown = stored = None
        if "\n" in str(error):
            return "refused", f"image_size: {error!r}"
    try:
        image, raw = read_image(data), read_image(data, exif=False)
    except DataError as error:
        return "refused", f"read_image: {error!r}" if "\n" in str(error) else ""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        return "read", f"{image.dtype} {tuple(image.shape)}"
    if shown is not None and (tuple(image.shape[1:]) != shown or tuple(raw.shape[1:]) != stored):
        return "read", f"{tuple(image.shape)} shown, {tuple(raw.shape)} stored; image_size says {shown}, {stored}"
    return "read", "" if shown is not None else "image_size refuses it"


def resident() -> int:
    """MiB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 20


def high_water() -> int:
    """MiB that this process held at most. Not getrusage's figure, in which the process that started this one counts."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


def main(first: int, count: int) -> None:
    files = originals()
    for name, data in files.items():
        assert complaint(data) == ("read", ""), f"{name}: {complaint(data)}"
    counts: Counter[str] = Counter()
    before = 0
    for number in range(first, first + count):
        name, data = mutated(number, files)
        print(f"at {number} {name}", flush=True)
        signal.alarm(SECONDS)  # its default ends the process, also inside a decoder
        result, wrong = complaint(data)
        signal.alarm(0)
        counts[result] += 1
        if wrong:
            counts["wrong"] += 1
            print(f"wrong {number} {name}: {wrong}", flush=True)
        if number == first + count // 4:
            before = resident()
    peak = high_water()
    print(json.dumps({**counts, "grown": resident() - before, "peak": peak}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
