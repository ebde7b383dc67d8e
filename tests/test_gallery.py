"""Searching a folder: the index follows the files, survives a kill, is shared by processes, and gives the exact answer."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from stub_book import ROOT
from test_photos import network

from gl_core.evaluation import nearest_neighbours
from gl_core.inference.strategies import Strategies
from gl_core.training import checkpoints
from glbook.cli import main
from glbook.search import approximate, gallery, image_files


def draw(path, seed, size=(32, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A network, and a gallery of 20 images in two folders; an index part holds 4."""
    monkeypatch.setattr(gallery, "CHUNK", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    network(tmp_path / "net")
    for i in range(20):
        draw(tmp_path / "album" / "ab"[i % 2] / f"{i:02}.png", i, (30 + i, 60 - i))
    return tmp_path


class Network:
    """Loads the network when asked, and counts the images of each `embed_files`."""

    def __init__(self, place):
        self.model, self.card = checkpoints.load(place / "net")
        self.embedded = []

    def open(self, root, monkeypatch, **options):
        original = image_files.embed_files

        def counted(model, config, files, *rest, **keywords):
            self.embedded += [path.name for path in files]
            return original(model, config, files, *rest, **keywords)

        monkeypatch.setattr(gallery, "embed_files", counted)
        self.embedded.clear()
        return gallery.open_gallery(root, self.model, self.card, **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def same_as_fresh(found, place):
    """The index holds exactly what embedding all files anew gives."""
    model, card = checkpoints.load(place / "net")
    files = image_files.find_images([found.root])
    fresh = image_files.embed_files(model, checkpoints.configuration(card), files)
    assert found.names == [str(path.relative_to(found.root)) for path in fresh.files]
    expected = torch.nn.functional.normalize(fresh.embeddings)
    torch.testing.assert_close(torch.from_numpy(np.array(found.embeddings)), expected)


def test_the_index_follows_the_files(place, monkeypatch):
    network, album = Network(place), place / "album"
    found, update = network.open(album, monkeypatch)
    assert (update.embedded, update.removed, update.unreadable) == (20, 0, {})
    same_as_fresh(found, place)
    assert found.index.parent == album / ".glbook" and names(found.index) == ["000006.f32", "000006.json"]

    found, update = network.open(album, monkeypatch)
    assert (update.embedded, update.removed, network.embedded) == (0, 0, [])

    draw(album / "c" / "new.png", 100)
    draw(album / "a" / "02.png", 101, (50, 50))  # another size
    os.utime(album / "b" / "03.png", ns=(1, 1))  # another time, but the same content
    (album / "a" / "00.png").unlink()
    (album / "b" / "broken.png").write_text("no image")
    found, update = network.open(album, monkeypatch)
    assert sorted(network.embedded) == ["02.png", "broken.png", "new.png"]
    assert (update.embedded, update.removed) == (3, 1)
    assert list(update.unreadable) == ["b/broken.png"]
    same_as_fresh(found, place)
    # A file that cannot be read is not tried again until it changes.
    assert network.open(album, monkeypatch)[1].embedded == 0
    draw(album / "b" / "broken.png", 102)
    found, update = network.open(album, monkeypatch)
    assert (update.embedded, update.unreadable) == (1, {})
    same_as_fresh(found, place)


def test_looking_again_at_files_that_have_just_been_made_shows_nothing(place, monkeypatch, capsys):
    network, album = Network(place), place / "album"
    network.open(album, monkeypatch)
    for path in album.rglob("*.png"):
        path.touch()  # so lately that another change could leave the same times
    capsys.readouterr()
    _, update = network.open(album, monkeypatch, progress=True)
    assert update.embedded == 0 and capsys.readouterr().err == ""


def test_what_is_touched_moved_or_copied_is_not_embedded_again(place, monkeypatch):
    network, album = Network(place), place / "album"
    (album / "x.png").write_text("no image")
    network.open(album, monkeypatch)
    (album / "a").rename(album / "moved")
    (album / "x.png").rename(album / "y.png")
    shutil.copy(album / "b" / "01.png", album / "copy.png")
    for path in (album / "b").iterdir():
        path.touch()
    found, update = network.open(album, monkeypatch)
    assert (update.embedded, network.embedded, list(update.unreadable)) == (0, [], ["y.png"])
    (album / "y.png").unlink()
    same_as_fresh(network.open(album, monkeypatch)[0], place)


@pytest.mark.parametrize("settled", [True, False])
def test_a_change_that_size_and_time_do_not_tell_is_noticed(place, monkeypatch, settled):
    """Two files change places that have the same size and time of modification; or one is written again within a tick."""
    network, album = Network(place), place / "album"
    one, two = album / "a" / "00.bmp", album / "a" / "01.bmp"
    for seed, path in enumerate((one, two)):
        draw(path, 300 + seed)
        os.utime(path, ns=(1, 1))
    monkeypatch.setattr(gallery, "TICK", 0 if settled else 10**18)
    seen = {path: gallery._look(path) for path in (one, two)}
    network.open(album, monkeypatch)
    if not settled:  # as if nothing of the write below could be seen
        original = gallery._look
        monkeypatch.setattr(gallery, "_look", lambda path: seen.get(path) or original(path))
    contents = [path.read_bytes() for path in (two, one)]
    for path, content in zip((one, two), contents, strict=True):
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
    found, update = network.open(album, monkeypatch)
    assert update.embedded == 0
    same_as_fresh(found, place)


@pytest.mark.parametrize("restored", [False, True])
def test_a_file_that_changes_while_it_is_embedded_is_embedded_again(place, monkeypatch, restored):
    """Also if its first content comes back, which was read for the hash, but not for the embedding."""
    network, album = Network(place), place / "album"
    file = album / "b" / "05.png"
    first, original = file.read_bytes(), image_files.embed_files

    def changing(model, config, files, *rest, **keywords):
        if file in files:
            draw(file, 500)
        return original(model, config, files, *rest, **keywords)

    monkeypatch.setattr(gallery, "TICK", 0)
    monkeypatch.setattr(image_files, "embed_files", changing)
    assert network.open(album, monkeypatch)[1].embedded == 20
    monkeypatch.setattr(image_files, "embed_files", original)
    if restored:
        file.write_bytes(first)
    found, _ = network.open(album, monkeypatch)
    assert network.embedded == ["05.png"]
    same_as_fresh(found, place)


def test_another_network_has_an_index_of_its_own(place, monkeypatch):
    network = Network(place)
    first, _ = network.open(place / "album", monkeypatch)
    network.card = network.card | {"strategies": Strategies(beta=0.5).as_dict()}
    second, update = network.open(place / "album", monkeypatch)
    assert update.embedded == 20 and second.index != first.index
    assert (first.metric, second.metric) == ("cosine", "euclidean")
    query = torch.from_numpy(np.array(second.embeddings[3:4]))
    similarity, index = second.search(query, 100)
    assert index.shape == (1, 20) and index[0, 0] == 3 and similarity[0, 0] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("damage", ["short vectors", "no vectors", "broken table"])
def test_a_damaged_index_is_made_again(place, monkeypatch, damage):
    network = Network(place)
    found, _ = network.open(place / "album", monkeypatch)
    if damage == "broken table":
        (found.index / "000006.json").write_text("{")
    elif damage == "no vectors":
        (found.index / "000006.f32").unlink()
    else:
        (found.index / "000006.f32").write_bytes(b"1234")
    found, update = network.open(place / "album", monkeypatch)
    assert update.embedded == 20
    same_as_fresh(found, place)


def test_exact_search_by_blocks_is_that_of_the_whole(place, monkeypatch):
    found, _ = Network(place).open(place / "album", monkeypatch)
    queries = torch.from_numpy(np.array(found.embeddings[:5]))
    expected = nearest_neighbours(queries, torch.from_numpy(found.embeddings), 9)
    monkeypatch.setattr(gallery, "BLOCK", 7)
    similarity, index = found.search(queries, 9)
    assert index.equal(expected[1])
    torch.testing.assert_close(similarity, expected[0])


def test_ten_thousand_images_are_searched_within_a_second(place):
    """Everything after the start but embedding the query, in processor time, of which a busy machine takes little more."""
    model, card = checkpoints.load(place / "net")
    model.embedding_size = 1280
    root, states = place / "large", {}
    root.mkdir()
    for i in range(10_000):
        (root / f"{i:05}.png").touch()
        states[f"{i:05}.png"] = gallery._look(root / f"{i:05}.png").state
    vectors = np.random.default_rng(0).normal(size=(10_000, 1280)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index, _ = gallery.index_folder(root, card)
    gallery._Parts(index, 1280).add(list(states), vectors, {}, states, dict.fromkeys(states, ""))
    took = []
    for _ in range(3):  # the least of them is what it takes; others may wait for memory that a neighbour uses
        began = time.process_time()
        found, update = gallery.open_gallery(root, model, card)
        _, nearest = found.search(torch.from_numpy(vectors[77:78]), 10)
        took.append(time.process_time() - began)
        assert update.embedded == 0 and nearest[0, 0] == 77
    assert min(took) < 1, took


INDEX = """
import sys, time
from gl_core.training import checkpoints
from glbook.search import gallery
gallery.CHUNK = 4
original = gallery.embed_files
def slowly(*arguments, **keywords):
    time.sleep(float(sys.argv[3]))
    return original(*arguments, **keywords)
gallery.embed_files = slowly
model, card = checkpoints.load(sys.argv[1])
print("ready", flush=True)
input()
found, update = gallery.open_gallery(sys.argv[2], model, card)
print(update.embedded, len(found.names))
"""


def start(place, pause, number=1):
    """Processes that begin to index at the same moment, however long each took to come up."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", INDEX, place / "net", place / "album", str(pause)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for _ in range(number)
    ]  # fmt: skip
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    return started


def test_killed_while_indexing_it_goes_on(place, monkeypatch):
    with start(place, 0.3)[0] as process:
        while len(list((place / "album").glob(".glbook/*/0*.json"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    (index,) = (place / "album" / ".glbook").iterdir()
    (index / ".000009.f32.abc").write_text("what a write leaves that was cut")
    (index / "000009.f32").write_text("embeddings whose table was never written")
    network = Network(place)
    found, update = network.open(place / "album", monkeypatch)
    assert 0 < update.embedded <= 12
    same_as_fresh(found, place)
    assert len(names(found.index)) == 2


def test_two_processes_index_once(place):
    two = start(place, 0.3, number=2)
    said = sorted(process.communicate(timeout=120) for process in two)
    assert [process.returncode for process in two] == [0, 0]
    assert [output.split() for output, _ in said] == [["0", "20"], ["20", "20"]]
    assert [errors for _, errors in said] == [f"{place}/album: another process is indexing it; waiting for that\n", ""]


@pytest.mark.parametrize("cache", [True, False])
def test_a_gallery_that_cannot_be_written(place, monkeypatch, capsys, cache):
    """Files in the way of folders: what root, who runs these tests in containers, cannot write either."""
    (place / "album" / ".glbook").touch()
    if not cache:
        (place / "cache").touch()
    arguments = ["search", str(place / "net"), "--gallery", str(place / "album"), str(place / "album" / "a" / "00.png")]
    status, errors = main(arguments), capsys.readouterr().err
    if cache:
        assert status == 0
        kept = re.search(rf"{place}/album cannot be written \(.*\): its index is kept in ({place}/cache/\S+)", errors)[
            1
        ]
        assert len(os.listdir(kept)) == 2
        assert main(arguments) == 0 and "new or changed" not in capsys.readouterr().err
    else:
        assert status in (1, 2) and errors.count("\n") == 1
        assert f"neither {place}/album nor {place}/cache/glbook can be written" in errors


def rows(output):
    return [
        (float(value), path) for value, path in re.findall(r"^ +\d+ +(-?[\d.]+)  (.*)$", output, re.MULTILINE)
    ]  # fmt: skip


def test_search_prints_and_draws_the_nearest(place, capsys, monkeypatch):
    album, query = place / "album", place / "query.bmp"
    Image.open(album / "a" / "06.png").save(query)
    (album / "z.png").write_text("no image")
    command = ["search", str(place / "net"), "--gallery", str(album), "-k", "3"]
    assert main([*command, str(query), str(album / "a" / "06.png"), "--figure", str(place / "f.png")]) == 0
    output = capsys.readouterr()
    assert "glbook: 1 of 21 images cannot be read and are left out" in output.err and "z.png" in output.err
    found = rows(output.out)
    assert len(found) == 6 and found[0][1] == f"{album}/a/06.png" and found[0][0] == 1
    # The image that is in the gallery does not find itself.
    assert f"{album}/a/06.png" not in [path for _, path in found[3:]]
    model, card = checkpoints.load(place / "net")
    files = [path for path in image_files.find_images([album]) if path.name not in ("06.png", "z.png")]
    vectors = image_files.embed_files(
        model, checkpoints.configuration(card), [album / "a" / "06.png", *files]
    ).embeddings
    similarity, index = nearest_neighbours(vectors[:1], vectors[1:], 3)
    assert [path for _, path in found[3:]] == [str(files[i]) for i in index[0]]
    assert [value for value, _ in found[3:]] == pytest.approx(similarity[0].tolist(), abs=6e-5)
    with Image.open(place / "f.png") as figure:
        assert figure.width > figure.height > 100

    assert main([*command, str(album / "b")]) == 0
    assert len(rows(capsys.readouterr().out)) == 3 * 10, "a folder asks for each of its images"

    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{query}\n\n{album}/z.png\n{query}\n"))
    assert main([*command, "-"]) == 0
    output = capsys.readouterr()
    assert rows(output.out) == found[:3] * 2
    assert (
        f"{album}/z.png: the query cannot be read" in output.err and len(re.findall(r"^\d.* s$", output.err, re.M)) == 2
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gallery", "empty", "album/a/00.png"], "empty: holds no images"),
        (["--gallery", "nowhere", "album/a/00.png"], "nowhere: there is no such folder"),
        (["--gallery", "net.json", "album/a/00.png"], "net.json: is no folder of images"),
        (["--gallery", "broken", "album/a/00.png"], "broken: none of its 1 images can be read; x.png: Unidentified"),
        (["--gallery", "album", "net.json"], "net.json: the query cannot be read"),
        (["--gallery", "album", "nowhere.png"], "nowhere.png: there is no such file or folder"),
        (["--gallery", "album", "album/a/00.png", "-k", "0"], "-k 0: must be 1 or more"),
        (["--gallery", "album", "album/a/00.png", "--figure", "f.doc"], "--figure f.doc: must end in"),
        (["--gallery", "album", "-", "--figure", "f.png"], "--figure f.png: takes queries from the command line"),
    ],
)
def test_bad_input_is_one_line_and_indexes_nothing(place, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(place)
    (place / "empty").mkdir()
    (place / "broken").mkdir()
    (place / "broken" / "x.png").touch()
    assert main(["search", "net", *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "indexing" not in line and line.strip()]
    assert len(errors) == 1 and errors[0].startswith("glbook: ") and message in errors[0]
    assert not (place / "album" / ".glbook").exists()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_approximate_search_says_what_it_finds(monkeypatch, metric):
    random = np.random.default_rng(0)
    vectors = random.normal(size=(2000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) if metric == "cosine" else 1
    found = approximate.build(vectors, metric)
    assert found.recall >= approximate.WANTED and 1 < found.lists_read < found.index.nlist
    queries = torch.from_numpy(vectors[:50])
    similarity, index = found.search(queries, 10)
    exact, rows = nearest_neighbours(queries, torch.from_numpy(vectors), 10, metric=metric)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(index.tolist(), rows.tolist(), strict=True)])
    assert recall > 0.9
    torch.testing.assert_close(similarity[:, 0], exact[:, 0], atol=1e-5, rtol=0)
    # More neighbours than the lists that are read hold: all of them are found.
    assert sorted(found.search(queries[:1], 2000)[1][0].tolist()) == list(range(2000))


def test_large_galleries_are_searched_by_faiss_and_the_index_is_kept(place, monkeypatch):
    said = []
    network, album = Network(place), place / "album"
    exact, _ = network.open(album, monkeypatch, say=said.append)
    monkeypatch.setattr(gallery, "EXACT_UP_TO", 10)
    found, _ = network.open(album, monkeypatch, say=said.append)
    assert said[0] == "20 images: building a faiss index ..."
    assert re.fullmatch(
        r"approximate search by faiss: \d of 4 lists read, recall@10 [01]\.\d+ against exact search", said[1]
    )
    query = torch.from_numpy(np.array(exact.embeddings[:3]))
    found.fast.lists_read = 4
    assert found.search(query, 5)[1].equal(exact.search(query, 5)[1])
    said.clear()
    again, _ = network.open(album, monkeypatch, say=said.append)
    assert len(said) == 1 and again.fast.recall == found.fast.recall
    draw(album / "new.png", 200)
    network.open(album, monkeypatch, say=said.append)
    assert said[1].startswith("21 images: building")
