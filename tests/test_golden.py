"""Small trainings give what they gave when their results were written down, or `RESULTS_VERSION` has been raised.

Recorded runs of the same version count as made. Where this test fails, results have changed: if they were meant to,
raise the version in gl_core/training/version.py and write them down anew:

    python tests/test_golden.py
"""

import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gl_core.training import run
from gl_core.training.config import METHODS, Config
from gl_core.training.version import RESULTS_VERSION

FILE = Path(__file__).with_suffix(".json")
COMMON = {
    "dataset": "folder", "backbone": "conv4", "image_size": 28, "classes_per_batch": 4, "samples_per_class": 4,
    "epochs": 2, "learning_rate": 5e-4, "device": "cpu", "precision": "32",
}  # fmt: skip
CASES = {method: {"method": method, "epochs": 1} for method in METHODS} | {
    "group_loss": {},
    "two iterations": {"num_iterations": 2},
    "exponential": {"num_iterations": 3, "dynamics": "exponential", "similarity": "pearson_shifted"},
    "cosine": {"similarity": "cosine", "num_anchors": 1, "temperature": 3.0, "cross_entropy_weight": 0.3},
    "neck": {"method": "cross_entropy", "bn_neck": True, "average_weights": 0.9, "optimizer": "adamw"},
    "sgd": {"method": "proxy_anchor", "optimizer": "sgd", "schedule": "step", "step_at": 2},
    "chosen": {"finetune_epochs": 1, "choose_epochs": True},
    "photographs": {"augmentation": "photo", "random_erasing": 0.5, "evaluate_on": "held_out"},
}


def make_images(root: Path) -> Path:
    """Sixteen classes of six noisy pictures, enough alike for retrieval to err."""
    random = np.random.default_rng(0)
    for label in range(16):
        (root / f"class{label:02}").mkdir(parents=True)
        base = np.kron(random.normal(128, 20, (7, 7, 3)), np.ones((4, 4, 1)))
        for number in range(6):
            pixels = np.clip(base + random.normal(0, 60, base.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"class{label:02}" / f"{number}.png")
    return root


def lay_book(folder: Path) -> None:
    """What makes a folder the place where records go."""
    (folder / "book").mkdir()
    (folder / "_config.yml").touch()


def trained(root: Path, settings: dict) -> dict[str, list[float]]:
    """Losses and metrics of a training."""
    made = run(Config.resolve(data_root=str(root), **(COMMON | settings)), progress=False)
    metrics = [made.untrained["MAP@R"], made.metrics["MAP@R"], *(each["held-out MAP@R"] for each in made.selection)]
    return {"loss": [float(epoch["loss"]) for epoch in (*made.selection[1:], *made.history)], "MAP@R": metrics}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("golden"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_their_version(images, tmp_path, monkeypatch, name):
    lay_book(tmp_path)
    monkeypatch.chdir(tmp_path)
    golden = json.loads(FILE.read_text())
    assert golden["results_version"] == RESULTS_VERSION, "write the results of the new version down"
    made = trained(images, CASES[name])
    # Far more than what another processor or number of threads changes, far less than what another formula does.
    assert made["loss"] == pytest.approx(golden["results"][name]["loss"], rel=2e-4), __doc__
    assert made["MAP@R"] == pytest.approx(golden["results"][name]["MAP@R"], abs=0.02), __doc__


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        lay_book(Path(folder))
        root = make_images(Path(folder) / "images")
        results = {name: trained(root, settings) for name, settings in CASES.items()}
    FILE.write_text(json.dumps({"results_version": RESULTS_VERSION, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
