"""How often 95 % intervals of a difference hold the truth: `python scripts/simulate_statistics.py [STUDIES]`.

Each study has 300 puzzles and two systems that find mostly the same ones hard. Prints a table in Markdown: accuracies
.3 to .95, true differences of 0, 2, 5 and 10 points, 2,000 studies each unless told otherwise; and how often a
difference is told apart. A minute for each of the twenty on one core.
"""

from __future__ import annotations

import sys

import numpy as np

from gram.evals.columns import paired_differences

PUZZLES, RESAMPLES = 300, 2_000
ACCURACIES, DIFFERENCES = (0.3, 0.5, 0.7, 0.9, 0.95), (0.0, 0.02, 0.05, 0.1)


def study(seed: int, accuracy: float, difference: float) -> tuple[bool, bool]:
    """Whether one study's interval holds the true difference, and whether it leaves out zero."""
    rng = np.random.default_rng([seed, round(accuracy * 100), round(difference * 100)])
    draw, other = rng.random((2, PUZZLES, 1))
    a = draw < accuracy
    b = np.where(rng.random((PUZZLES, 1)) < 0.6, draw, other) < accuracy - difference
    found = paired_differences(a, b, seed=seed, resamples=RESAMPLES)
    low, high = float(found.low[0]), float(found.high[0])
    return low - 1e-9 <= difference <= high + 1e-9, low > 0 or high < 0


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    print("| accuracy | " + " | ".join(f"{100 * difference:g} points" for difference in DIFFERENCES) + " |")
    print("|---|" + "---|" * len(DIFFERENCES))
    for accuracy in ACCURACIES:
        shares = []
        for difference in DIFFERENCES:
            found = np.array([study(seed, accuracy, difference) for seed in range(studies)])
            shares.append(f"{100 * found[:, 0].mean():.1f} % ({100 * found[:, 1].mean():.0f} % told apart)")
        print(f"| {accuracy} | " + " | ".join(shares) + " |", flush=True)


if __name__ == "__main__":
    main()
