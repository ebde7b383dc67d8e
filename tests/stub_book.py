"""A book of one small chapter, for tests of the machinery around chapters."""

import json
import shutil
import sys
from pathlib import Path

import nbformat
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
GLBOOK = str(Path(sys.executable).with_name("glbook"))

PARAMETERS = """\
profile: str = "quick"    # "quick" or "full"
dataset: str = None
data_root: str = None
backbone: str = "conv4"
method: str = None
epochs: int = 1
image_size: int = 28
learning_rate: float = None
temperature: float = None
classes_per_batch: int = 2
samples_per_class: int = 3
seed: int = 0
device: str = "auto"
keep: str = None
train: bool = True
before: str = None        # code to run before training
"""
CONFIG = """\
from gl_core.training.config import Config

config = Config.from_parameters(globals())
print(f"profile={profile} epochs={epochs!r} learning_rate={learning_rate!r} data_root={data_root!r}")
"""
TRAIN = """\
import os, sys
from gl_core import training

print("kernel", sys.executable, os.getpid(), os.environ.get("GLBOOK_RUN"))
if before:
    exec(before)
if train:
    run = training.run(config, chapter="training", keep=keep)
"""


def make_book(root: Path, chapters: tuple[str, ...] = ("training",)) -> Path:
    """Lay a book with an introduction and chapters of that name under `root`. Returns `root`."""
    book = root / "book"
    (book / "images").mkdir(parents=True)
    shutil.copyfile(ROOT / "book" / "images" / "favicon.svg", book / "images" / "favicon.svg")
    shutil.copyfile(ROOT / "_config.yml", root / "_config.yml")
    toc = {"format": "jb-book", "root": "intro", "chapters": [{"file": name} for name in chapters]}
    (book / "_toc.yml").write_text(json.dumps(toc))  # JSON is YAML
    (book / "intro.md").write_text("# Introduction\n\nThe replicator equation: $x_i' = x_i (Wx)_i$.\n")
    (book / "references.bib").write_text(
        "@book{none, title={Nothing}, author={Nobody}, year={2020}, publisher={No one}}\n"
    )
    for name in chapters:
        nbformat.write(chapter_of([PARAMETERS, CONFIG, TRAIN]), book / f"{name}.ipynb")
    return root


def chapter_of(cells: list[str]) -> nbformat.NotebookNode:
    """A notebook of code cells below a title, the first of them the parameters."""
    made = [nbformat.v4.new_markdown_cell("# A chapter")] + [nbformat.v4.new_code_cell(source) for source in cells]
    made[1].metadata.tags = ["parameters"]
    for number, cell in enumerate(made):
        cell.id = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def make_images(root: Path, classes: int = 4, images: int = 4) -> Path:
    """A folder class/image of small pictures that differ by class. Returns it."""
    random = np.random.default_rng(0)
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        base = random.integers(0, 256, (28, 28, 3))
        for number in range(images):
            noisy = np.clip(base + random.normal(0, 20, base.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"{number}.png")
    return root
