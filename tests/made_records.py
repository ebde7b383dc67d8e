"""Records of runs that never were."""

from gl_core.training import records


def record(seed: int = 0, r1: float = 0.5, **changes) -> dict:
    made = {
        "run_id": f"run-{seed}",
        "created": f"2026-03-0{seed + 1}T10:00:00+00:00",
        "commit": "0123456789abcdef",
        "chapter": "training",
        "dataset": "omniglot",
        "method": "group_loss",
        "seed": seed,
        "device": "a CPU",
        "wall_time_s": 50.0,
        "purpose": "final",
        "config": {"num_anchors": 2, "epochs": 30},
        "metrics": {"R@1": r1, "MAP@R": 0.25},
        "untrained": {"R@1": 0.1},
        "history": [{"epoch": 1, "loss": 2.0}],
    }
    return made | changes


def keep_some(folder) -> None:
    """Three seeds of one method and one run each of something else."""
    for made in (
        *(record(seed, r1) for seed, r1 in enumerate([0.80, 0.82, 0.87])),
        record(5, 0.4, run_id="ce", method="cross_entropy", config={"num_anchors": 2, "epochs": 10}),
        record(6, 0.3, run_id="trial", purpose="tuning"),
        record(7, 0.2, run_id="other", dataset="glyphs", chapter="iterations_and_anchors"),
    ):
        records.write_record(made, folder)
