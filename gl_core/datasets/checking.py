"""Is a data set on disk whole? Counts against the published ones, and every image opened."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from gl_core.datasets.base import RetrievalDataset

__all__ = ["Findings", "check"]

CHUNK = 256
SHOWN = 10


@dataclass
class Findings:
    """`counts` are (images, classes) found and expected of each part; `missing` and `unreadable` name files."""

    counts: dict[str, tuple[tuple[int, int], tuple[int, int] | None]]
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        agree = all(wanted is None or found == wanted for found, wanted in self.counts.values())
        return agree and not self.missing and not self.unreadable

    def report(self, name: str) -> str:
        """The counts, the first files of each kind, and the verdict as the last line."""
        lines = []
        for part, (found, wanted) in self.counts.items():
            line = f"{part:8}{found[0]:>8,} images of {found[1]:,} classes"
            lines.append(line if wanted in (None, found) else f"{line}, must be {wanted[0]:,} of {wanted[1]:,}")
        for what, files in (("missing", self.missing), ("unreadable", self.unreadable)):
            lines += [f"{what}: {file}" for file in files[:SHOWN]]
            if len(files) > SHOWN:
                lines.append(f"{what}: ... {len(files):,} in all")
        faults = [f"{len(self.missing):,} missing", f"{len(self.unreadable):,} unreadable"]
        differ = [part for part, (found, wanted) in self.counts.items() if wanted not in (None, found)]
        faults += [f"other counts of {', '.join(differ)}"] if differ else []
        return "\n".join([*lines, f"{name}: whole" if self.whole else f"{name}: NOT whole: {', '.join(faults)}"])


def check(
    dataset: RetrievalDataset, expected: dict[str, tuple[int, int]] | None = None, *, progress: bool = False
) -> Findings:
    """Count a data set of all splits and open each image once, a few at a time; no image is kept."""
    from tqdm import tqdm

    table = dataset.table
    parts = {"train": table["split"] == "train", "query": table["is_query"], "gallery": table["is_gallery"]}
    counts = {}
    for part, chosen in parts.items():
        # Junk is among the images, but is no class.
        classes = table.loc[chosen, "label"]
        found = (int(chosen.sum()), int(classes[classes >= 0].nunique()))
        counts[part] = (found, expected[part] if expected else None)
    findings = Findings(counts)

    def opened(path: str) -> Exception | None:
        try:
            dataset.images.open(path)
        # A decoder raises whatever it stumbles over in a damaged file.
        except Exception as error:
            return error
        return None

    paths = table["path"].tolist()
    with ThreadPoolExecutor() as threads, tqdm(total=len(paths), unit=" images", disable=not progress) as bar:
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            for path, error in zip(chunk, threads.map(opened, chunk), strict=True):
                if isinstance(error, FileNotFoundError):
                    findings.missing.append(dataset.images.where(path))
                elif error is not None:
                    findings.unreadable.append(f"{dataset.images.where(path)} ({error})")
            bar.update(len(chunk))
    return findings
