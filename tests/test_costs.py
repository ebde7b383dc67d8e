"""The page on costs says what its record says."""

import json

import pytest

from glbook import costs


def row(part="loss", case="a", met=True, speed=2.0, n=10, **given):
    return {
        "part": part, "case": case, "seconds": {"gl_core": 0.0042, "peer": 0.0042 * speed}, "megabytes": {"gl_core": 12.0},
        "speedup": {"peer": speed}, "target": "twice", "met": met, "growth": {"n": n}, "load": 0.5,
        "facts": {},
    } | given  # fmt: skip


def record(*rows, created="2026-01-02T03:04:05+00:00"):
    return {
        "created": created, "commit": "0123456789abcdef", "device": "a CPU", "gpu": None, "versions": {"torch": "9.9"},
        "rows": list(rows),
    }  # fmt: skip


def test_the_newest_table_is_shown(tmp_path):
    for name, created in (("b", "2026-01-01"), ("a", "2026-02-01")):
        (tmp_path / f"{name}.json").write_text(json.dumps(record(created=created)))
    assert costs.latest(tmp_path)["created"] == "2026-02-01"
    assert costs.latest(tmp_path / "none") is None
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ValueError, match="not a table of benchmarks"):
        costs.latest(tmp_path)


def test_the_table_has_ratios_and_targets():
    shown = costs.table(record(row(), row(part="other"), row(case="b", met=None, target="")), "loss")
    assert shown.index.tolist() == ["a", "b"]
    assert shown.loc["a"].tolist() == ["4.2 ms", "12 MB", "2.00", "twice: met"] and shown.loc["b", "target"] == ""
    assert costs.table(record(), "loss").empty
    assert costs.table(record(row(facts={"kB sent": 36.4})), "loss").loc["a", "kB sent"] == "36"


def test_the_verdict_names_what_is_missed_with_its_figures():
    text = costs.verdict(record(row(), row(case="b", met=False, speed=1.5), row(case="c", met=None))).data
    assert "1 of 2 targets are met" in text
    assert "loss, b" in text and "4.2 ms" in text and "1.50 times the speed of peer" in text and "loss, a" not in text


def test_the_banner_says_where_and_when():
    text = costs.banner(record(row())).data
    for fact in ("a CPU", "no GPU", "torch 9.9", "`012345678`", "2026-01-02"):
        assert fact in text
    assert "make bench" in costs.banner(None).data
    assert (
        "`012345678`, `9876543210"[:-1]
        in costs.banner(record(row()) | {"commit": "0123456789abcdef, 9876543210fedcba"}).data
    )


def test_growth_is_drawn_from_the_sizes():
    rows = [row("neighbours", f"R@1 of {n}", n=n, seconds={"gl_core": n / 10}) for n in (10, 100)]
    rows += [row("reranking", "60 images, best 100", growth={"n": 60, "k1": 20})]
    figure = costs.growth(record(*rows))
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert set(lines) == {"retrieval metrics", "re-ranking, k1 = 20"}
    assert lines["retrieval metrics"].get_ydata().tolist() == [1.0, 10.0]
