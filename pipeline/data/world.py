"""The settings that decide a generated table, to the last bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

import pyarrow as pa

from pipeline.data.drift import Drift
from pipeline.data.schema import LABEL_TIME, TRANSACTIONS
from pipeline.data.streams import ENTITY_LIMIT


@dataclass(frozen=True, kw_only=True)
class GeneratorSpec:
    """Everything that decides a generated table."""

    seed: int = 0
    customers: int = 5_000
    terminals: int = 10_000
    start: date = date(2018, 4, 1)
    days: int = 183
    drift: Drift = field(default_factory=Drift)

    def __post_init__(self) -> None:
        for name, value, least, limit in (
            ("seed", self.seed, 0, 1 << 64),
            ("customers", self.customers, 1, ENTITY_LIMIT),
            ("terminals", self.terminals, 1, ENTITY_LIMIT),
            ("days", self.days, 1, (date.max - self.start).days),
        ):
            if not least <= value < limit:
                raise ValueError(f"generator {name} = {value}: it must be {least} to {limit - 1}")

    @property
    def schema(self) -> pa.Schema:
        """Columns of the table; ``label_time`` only with random label delays."""
        return (
            TRANSACTIONS if self.drift.label_delay_day is None else TRANSACTIONS.append(LABEL_TIME)
        )
