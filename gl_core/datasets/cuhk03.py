"""cuhk03, cuhk03_labelled: CUHK03, pedestrians on a campus (Li et al., "DeepReID", CVPR 2014), by the new protocol
(Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017).

Persons were cut out by a detector (`cuhk03`) or by hand (`cuhk03_labelled`). Of 767 persons 7,365 (detected) or 7,368
(labelled) images are trained on; in the test 1,400 queries search a gallery of 5,332 or 5,328 images of 700 other
persons.

`root` is the folder that holds `detected/` and `labeled/` (or one of them) with `bounding_box_train/`, `query/` and
`bounding_box_test/`, as the authors of the protocol prepared them (CUHK03-NP), or `cuhk03_release/cuhk-03.mat` together
with `cuhk03_new_protocol_config_detected.mat` and `cuhk03_new_protocol_config_labeled.mat`; reading the former takes
h5py.
"""

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from gl_core import _checks
from gl_core._extras import require
from gl_core.datasets.archive import ImageFiles
from gl_core.datasets.base import RetrievalDataset
from gl_core.datasets.listed import find_layout
from gl_core.datasets.persons import FOLDERS, from_folders, from_parts

__all__ = ["load"]

# How the files spell it.
FOLDER_OF = {"detected": "detected", "labelled": "labeled"}
IMAGES = "cuhk03_release/cuhk-03.mat"


def load(root: str | os.PathLike | None = None, *, boxes: str = "detected") -> RetrievalDataset:
    """The images of both splits, with the column `camera` (1 or 2, of the pair that saw a person)."""
    _checks.choice("boxes", boxes, FOLDER_OF)
    kind = FOLDER_OF[boxes]
    name = "cuhk03" if boxes == "detected" else "cuhk03_labelled"
    prepared = [f"{kind}/{folder}" for folder in FOLDERS]
    release = [IMAGES, f"cuhk03_new_protocol_config_{kind}.mat"]
    expected = f"the folder that holds {', '.join(prepared)}, or {' and '.join(release)}"
    folder, layout = find_layout(root, expected, [prepared, release], [".", "cuhk03-np", "CUHK03-NP", "cuhk03"])
    if layout == 0:
        return from_folders(name, folder / kind)
    protocol = _protocol(folder / release[1])
    images = _Release(folder / IMAGES, kind)
    positions = np.concatenate(list(protocol["parts"].values()))
    parts = [part for part, index in protocol["parts"].items() for _ in index]
    persons = [f"{person:04}" for person in protocol["labels"][positions].tolist()]
    paths = [str(path) for path in protocol["filelist"][positions]]
    return from_parts(name, paths, persons, protocol["camId"][positions].tolist(), parts, images)


def _protocol(path: Path) -> dict:
    loadmat = require("scipy.io", extra="train").loadmat
    try:
        content = loadmat(path, squeeze_me=True)
        # MATLAB counts from 1.
        parts = [np.atleast_1d(content[name]).astype(int) - 1 for name in ("train_idx", "query_idx", "gallery_idx")]
        columns = {name: np.atleast_1d(content[name]) for name in ("filelist", "labels", "camId")}
    # scipy raises whatever it stumbles over in a damaged file.
    except Exception as error:
        raise ValueError(f"{path}: is not the new protocol of CUHK03 ({error!r})") from error
    return {"parts": dict(zip(FOLDERS, parts, strict=True)), **columns}


class _Release(ImageFiles):
    """Images in `cuhk-03.mat`, by the names of the protocol: `pair_person_view_image.png`, each counted from 1."""

    def __init__(self, file: Path, kind: str) -> None:
        super().__init__(file, kind)
        require("h5py", extra="train")

    def _pixels(self, path: str) -> UInt8[np.ndarray, "h w 3"]:
        pair, person, _, number = (int(part) for part in Path(path).stem.split("_"))
        file = _opened(self.root, os.getpid())
        # A MATLAB cell is a matrix of references, and HDF5 keeps all matrices transposed.
        persons = file[file[self.part][0, pair - 1]]
        pixels = file[persons[number - 1, person - 1]][()]
        if pixels.ndim != 3:
            raise ValueError("the cell is empty")
        return np.ascontiguousarray(pixels.T)

    def open(self, path: str) -> Image.Image:
        return Image.fromarray(self._pixels(path))

    def read(self, name: str) -> bytes:
        return self._pixels(name).tobytes()

    def where(self, path: str) -> str:
        return f"{self.root}: {self.part} {path}"


@lru_cache(maxsize=4)
def _opened(file: Path, process: int):
    """The open file; a forked process opens its own."""
    return require("h5py", extra="train").File(file, "r")
