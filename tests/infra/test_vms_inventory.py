"""The inventory: what Dask and torchrun are told to run on a plan's VMs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from infra.vms.inventory import HOSTS_FILE, Inventory, inventory
from infra.vms.spec import VmPlan


def made(**vms: dict[str, Any]) -> Inventory:
    fields = {
        "name": "lab",
        "defaults": {"cluster": "C0", "datastore": "ds1", "cpus": 8, "memory_gib": 32},
        "vms": vms,
    }
    return inventory(VmPlan.model_validate(fields))


def guest(role: str, *addresses: str) -> dict[str, Any]:
    return {"role": role, "user": "ml", "addresses": list(addresses)}


def gpu(count: int) -> list[dict[str, Any]]:
    return [{"kind": "vgpu", "profile": "grid_a100-40c", "count": count}]


def test_dask_has_its_scheduler_on_the_runner() -> None:
    cluster = made(
        head={"guest": guest("runner", "192.0.2.10/24")},
        worker={"count": 2, "guest": guest("dask-worker", "192.0.2.11/24", "192.0.2.12/24")},
    )
    assert cluster.dask is not None
    assert cluster.torchrun is None
    assert cluster.dask.scheduler == "tcp://192.0.2.10:8786"
    assert cluster.dask.hosts == ("192.0.2.11", "192.0.2.12")
    assert cluster.dask.run == "stagescope run --set cluster.scheduler=tcp://192.0.2.10:8786"
    assert set(cluster.dask.commands) == {"head", "worker-1", "worker-2"}
    assert cluster.notes == (
        "workers read and write the run's files by path: put the folder of the runs on storage "
        "that all VMs have under the same path",
    )


def test_the_recipe_takes_the_schedulers_address() -> None:
    from pipeline.recipe import read_recipe

    cluster = made(worker={"guest": guest("dask-worker", "192.0.2.11/24")})
    assert cluster.dask is not None
    override = shlex.split(cluster.dask.run)[-1]
    assert read_recipe("default", [override]).cluster.scheduler == cluster.dask.scheduler


def test_dask_ssh_takes_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed.cli.dask_ssh import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / HOSTS_FILE).write_text("192.0.2.11\n")
    cluster = made(worker={"guest": guest("dask-worker", "192.0.2.11/24")})
    assert cluster.dask is not None
    program, command, *arguments = shlex.split(cluster.dask.ssh)
    assert (program, command) == ("dask", "ssh")
    context = main.make_context("dask-ssh", arguments)
    assert context.params["scheduler"] == "192.0.2.11"
    assert context.params["n_workers"] == 8
    assert context.params["memory_limit"] == "3584MiB"  # 32 GiB less an eighth, for 8
    assert context.params["remote_python"] == "/home/ml/stagescope/.venv/bin/python"


def test_the_workers_lines_are_dasks_own() -> None:
    from distributed.cli.dask_worker import main

    cluster = made(
        head={"guest": guest("runner", "192.0.2.10/24")},
        worker={"guest": guest("dask-worker", "192.0.2.11/24")},
    )
    assert cluster.dask is not None
    python, flag, module, *arguments = shlex.split(cluster.dask.commands["worker"])
    assert (flag, module) == ("-m", "distributed.cli.dask_worker")
    assert python == "/home/ml/stagescope/.venv/bin/python"
    context = main.make_context("dask-worker", arguments)
    assert context.params["scheduler"] == "tcp://192.0.2.10:8786"
    assert context.params["n_workers"] == "8"


def test_torchrun_has_a_rank_for_each_vm_and_meets_at_the_first() -> None:
    ranks = made(
        trainer={
            "count": 2,
            "gpus": gpu(2),
            "guest": guest("torchrun", "192.0.2.21/24", "192.0.2.22/24"),
        }
    ).torchrun
    assert ranks is not None
    assert (ranks.nnodes, ranks.nproc_per_node, ranks.endpoint) == (2, 2, "192.0.2.21:29500")
    assert list(ranks.commands) == ["trainer-1", "trainer-2"]
    for rank, line in enumerate(ranks.commands.values()):
        words = shlex.split(line)
        assert words[0] == "/home/ml/stagescope/.venv/bin/torchrun"
        assert {"--nnodes=2", "--nproc-per-node=2", f"--node-rank={rank}"} <= set(words)
        assert "--rdzv-endpoint=192.0.2.21:29500" in words
        assert words[-1] == "train.py"


def test_unlike_gpus_cannot_be_ranks_of_one_training() -> None:
    with pytest.raises(ValueError, match="a 1, b 2"):
        made(
            a={"gpus": gpu(1), "guest": guest("torchrun")},
            b={"gpus": gpu(2), "guest": guest("torchrun")},
        )


def test_vms_by_dhcp_are_named_and_said_to_be() -> None:
    cluster = made(worker={"guest": guest("dask-worker")})
    assert cluster.dask is not None
    assert cluster.dask.scheduler == "tcp://worker:8786"
    assert cluster.notes[0].startswith("worker: by DHCP")


def test_ipv6_is_bracketed_in_addresses() -> None:
    cluster = made(worker={"guest": guest("dask-worker", "2001:db8::5/64")})
    assert cluster.dask is not None
    assert cluster.dask.scheduler == "tcp://[2001:db8::5]:8786"
    assert cluster.dask.hosts == ("2001:db8::5",)


def test_a_plan_without_roles_is_refused() -> None:
    with pytest.raises(ValueError, match="no VM has a role"):
        made(one={})


PLAN = """
name = "lab"
[defaults]
cluster = "C0"
datastore = "ds1"
[vms.worker]
count = 2
[vms.worker.guest]
role = "dask-worker"
addresses = ["192.0.2.11/24", "192.0.2.12/24"]
"""


def test_the_commands_write_files_and_json(tmp_path: Path) -> None:
    from pipeline.cli import main

    def told(command: str, *more: str) -> Result:
        return CliRunner().invoke(main, ["infra", command, str(path), *more])

    path = tmp_path / "vms.toml"
    path.write_text(PLAN)
    done = told("inventory", "--out", str(tmp_path), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["dask"]["scheduler"] == "tcp://192.0.2.11:8786"
    assert (tmp_path / "dask-hosts.txt").read_text() == "192.0.2.11\n192.0.2.12\n"
    done = told("inventory")
    assert "cluster.scheduler = tcp://192.0.2.11:8786" in done.output
    done = told("cloud-init", "--out", str(tmp_path / "seeds"))
    assert done.stdout.startswith("2 seeds in ")
    assert "note: worker: guest.source is not set" in done.stderr
    names = sorted(one.name for one in (tmp_path / "seeds/worker-2").iterdir())
    assert names == ["meta-data", "network-config", "user-data"]
    done = told("cloud-init")
    assert "# ---- worker-1/user-data\n#cloud-config\n" in done.output
