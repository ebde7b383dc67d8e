"""Searching a folder: the index follows the files, survives a kill, is shared, and search gives the exact answer."""

import io
import os
import re
import shutil
import signal
import sqlite3
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
    """A network, and a gallery of 20 images in two folders; a chunk holds 4."""
    monkeypatch.setattr(gallery, "CHUNK", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    network(tmp_path / "net")
    (tmp_path / "empty").mkdir()
    for i in range(20):
        draw(tmp_path / "album" / "ab"[i % 2] / f"{i:02}.png", i, (30 + i, 60 - i))
    return tmp_path


class Opener:
    """Opens galleries with the network, and notes the images that it embeds."""

    def __init__(self, place, monkeypatch):
        self.model, self.card = checkpoints.load(place / "net")
        self.embedded = []

        def noted(networks, files, **keywords):
            self.embedded += [path.name for path in files]
            return image_files.embed_files(networks, files, **keywords)

        monkeypatch.setattr(gallery, "embed_files", noted)

    def __call__(self, root, **options):
        self.embedded.clear()
        return gallery.open_gallery(root, self.model, self.card, **options)

    def same_as_fresh(self, found):
        """The index holds exactly what embedding all files anew gives."""
        files, _ = image_files.find_images([found.root])
        fresh = image_files.embed_files([(self.model, self.card)], files)
        assert found.names == [str(path.relative_to(found.root)) for path in fresh.files]
        expected = torch.nn.functional.normalize(fresh.embeddings)
        torch.testing.assert_close(torch.from_numpy(np.array(found.embeddings)), expected)
        assert sum(path.suffix == ".f32" for path in found.index.iterdir()) == 1


@pytest.fixture
def opened(place, monkeypatch):
    return Opener(place, monkeypatch)


def test_the_index_follows_the_files(place, opened):
    album = place / "album"
    before = sorted(place.glob("album/**"))
    found, update = opened(album)
    assert (update.embedded, update.removed, update.unreadable) == (20, 0, {})
    opened.same_as_fresh(found)
    assert found.index.is_relative_to(place / "cache" / "glbook")
    assert sorted(place.glob("album/**")) == before, "nothing is written into the gallery"

    found, update = opened(album)
    assert (update.embedded, update.removed, opened.embedded) == (0, 0, [])

    draw(album / "c" / "new.png", 100)
    draw(album / "a" / "02.png", 101, (50, 50))  # another size
    os.utime(album / "b" / "03.png", ns=(1, 1))  # another time, but the same content
    (album / "a" / "00.png").unlink()
    (album / "b" / "broken.png").write_text("no image")
    found, update = opened(album)
    assert sorted(opened.embedded) == ["02.png", "broken.png", "new.png"]
    assert (update.embedded, update.removed) == (2, 1)
    assert list(update.unreadable) == ["b/broken.png"]
    opened.same_as_fresh(found)
    # A file that cannot be read is not tried again until it changes.
    assert list(opened(album)[1].unreadable) == ["b/broken.png"] and opened.embedded == []
    draw(album / "b" / "broken.png", 102)
    found, update = opened(album)
    assert (update.embedded, update.unreadable) == (1, {})
    opened.same_as_fresh(found)


def test_what_is_touched_moved_or_copied_is_not_embedded_again(place, opened, capsys):
    album = place / "album"
    (album / "x.png").write_text("no image")
    opened(album)
    (album / "a").rename(album / "moved")
    (album / "x.png").rename(album / "y.png")
    shutil.copy(album / "b" / "01.png", album / "copy.png")
    for path in (album / "b").iterdir():
        path.touch()
    capsys.readouterr()
    found, update = opened(album, progress=True)
    assert (update.embedded, opened.embedded, list(update.unreadable)) == (0, [], ["y.png"])
    assert capsys.readouterr().err == "", "no bar for less than a second of looking"
    (album / "y.png").unlink()
    opened.same_as_fresh(opened(album)[0])


@pytest.mark.parametrize("settled", [True, False])
def test_a_change_that_size_and_time_do_not_tell_is_noticed(place, opened, monkeypatch, settled):
    """Two files of the same size and time of modification change places; or one is written again within a tick."""
    one, two = place / "album" / "a" / "00.bmp", place / "album" / "a" / "01.bmp"
    for seed, path in enumerate((one, two)):
        draw(path, 300 + seed)
        os.utime(path, ns=(1, 1))
    monkeypatch.setattr(gallery, "TICK", 0 if settled else 10**18)
    seen = {os.fspath(path): gallery._look(path) for path in (one, two)}
    opened(place / "album")
    if not settled:  # as if nothing of the write below could be seen
        original = gallery._look
        monkeypatch.setattr(gallery, "_look", lambda path: seen.get(os.fspath(path)) or original(path))
    contents = [path.read_bytes() for path in (two, one)]
    for path, content in zip((one, two), contents, strict=True):
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
    found, update = opened(place / "album")
    assert update.embedded == 0
    opened.same_as_fresh(found)


def test_a_file_that_changes_while_it_is_embedded_is_embedded_again(place, opened, monkeypatch):
    """Also as its first content comes back, which was read for the hash, but not for the embedding."""
    album, file = place / "album", place / "album" / "b" / "05.png"
    first, original = file.read_bytes(), image_files.embed_files

    def changing(networks, files, **keywords):
        if file in files:
            draw(file, 500)
        return original(networks, files, **keywords)

    monkeypatch.setattr(gallery, "TICK", 0)
    monkeypatch.setattr(image_files, "embed_files", changing)
    found, update = opened(album)
    assert update.unreadable == {"b/05.png": "it changed while it was read"} and len(found.names) == 19
    monkeypatch.setattr(image_files, "embed_files", original)
    file.write_bytes(first)
    found, _ = opened(album)
    assert opened.embedded == ["05.png"]
    opened.same_as_fresh(found)


def test_another_network_has_an_index_of_its_own(place, opened):
    first, _ = opened(place / "album")
    opened.card = opened.card | {"strategies": Strategies(beta=0.5).as_dict()}
    second, update = opened(place / "album")
    assert update.embedded == 20 and second.index != first.index
    assert (first.metric, second.metric) == ("cosine", "euclidean")
    query = torch.from_numpy(np.array(second.embeddings[3:4]))
    similarity, index = second.search(query, 100)
    assert index.shape == (1, 20) and index[0, 0] == 3 and similarity[0, 0] == pytest.approx(0, abs=1e-4)


def test_an_index_that_came_with_the_gallery_is_not_used(place, opened):
    """Nor is a link in it followed: a search once removed whatever it led to."""
    index = opened(place / "album")[0].index
    (place / "thesis").mkdir()
    (place / "thesis" / "thesis.tex").touch()
    moved = place / "album" / ".glbook" / index.name
    shutil.move(index, moved)
    assert opened(place / "album")[1].embedded == 20
    shutil.rmtree(moved)
    moved.symlink_to(place / "thesis")
    opened(place / "album")
    assert os.listdir(place / "thesis") == ["thesis.tex"]

    shutil.rmtree(index)
    index.symlink_to(place / "thesis")
    with pytest.raises(OSError, match=f"{index}: must not be a link"):
        opened(place / "album")
    assert os.listdir(place / "thesis") == ["thesis.tex"]


def test_a_file_of_several_names_is_one_image(place, opened, capsys):
    album = place / "album"
    (album / "c").symlink_to(album / "a")
    (album / "a" / "link.png").symlink_to(album / "b" / "01.png")
    os.link(album / "b" / "03.png", album / "a" / "hard.png")
    (place / "query.png").symlink_to(album / "b" / "03.png")
    found, update = opened(album)
    assert (len(found.names), update.embedded) == (20, 20)
    arguments = ["search", str(place / "net"), "--gallery", str(album), "-k", "30", str(place / "query.png")]
    assert main(arguments) == 0
    assert len(rows(capsys.readouterr().out)) == 19, "the query is in the gallery, by another name"


@pytest.mark.parametrize("damage", ["no database", "overwritten", "embedding lost", "short vectors", "no vectors"])
def test_a_damaged_index_is_set_aside_and_made_anew(place, opened, damage):
    index, said = opened(place / "album")[0].index, []
    database, (vectors,) = index / "index.sqlite", index.glob("*.f32")
    if damage == "no database":
        database.write_text("no database at all, but some text that is long enough to be looked at")
    elif damage == "overwritten":
        with open(database, "r+b") as file:
            file.seek(16384)  # the second page
            file.write(bytes(range(256)) * 32)
    elif damage == "embedding lost":
        with sqlite3.connect(database) as connection:
            connection.execute("DELETE FROM embeddings WHERE rowid = 7")
        vectors.unlink()
    else:
        vectors.unlink() if damage == "no vectors" else vectors.write_bytes(b"1234")
    found, update = opened(place / "album", say=said.append)
    opened.same_as_fresh(found)
    if "vectors" in damage:  # which the database still holds
        assert (update.embedded, said) == (0, [])
    else:
        (line,) = said
        assert line.startswith(f"{index}: the index is damaged (") and update.embedded == 20
        assert (index / "index.sqlite.broken").exists()
    assert opened(place / "album", say=said.append)[1].embedded == 0


def test_exact_search_by_blocks_is_that_of_the_whole(place, opened, monkeypatch):
    found, _ = opened(place / "album")
    queries = torch.from_numpy(np.array(found.embeddings[:5]))
    expected = nearest_neighbours(queries, torch.from_numpy(found.embeddings), 9)
    monkeypatch.setattr(gallery, "BLOCK", 7)
    similarity, index = found.search(queries, 9)
    assert index.equal(expected[1])
    torch.testing.assert_close(similarity, expected[0])


@pytest.mark.slow
def test_ten_thousand_images_are_searched_within_a_second(place, opened, monkeypatch):
    """All that follows the start but embedding the query, in processor time: a busy machine takes little more of it."""
    opened.model.embedding_size = 1280
    for i in range(10_000):
        (place / "empty" / f"{i:05}.png").write_text(str(i))
    vectors = torch.nn.functional.normalize(torch.randn(10_000, 1280, generator=torch.Generator().manual_seed(0)))

    def drawn(networks, files, progress):
        return image_files.Embedded(vectors[[int(path.stem) for path in files]], files)

    monkeypatch.setattr(gallery, "CHUNK", 1000)
    monkeypatch.setattr(gallery, "TICK", 0)
    monkeypatch.setattr(gallery, "embed_files", drawn)
    assert opened(place / "empty")[1].embedded == 10_000
    took = []
    for _ in range(3):  # the least of them is what it takes; others may wait for memory that a neighbour uses
        began = time.process_time()
        found, update = opened(place / "empty")
        _, nearest = found.search(vectors[77:78], 10)
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


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.1, 0.62, 1.25])
def test_killed_while_indexing_it_goes_on(place, opened, after):
    """Each chunk takes 0.25 seconds and is kept."""
    with start(place, 0.25)[0] as process:
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
    found, update = opened(place / "album")
    assert 16 - 16 * after <= update.embedded <= 20
    opened.same_as_fresh(found)


@pytest.mark.slow
def test_two_processes_index_once(place):
    two = start(place, 0.3, number=2)
    said = sorted(process.communicate(timeout=120) for process in two)
    assert [process.returncode for process in two] == [0, 0]
    assert [output.split() for output, _ in said] == [["0", "20"], ["20", "20"]]
    assert [errors for _, errors in said] == [f"{place}/album: another process is indexing it; waiting for that\n", ""]


def test_a_cache_that_cannot_be_written_is_named(place, capsys):
    """A file in the way of a folder: what root, who runs these tests in containers, cannot write either."""
    (place / "cache").touch()
    query = str(place / "album" / "a" / "00.png")
    assert main(["search", str(place / "net"), "--gallery", str(place / "album"), query]) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and f"{place}/cache/glbook" in errors and "XDG_CACHE_HOME" in errors


def rows(output):
    return [(float(value), path) for value, path in re.findall(r"^ +\d+ +(-?[\d.]+)  (.*)$", output, re.MULTILINE)]


def test_search_prints_and_draws_the_nearest(place, capsys, monkeypatch):
    album, query = place / "album", place / "query.bmp"
    Image.open(album / "a" / "06.png").save(query)
    (album / "z.png").write_text("no image")
    command = ["search", str(place / "net"), "--gallery", str(album), "-k", "3"]
    assert main([*command, str(query), str(album / "a" / "06.png"), "--figure", str(place / "f.png")]) == 0
    output = capsys.readouterr()
    assert "glbook: 1 left out: z.png (" in output.err
    found = rows(output.out)
    assert len(found) == 6 and found[0][1] == f"{album}/a/06.png" and found[0][0] == 1
    # The image that is in the gallery does not find itself.
    assert f"{album}/a/06.png" not in [path for _, path in found[3:]]
    files = [path for path in image_files.find_images([album])[0] if path.name not in ("06.png", "z.png")]
    vectors = image_files.embed_files([checkpoints.load(place / "net")], [album / "a" / "06.png", *files]).embeddings
    similarity, index = nearest_neighbours(vectors[:1], vectors[1:], 3)
    assert [path for _, path in found[3:]] == [str(files[i]) for i in index[0]]
    assert [value for value, _ in found[3:]] == pytest.approx(similarity[0].tolist(), abs=6e-5)
    with Image.open(place / "f.png") as figure:
        assert figure.width > figure.height > 100

    assert main([*command, str(album / "b")]) == 0
    assert len(rows(capsys.readouterr().out)) == 3 * 10, "a folder asks for each of its images"
    assert main([*command, str(query), "--strict"]) == 2
    assert "glbook: --strict: 1 left out: z.png (" in capsys.readouterr().err

    for last in ([], ["-"]):
        lines = os.fsencode(f"{query}\n\n{album}/z.png\nno\udcff\n{query}")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
        assert main([*command, *last]) == 0
        output = capsys.readouterr()
        assert rows(output.out) == found[:3] * 2
        assert f"{album}/z.png: the query cannot be read" in output.err and "glbook: no\\udcff: there is" in output.err


def test_a_terminal_is_asked_for_queries(place, capsys, monkeypatch):
    asked, lines = [], iter([f"{place}/album/a/00.png", "", f" {place}/album/a/02.png "])

    def answer(prompt):
        asked.append(prompt)
        try:
            return next(lines)
        except StopIteration as end:
            raise EOFError from end

    monkeypatch.setattr("builtins.input", answer)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    assert main(["search", str(place / "net"), "--gallery", str(place / "album"), "-k", "3"]) == 0
    assert asked == ["query> "] * 4 and len(rows(capsys.readouterr().out)) == 6


@pytest.mark.slow
@pytest.mark.parametrize(("closed", "status"), [("<&-", 2), (">&-", 0), ("2>&-", 0), ("| head -n 1", 0)])
def test_closed_streams_leave_no_traceback(place, closed, status):
    query = "-" if closed == "<&-" else place / "album"
    program = f"{sys.executable} -m glbook search {place}/net --gallery {place}/album {query} {closed}"
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == status and "Traceback" not in done.stderr and "Exception" not in done.stderr
    if status:
        assert done.stderr == "glbook: the input is closed: must name the queries\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gallery", "empty", "album/a/00.png"], "empty: holds no images"),
        (["--gallery", "", "album/a/00.png"], "--gallery: must not be empty"),
        (["--gallery", "nowhere", "album/a/00.png"], "nowhere: there is no such folder"),
        (["--gallery", "net.json", "album/a/00.png"], "net.json: is no folder of images"),
        (["--gallery", "broken", "album/a/00.png"], "broken: none of its 1 images can be read; x.png: its content"),
        (["--gallery", "album", "net.json"], "net.json: the query cannot be read"),
        (["--gallery", "album", "pipe.png"], "pipe.png: the query cannot be read"),
        (["--gallery", "album", "nowhere.png"], "nowhere.png: there is no such file or folder"),
        (["--gallery", "album", "album/a/00.png", "-k", "0"], "-k 0: must be 1 or more"),
        (["--gallery", "album", "album/a/00.png", "--figure", "f.doc"], "--figure f.doc: must end in"),
        (["--gallery", "album", "--figure", "f.png"], "--figure f.png: takes queries from the command line"),
    ],
)
def test_bad_input_is_one_line_and_indexes_nothing(place, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(place)
    (place / "broken").mkdir()
    (place / "broken" / "x.png").touch()
    os.mkfifo(place / "pipe.png")
    try:
        status = main(["search", "net", *arguments])
    except SystemExit as error:  # of the parser
        status = error.code
    errors = [line for line in capsys.readouterr().err.splitlines() if "indexing" not in line and line.strip()]
    assert status == 2 and len(errors) == 1 and errors[0].startswith("glbook: ") and message in errors[0]
    assert not any(path.stat().st_size for path in place.glob("cache/**/*.f32"))


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
    recall = np.mean([len({*a} & {*b}) / 10 for a, b in zip(index.tolist(), rows.tolist(), strict=True)])
    assert recall > 0.9
    torch.testing.assert_close(similarity[:, 0], exact[:, 0], atol=1e-5, rtol=0)
    # More neighbours than the lists that are read hold: all of them are found.
    assert sorted(found.search(queries[:1], 2000)[1][0].tolist()) == list(range(2000))


def test_large_galleries_are_searched_by_faiss_and_the_index_is_kept(place, opened, monkeypatch):
    said, album = [], place / "album"
    exact, _ = opened(album, say=said.append)
    monkeypatch.setattr(gallery, "EXACT_UP_TO", 10)
    found, _ = opened(album, say=said.append)
    assert said[0] == "20 images: building a faiss index ..."
    assert re.fullmatch(
        r"approximate search by faiss: \d of 4 lists read, recall@10 [01]\.\d+ against exact search", said[1]
    )
    query = torch.from_numpy(np.array(exact.embeddings[:3]))
    found.fast.lists_read = 4
    assert found.search(query, 5)[1].equal(exact.search(query, 5)[1])
    said.clear()
    again, _ = opened(album, say=said.append)
    assert len(said) == 1 and again.fast.recall == found.fast.recall
    draw(album / "new.png", 200)
    opened(album, say=said.append)
    assert said[1].startswith("21 images: building")
