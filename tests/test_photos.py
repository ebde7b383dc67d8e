"""Embedding a person's files: mixed sizes and modes, broken ones among them; several networks as one."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from gl_core import datasets, inference
from gl_core.inference.strategies import Strategies
from gl_core.training import checkpoints, components
from gl_core.training.config import Config
from glbook.cli import main
from glbook.search import ensembles, image_files


def network(path, *, seed=0, strategies=None, **settings):
    """A checkpoint of an untrained network."""
    torch.manual_seed(seed)
    config = Config.resolve(dataset="folder", backbone="conv4", image_size=28, **settings)
    model = components.build_model(config)
    card = {"config": config.as_dict(), "architecture": {"embedding_size": model.embedding_size}}
    return checkpoints.save(path, model, card | {"strategies": strategies and strategies.as_dict()})


@pytest.fixture
def album(tmp_path):
    """Two classes of two images, of several sizes and modes."""
    random = np.random.default_rng(0)
    for i, (mode, size) in enumerate([("RGB", (40, 30)), ("L", (28, 28)), ("RGBA", (31, 90)), ("P", (200, 64))]):
        path = tmp_path / "album" / "ab"[i // 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)
    return tmp_path / "album"


def expected(checkpoint, album):
    """By the way that training goes: the data set of the folder, stored, embedded."""
    model, card = checkpoints.load(checkpoint)
    dataset = datasets.load("folder", album, "all")
    store = components.image_store(dataset, checkpoints.configuration(card), torch.device("cpu"))
    return dataset, inference.embed(model, store, checkpoints.strategies(card))


@pytest.mark.parametrize("strategies", [None, Strategies(mirror=True, mixed_pooling=0.5, beta=0.1)])
def test_files_are_embedded_as_in_evaluation(tmp_path, album, strategies, capsys):
    checkpoint = network(tmp_path / "net", strategies=strategies)
    dataset, embeddings = expected(checkpoint, album)
    assert main(["embed", str(checkpoint), str(album), "-o", str(tmp_path / "e.npy")]) == 0
    output = capsys.readouterr()
    assert (
        output.out == f"4 embeddings of 256 numbers: {tmp_path}/e.npy and {tmp_path}/e.txt\n" and "100%" in output.err
    )
    names = (tmp_path / "e.txt").read_text().splitlines()
    assert names == [str(album / path) for path in dataset.table["path"]]
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "e.npy")), embeddings)
    assert main(["embed", str(checkpoint), str(album / "b"), *names[:2], "-o", str(tmp_path / "e.parquet")]) == 0
    table = parquet.read_table(tmp_path / "e.parquet").to_pydict()
    assert table["path"] == [*names[2:], *names[:2]]
    torch.testing.assert_close(torch.tensor(table["embedding"]), embeddings[[2, 3, 0, 1]])


def test_unreadable_files_are_named_counted_and_left_out(tmp_path, album, capsys, monkeypatch):
    monkeypatch.setattr(image_files, "CHUNK", 2)
    checkpoint = network(tmp_path / "net")
    _, embeddings = expected(checkpoint, album)
    (album / "a" / "0a.jpg").write_bytes((album / "a" / "0.png").read_bytes()[:100])
    (album / "z.jpg").write_text("no image")
    assert main(["embed", str(checkpoint), str(album), "-o", str(tmp_path / "e.npy")]) == 0
    errors = capsys.readouterr().err
    assert f"{album}/a/0a.jpg: cannot be read (" in errors and f"{album}/z.jpg: cannot be read (" in errors
    assert "glbook: 2 of 6 images cannot be read and are left out" in errors
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "e.npy")), embeddings)
    assert main(["embed", str(checkpoint), str(album / "z.jpg"), "-o", str(tmp_path / "f.npy")]) == 2
    assert capsys.readouterr().err.endswith("glbook: none of the 1 images can be read\n")
    assert not (tmp_path / "f.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{net}", "{album}", "-o", "e.csv"], "-o e.csv: must end in .parquet or .npy"),
        (["{net}", "nowhere", "-o", "e.npy"], "nowhere: there is no such file or folder"),
        (["{net}", "{empty}", "-o", "e.npy"], "empty: holds no images"),
        (["other", "{album}", "-o", "e.npy"], "other.safetensors: there is no such file"),
        (["{net}", "{album}", "-o", "e.npy", "--device", "abacus"], "device='abacus': must be"),
        (["{cut}", "{album}", "-o", "e.npy"], "cut.safetensors: cut off or damaged"),
        (["{wide}", "{album}", "-o", "e.npy"], "wide.safetensors: weights of another architecture"),
        (["{new}", "{album}", "-o", "e.npy"], "new.json: format=2: must be at most 1"),
    ],
)
def test_bad_input_is_one_line(tmp_path, album, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    made = {name: network(tmp_path / name) for name in ("net", "cut", "wide", "new")}
    made["cut"].write_bytes(made["cut"].read_bytes()[:-10])
    for name, change in (("wide", "bn_neck"), ("new", "format")):
        card = json.loads(made[name].with_suffix(".json").read_text())
        card = card | {"format": 2} if change == "format" else card | {"config": card["config"] | {"bn_neck": True}}
        made[name].with_suffix(".json").write_text(json.dumps(card))
    places = {"album": album, "empty": tmp_path / "empty"} | made
    assert main(["embed", *(word.format(**places) for word in arguments)]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.startswith("glbook: ") and errors.count("\n") == 1
    assert not (tmp_path / "e.npy").exists()


def test_an_ensemble_adds_up_the_cosines(tmp_path, album):
    first, second = network(tmp_path / "one"), network(tmp_path / "two", seed=1, image_width=40)
    parts = [expected(path, album)[1] for path in (first, second)]
    dataset = datasets.load("folder", album, "all")
    together = ensembles.embed([first, str(second)], dataset)
    assert together.shape == (4, 512)
    cosines = [torch.nn.functional.cosine_similarity(part[:, None], part[None], dim=2) for part in parts]
    torch.testing.assert_close(together @ together.T, cosines[0] + cosines[1])
    model, _ = checkpoints.load(first)
    pixels = torch.rand(3, 3, 28, 28)
    alone = ensembles.embed([model], pixels, Strategies(mirror=True))
    torch.testing.assert_close(
        alone, torch.nn.functional.normalize(inference.embed(model, pixels, Strategies(mirror=True)))
    )
    with pytest.raises(ValueError, match="images is a data set: must be an ImageStore or a tensor"):
        ensembles.embed([model], dataset)
    with pytest.raises(ValueError, match="networks is empty"):
        ensembles.embed([], pixels)
