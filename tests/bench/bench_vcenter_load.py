"""What a run asks of a vCenter: the calls of an hour-long run of one VM among 2,000 others.

The simulated vCenter counts them; its clock is moved, so that the hour takes seconds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.telemetry.vcenter_past import Past
from tests.vcsim_server import Vcsim

VMS, HOUR_S, PERIOD_S = 2_000, 3_600.0, 300.0
KINDS = ("calls", "queries", "query_metrics", "samples", "logins")


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        Vcsim(machines=2, hosts=2, standalone=0, light=VMS) as vcsim,
    ):
        past = Past(vcsim, Path(folder) / "run", ago_s=2 * HOUR_S, seconds=HOUR_S)
        past.put(0)
        rounds = round(HOUR_S / PERIOD_S)
        print(f"{'':26}" + "".join(f"{kind:>15}" for kind in KINDS))
        with past.collector() as one:
            _show(vcsim, "at the start", 1)
            for number in range(rounds):
                past.sample(one, number * PERIOD_S)
            _show(vcsim, "each round, every 5 min", rounds)
        past.backfill(HOUR_S + 20)
        _show(vcsim, "at the end", 1)
        counts = vcsim.counts
        print(f"left behind: {counts['sessions']} sessions, {counts['views']} views")


def _show(vcsim: Vcsim, when: str, times: int) -> None:
    counts = vcsim.counts
    print(f"{when:26}" + "".join(f"{counts.get(kind, 0) / times:15.1f}" for kind in KINDS))
    vcsim.control(reset_counts=True)


if __name__ == "__main__":
    main()
