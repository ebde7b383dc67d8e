"""Embedding a person's files: mixed sizes and modes, broken ones among them; several networks as one."""

import json
import os
from pathlib import Path

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
from glbook.search import image_files


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
    assert output.out == f"4 embeddings of 256 numbers: {tmp_path}/e.npy\n" and "100%" in output.err
    names = json.loads((tmp_path / "e.npy.json").read_text())
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
    for name in ("raw.cr2", "v.jpg", "w.jpg", "x.jpg", "z.jpg"):
        (album / name).write_text("no image")
    os.mkfifo(album / "y.png")
    command = ["embed", str(checkpoint), str(album), "-o", str(tmp_path / "e.npy")]
    assert main([*command, "--strict"]) == 2 and not (tmp_path / "e.npy").exists()
    assert f"glbook: --strict: 7 left out: {album}/raw.cr2 (" in capsys.readouterr().err
    assert main(command) == 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"glbook: 7 left out: {album}/raw.cr2 (its format cannot be decoded here), {album}/y.png (")
    assert f"{album}/a/0a.jpg (" in said and said.endswith(" more")
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "e.npy")), embeddings)
    assert main(["embed", str(checkpoint), str(album / "z.jpg"), "-o", str(tmp_path / "f.npy")]) == 2
    assert capsys.readouterr().err.endswith("glbook: none of the 1 images can be read\n")
    assert not (tmp_path / "f.npy").exists()


def test_names_of_any_bytes_stay_with_their_embeddings(tmp_path, album, capsys):
    names = ["new\nline.png", "\udcff.png", "\x1b[31mred.png", "ä.png"]
    for source, name in zip(sorted(album.glob("*/*")), names, strict=True):
        source.rename(album / name)
    (album / "\x1b[31mbroken.png").touch()
    checkpoint = network(tmp_path / "net")
    (tmp_path / "e.json").write_text("another")
    for kind in ("npy", "parquet"):
        assert main(["embed", str(checkpoint), str(album), "-o", str(tmp_path / f"e.{kind}")]) == 0
        assert "\x1b" not in capsys.readouterr().err.replace("\x1b[A", "")  # which the bar writes
    assert (tmp_path / "e.json").read_text() == "another"
    written = json.loads((tmp_path / "e.npy.json").read_text())
    assert sorted(written) == sorted(str(album / name) for name in names)
    files = image_files.embed_files([checkpoints.load(checkpoint)], list(map(Path, written)))
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "e.npy")), files.embeddings)
    table = parquet.read_table(tmp_path / "e.parquet").to_pydict()
    assert table["path"] == [name.replace("\udcff", "\\xff") for name in written]


def test_an_image_is_embedded_once(tmp_path, album):
    (album / "link.png").symlink_to(album / "a" / "0.png")
    os.link(album / "b" / "2.png", tmp_path / "hard.png")
    found, _ = image_files.find_images([album / "b", album, tmp_path / "hard.png", album / "a" / "0.png"])
    assert sorted(path.name for path in found) == ["0.png", "1.png", "2.png", "3.png"]


def test_an_embedding_that_is_not_finite_is_an_error_that_names_the_network(tmp_path, album, capsys):
    checkpoint = network(tmp_path / "net")
    model, card = checkpoints.load(checkpoint)
    next(value for key, value in model.state_dict().items() if key.endswith("running_var")).fill_(-1)
    renamed = checkpoints.save(tmp_path / "damaged", model, card)
    for paths in ([renamed], [checkpoint, renamed]):
        assert main(["embed", *map(str, paths), str(album), "-o", str(tmp_path / "e.npy")]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"glbook: {renamed}: ") and "is not finite" in said
    assert not (tmp_path / "e.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["net", "album", "-o", "e.csv"], "-o e.csv: must end in .parquet or .npy"),
        (["net", "nowhere", "-o", "e.npy"], "nowhere: there is no such file or folder"),
        (["net", "net.safetensors", "-o", "e.npy"], "there is nothing to embed"),
        (["net", "album", "-o", "empty.npy"], "-o empty.npy: is a folder"),
        (["net", "empty", "-o", "e.npy"], "empty: holds no images"),
        (["other", "album", "-o", "e.npy"], "other.safetensors: there is no such file"),
        (["net", "album", "-o", "e.npy", "--device", "abacus"], "device='abacus': must be"),
    ],
)
def test_bad_input_is_one_line(tmp_path, album, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.npy").mkdir()
    network(tmp_path / "net")
    assert main(["embed", *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.startswith("glbook: ") and errors.count("\n") == 1
    assert not (tmp_path / "e.npy").exists()


def test_an_ensemble_adds_up_the_cosines(tmp_path, album, capsys):
    """Each network with the preparation and the strategies of its own card."""
    networks = [network(tmp_path / "one", strategies=Strategies(mirror=True))]
    networks.append(network(tmp_path / "two", seed=1, image_width=40))
    parts = [expected(path, album)[1] for path in networks]
    assert main(["embed", *map(str, networks), str(album), "-o", str(tmp_path / "e.npy")]) == 0
    assert capsys.readouterr().out == f"4 embeddings of 512 numbers: {tmp_path}/e.npy\n"
    together = torch.from_numpy(np.load(tmp_path / "e.npy"))
    cosines = [torch.nn.functional.cosine_similarity(part[:, None], part[None], dim=2) for part in parts]
    torch.testing.assert_close(together @ together.T, cosines[0] + cosines[1])
    with pytest.raises(ValueError, match="networks is empty"):
        image_files.embed_files([], [])
