"""What a line of the table of stages tells, and what it does not tell as the whole."""

from __future__ import annotations

from dataclasses import replace

from telemetry.headlines import headlines
from telemetry.profile import Profile
from tests.telemetry.profile_rows import a_profile, a_run, absent, row


def test_headlines_show_every_stage_and_say_why_there_is_no_gpu() -> None:
    ingest, features, training = headlines(a_profile(), a_run())
    assert (features.seconds, features.cpu_s, features.cores) == (10.0, 20.0, 2.0)
    assert (features.rss_peak_bytes, features.read_bytes, features.write_bytes) == (9e9, 7e6, None)
    assert (features.gpu, features.coverage) == ("no driver here", 0.9)
    assert (ingest.seconds, ingest.cpu_s, ingest.reused_from) == (None, None, "20261123-1")
    assert (training.seconds, training.gpu, training.reason) == (None, "", "the run was killed")


def test_headlines_show_each_gpu() -> None:
    rows = (
        row("features", "gpu:0", "gpu_util_percent", mean=91.6),
        row("features", "gpu:0", "energy_j", total=12345.6, coverage=1.0),
        row("features", "gpu:1", "gpu_util_percent", mean=3.0),
        absent("features", "gpu:1", "energy_j"),
    )
    line = headlines(Profile(rows=rows), a_run())[1]
    assert line.gpu == "gpu:0: 92 % busy, 12,346 J; gpu:1: 3 % busy"
    lost = replace(rows[1], coverage=0.4)
    line = headlines(Profile(rows=(lost,)), a_run())[1]
    assert line.gpu == "gpu:0: 12,346 J in 40 % of it"


def test_headlines_tell_no_part_as_the_whole() -> None:
    """The recorder was lost: cores are of what it saw, sums are the kernel's at the end or none."""
    half = {"coverage": 0.5, "total_share": 0.5}
    rows = (
        row("features", "stage", "cpu_busy_seconds", **half),
        row("features", "stage", "io_read_bytes", total=7e6, **half),
    )
    run = a_run()
    line = headlines(Profile(rows=rows), run)[1]
    assert (line.cpu_s, line.cores, line.read_bytes, line.coverage) == (None, 2.0, None, 0.5)
    run["stages"][1]["rusage"] = {"user_s": 30.0, "system_s": 9.5, "read_bytes": 8192}
    line = headlines(Profile(rows=rows), run)[1]
    assert (line.cpu_s, line.read_bytes) == (39.5, 8192)
