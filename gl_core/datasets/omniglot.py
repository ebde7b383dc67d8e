"""omniglot: handwritten characters, each by 20 people (Lake et al., "Human-level concept learning", Science, 2015).

The two small background sets, black ink on white, 105 x 105 pixels, MIT licence. Trained on are the five alphabets of
the first (136 characters), the test is the three alphabets of the second that the first does not hold (106 characters,
2,120 images). A class is a character, named `alphabet/character`.

`root` is a folder with the two zips as published, or with what is in them. Without it they are downloaded, 3 MB in all.
The columns `alphabet` and `group` name the alphabet of a character.
"""

import os
from pathlib import Path

from gl_core.datasets.archive import ImageFiles, open_files
from gl_core.datasets.base import RetrievalDataset, existing, tabulate
from gl_core.datasets.download import downloads_folder, fetch

__all__ = ["load"]

URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
TRAIN, TEST = "images_background_small1", "images_background_small2"
SHA256 = {
    TRAIN: "f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4",
    TEST: "3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f",
}
EXPECTED = f"a folder that holds {TRAIN}.zip and {TEST}.zip, or the folders in them"
CHARACTERS = (136, 106)  # trained on, tested
DRAWERS = 20


def load(root: str | os.PathLike | None = None) -> RetrievalDataset:
    """The images of both splits."""
    folder = _downloaded() if root is None else existing(root, EXPECTED)
    images = _Images(folder)
    train = {path: _character(path) for path in images.files if path.startswith(TRAIN)}
    known = set(map(_alphabet, train))
    # The second part repeats some alphabets of the first.
    test = {path: _character(path) for path in images.files if path.startswith(TEST) and _alphabet(path) not in known}
    characters = train | test
    train_classes, test_classes = sorted(set(train.values())), sorted(set(test.values()))
    found = (len(train_classes), len(test_classes))
    if found != CHARACTERS or len(characters) != DRAWERS * sum(CHARACTERS):
        raise ValueError(
            f"root={folder}: holds {len(characters)} images of {found[0]} and {found[1]} characters: must be "
            f"{EXPECTED}, {DRAWERS} images of each of {CHARACTERS[0]} and {CHARACTERS[1]} characters"
        )
    columns = dict.fromkeys(("alphabet", "group"), [_alphabet(path) for path in characters])
    table, class_names = tabulate(list(characters), list(characters.values()), train_classes, test_classes, **columns)
    return RetrievalDataset("omniglot", table, class_names, images)


def _character(path: str) -> str:
    """`alphabet/character` of `part/alphabet/character/image`."""
    return "/".join(path.split("/")[1:3])


def _alphabet(path: str) -> str:
    return path.split("/")[1]


class _Images(ImageFiles):
    """The images of both parts, as `part/alphabet/character/image`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        parts = {part: _opened(folder, part) for part in (TRAIN, TEST)}
        # In a zip the names begin with the part, in its folder they do not.
        self.files = {
            f"{part}/{name.removeprefix(part + '/')}": (files, name)
            for part, files in parts.items()
            for name in files.names
        }

    def read(self, name: str) -> bytes:
        files, inside = self.files[name]
        return files.read(inside)

    def state(self, name: str) -> list[int]:
        files, inside = self.files[name]
        return files.state(inside)

    def where(self, path: str) -> str:
        files, inside = self.files[path]
        return files.where(inside)


def _opened(folder: Path, part: str) -> ImageFiles:
    for path in (folder / f"{part}.zip", folder / part):
        if path.exists():
            return open_files(path)
    raise FileNotFoundError(f"root={folder}: holds neither {part}.zip nor the folder {part}: must be {EXPECTED}")


def _downloaded() -> Path:
    """The folder for downloads, with what was missing in it downloaded."""
    folder = downloads_folder() / "omniglot"
    for part, sha256 in SHA256.items():
        if not (folder / f"{part}.zip").exists() and not (folder / part).exists():
            fetch(f"{URL}/{part}.zip", folder / f"{part}.zip", f"sha256:{sha256}")
    return folder
