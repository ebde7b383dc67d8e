"""The version of what a training computes."""

__all__ = ["RESULTS_VERSION"]

# Part of the key by which recorded runs are found again. Raise it by one when the same configuration on the same data
# gives other results than before: another formula, another order of random numbers, another meaning of a setting,
# another default inside a network. Recorded runs then count as made by other code, and sweeps make them anew. A faster
# way to the same numbers, last digits aside, is no reason. `tests/test_golden.py` fails when results change and this
# number does not.
RESULTS_VERSION = 1
