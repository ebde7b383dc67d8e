"""Is a data set on disk whole? Counts against the published ones, and every image opened."""

from dataclasses import dataclass

from gl_core._files import printable
from gl_core.datasets.base import RetrievalDataset
from gl_core.datasets.version import in_threads

__all__ = ["Findings", "check"]

SHOWN = 10


@dataclass
class Findings:
    """What is wrong with a data set.

    Attributes:
        counts: (images, classes) found and expected of each part.
        faults: lines that name files, by the kind of fault.
    """

    counts: dict[str, tuple[tuple[int, int], tuple[int, int] | None]]
    faults: dict[str, list[str]]

    @property
    def verdict(self) -> str:
        """The last word: "whole", or what is not."""
        wrong = [f"{len(files):,} {kind}" for kind, files in self.faults.items() if files]
        differ = [part for part, (found, wanted) in self.counts.items() if wanted not in (None, found)]
        wrong += [f"other counts of {', '.join(differ)}"] if differ else []
        return f"NOT whole: {', '.join(wrong)}" if wrong else "whole"

    @property
    def whole(self) -> bool:
        return self.verdict == "whole"

    def report(self, name: str) -> str:
        """The counts, the first files of each kind of fault, and the verdict as the last line."""
        lines = []
        for part, (found, wanted) in self.counts.items():
            line = f"{part:8}{found[0]:>8,} images of {found[1]:,} classes"
            lines.append(line if wanted in (None, found) else f"{line}, must be {wanted[0]:,} of {wanted[1]:,}")
        for kind, files in self.faults.items():
            lines += [f"{kind}: {file}" for file in files[:SHOWN]]
            if len(files) > SHOWN:
                lines.append(f"{kind}: ... {len(files):,} in all")
        return "\n".join([*lines, f"{name}: {self.verdict}"])


def check(
    dataset: RetrievalDataset, expected: dict[str, tuple[int, int]] | None = None, *, progress: bool = False
) -> Findings:
    """Count a data set of all splits and open each image once, a few at a time; no image is kept.

    Args:
        dataset: as `load` returns it for "all".
        expected: images and classes of "train", "query" and "gallery"; None: they are counted only.
        progress: show a bar.
    """
    table, counts = dataset.table, {}
    parts = {"train": table["split"] == "train", "query": table["is_query"], "gallery": table["is_gallery"]}
    for part, chosen in parts.items():
        # Junk is among the images, but is no class.
        classes = table.loc[chosen, "label"]
        found = (int(chosen.sum()), int(classes[classes >= 0].nunique()))
        counts[part] = (found, expected[part] if expected else None)
    left_out = [printable(f"{name} ({reason})") for name, reason in dataset.left_out.items()]
    faults: dict[str, list[str]] = {"missing": [], "unreadable": [], "left out": left_out}

    def opened(path: str) -> Exception | None:
        try:
            dataset.images.open(path)
        # A decoder raises whatever it stumbles over in a damaged file.
        except Exception as error:
            return error
        return None

    paths = table["path"].tolist()
    for path, error in zip(paths, in_threads(opened, paths, progress), strict=True):
        where = dataset.images.where(path)
        if isinstance(error, FileNotFoundError):
            faults["missing"].append(where)
        elif error is not None:
            faults["unreadable"].append(f"{where} ({error})")
    return Findings(counts, faults)
