"""Which parameters the four validation folds choose. No choice looks at a test fold.

    python tests/bench/choose_parameters.py baselines TABLE    the published models' grids
    python tests/bench/choose_parameters.py mlp TABLE          the candidates of our own net
    python tests/bench/choose_parameters.py spread TABLE       how far other draws move the forest

TABLE is the published transactions as one Parquet file, or a folder of daily training tables. The
choice per published model and metric is what tests/training/test_published.py pins. One net must
serve all three metrics: the highest sum of them is chosen, and is the default of its settings.
The spread is the published forest's on its own test folds, over random states: nothing is chosen.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from features.contracts import FEATURES, WINDOW_DAYS
from infra.device import Device
from training.batches import DayTable, Rows
from training.loop import TrainingSettings, score, train
from training.models.mlp import MlpSettings
from training.protocol import Window, assessed_rows, folds, train_rows
from training.slices import METRICS, evaluate

VALIDATION = folds(Window(train_start=date(2018, 7, 11)))
TEST = folds(Window(train_start=date(2018, 8, 15)))
SEED = 0

PUBLISHED_ORDER = tuple(
    FEATURES.index(name)
    for name in (
        *("amount", "is_weekend", "is_night"),
        *(
            f"customer_{what}_{days}d"
            for days, what in product(WINDOW_DAYS, ("count", "mean_amount"))
        ),
        *(
            f"terminal_{what}_{days}d"
            for days, what in product(WINDOW_DAYS, ("count", "fraud_rate"))
        ),
    )
)
"""Columns as the published models had them: trees and forests draw features by position."""

GRIDS: dict[str, tuple[dict[str, Any], ...]] = {
    "tree": tuple({"max_depth": depth} for depth in (2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 50)),
    "logistic": tuple({"C": strength} for strength in (0.1, 1, 10, 100)),
    "forest": tuple(
        {"n_estimators": trees, "max_depth": depth}
        for trees, depth in product((25, 50, 100), (5, 10, 20, 50))
    ),
}


@dataclass(frozen=True, kw_only=True)
class MlpCandidate:
    """One point of our own search."""

    model: MlpSettings
    training: TrainingSettings

    def __str__(self) -> str:
        model, training = self.model, self.training
        return (
            f"hidden={model.hidden} members={model.members} dropout={model.dropout} "
            f"weight_decay={training.weight_decay} learning_rate={training.learning_rate}"
        )


CHOSEN_MLP = MlpCandidate(model=MlpSettings(), training=TrainingSettings())
BASE = TrainingSettings(epochs=12, batch_size=1024, learning_rate=8e-3)
CANDIDATES = tuple(
    MlpCandidate(
        model=MlpSettings(hidden=hidden, members=members, dropout=dropout),
        training=replace(BASE, weight_decay=decay),
    )
    for hidden, members, dropout, decay in (
        ((64, 64), 4, 0.0, 1e-4),
        ((64, 64), 4, 0.0, 0.1),
        ((64, 64), 4, 0.2, 0.1),
        ((32, 32), 8, 0.0, 0.1),
        ((64, 64), 8, 0.0, 0.1),
        ((64, 32), 8, 0.0, 0.1),
        ((64, 64, 32), 4, 0.0, 0.1),
        ((128, 64), 4, 0.0, 0.1),
    )
)


class Silent:
    """A recorder's handle for runs that nobody measures."""

    def phase(self, name: str) -> nullcontext[None]:
        return nullcontext()

    def count(self, metric: str, n: float = 1) -> None:
        pass


Fold = tuple[Rows, Rows]


def read_folds(table: DayTable, windows: tuple[Window, ...]) -> list[Fold]:
    """Training rows and assessed rows of each window."""
    handle = Silent()
    return [
        (train_rows(table, window, handle), assessed_rows(table, window, handle).rows)
        for window in windows
    ]


def published_scores(
    kind: str, parameters: dict[str, Any], fold: Fold, random_state: int = 0
) -> np.ndarray:
    """Fit a published model on the fold's training rows and score its assessed rows."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier

    classes = {
        "tree": DecisionTreeClassifier,
        "logistic": LogisticRegression,
        "forest": RandomForestClassifier,
    }
    train_part, assessed = fold
    workers = {"n_jobs": -1} if kind == "forest" else {}
    model = classes[kind](random_state=random_state, **parameters, **workers)
    pipeline = make_pipeline(StandardScaler(), model)
    pipeline.fit(_published_columns(train_part), train_part.is_fraud)
    return pipeline.predict_proba(_published_columns(assessed))[:, 1]


def mlp_scores(candidate: MlpCandidate, fold: Fold) -> np.ndarray:
    """Train our net on the fold's training rows and score its assessed rows."""
    device = Device(kind="cpu", name="", index=None, amp=False)
    with tempfile.TemporaryDirectory() as work:
        trained = train(
            fold[0],
            model=candidate.model,
            settings=candidate.training,
            seed=SEED,
            device=device,
            work=Path(work),
            handle=Silent(),
        )
    return score(trained.module, fold[1])


def mean_metrics(scores_of: Callable[[Fold], np.ndarray], each: list[Fold]) -> np.ndarray:
    """``METRICS`` as means over the folds: [3]."""
    values = [evaluate(scores_of(fold), fold[1]) for fold in each]
    return np.array([[value[name] for name in METRICS] for value in values]).mean(axis=0)


def _published_columns(rows: Rows) -> np.ndarray:
    return rows.features[:, PUBLISHED_ORDER].astype(np.float64)


def _table(path: Path, scratch: Path) -> DayTable:
    if path.is_dir():
        return DayTable(folder=path)
    sys.path.insert(0, str(Path(__file__).parent))
    from published_table import write_published_days

    return DayTable(folder=write_published_days(path, scratch))


def print_spread(each: list[Fold], parameters: dict[str, Any], states: int = 8) -> None:
    """Print the forest's four-fold means for some random states, their mean and their spread."""
    means = []
    for state in range(states):
        means.append(
            mean_metrics(
                lambda fold, state=state: published_scores("forest", parameters, fold, state), each
            )
        )
        print(f"random_state={state}", *(f"{value:.4f}" for value in means[-1]), flush=True)
    print("mean          ", *(f"{value:.4f}" for value in np.mean(means, axis=0)))
    print("sd            ", *(f"{value:.4f}" for value in np.std(means, axis=0, ddof=1)))


def _candidates(what: str) -> Iterator[tuple[str, str, Callable[[Fold], np.ndarray]]]:
    if what == "mlp":
        for candidate in CANDIDATES:
            yield "mlp", str(candidate), lambda fold, one=candidate: mlp_scores(one, fold)
        return
    for kind, grid in GRIDS.items():
        for parameters in grid:
            yield (
                kind,
                str(parameters),
                lambda fold, kind=kind, one=parameters: published_scores(kind, one, fold),
            )


def main() -> None:
    """Print every candidate's validation means, then the choice of each model for each metric."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("baselines", "mlp", "spread"))
    parser.add_argument("table", type=Path)
    asked = parser.parse_args()
    results: dict[str, list[tuple[str, np.ndarray]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        table = _table(asked.table, Path(scratch))
        if asked.what == "spread":
            print_spread(read_folds(table, TEST), {"n_estimators": 100, "max_depth": 20})
            return
        each = read_folds(table, VALIDATION)
        for kind, name, scores_of in _candidates(asked.what):
            begun = time.perf_counter()
            means = mean_metrics(scores_of, each)
            results.setdefault(kind, []).append((name, means))
            shown = "  ".join(f"{value:.4f}" for value in means)
            print(f"{kind:9s} {shown}  {time.perf_counter() - begun:6.1f} s  {name}", flush=True)
    for kind, rows in results.items():
        if kind == "mlp":
            print(f"chosen: {kind} by the sum: {max(rows, key=lambda row: row[1].sum())[0]}")
            continue
        for column, metric in enumerate(METRICS):
            name, means = max(rows, key=lambda row: row[1][column])
            print(f"chosen: {kind} by {metric}: {name} ({means[column]:.4f})")


if __name__ == "__main__":
    main()
