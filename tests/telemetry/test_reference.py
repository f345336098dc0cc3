"""Publishing: whole, without names, the same bytes again, and refused with a sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.profile import Row
from telemetry.pseudonyms import Pseudonyms
from telemetry.publish import VERSION, reference_of, unnamed
from telemetry.published_recipe import is_same_recipe, published_recipe, recipe_difference
from telemetry.reference import (
    Reference,
    digest_of,
    read_reference,
    sittings_of,
    write_reference,
)
from telemetry.runfolder import RunFolder
from tests.telemetry.reference_runs import ENVIRONMENT, RECIPE, made_run, row, side

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/reference.schema.json").read_text())
TIMES = ((4.0, 9.0), (4.1, 9.2), (4.05, 8.9))
UUID = "4220f5a4-5c3e-4b1a-9d0e-0a1b2c3d4e5f"
PLACE = {
    "vm": "ml-train",
    "moid": "vm-17",
    "uuid": UUID,
    "esxi_host": "esx7.lab.example",
    "cluster": "gold",
    "datastores": ["ssd-ann"],
    "vcpus": 8,
    "host_power_policy": "balanced",
}
NAMES = (
    "node7",
    "ml-train",
    "esx7",
    "lab.example",
    "gold",
    "ssd-ann",
    "ann",
    UUID,
    "10.1.2.3",
    "vc1",
)


def runs(out: Path, **more: Any) -> list[RunFolder]:
    return [
        made_run(out, number, dict(zip(("processing", "training"), took, strict=True)), **more)
        for number, took in enumerate(TIMES, 1)
    ]


def seen(out: Path) -> list[RunFolder]:
    """Runs that are full of names."""
    rows = [
        row("training", "vm:ml-train@esx7.lab.example/scsi0:0", "vm_disk_read", "B", 1e9),
        row("training", "esxi:esx7.lab.example", "host_power_w", "W", 300.0),
        replace(Row(stage="training", entity="gpu", metric="energy_j", unit="J", kind="counter"),
                reason=f"GPU-{UUID} on node7 did not answer 10.1.2.3:443, see /home/ann/log"),
    ]  # fmt: skip
    recipe = {
        **RECIPE,
        "vcenter": {"host": "vc1", "vm": UUID},
        "cluster": {"scheduler": "tcp://x:1"},
    }
    placement = {"host": "node7", "machine_id": "0" * 32, "vm": "ml-train", "vms": [PLACE]}
    return runs(out, rows=rows, recipe=recipe, placement=placement)


def test_what_is_published_is_by_its_schema_and_reads_back(tmp_path: Path) -> None:
    reference = reference_of("lab", runs(tmp_path), whole=True)
    jsonschema.validate(reference.to_json(), SCHEMA)
    training = reference.by_stage["training"].duration
    assert (training.median, training.values) == (9.0, (9.0, 9.2, 8.9))
    file = tmp_path / "lab.json"
    write_reference(reference, file)
    assert read_reference(file).to_text() == file.read_text()
    again = reference_of("lab", [RunFolder(one) for one in sorted(tmp_path.glob("2026-*"))])
    assert again.to_text() == file.read_text()


def test_the_version_is_that_of_the_runs(tmp_path: Path) -> None:
    made = [
        made_run(tmp_path, number, {"training": 9.0}, stagescope=version)
        for number, version in enumerate(("0.0.1", "0.0.1", "0.0.2"), 1)
    ]
    alike, mixed = reference_of("a", made[:2]), reference_of("b", made)
    assert (alike.stagescope, dict(alike.varied)) == ("0.0.1", {})
    assert (mixed.stagescope, mixed.varied["stagescope"]) == ("0.0.1", ["0.0.1", "0.0.1", "0.0.2"])
    silent = [made_run(tmp_path / "c", 1, {"training": 9.0})]
    assert reference_of("c", silent).stagescope == VERSION


def test_a_metric_is_one_line_for_git(tmp_path: Path) -> None:
    lines = reference_of("lab", runs(tmp_path)).to_text().splitlines()
    assert sum('"duration_seconds"' in line for line in lines) == 2
    assert json.loads(next(line for line in lines if "duration_s" in line).strip().rstrip(","))


def test_names_of_people_and_machines_are_replaced(tmp_path: Path) -> None:
    text = reference_of("published", seen(tmp_path)).to_text()
    for name in NAMES:
        assert name not in text.replace("scsi", ""), name
    assert '"vm:vm-1@host-1/scsi0:0"' in text
    assert '"host_power_policy": "balanced"' in text


def test_what_a_vcenter_said_of_a_vm_that_it_does_not_show_is_not_published(
    tmp_path: Path,
) -> None:
    said = "vCenter vc1 refuses LAB\\ann: wrong user; did you mean prod-acme-fraud-7?"
    rows = [
        replace(Row(stage="training", entity=entity, metric=metric, unit="1", kind="window"),
                reason=said)
        for entity, metric in (("vm", "vm_cpu_ready_percent"), ("esxi", "host_power_w"))
    ]  # fmt: skip
    folders = runs(tmp_path, rows=rows)
    usual = reference_of("x", folders)
    assert usual.absent == {
        "the vCenter could not be asked, or does not show this VM": [
            "esxi host_power_w", "vm vm_cpu_ready_percent"
        ]
    }  # fmt: skip
    named = reference_of("x", folders, keep_names=True)
    assert list(named.absent) == [said]
    assert unnamed(named) == usual


def test_whom_the_vcenter_refused_while_it_was_asked_is_replaced(tmp_path: Path) -> None:
    one = Row(stage="training", entity="vm:a@b", metric="vm_cpu", unit="1", kind="window")
    said = "vCenter refuses LAB\\ann, not DC0-VM7: locked"
    folders = runs(tmp_path, rows=[replace(one, reason=said)])
    for folder in folders:
        folder.samples.mkdir()
        event = {"at_ns": 1, "event": "named", "user": "LAB\\ann", "vm": ["DC0-VM7"]}
        (folder.samples / "vcenter.jsonl").write_text(json.dumps(event) + "\n")
    told = "vCenter refuses user-1, not vm-2: locked"
    assert reference_of("x", folders).absent == {told: ["vm:vm-1@host-1 vm_cpu"]}


def test_what_a_vcenter_named_in_one_run_changes_no_command(tmp_path: Path) -> None:
    folders = runs(tmp_path)
    for folder in folders:
        record = folder.read()
        for stage in record["stages"]:
            stage["command"] = ["fit", "ml-7"]
        folder.write({**record, "recipe": {}})
    folders[0].samples.mkdir()
    event = {"at_ns": 1, "event": "named", "user": "", "vm": ["ml-7"]}
    (folders[0].samples / "vcenter.jsonl").write_text(json.dumps(event) + "\n")
    recipe = reference_of("x", folders).recipe
    assert recipe["recorded"]["training"] == ["fit", "ml-7"]


def test_names_are_kept_when_that_is_asked_for(tmp_path: Path) -> None:
    text = reference_of("published", seen(tmp_path), keep_names=True).to_text()
    assert "vm:ml-train@esx7.lab.example" in text
    assert "node7" in text


def test_one_published_with_its_names_is_compared_like_the_others(tmp_path: Path) -> None:
    folders = seen(tmp_path)
    named, usual = reference_of("x", folders, keep_names=True), reference_of("x", folders)
    assert named != usual
    assert unnamed(named) == usual
    assert unnamed(usual) is usual


def test_runs_on_other_hosts_are_not_alike(tmp_path: Path) -> None:
    places = [{**PLACE, "esxi_host": name} for name in ("esx7", "esx9", "esx7")]
    folders = [
        made_run(tmp_path, number, {"training": 9.0}, placement={**place, "vms": [place]})
        for number, place in enumerate(places, 1)
    ]
    varied = reference_of("x", folders).varied
    assert varied["placement.esxi_host"] == ["host-1", "host-2", "host-1"]
    assert "placement.vm" not in varied
    beside = reference_of("y", folders[1:2], beside=folders[:1])
    assert beside.environment["placement"]["esxi_host"] == "host-2"


def test_a_version_of_four_parts_is_no_address(tmp_path: Path) -> None:
    kernels = [f"5.15.153.{last}-microsoft-standard-WSL2" for last in (1, 1, 2)]
    folders = [
        made_run(
            tmp_path,
            number,
            {"training": 9.0},
            environment={
                **ENVIRONMENT,
                "kernel": kernel,
                "gpu": {"gpus": [], "driver_version": "31.0.15.4601"},
                "packages": {"sci-kit": "2.7.1.8"},
            },
        )
        for number, kernel in enumerate(kernels, 1)
    ]
    usual = reference_of("x", folders)
    assert usual.environment["kernel"] == kernels[0]
    assert usual.environment["packages"] == {"sci-kit": "2.7.1.8"}
    assert usual.environment["gpu"]["driver_version"] == "31.0.15.4601"
    assert usual.varied == {"kernel": kernels}
    assert unnamed(reference_of("x", folders, keep_names=True)) == usual


def test_a_uuid_of_a_gpu_is_replaced_however_short_it_is_named(tmp_path: Path) -> None:
    said = "CUDA_VISIBLE_DEVICES=GPU-8f3a12cd,GPU-dead: 'GPU-dead' names no GPU here"
    gpu = {"gpus": [], "note": said, "reason": said}
    folders = runs(tmp_path, environment={**ENVIRONMENT, "gpu": gpu})
    told = "CUDA_VISIBLE_DEVICES=uuid-1,uuid-2: 'uuid-2' names no GPU here"
    assert reference_of("x", folders).environment["gpu"] == {
        "gpus": [], "note": told, "reason": told
    }  # fmt: skip
    pseudonyms = Pseudonyms({})
    command = "env CUDA_VISIBLE_DEVICES=GPU-8f3a12cd,MIG-8f3a12cd-77 fit --name GPU-a100"
    assert pseudonyms.command(command) == (
        "env CUDA_VISIBLE_DEVICES=<uuid-1>,<uuid-2> fit --name GPU-a100"
    )
    assert pseudonyms.forms("GPU-a100") == "GPU-a100"


def test_a_word_of_a_recipe_stays_whatever_is_called_so(tmp_path: Path) -> None:
    place = {**PLACE, "resource_pool": "lab", "vm": "generator"}
    usual, placed = (
        reference_of("x", runs(tmp_path / name, placement=placement))
        for name, placement in (("a", None), ("b", {**place, "vms": [place]}))
    )
    assert placed.recipe["name"] == "lab"
    assert placed.recipe_digest == usual.recipe_digest


def test_a_command_says_where_something_was_taken_out_of_it() -> None:
    command = [
        "/opt/venv/bin/python",
        "train.py",
        "--data=/srv/in.csv",
        "--out",
        "/home/alice",
        "--user",
        "alice",
        "--url",
        "http://localhost:8080/v2",
        "--from",
        "s3://bucket/x.csv",
        "--bind",
        "10.0.0.5:80",
        "~bob/x",
        "//srv//in.csv",
        "/home/ray/ray.sh",
        "ray",
        "start ray",
    ]
    run = {"stages": [{"name": "work", "command": command}]}
    told = published_recipe(run, Pseudonyms({}))["recorded"]["work"]
    assert " ".join(told) == (
        "python train.py --data=in.csv --out <user-1> --user <user-1> "
        "--url <url-1> --from <url-2> --bind <address-1> "
        "~<user-2><path-1> in.csv ray.sh <user-3> start ray"
    )


@pytest.mark.parametrize("node", ["gpu01", "gpu01.lab.example"])
def test_a_machine_is_known_by_its_short_name_and_with_its_domain(node: str) -> None:
    pseudonyms = Pseudonyms({"machine": [node], "host": ["10.0.0.5", "a.b.example", "gpu.b.x"]})
    told = pseudonyms.command("torchrun gpu01:29500 gpu01.lab.example gpu012 10 a gpu")
    assert told == "torchrun <machine-1>:29500 <machine-1> gpu012 10 a gpu"
    assert pseudonyms.text("a.b.example, gpu.b.x. On gpu01.") == "host-2, host-3. On machine-1."


def test_a_vm_that_is_called_like_its_machine_does_not_bring_the_domain_out() -> None:
    pseudonyms = Pseudonyms({"vm": ["gpu01"], "machine": ["gpu01"]})
    assert pseudonyms.command("torchrun gpu01.lab.example:29500") == "torchrun <vm-1>:29500"
    pseudonyms = Pseudonyms({"vm": ["gpu01"], "machine": ["gpu01.lab.example"]})
    assert pseudonyms.text("gpu01.ib.lab.example") == "vm-1"


def test_the_first_part_of_a_name_that_may_be_a_word_is_one_with_a_port_or_a_domain() -> None:
    pseudonyms = Pseudonyms({"machine": ["train.lab.example"]})
    told = pseudonyms.command("python train.py train train:80 train.ib.example train.lab.example")
    assert told == "python train.py train <machine-1>:80 <machine-1> <machine-1>"
    assert Pseudonyms({"machine": ["work"]}).command("work.py") == "<machine-1>.py"


def test_the_name_of_a_host_that_begins_with_anothers_stays_apart() -> None:
    pseudonyms = Pseudonyms({"machine": ["ml7.lab.example"], "host": ["ml7.x.example", "ml7b.lab"]})
    told = "ml7.x.example ml7.lab.example ml7b ml7"
    assert pseudonyms.text(told) == "host-1 machine-1 host-2 machine-1"


@pytest.mark.parametrize("publisher", ["alice", "bob", "carol"])
def test_a_recipe_is_the_same_whoever_publishes_it(publisher: str) -> None:
    command = ["fit", "--from", "/home/alice", "--to", "/home/bob", "--user", "alice"]
    run = {"stages": [{"name": "work", "command": command}]}
    told = published_recipe(run, Pseudonyms({"user": [publisher]}))["recorded"]["work"]
    assert " ".join(told) == "fit --from <user-1> --to <user-2> --user <user-1>"


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("rm -rf /scratch/tmp/* && python train.py", "rm -rf <path-1> && python train.py"),
        ("/scratch/tmp/*", "<path-1>"),
        ("/^#/d", "<path-1>"),
        ("${HOME}/train.py", "${HOME}<path-1>"),
        ("cd /srv/work; python train.py", "cd <path-1>; python train.py"),
        ("python t.py 2>/dev/null", "python t.py 2>/dev/null"),
        ("/srv/in/", "in/"),
    ],
)
def test_a_path_within_a_text_is_not_cut_to_make_other_work_of_it(argument: str, told: str) -> None:
    run = {"stages": [{"name": "work", "command": ["sh", "-c", argument]}]}
    assert published_recipe(run, Pseudonyms({}))["recorded"]["work"] == ["sh", "-c", told]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["python", "t.py", "-c", "/data/acme corp/c.yaml"], "<path-1>"),
        (["fit", "-desc", "/data/acme corp/c.yaml"], "<path-1>"),
        (["ssh", "h", "/bin/bash", "-e", "-lc", "/opt/fit acme corp"], "<path-1> acme corp"),
    ],
)
def test_only_what_a_shell_is_given_is_a_line(command: list[str], told: str) -> None:
    run = {"stages": [{"name": "work", "command": command}]}
    assert published_recipe(run, Pseudonyms({}))["recorded"]["work"][-1] == told


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--data=/srv/acme corp/q3.csv", "--data=<path-1>"),
        ("/srv/acme corp - new/q3.csv", "<path-1>"),
        ("~/acme corp/q3.csv", "<path-1>"),
        ("/home/alice/acme corp/q3.csv", "<path-1>"),
        ("~alice/acme corp/q3.csv", "~<user-1><path-1>"),
        ("/srv/acme:/data:ro", "<path-1>"),
        ("/opt/fit --lr 3", "<path-1> --lr 3"),
        ("/opt/fit /srv/in", "<path-1> <path-2>"),
        ("/usr/bin/env fit", "/usr/bin/env fit"),
        ("../lab/fit.py", "../lab/fit.py"),
        ("./fit.sh", "./fit.sh"),
    ],
)
def test_of_a_path_with_blanks_nothing_stays(argument: str, told: str) -> None:
    run = {"stages": [{"name": "work", "command": ["fit", argument]}]}
    assert published_recipe(run, Pseudonyms({}))["recorded"]["work"] == ["fit", told]


def test_a_line_of_a_shell_that_begins_with_a_path_is_no_path() -> None:
    run = {"stages": [{"name": "work", "command": ["bash", "-lc", "/opt/fit lr=3"]}]}
    told = published_recipe(run, Pseudonyms({}))["recorded"]["work"]
    assert told == ["bash", "-lc", "<path-1> lr=3"]


def test_a_span_that_one_side_alone_has_is_a_difference_that_is_told() -> None:
    one = {"recorded": {"load": None, "train": None}}
    two = {"recorded": {"load": None, "fit": None}}
    said = recipe_difference(one, two)
    assert said == "recorded.train is None and absent; recorded.fit is absent and None"
    assert is_same_recipe(one, two, "1", "1", {}) == said


def test_the_digest_says_what_is_done_and_not_where(tmp_path: Path) -> None:
    here = reference_of("a", runs(tmp_path / "a"))
    moved = {**RECIPE, "data": {**RECIPE["data"], "path": "/mnt/else"}, "tracking": {"uri": "x"}}
    assert reference_of("b", runs(tmp_path / "b", recipe=moved)).recipe_digest == here.recipe_digest
    other = reference_of("c", runs(tmp_path / "c", recipe={**RECIPE, "seed": 8}))
    assert other.recipe_digest != here.recipe_digest
    assert digest_of(here.recipe) == here.recipe_digest


def test_a_changed_recipe_is_not_read(tmp_path: Path) -> None:
    document = reference_of("lab", runs(tmp_path)).to_json()
    with pytest.raises(ValueError, match="changed after it was published"):
        Reference.from_json({**document, "recipe": {**document["recipe"], "seed": 1}})


def test_an_unknown_schema_is_refused(tmp_path: Path) -> None:
    document = reference_of("lab", runs(tmp_path)).to_json()
    with pytest.raises(ValueError, match=r"schema 'stagescope\.reference/9'"):
        Reference.from_json({**document, "schema": "stagescope.reference/9"})


def test_a_profile_of_schema_2_says_nothing_of_its_sittings(tmp_path: Path) -> None:
    reference = reference_of("lab", runs(tmp_path))
    document = reference.to_json()
    del document["measured"]["began"], document["measured"]["run_s"]
    old = Reference.from_json({**document, "schema": "stagescope.reference/2"})
    assert old.sittings == ()
    assert sittings_of(old, reference) == ((), ())
    assert replace(old, measured=reference.measured) == reference


def began(*minutes: float) -> list[str]:
    start = datetime(2026, 12, 1, tzinfo=UTC)
    return [f"{start + timedelta(minutes=one):%Y-%m-%dT%H:%M:%SZ}" for one in minutes]


def test_runs_in_a_row_are_one_sitting(tmp_path: Path) -> None:
    """Runs here take 14 s: within 88 s of the last one's start, whichever was read first; that
    some stages were not measured makes them no shorter."""
    made = side(tmp_path, "lab")
    assert made.length_s == pytest.approx(14, abs=1)
    assert replace(made, stages=made.stages[:1]).length_s == made.length_s

    def at(*minutes: float) -> Reference:
        return replace(made, measured={**made.measured, "began": began(*minutes)})

    assert at(0, 0.5, 1.9, 60, 3000).sittings == (0, 0, 0, 1, 2)
    assert at(60, 0, 61, 0.5, 3000).sittings == (1, 0, 1, 0, 2)
    assert sittings_of(at(0, 1, 9, 10, 20), at(30, 31, 32, 33, 34)) == (
        (0, 0, 1, 1, 2),
        (0, 0, 0, 0, 0),
    )
    assert sittings_of(at(0, 2, 4, 6, 8), at(1, 3, 5, 7, 9)) == ((), ())  # made in turn
    assert sittings_of(at(0, 1, 60, 61, 62), at(2, 3, 63, 64, 65)) == ((), ())
    uneven = at(0, 1, 2, 3, 60), at(4, 61, 62, 63, 64)  # in both sittings, and no balance
    assert sittings_of(*uneven) == ((0, 0, 0, 0, 1), (0, 1, 1, 1, 1))
    between = at(0, 1, 60, 61, 3000), at(600, 601, 602, 603, 604)
    assert sittings_of(*between) == ((0, 0, 1, 1, 2), (0, 0, 0, 0, 0))


def test_a_profile_that_does_not_say_when_each_run_began_is_refused(tmp_path: Path) -> None:
    document = reference_of("lab", runs(tmp_path)).to_json()
    measured = document["measured"]

    def read(**changed: Any) -> Reference:
        return Reference.from_json({**document, "measured": {**measured, **changed}})

    with pytest.raises(ValueError, match="is of 3 runs and says when 4 began"):
        read(began=[*measured["began"], measured["began"][0]])
    with pytest.raises(ValueError, match=r"when it was measured: TypeError.*NoneType"):
        read(began=None)
    with pytest.raises(ValueError, match=r"when it was measured: ValueError.*noon"):
        read(began=["noon", *measured["began"][1:]])
    with pytest.raises(ValueError, match=r"when it was measured: ValueError.*long"):
        read(run_s="long")
    assert read(run_s=None).sittings == ()
    del measured["run_s"]
    with pytest.raises(ValueError, match=r"when it was measured: KeyError\('run_s'\)"):
        read()


def test_what_is_typed_is_never_taken_for_a_line_of_the_file(tmp_path: Path) -> None:
    for number, name in enumerate(("@line 0@", "@0", '"@0"', '"@@1')):
        named = reference_of(name, runs(tmp_path / str(number)))
        assert Reference.from_json(json.loads(named.to_text())) == named


def changed(document: Any, place: Sequence[str | int], value: Any) -> Any:
    """A copy with another value at that place, or without it where that is ``...``."""
    copied = json.loads(json.dumps(document))
    inner = copied
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return copied


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("environment",), None, "environment is null, and not an object"),
        (("varied", "kernel"), ["a", "b"], r'varied kernel is \["a", "b"\], and not a value'),
        (("absent", "gone"), None, "absent 'gone' is null, and not a list"),
        (("measured", "from"), ..., "measured from is missing"),
        (("measured", "to"), 7, "measured to is 7, and not a text"),
        (("measured", "run_s"), float("inf"), r"measured\.run_s is Infinity, which is no finite"),
        (("runs",), 0, "runs is 0, and not how many there were"),
        (("stages", 1), [], r"stage 2 is \[\], and not an object"),
        (("stages", 1, "start_s"), "now", 'stage 2: start_s is "now", and not a number'),
        (("stages", 1, "held_back_by"), [None], r"held_back_by is \[null\], and not a value"),
        (("stages", 1, "metrics", 0), ..., "training has no stage duration_seconds total, its own"),
        (("stages", 1, "metrics", 0, "values", 2), None, "duration_seconds total is null in one"),
        (("stages", 1, "metrics", 0, "values", 2), -1.0, r"duration_seconds total is -1\.0 in one"),
        (("stages", 1, "metrics", 1, "values"), [1.0], r"cpu_busy_seconds total is \[1\.0\], and"),
        (("stages", 1, "metrics", 1, "values"), [None] * 3, "cpu_busy_seconds total has no value"),
        (("stages", 1, "metrics", 1, "values", 0), "1", 'cpu_busy_seconds total has "1" in it'),
        (("stages", 1, "metrics", 1, "values", 0), float("nan"), r"values\.0 is NaN, which is no"),
        (("stages", 1, "metrics", 1, "values", 0), 10**309, r"values\.0 is 1000+…, which is no"),
        (("stages", 1, "metrics", 1, "unit"), ..., "stage training, figure 2: unit is missing"),
    ],
)  # fmt: skip
def test_a_profile_that_is_not_whole_is_refused_with_what_is_wrong_in_it(
    tmp_path: Path, place: Sequence[str | int], value: Any, told: str
) -> None:
    file = tmp_path / "odd.json"
    document = reference_of("lab", runs(tmp_path / "runs")).to_json()
    file.write_text(json.dumps(changed(document, place, value)))
    with pytest.raises(ValueError, match=told) as refused:
        read_reference(file)
    assert str(refused.value).startswith(f"{file} is not read: no whole published profile: ")
    assert "publish it anew" in str(refused.value)


def test_in_one_sitting_is_without_what_sittings_differ_by(tmp_path: Path) -> None:
    made = side(tmp_path, "lab")
    (stage, *others) = made.stages
    times = replace(stage.duration, values=(10.0, 11.0, 20.0, 22.0, None))
    stage = replace(stage, metrics=(times,))
    hours = {**made.measured, "began": began(0, 1, 60, 61, 62)}
    one = replace(made, measured=hours, stages=(stage, *others)).in_one_sitting()
    values = one.stages[0].duration.values
    assert values[-1] is None
    mean = (10 * 11 * 20 * 22) ** 0.25
    within = (10 / 110**0.5, 11 / 110**0.5)
    assert values[:4] == pytest.approx([mean * share for share in 2 * within])
    unknown = replace(made, measured={**made.measured, "began": []})
    assert unknown.in_one_sitting() == unknown


def test_a_profile_of_schema_1_is_read_and_published_again_as_the_newest(tmp_path: Path) -> None:
    old = read_reference(Path(__file__).with_name("reference-1.profile.json"))
    assert [stage.name for stage in old.stages] == ["processing", "training"]
    assert all(stage.duration.known and stage.verdicts == "" for stage in old.stages)
    document = json.loads(old.to_text())
    jsonschema.validate(document, SCHEMA)
    assert Reference.from_json(document) == old
    with pytest.raises(ValueError, match="no whole published profile"):
        Reference.from_json({"schema": "stagescope.reference/1"})


def test_what_held_each_stage_back_is_published(tmp_path: Path) -> None:
    reference = reference_of("lab", runs(tmp_path, verdict="CPU-bound"))
    jsonschema.validate(reference.to_json(), SCHEMA)
    assert reference.by_stage["training"].held_back_by == ("CPU-bound",) * 3
    assert reference.by_stage["processing"].held_back_by == (None,) * 3
    assert Reference.from_json(reference.to_json()) == reference


def test_a_total_of_a_part_of_a_stage_is_not_published(tmp_path: Path) -> None:
    whole = row("training", "gpu:0", "energy_j", "J", 900.0)
    part = replace(whole, coverage=0.94)
    for place, (rows, totals) in enumerate({whole: (900.0,) * 3, part: ()}.items()):
        reference = reference_of("lab", runs(tmp_path / str(place), rows=[rows]))
        found = {
            one.figure: one.values
            for one in reference.by_stage["training"].metrics
            if one.metric == "energy_j"
        }
        assert found.get("total", ()) == totals


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ((), ""),
        ((None, None, None), ""),
        (("disk-bound",) * 3, "disk-bound"),
        (("disk-bound", "CPU-bound", "disk-bound"), "disk-bound 2 of 3, CPU-bound 1 of 3"),
        (("disk-bound", None, "disk-bound"), "disk-bound 2 of 3"),
    ],
)
def test_verdicts_are_told_in_words(
    tmp_path: Path, held: tuple[str | None, ...], words: str
) -> None:
    stage = reference_of("lab", runs(tmp_path)).stages[0]
    assert replace(stage, held_back_by=held).verdicts == words


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (lambda out: runs(out)[:2], "at least 3"),
        (lambda out: [runs(out)[0]] * 3, "named twice"),
        (lambda out: runs(out, status="failed"), "only finished runs"),
    ],
)
def test_what_cannot_be_published_is_refused(tmp_path: Path, broken: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        reference_of("x", broken(tmp_path), whole=True)


def test_a_reused_stage_is_refused(tmp_path: Path) -> None:
    folders = runs(tmp_path)
    record = folders[1].read()
    record["stages"][0] |= {"status": "reused", "reused_from": "2025-01"}
    folders[1].write(record)
    with pytest.raises(ValueError, match=r"2026-02 reused processing .* --fresh"):
        reference_of("x", folders, whole=True)


def test_runs_of_two_recipes_are_refused_by_the_keys_that_differ(tmp_path: Path) -> None:
    other = runs(tmp_path / "b", recipe={**RECIPE, "seed": 8})
    with pytest.raises(ValueError, match="different recipes: seed is 7 and 8"):
        reference_of("x", [*runs(tmp_path / "a")[:2], other[2]])


WORD = st.text("abcdefgh", min_size=3, max_size=9)


@given(st.lists(WORD, min_size=1, max_size=4, unique=True), st.integers(0, 255), st.uuids())
def test_no_name_survives_and_the_same_one_stays_the_same(
    names: list[str], byte: int, uuid: Any
) -> None:
    pseudonyms = Pseudonyms({"host": names})
    told = [f"{name} at 10.{byte}.0.1:80 ({uuid}) /srv/{name}/x {name}" for name in names]
    got = [pseudonyms.text(text) for text in told]
    for name, text in zip(names, got, strict=True):
        assert name not in text.split()
        assert str(uuid) not in text
        assert f"10.{byte}" not in text
        assert "/srv" not in text
    assert got == [pseudonyms.text(text) for text in told]


@pytest.mark.parametrize(
    "text", ["at 12:30:05", "/proc/stat is not there", "6.18.44-fc-v657", "1/2", "scsi0:0", "MB/s"]
)
def test_what_is_no_name_stays(text: str) -> None:
    assert Pseudonyms({}).text(text) == text
