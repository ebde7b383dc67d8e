"""Figures: they show what they are given, small data does not trip them, misuse is named."""

from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from gl_core.propagation import replicator_dynamics
from glbook import plots, runs


@pytest.fixture(autouse=True)
def style():
    """The book's style, in which no figure is left open."""
    with mpl.rc_context():
        plots.use_book_style()
        yield
    assert pyplot.get_fignums() == []


def drawn(figure: Figure) -> Figure:
    """The figure, after it has really been drawn: most mistakes only show then."""
    assert isinstance(figure, Figure)
    FigureCanvasAgg(figure).draw()
    return figure


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


def images(n, size=6):
    return list(np.random.default_rng(0).integers(0, 255, (n, size, size, 3), dtype=np.uint8))


def history(*losses, **more):
    return [{"epoch": i + 1, "loss": loss} | more for i, loss in enumerate(losses)]


def table(*rows):
    """Runs as (method, number of anchors, number of iterations, R@1)."""
    return runs.as_table(
        [
            {
                "run_id": str(i), "seed": i, "method": method, "config": {"num_anchors": anchors, "num_iterations": T},
                "metrics": {"R@1": r1, "MAP@R": r1 / 2}, "history": history(2.0 + i, 1.0 + i), "selection": [],
            }
            for i, (method, anchors, T, r1) in enumerate(rows)
        ]
    )  # fmt: skip


def cells_of(figure: Figure) -> np.ndarray:
    """The numbers of a grid, NaN in empty cells."""
    return np.ma.filled(figure.axes[0].collections[0].get_array().astype(float), np.nan)


def marks(ax) -> tuple[list, list, list]:
    """Of the rows of a dot plot: means, the rings below them, and the ends of their error bars."""
    lines = [line for line in ax.lines if line.get_linestyle() != "--" and len(line.get_xdata())]
    dots = [line for line in lines if line.get_marker() == "o"]
    means = [float(line.get_xdata()[0]) for line in dots if len(line.get_xdata()) == 1]
    rings = [line.get_xdata().tolist() for line in dots if len(line.get_xdata()) > 1]
    bars = [line.get_xdata() for line in lines if line.get_marker() == "None"]
    return means, rings, [[np.nanmin(ends), np.nanmax(ends)] for ends in bars if np.isfinite(ends).any()]


@pytest.mark.parametrize("n", [1, 9])
def test_an_image_grid_shows_all_on_a_ground_that_is_light_in_dark_mode_too(n, tmp_path):
    figure = plots.image_grid(images(n), [f"t{i}" for i in range(n)], columns=4, frame_colours=[None] * n)
    assert sum(len(ax.images) for ax in figure.axes) == n and f"t{n - 1}" in texts(figure)
    figure.savefig(tmp_path / "figure.png")
    corner = Image.open(tmp_path / "figure.png").convert("RGBA").getpixel((0, 0))
    assert min(corner) > 240


def test_images_of_all_kinds_show_the_same():
    grey = np.array([[0, 255], [51, 102]], dtype=np.uint8)
    colour = np.repeat(grey[:, :, None], 3, axis=2)
    kinds = [grey, colour, Image.fromarray(colour), torch.from_numpy(colour).permute(2, 0, 1), colour / 255, grey[None]]
    figure = drawn(plots.image_grid(kinds))
    shown = [ax.images[0] for ax in figure.axes if ax.images]
    for image in shown:
        pixels = image.make_image(figure.canvas.get_renderer(), unsampled=True)[0]
        assert np.array_equal(pixels[..., :3], colour)


def test_show_batch_puts_each_class_in_a_row():
    anchors = np.array([True, False, True, False, False])
    figure = drawn(
        plots.show_batch(images(5), torch.tensor([4, 4, 1, 1, 1]), class_names=list("abcde"), anchors=anchors)
    )
    assert [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()] == ["e", "b"]
    assert texts(figure).count("A") == 2


def test_retrieval_gallery_marks_right_and_wrong_by_sign():
    correct = np.array([[True, False, False], [True, True, False]])
    figure = drawn(plots.retrieval_gallery(images(2), [images(3)] * 2, correct, titles=["x", "y"]))
    assert texts(figure).count("✓") == 3 and texts(figure).count("✗") == 3
    assert sum(len(ax.images) for ax in figure.axes) == 8


def test_heatmaps_show_their_matrices():
    figure, ax = plots.panels()
    assert drawn(plots.similarity_heatmap(torch.eye(4, requires_grad=True), [0, 0, 1, 1], ax=ax)) is figure
    assert np.array_equal(figure.axes[0].images[0].get_array(), np.eye(4))
    assert len(figure.axes[0].lines) == 2
    X = np.full((4, 3), 1 / 3)
    names = ["x", "y", "z"]
    figure = drawn(plots.assignments_heatmap(X, [0, 0, 1, 2], class_names=names, anchors=[True, False, True, False]))
    assert np.array_equal(figure.axes[0].images[0].get_array(), X)
    assert figure.axes[0].collections[0].get_offsets().tolist() == [[0, 0], [0, 1], [1, 2], [2, 3]]
    assert {"A 0", "1", "A 2", "3", *names} <= set(texts(figure))
    drawn(plots.assignments_heatmap(np.full((40, 90), 1 / 90)))


def test_the_simplex_has_certainty_in_its_corners():
    W = torch.tensor([[1.0, 0.5, 0.2], [0.5, 1.0, 0.5], [0.2, 0.5, 1.0]])
    X = torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.3, 0.3], [0.2, 0.4, 0.4]])
    path = replicator_dynamics(W, X, 5, return_path=True)
    figure = drawn(plots.path_on_simplex(path, labels=torch.tensor([0, 0, 1]), corners=("x", "y", "z")))
    squares = [line for line in figure.axes[0].lines if line.get_marker() == "s"]
    assert len(squares) == 1 and squares[0].get_xydata().tolist() == [[0, 0]]
    assert {"x", "y", "z"} <= set(texts(figure))
    drawn(plots.path_on_simplex(path[:1]))


def test_learning_curves_show_mean_and_spread():
    histories = [history(3.0, 2.0), [{"epoch": 0}, *history(1.0)]]
    figure = drawn(plots.learning_curves({"group_loss": histories, "other": history(5.0)}))
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[1, 2], [2, 2]]
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert np.isclose(band[:, 1].max(), 2 + np.sqrt(2))
    assert {"group loss", "other"} <= set(texts(figure))


def test_learning_curves_in_percent_and_of_a_table():
    figure = drawn(plots.learning_curves([history(3.0, 2.0, **{"held-out R@1": 0.5}), [{"epoch": 0}]], "held-out R@1"))
    assert figure.axes[0].lines[0].get_ydata().tolist() == [50, 50] and "held-out R@1 (%)" in texts(figure)
    data = table(("group_loss", 0, 1, 0.5), ("group_loss", 2, 1, 0.5), ("cross_entropy", 2, 1, 0.5))
    figure = drawn(plots.learning_curves(data))
    assert figure.axes[0].lines[0].get_ydata().tolist() == [2.5, 1.5]
    assert {"group loss", "cross entropy"} <= set(texts(figure))
    assert "number of anchors: 2" in texts(drawn(plots.learning_curves(data, by="num_anchors")))


def test_metric_grid_annotates_mean_and_spread():
    data = table(("g", 0, 1, 0.50), ("g", 0, 1, 0.54), ("g", 2, 1, 0.6), ("g", 2, 3, 0.7))
    figure = drawn(plots.metric_grid(data))
    assert {"52.0\n± 2.8", "60.0\n(one run)", "70.0\n(one run)", "number of iterations"} <= set(texts(figure))
    assert np.allclose(cells_of(figure), [[52, 60], [np.nan, 70]], equal_nan=True)
    shown = cells_of(drawn(plots.metric_grid(data, rows=[0, 1, 3], across=[0, 2])))
    assert np.allclose(shown, [[np.nan, np.nan], [52, 60], [np.nan, 70]], equal_nan=True)


def test_a_cell_that_fails_leaves_the_colours_to_the_others():
    data = table(*(("g", a, 1, r1) for a, r1 in enumerate([0.80, 0.81, 0.82, 0.83, 0.04])))
    picture = drawn(plots.metric_grid(data)).axes[0].collections[0]
    assert picture.norm.vmin == pytest.approx(81 - 4 * 2) and picture.norm.vmax == pytest.approx(83)
    even = drawn(plots.metric_grid(data.iloc[:4])).axes[0].collections[0]
    assert even.norm.vmin == pytest.approx(80)


def test_setting_curve_shows_the_interval_of_the_mean_and_each_run():
    values = [0.50, 0.54, 0.58]
    data = table(*(("g", 0, 1, r1) for r1 in values), ("g", 0, 3, 0.6), ("h", 0, 3, 0.7))
    ax = drawn(plots.setting_curve(data[data["method"] == "g"], "num_iterations")).axes[0]
    (bars,) = ax.containers
    low, high = bars.lines[2][0].get_segments()[0][:, 1]
    assert np.isclose(high - low, 2 * stats.t.ppf(0.975, 2) * np.std([50, 54, 58], ddof=1) / np.sqrt(3))
    assert list(ax.lines[0].get_ydata()) == pytest.approx([54, 60])
    assert np.isnan(bars.lines[2][0].get_segments()[1]).any() or not len(bars.lines[2][0].get_segments()[1])
    assert ax.collections[0].get_offsets()[:, 1].tolist() == pytest.approx([50, 54, 58, 60])
    figure = drawn(plots.setting_curve(data, "num_iterations", by="method", log=True))
    assert {"g", "h", "1", "3", "number of iterations"} <= set(texts(figure))


def test_differences_show_intervals_and_seeds_and_mark_what_is_decided():
    from glbook import statistics

    runs = [("group_loss", 0.5), ("group_loss", 0.52), ("group_loss", 0.54), ("ahead", 0.7), ("ahead", 0.721)]
    runs += [("ahead", 0.742), ("open", 0.6), ("open", 0.4), ("open", 0.55)]
    data = table(*((method, 0, 1, r1) for method, r1 in runs)).assign(seed=[0, 1, 2] * 3)
    compared = statistics.compare(data, "group_loss")
    figure = drawn(plots.differences(compared, "the Group Loss"))
    assert {"ahead", "open", "difference to the Group Loss\n(R@1, points)"} <= set(texts(figure))
    means, rings, bars = marks(figure.axes[0])
    assert means == pytest.approx([20.1, compared.loc["open", "difference"]])
    assert rings[0] == pytest.approx([20, 20.1, 20.2]) and len(rings) == 2
    for (low, high), (_, row) in zip(bars, compared.loc[["ahead", "open"]].iterrows(), strict=True):
        assert [low, high] == pytest.approx([row["difference"] - row["margin"], row["difference"] + row["margin"]])
    filled = [line.get_markerfacecolor() != "none" for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert filled == [True, False]


def test_comparison_shows_every_run_and_one_standard_deviation():
    data = table(("group_loss", 0, 1, 0.50), ("group_loss", 0, 1, 0.54), ("cross_entropy", 2, 1, 0.6))
    figure = drawn(plots.comparison(data))
    means, rings, bars = marks(figure.axes[0])
    assert means == [52, 60] and rings == [[50, 54]]
    assert bars == [pytest.approx([52 - np.sqrt(8), 52 + np.sqrt(8)])], "a single run has none"
    assert {"group loss", "cross entropy", "R@1 (%)", "MAP@R (%)"} <= set(texts(figure))


def test_trials_of_a_search_are_sorted_by_the_best():
    def study(*scores):
        return SimpleNamespace(trials=[{"score": score} for score in scores])

    figure = drawn(plots.trials({"triplet": study(0.5, 0.4, None), "soft_triple": study(0.3, 0.6, 0.2)}))
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["soft triple", "triplet"]
    # Of each row all trials, then that with the defaults, then the best.
    shown = [points.get_offsets()[:, 0].tolist() for points in ax.collections]
    assert shown == [[30, 60, 20], [50, 40], [30], [50], [60], [50]]


@pytest.mark.parametrize("pictures", [None, images(6)])
def test_embedding_scatter(pictures):
    points = np.random.default_rng(0).normal(size=(6, 2))
    figure = drawn(plots.embedding_scatter(points, [0, 0, 1, 1, 2, 2], images=pictures, class_names=["x", "y", "z"]))
    assert sum(len(c.get_offsets()) for c in figure.axes[0].collections) == 6
    boxes = figure.findobj(mpl.offsetbox.AnnotationBbox)
    assert len(boxes) == (0 if pictures is None else 6)
    assert {"x", "y", "z"} <= set(texts(figure))
    many = np.arange(30)
    assert drawn(plots.embedding_scatter(np.stack([many, many], 1), many)).axes[0].get_legend() is None


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: plots.image_grid([]), "images is empty"),
        (lambda: plots.image_grid(images(2), ["one"]), "titles has length 1: must be 2, as images"),
        (lambda: plots.image_grid(images(2), columns=0), "columns=0"),
        (lambda: plots.image_grid([np.zeros(3)]), r"an image has shape \(3,\)"),
        (lambda: plots.show_batch(images(2), [0]), "labels has length 1"),
        (lambda: plots.retrieval_gallery(images(1), [images(2)], np.ones((1, 3), bool)), r"correct has shape \(1, 3\)"),
        (lambda: plots.similarity_heatmap(np.zeros((2, 3))), "must be square"),
        (lambda: plots.assignments_heatmap(np.zeros(3)), r"assignments has shape \(3,\)"),
        (lambda: plots.path_on_simplex(np.zeros((2, 3, 4))), r"paths has shape \(2, 3, 4\)"),
        (lambda: plots.path_on_simplex(np.zeros((2, 3, 3)), corners=("x",)), "corners holds 1 names"),
        (lambda: plots.learning_curves([]), "source holds no history"),
        (lambda: plots.learning_curves(history(1.0), "R@1"), "y='R@1': no entry"),
        (lambda: plots.metric_grid(table()), "table holds no runs"),
        (lambda: plots.comparison(table(("g", 0, 1, 0.5)), metrics=("NMI",)), "'NMI' is neither"),
        (lambda: plots.trials({}), "studies is empty"),
        (lambda: plots.embedding_scatter(np.zeros((2, 3)), [0, 1]), r"points has shape \(2, 3\)"),
    ],
)
def test_misuse_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
