"""Letters as outlines: which the typefaces share, which of them look alike, and how they are drawn.

The typefaces are those that matplotlib brings along, so that the same version of it draws the same pixels everywhere.
"""

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from gl_core._extras import require

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

__all__ = ["DRAWING", "TYPEFACES", "Outline", "alike", "deform", "draw", "outlines", "script"]

# The version of the drawings: raise it when anything in this module changes what they look like.
DRAWING = 1

# Those of matplotlib's typefaces that hold more than symbols and Latin.
TYPEFACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)
# All of DejaVu, which Armenian and Georgian are in and STIX lacks.
FEWEST_TYPEFACES = 12

# Letters are compared stretched to squares of so few pixels that neither proportions nor the weight of strokes count.
COMPARED_SIZE = 12
# Distances (1 - cosine, mean over typefaces) of letters that are one class. Letters of the same drawing lie below 0.03.
# A letter and its capital may differ more in weight: pairs of one shape like Vv lie below 0.1, others like Pp do not.
SAME = 0.03
SAME_IN_OTHER_CASE = 0.1
# A typeface that draws two letters differently, as italics do, has its say but no veto.
LARGEST_DISTANCE = 0.2

# How far a drawing may be from the typeface's: about what makes the nearest image in pixels right every second time.
WAVE = 0.015  # of the letter
TURN = np.radians(5)
SHEAR = 0.08
SCALE, ASPECT = 0.05, 0.06  # logarithms
SIDE = 0.72  # longer side of the letter, of the image's
MOVE = 0.07  # of the image's side
PEN = 0.3  # pixels of 32

CLOSES_CONTOUR = 79  # the code of matplotlib's paths


class Outline(NamedTuple):
    """A letter's contours as matplotlib keeps paths: vertices, and what is drawn to each."""

    vertices: Float[np.ndarray, "n 2"]
    codes: Int[np.ndarray, " n"]


def script(letter: str) -> str:
    """The script a letter belongs to: "Latin", "Greek", ..."""
    return unicodedata.name(letter).split()[0].capitalize()


def outlines() -> dict[str, dict[str, Outline]]:
    """The letters that enough of the typefaces have, each with its outline by typeface: centre at 0, longer side 1.

    Not those that Unicode composes of others, such as with accents: they differ from their base in a few pixels.
    """
    fonts = {typeface: _font(typeface) for typeface in TYPEFACES}
    typefaces: dict[str, list[str]] = {}
    for typeface, font in fonts.items():
        for code in font.get_charmap():
            typefaces.setdefault(chr(code), []).append(typeface)
    return {
        letter: {typeface: _outline(letter, fonts[typeface]) for typeface in typefaces[letter]}
        for letter in sorted(typefaces)
        if len(typefaces[letter]) >= FEWEST_TYPEFACES
        and unicodedata.category(letter) in ("Lu", "Ll", "Lo")
        and unicodedata.normalize("NFKD", letter) == letter
    }


def _font(typeface: str) -> "FT2Font":
    data = require("matplotlib", extra="train").get_data_path()
    file = Path(data) / "fonts" / "ttf" / f"{typeface}.ttf"
    font = require("matplotlib.font_manager", extra="train").get_font(str(file))
    # Outlines are fitted to whole pixels: in letters so large, that changes nothing to be seen.
    font.set_size(1000, 72)
    return font


def _outline(letter: str, font: "FT2Font") -> Outline:
    font.load_char(ord(letter))
    path = Outline(*font.get_path())
    low, high = _box(path)
    return Outline((path.vertices - (low + high) / 2) / (high - low).max(), path.codes)


def _box(path: Outline) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, " 2"]]:
    # The vertex that closes a contour is no place of the drawing.
    places = path.vertices[path.codes != CLOSES_CONTOUR]
    return places.min(axis=0), places.max(axis=0)


def alike(letters: dict[str, dict[str, Outline]]) -> list[str]:
    """The letters in groups of those that look alike, such as A of Latin, Greek and Cyrillic, or V and v.

    A group is a string with Latin letters first, otherwise in the order of Unicode, and so are the groups.
    """
    names = list(letters)
    distance, typefaces = np.zeros((2, len(names), len(names)))
    for typeface in TYPEFACES:
        have = [i for i, name in enumerate(names) if typeface in letters[name]]
        drawings = draw([(_stretched(letters[names[i]][typeface]), 0.0) for i in have], COMPARED_SIZE)
        ink = 255.0 - drawings.reshape(len(have), -1)
        ink /= np.linalg.norm(ink, axis=1, keepdims=True)
        distance[np.ix_(have, have)] += np.minimum(1 - ink @ ink.T, LARGEST_DISTANCE)
        typefaces[np.ix_(have, have)] += 1
    lower = np.array([name.lower() for name in names])
    bound = np.where(lower[:, None] == lower, SAME_IN_OTHER_CASE, SAME)
    twins = distance < bound * typefaces
    # Likeness is passed on: every letter takes the least number among its twins until nothing changes.
    group, before = np.arange(len(names)), np.empty(0)
    while not np.array_equal(group, before):
        group, before = np.where(twins, group, len(names)).min(axis=1), group
    groups = [sorted(np.array(names)[group == number].tolist(), key=_latin_first) for number in np.unique(group)]
    return ["".join(letters) for letters in sorted(groups, key=lambda letters: _latin_first(letters[0]))]


def _latin_first(letter: str) -> tuple[bool, str]:
    return script(letter) != "Latin", letter


def _stretched(path: Outline) -> Outline:
    """The outline as it fills a square of `COMPARED_SIZE`; a mere stroke, 2.5 times as long as wide, stays one."""
    low, high = _box(path)
    width, height = high - low
    scale = 1 / (high - low)
    if max(width, height) > 2.5 * min(width, height):
        scale = np.full(2, scale.min())
    return Outline((path.vertices - (low + high) / 2) * scale * (COMPARED_SIZE - 2) + COMPARED_SIZE / 2, path.codes)


def draw(outlines: Iterable[tuple[Outline, float]], size: int) -> UInt8[np.ndarray, "n size size"]:
    """Drawings of outlines, black on white, `size` pixels a side.

    Each comes with the width in pixels of a pen that goes around it. Coordinates are pixels from the lower left corner.
    """
    matplotlib_path = require("matplotlib.path", extra="train").Path
    renderer = require("matplotlib.backends.backend_agg", extra="train").RendererAgg
    identity = require("matplotlib.transforms", extra="train").IdentityTransform()
    outlines = list(outlines)
    drawings = np.empty((len(outlines), size, size), np.uint8)
    # Making a sheet takes longer than drawing on it, and none may be wider than 2^16 pixels.
    columns = max(1, min(64, 2**15 // size))
    for start in range(0, len(outlines), columns):
        sheet = renderer(columns * size, size, 72)
        pen = sheet.new_gc()
        # Snapping to whole pixels would give away which strokes are straight.
        pen.set_snap(False)
        row = outlines[start : start + columns]
        for column, (path, width) in enumerate(row):
            pen.set_linewidth(width)
            place = matplotlib_path(path.vertices + (column * size, 0), path.codes)
            sheet.draw_path(pen, place, identity, (0.0, 0.0, 0.0))
        ink = np.asarray(sheet.buffer_rgba())[:, :, 3].reshape(size, columns, size).swapaxes(0, 1)
        drawings[start : start + len(row)] = 255 - ink[: len(row)]
    return drawings


def deform(path: Outline, size: int, random: np.random.Generator) -> tuple[Outline, float]:
    """A random variation of a letter somewhere in an image of `size` pixels, as `draw` takes it: bent by waves about as
    long as the letter, turned, sheared, scaled, drawn with a wider pen, moved."""
    vertices = path.vertices
    # Two waves along each axis, of any direction and phase.
    direction, phase = random.uniform(-1, 1, (2, 2, 2)), random.uniform(0, 1, (2, 2))
    waves = np.sin(2 * np.pi * (vertices @ direction + phase[:, None]))
    vertices = vertices + WAVE * waves.mean(axis=0)
    angle, shear, scale, aspect, across, up = random.uniform(-1, 1, 6) * (TURN, SHEAR, SCALE, ASPECT, MOVE, MOVE)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    vertices = vertices @ (turn @ [[1, shear], [0, 1]] @ np.diag(np.exp([scale + aspect, scale - aspect]))).T
    moved = Outline(vertices * (SIDE * size), path.codes)
    low, high = _box(moved)
    # The whole letter stays inside, half a pixel of paper around it.
    shrink = min(1.0, (size - 1) / (high - low).max())
    room = (size - 1 - shrink * (high - low)) / 2
    centre = size / 2 + np.clip((across * size, up * size), -room, room)
    placed = Outline((moved.vertices - (low + high) / 2) * shrink + centre, path.codes)
    return placed, random.uniform(0, PEN) * size / 32
