"""What changes in the generated world at a chosen day, for lessons and tests. Default: nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

CLONED_SCENARIO = 4
CLONED_SHARE_PER_DAY = 0.0006
CLONED_DAYS = 7
CLONED_PAYMENT_SHARE = 0.5
CLONED_AMOUNT_FACTOR = 0.1
"""The fraud scenario that a model trained before has never seen: each day 0.06 % of the customers
are cloned, and for 7 days half of their payments are fraud, at any terminal of the map and for
a tenth of the amount."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Switches; a day counts from 0 at the first day of the table, None leaves a switch off.

    - ``new_fraud_scenario_day``: scenario 4 (cloned cards) begins.
    - ``amount_shift_day``: customers' mean amounts (and spreads) are multiplied from then on.
    - ``radius_shift_day``: the radius within which customers pay is multiplied from then on.
    - ``label_delay_day``: the table gets a column ``label_time``. Before this day each label is
      known seven days after its payment; from it on after a random, exponentially distributed
      time whose mean is ``label_delay_mean_days``.
    """

    new_fraud_scenario_day: int | None = None
    amount_shift_day: int | None = None
    amount_shift_factor: float = 2.0
    radius_shift_day: int | None = None
    radius_shift_factor: float = 2.0
    label_delay_day: int | None = None
    label_delay_mean_days: float = 7.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_day"):
                if value is not None and value < 0:
                    raise ValueError(f"drift {field.name} = {value}: days count from 0")
            elif not (math.isfinite(value) and value > 0):
                raise ValueError(f"drift {field.name} = {value}: it must be a number above 0")

    def amount_factor(self, day: int) -> float:
        """What mean amounts are multiplied by on this day."""
        return self.amount_shift_factor if _on(self.amount_shift_day, day) else 1.0

    def radius_factor(self, day: int) -> float:
        """What the radius is multiplied by on this day."""
        return self.radius_shift_factor if _on(self.radius_shift_day, day) else 1.0

    def has_random_labels(self, day: int) -> bool:
        """Whether labels of this day's payments come after a random time."""
        return _on(self.label_delay_day, day)


def _on(switch: int | None, day: int) -> bool:
    return switch is not None and day >= switch
