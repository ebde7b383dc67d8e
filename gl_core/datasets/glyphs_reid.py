"""glyphs_reid: the letters of glyphs as persons, their typefaces as cameras: re-identification without a download.

Trained on are the letters that glyphs trains on (Latin). In the test each Greek, Cyrillic and Armenian letter is a
person, drawn twice in each typeface: one drawing is a query, the other in the gallery. As in Market-1501 the gallery
also holds distractors, all Georgian letters as the one class `0000`, and junk, letters cut off on the right, which
count neither as right nor as wrong.

Beside the usual columns the table says `camera` (from 1, in the order of `lettering.TYPEFACES`) and what that of glyphs
says.

`root` is what it is for glyphs, whose drawings of two seeds these are. glyphs_reid_half is the same with half of the
letters to train on, those of glyphs_half.
"""

import os
from typing import cast

import numpy as np
from jaxtyping import UInt8

from gl_core import _checks
from gl_core._extras import require
from gl_core.datasets import glyphs, lettering
from gl_core.datasets.base import RetrievalDataset
from gl_core.datasets.persons import FOLDERS, from_parts

__all__ = ["load"]

DISTRACTORS = "Georgian"
JUNK_EVERY = 5  # a cut letter for each so many whole ones in the gallery
CUT = 5 / 8  # of the width is kept
# The version of what is made here of the letters: raise it when anything in this module changes what images look like.
DRAWING = 1


def load(
    root: str | os.PathLike | None = None, *, size: int = 32, seed: int = 0, half: bool = False
) -> RetrievalDataset:
    """The letters of all splits.

    Args:
        root: folder to keep the drawings in.
        size: pixels of a side, 12 or more.
        seed: of the deformations of what is trained on and of the queries, 0 or more; the gallery's is the next.
        half: train on half of the letters, the name is then glyphs_reid_half.
    """
    _checks.count("seed", seed, least=0)
    letters, others = (glyphs.load(root, size=size, seed=number) for number in (seed, seed + 1))
    table = letters.table  # the others' is the same
    drawings = [cast(glyphs.Drawings, dataset.images) for dataset in (letters, others)]
    first, second = (drawing.images[[drawing.position[path] for path in table["path"]]] for drawing in drawings)

    tested = (table["split"] == "test").to_numpy()
    train = ~tested & (table["label"] < table["label"][~tested].nunique() // (2 if half else 1)).to_numpy()
    person = tested & (table["script"] != DISTRACTORS).to_numpy()
    junk = np.flatnonzero(person)[::JUNK_EVERY]
    names = table["class_name"].where(train | person, "0000")
    parts = [
        table[train].assign(part=FOLDERS[0], person=names),
        table[person].assign(part=FOLDERS[1], person=names),
        table[tested].assign(part=FOLDERS[2], person=names),
        table.iloc[junk].assign(part=FOLDERS[2], person="-1", path="cut/" + table["path"]),
    ]
    images = np.concatenate([first[train], first[person], second[tested], _cut(second[junk])])
    table, name = require("pandas", extra="train").concat(parts), "glyphs_reid_half" if half else "glyphs_reid"
    paths = (table["part"] + "/" + table["path"]).tolist()
    return from_parts(
        name,
        paths,
        table["person"].tolist(),
        table["typeface"].map(lettering.TYPEFACES.index) + 1,
        table["part"].tolist(),
        glyphs.Drawings(name, f"{drawings[0].version}-reid{DRAWING}", paths, images),
        **{column: table[column].tolist() for column in ("typeface", "script", "letters")},
    )


def _cut(images: UInt8[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "n h w"]:
    """The left part of each image, as if a detector had missed the rest."""
    cut = images.copy()
    cut[:, :, int(CUT * images.shape[2]) :] = 255
    return cut
