"""Small images as files in folders, tars and zips, for the tests of data sets."""

import io
import tarfile
import zipfile
from pathlib import Path

from PIL import Image

__all__ = ["grey_values", "png", "tree", "write", "write_tar", "write_zip"]


def png(value=0, size=(6, 4)) -> bytes:
    content = io.BytesIO()
    Image.new("L", size, value).save(content, "PNG")
    return content.getvalue()


def tree(classes: int = 6, images: int = 3) -> dict[str, bytes]:
    """Files of classes c0, c1, ...; the grey value tells class and image."""
    return {f"c{c}/{i}.png": png(10 * c + i) for c in range(classes) for i in range(images)}


def write(root: Path, files: dict[str, bytes]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def grey_values(dataset) -> list[int]:
    return [image.getpixel((0, 0))[0] for image, _ in dataset]
