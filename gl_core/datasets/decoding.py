"""From the bytes of an image file to RGB pixels, as the image is meant to be seen."""

import io
import os
import stat
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["is_image", "open_image", "read_file", "readable", "to_rgb"]

# What image files are called, and the format of Pillow that decodes them. Only these formats are ever decoded: a file
# of another one may start a program, as Encapsulated PostScript starts Ghostscript.
FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".pbm", ".pgm", ".ppm", ".pnm"), "PPM"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), "JPEG2000"),
    **dict.fromkeys((".heic", ".heif"), "HEIF"),  # decoded by plug-ins of Pillow, as JPEG XL is
    **{".png": "PNG", ".gif": "GIF", ".bmp": "BMP", ".webp": "WEBP", ".avif": "AVIF", ".jxl": "JXL"},
    # Never decoded, but meant as images: it is said that they are left out.
    **dict.fromkeys((".svg", ".psd", ".eps", ".dng", ".cr2", ".cr3", ".nef", ".arw"), "another program's"),
}
# Integer pixels say nothing of their range, from black, 0, to white: 255, 4095 or 65535, the least that is not
# exceeded.
BIT_DEPTHS = (8, 12, 16)


def is_image(name: str) -> bool:
    """Whether a file of that name is meant as an image, of whatever format."""
    return _suffix(name) in FORMATS


def readable(name: str) -> bool:
    """Whether the format that the name of an image file promises can be decoded here."""
    return FORMATS[_suffix(name)] in _decoders()


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _decoders() -> list[str]:
    Image.init()
    return [name for name in dict.fromkeys(FORMATS.values()) if name in Image.OPEN]


def read_file(path: str | os.PathLike) -> bytes:
    """The content of a regular file. Pipes and devices, which might never end, raise OSError."""
    without_waiting = getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | without_waiting)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is no regular file")
        return file.read()


def open_image(source: bytes | Path, *, smallest: bool = False) -> Image.Image:
    """An image in mode RGB, from the path or the content of its file; `smallest`: of as few pixels as its format can
    decode. Raises anything: a decoder raises whatever it stumbles over in a damaged file."""
    content = source if isinstance(source, bytes) else read_file(source)
    try:
        opened = Image.open(io.BytesIO(content), formats=_decoders())
    except UnidentifiedImageError:
        raise ValueError("its content is no image of a format that is read") from None
    with opened as image:
        if smallest:
            image.draft(None, (1, 1))
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as it is meant to be seen, in mode RGB: upright, on white where it is transparent, integers brought to
    8 bits. Floats, which have no agreed range, raise ValueError."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        white = next((2**bits - 1 for bits in BIT_DEPTHS if values.max() < 2**bits), None)
        if values.min() < 0 or white is None:
            raise ValueError(f"pixels from {values.min()} to {values.max()}: must lie in 0..65535")
        return Image.fromarray(np.round(values / (white / 255)).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("pixels are floats, which have no agreed range: must be integers")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
