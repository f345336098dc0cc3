"""The endpoint, a real Prometheus that reads it, and the dashboard's queries put to that."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from telemetry.archive import EXAMPLE, unpack
from telemetry.exporter import Endpoint, endpoint_at
from telemetry.replay import replay
from telemetry.runfolder import RunFolder
from telemetry.watch import Live, Snapshot, follow
from tests.telemetry.test_finish import START_NS, stage
from tests.telemetry.test_watch import NS, Script

DASHBOARD = Path(__file__).parents[2] / "docs/grafana/stagescope.json"
SPEED = 6.0
"""The example's 100 s in seventeen: its shortest judged stage is then scraped three times."""
SCRAPE_S = 0.5
VALUES = {"$run": ".*", "$stage": ".*", "$__rate_interval": "4s", "$__interval": "2s",
          "${datasource}": "here"}  # fmt: skip


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return unpack(EXAMPLE, tmp_path_factory.mktemp("example") / "run")[0]


def snapshot_of(folder: RunFolder) -> Snapshot:
    live = Live(folder)
    live.update()
    return live.snapshot()


def exported(*folders: RunFolder) -> str:
    with endpoint_at("127.0.0.1:0") as endpoint:
        for folder in folders:
            endpoint.show(snapshot_of(folder))
        return get(endpoint.address)


def families_in(text: str) -> dict[str, Metric]:
    return {one.name: one for one in text_string_to_metric_families(text)}


def test_each_series_is_labelled_by_run_and_stage_and_has_its_unit(example: RunFolder) -> None:
    families = families_in(exported(example))
    run = example.read()["run_id"]
    assert all(name.startswith("stagescope_") for name in families)
    samples = [one for family in families.values() for one in family.samples]
    assert {one.labels["run"] for one in samples} == {run}
    cpu = families["stagescope_stage_cpu_seconds"]
    assert cpu.type == "counter"
    assert {one.labels["stage"] for one in cpu.samples} == {
        one["name"] for one in example.read()["stages"]
    }
    assert {one.labels["gpu"] for one in families["stagescope_gpu_power_watts"].samples} == {
        "0", "1"
    }  # fmt: skip
    (info,) = families["stagescope_run_info"].samples
    assert info.labels == {"run": run, "name": "example", "status": "finished", "host": "guest-1"}
    assert all(family.documentation for family in families.values())


def test_what_is_not_measured_is_not_there(tmp_path: Path) -> None:
    script = Script(tmp_path, [stage("fit", "running", START_NS, None)])
    script.write(1.0, mem_used_bytes=("machine", "gauge", 5.0))
    families = families_in(exported(script.folder))
    assert not [name for name in families if "gpu" in name or "vm_" in name or "disk" in name]
    (memory,) = families["stagescope_memory_used_bytes"].samples
    assert (memory.labels["stage"], memory.value) == ("fit", 5.0)
    (running,) = families["stagescope_stage_running"].samples
    assert running.value == 1.0


def test_of_a_run_that_nobody_samples_any_more_no_series_is_told(tmp_path: Path) -> None:
    script = Script(tmp_path, [stage("fit", "running", START_NS, None)])
    script.write(1.0, mem_used_bytes=("machine", "gauge", 5.0))
    with endpoint_at("127.0.0.1:0", quiet_s=2.0) as endpoint:
        endpoint.show(snapshot_of(script.folder))
        assert "stagescope_memory_used_bytes" in get(endpoint.address)
        time.sleep(2.1)
        late = get(endpoint.address)
        assert "stagescope_memory_used_bytes" not in late
        assert "stagescope_run_info" in late
        endpoint.forget(script.folder.read()["run_id"])
        assert not get(endpoint.address).strip()


def test_a_window_has_the_stage_in_which_it_ended(tmp_path: Path) -> None:
    """It comes when another stage goes on; what lies between stages is of none."""
    load = stage("load", "finished", START_NS, START_NS + 10 * NS)
    script = Script(tmp_path, [load, stage("fit", "running", START_NS + 12 * NS, None)])
    script.write(14.0, mem_used_bytes=("machine", "gauge", 5.0))
    script.write(10.0, vm_cpu_ready_percent=("vm:a@h", "window", 10.0))
    script.write(11.0, host_power_w=("esxi:h", "window", 200.0))
    families = families_in(exported(script.folder))

    def stages(name: str) -> list[str]:
        return [one.labels["stage"] for one in families[f"stagescope_{name}"].samples]

    assert stages("memory_used_bytes") == ["fit"]
    assert stages("vm_cpu_ready_ratio") == ["load"]
    assert stages("host_power_watts") == [""]
    ends = families["stagescope_hypervisor_window_timestamp_seconds"].samples
    told = {tuple(one.labels[name] for name in ("vm", "host", "stage")): one.value for one in ends}
    assert told == {
        ("a", "h", "load"): pytest.approx(START_NS / 1e9 + 10, abs=1e-3),
        ("", "h", ""): pytest.approx(START_NS / 1e9 + 11, abs=1e-3),
    }


def test_a_run_that_has_ended_is_told_beside_the_next_one(tmp_path: Path) -> None:
    """Of two runs without a pause no counter is lost, and each name is told once."""
    scripts = []
    for number, status in enumerate(("finished", "running")):
        script = Script(tmp_path / str(number), [stage("fit", status, START_NS, None)])
        script.folder.write({**script.folder.read(), "run_id": f"run-{number}", "status": status})
        script.write(1.0, io_read_bytes=("stage:fit", "counter", 10.0 + number))
        scripts.append(snapshot_of(script.folder))
    with endpoint_at("127.0.0.1:0", quiet_s=2.0) as endpoint:
        for one in scripts:
            endpoint.show(one)
        text = get(endpoint.address)
        read = families_in(text)["stagescope_stage_storage_read_bytes"].samples
        assert {one.labels["run"]: one.value for one in read} == {"run-0": 10.0, "run-1": 11.0}
        info = families_in(text)["stagescope_run_info"].samples
        assert [one.labels["status"] for one in info] == ["finished", "running"]
        kinds = [line for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(kinds) == len(set(kinds))
        time.sleep(2.1)
        assert "run-0" not in get(endpoint.address), "it is told no longer than anything else"
        assert "run-1" in get(endpoint.address)


def test_an_endpoint_that_was_shown_nothing_answers_with_nothing() -> None:
    with endpoint_at("127.0.0.1:0") as endpoint:
        address = endpoint.address
        assert not get(address).strip()
    with pytest.raises(OSError):  # noqa: PT011 - it is closed
        get(address)


def test_an_ipv6_address_is_told_in_brackets() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with endpoint_at("[::1]:0") as endpoint:
        assert endpoint.address.startswith("http://[::1]:")
        assert not get(endpoint.address).strip()


@pytest.mark.parametrize("place", ["9464", "127.0.0.1", "127.0.0.1:http", ":9464", "a:70000"])
def test_an_address_that_is_none_is_refused(place: str) -> None:
    with pytest.raises(ValueError, match=r"give one like 127.0.0.1:9464"):
        endpoint_at(place)


def test_a_port_that_is_taken_is_an_error_of_the_system() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = endpoint_at(f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(OSError, match="in use"):
            endpoint.__enter__()


@pytest.mark.needs("prometheus")
def test_promtool_finds_nothing_to_say(example: RunFolder, tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "it comes with Prometheus"
    next_one = Script(tmp_path, [stage("fit", "running", START_NS, None)])
    next_one.write(1.0, mem_used_bytes=("machine", "gauge", 5.0))
    done = subprocess.run(
        [promtool, "check", "metrics"], input=exported(example, next_one.folder),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@dataclass(frozen=True)
class Prometheus:
    """A real one that has scraped the example while it was replayed."""

    url: str
    start_s: float
    end_s: float

    def ask(self, path: str, **query: Any) -> Any:
        text = urllib.parse.urlencode(query)
        answer = json.loads(get(f"{self.url}/api/v1/{path}?{text}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def over_time(self, expr: str) -> list[dict[str, Any]]:
        data = self.ask(
            "query_range", query=expr, start=self.start_s, end=self.end_s, step=SCRAPE_S / 5
        )
        return list(data["result"])


@pytest.fixture(scope="module")
def prometheus(
    example: RunFolder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with endpoint_at("127.0.0.1:0") as endpoint:
        target = urllib.parse.urlsplit(endpoint.address).netloc
        (folder / "prometheus.yml").write_text(
            f"global: {{scrape_interval: {round(1000 * SCRAPE_S)}ms}}\n"
            "scrape_configs:\n- job_name: stagescope\n"
            f"  static_configs: [{{targets: ['{target}']}}]\n"
        )
        command = [
            "prometheus", f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]  # fmt: skip
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            # It scrapes for the first time some seconds after it is ready.
            scraped = f"{url}/api/v1/query?query=" + urllib.parse.quote("up == 1")
            _wait_for(scraped, '"stagescope"', server, folder / "log")
            start_s = time.time()
            _replayed(example, folder / "replays", endpoint)
            time.sleep(3 * SCRAPE_S)
            yield Prometheus(url=url, start_s=start_s, end_s=time.time())
        finally:
            server.terminate()
            server.wait(20)


def _wait_for(url: str, answer: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + 60
    said = ""
    while answer not in said:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s, said + log.read_text()
        time.sleep(0.1)
        with contextlib.suppress(OSError):  # it does not listen yet
            said = get(url)


def _replayed(example: RunFolder, into: Path, endpoint: Endpoint) -> None:
    """Replay the example and have the endpoint follow it, as ``stagescope watch`` does."""
    thread = threading.Thread(target=replay, args=(example, into), kwargs={"speed": SPEED})
    thread.start()
    folder = RunFolder(into / example.read()["run_id"])
    while not folder.run_json.is_file():
        time.sleep(0.01)
    for snapshot in follow(Live(folder), every_s=SCRAPE_S / 2):
        endpoint.show(snapshot)
    thread.join()


def lines() -> list[tuple[str, str, str]]:
    """Title, query and legend of everything that the dashboard draws over time."""
    return [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel.get("targets", ())
        if panel["type"] == "timeseries"
    ]


def queries() -> list[tuple[str, str]]:
    """Every query of the dashboard: of its panels, its annotations and its variables."""
    board = json.loads(DASHBOARD.read_text())
    found = [
        (panel["title"], target["expr"])
        for panel in board["panels"]
        for target in panel.get("targets", ())
    ]
    found += [(one["name"], one["expr"]) for one in board["annotations"]["list"]]
    assert len(found) > 30
    return found


def named(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend)


def filled_in(expr: str) -> str:
    for name, value in VALUES.items():
        expr = expr.replace(name, value)
    assert "$" not in expr
    return expr


@pytest.mark.needs("prometheus")
@pytest.mark.parametrize(("title", "expr"), queries())
def test_every_query_of_the_dashboard_has_data(
    prometheus: Prometheus, title: str, expr: str
) -> None:
    found = prometheus.over_time(filled_in(expr))
    assert found, f"{title}: nothing for {expr}"
    values = [float(value) for series in found for _, value in series["values"]]
    assert all(value == value for value in values), "NaN"


@pytest.mark.needs("prometheus")
@pytest.mark.parametrize(("title", "expr", "legend"), lines())
def test_no_two_lines_of_a_panel_have_the_same_name(
    prometheus: Prometheus, title: str, expr: str, legend: str
) -> None:
    """A level of the machine is one line through all stages, though its label moves on; those of
    two runs are two."""
    labels = [one["metric"] for one in prometheus.over_time(filled_in(expr))]
    assert all(one["run"] for one in labels)
    names = [named(legend, {**one, "run": run}) for run in ("one", "other") for one in labels]
    assert sorted(names) == sorted(set(names)), title


@pytest.mark.needs("prometheus")
def test_prometheus_tells_the_stages_apart(prometheus: Prometheus, example: RunFolder) -> None:
    stages = {one["name"] for one in example.read()["stages"]}
    assert set(prometheus.ask("label/stage/values")) >= stages
    busy = prometheus.over_time("stagescope_cpu_busy_cores")
    assert {one["metric"].get("stage") for one in busy} >= {"features", "training", "serving"}
    counted = prometheus.over_time('stagescope_stage_cpu_seconds_total{stage="training"}')
    last = float(counted[0]["values"][-1][1])
    rusage = next(one["rusage"] for one in example.read()["stages"] if one["name"] == "training")
    assert last == pytest.approx(rusage["user_s"] + rusage["system_s"], abs=0.1)


def test_the_dashboards_variables_ask_for_labels_that_are_there(example: RunFolder) -> None:
    text = exported(example)
    variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
    assert [one["name"] for one in variables] == ["datasource", "run", "stage"]
    for one in variables[1:]:
        found = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", one["query"]["query"])
        assert found
        assert re.search(rf'^{found[1]}\{{.*\b{found[2]}="', text, re.MULTILINE)


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    ids = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        ids.add(panel["id"])
    assert len(ids) == len(json.loads(DASHBOARD.read_text())["panels"])
