"""When to try a login again, so that a locked account or a sick server is left in peace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

UNREACHABLE_S = (1.0, 60.0)
REFUSED_S = (60.0, 900.0)
"""First and longest wait. vCenter's default policy locks an account for 5 minutes after 5 failed
logins within 3 minutes (vSphere Authentication, "lockout policy"): at most 3 fall into that."""


@dataclass(kw_only=True)
class Backoff:
    """Doubling waits after failures; ``now_s`` is a monotonic clock."""

    now_s: Callable[[], float] = time.monotonic
    failures: int = 0
    until_s: float = 0.0

    def failed(self, first_s: float, longest_s: float) -> None:
        self.until_s = self.now_s() + min(longest_s, first_s * 2.0**self.failures)
        self.failures = min(self.failures + 1, 20)

    def succeeded(self) -> None:
        self.failures, self.until_s = 0, 0.0

    def left_s(self) -> float:
        """Seconds until the next attempt is due."""
        return max(0.0, self.until_s - self.now_s())
