"""Small images as files in folders, tars and zips, and what every data set promises."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["check_contract", "grey_values", "png", "tree", "write", "write_tar", "write_zip"]


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


def check_contract(load) -> None:
    """What every data set promises, whose splits `load` gives."""
    whole, train, test = load("all"), load("train"), load("test")
    assert len(train) + len(test) == len(whole) and not set(train.table.path) & set(test.table.path)
    classes = len(np.unique(train.labels))
    assert np.array_equal(np.unique(train.labels), np.arange(classes))
    known = np.unique(test.labels[test.labels >= 0])
    assert np.array_equal(known, np.arange(classes, len(whole.class_names)))
    assert whole.table.label.is_monotonic_increasing
    for part in (whole, train, test):
        assert list(part.table.columns[:5]) == ["path", "label", "split", "is_query", "is_gallery"]
        assert part.table.index.tolist() == list(range(len(part)))
        assert part.labels.dtype == np.int64 and part.labels.tolist() == part.table.label.tolist()
        assert part.class_names == whole.class_names and len(set(part.class_names)) == len(part.class_names)
        names = [part.class_names[label] if label >= 0 else "junk" for label in part.labels]
        assert part.table.class_name.tolist() == names
        assert part.table.is_query.dtype == part.table.is_gallery.dtype == bool
        image, label = part[len(part) - 1]
        assert image.mode == "RGB" and type(label) is int and label == part.labels[-1]
    assert set(train.table.split) == {"train"} and not (train.table.is_query | train.table.is_gallery).any()
    assert set(test.table.split) == {"test"} and (test.table.is_query | test.table.is_gallery).all()
    # Every query has an image to find.
    assert set(test.labels[test.table.is_query]) <= set(test.labels[test.table.is_gallery])
