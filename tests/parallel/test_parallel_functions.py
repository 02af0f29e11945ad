"""Maps, clients, clusters, and the submission hook in the job scripts of every scheduler."""

from __future__ import annotations

import asyncio

import pytest
from parallel_toys import Squares, Table

from espnet3.errors import UserError
from espnet3.parallel import get_client, parallel_for, parallel_map, wrap_func_with_worker_env
from espnet3.parallel.clusters import cluster_class, hooked_job_class
from espnet3.parallel.config import ParallelConfig
from espnet3.parallel.hook import submission_hook
from espnet3.parallel.slurm import Array, render

TWO = {"env": "multiprocessing", "n_workers": 2}


def scale(item, factor=1):
    if item == "poison":
        raise ValueError("this item is poison")
    return item * factor


@pytest.mark.parametrize("config", [{"env": "local"}, TWO, {"env": "dask", "n_workers": 2}], ids=lambda c: c["env"])
def test_maps_keep_order_and_fill_in_the_environment(config):
    assert parallel_map(scale, range(100), config=config, setup_fn=lambda: {"factor": 3}) == [3 * i for i in range(100)]
    assert sorted(parallel_for(scale, range(100), config=config)) == list(range(100))
    assert parallel_map(scale, [], config=config) == []
    with pytest.raises(ValueError, match="this item is poison") as caught:
        parallel_map(scale, [1, 2, "poison"], config=config)
    assert config["env"] == "local" or "in the worker" in caught.value.__notes__[0]


def test_a_client_is_a_dask_client_with_the_workers_environment():
    with get_client({"env": "dask", "n_workers": 2}, setup_fn=lambda: {"factor": 5}) as client:
        assert parallel_map(scale, range(10), client=client) == [5 * i for i in range(10)]
        assert client.gather(client.map(wrap_func_with_worker_env(scale), range(3))) == [0, 5, 10]
        other = wrap_func_with_worker_env(scale, setup_fn=lambda: {"factor": 7})
        assert client.gather(client.map(other, range(3))) == [0, 7, 14]


@pytest.mark.parametrize("env, package", [("kube", "dask-kubernetes"), ("local_gpu", "dask-cuda"), ("ssh", "asyncssh")])
def test_a_missing_library_is_named(env, package):
    with pytest.raises(UserError, match=rf"{env} needs {package}, which is not installed; pip install {package}"):
        Squares(Table({"size": 2}), parallel={"env": env, "n_workers": 2})(range(2))


HEADERS = {
    "slurm": ("sbatch", "#SBATCH -J espnet3"),
    "pbs": ("qsub", "#PBS -N espnet3"),
    "moab": ("msub", "#PBS -N espnet3"),
    "sge": ("qsub", "#$ -N espnet3"),
    "lsf": ("bsub", "#BSUB -J espnet3"),
    "oar": ("oarsub", "#OAR -n espnet3"),
    "htcondor": ("condor_submit", "MY.DaskWorkerName"),
}


@pytest.mark.parametrize("env", HEADERS)
def test_the_hook_sees_the_job_script_and_command_of_every_scheduler(env, tmp_path, monkeypatch):
    command, header = HEADERS[env]
    seen = {}

    def hook(script, words):
        seen.update(script=script, words=words)
        return script.replace("#!/usr/bin/env", "#!/usr/bin/env -S"), [*words, "--reservation=speech"]

    # a command of that name on PATH, which records how it is called
    program = tmp_path / command
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat "$0" > /dev/null\necho "Job 42 submitted"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    job_class = hooked_job_class(cluster_class(env).job_cls, hook)
    job = (
        job_class("tcp://127.0.0.1:1", name="w", cores=1, memory="1GB", disk="1GB", job_name="espnet3")
        if (env == "htcondor")
        else job_class("tcp://127.0.0.1:1", name="w", cores=1, memory="1GB", job_name="espnet3")
    )
    script = tmp_path / "job.sh"
    script.write_text(job.job_script())
    answer = asyncio.run(job._submit_job(str(script)))
    assert header in seen["script"] and "distributed.cli.dask_worker" in seen["script"]
    assert seen["words"][0] == command
    assert "--reservation=speech" in (tmp_path / "arguments").read_text()
    assert "42" in answer


def test_the_documented_hook_adds_a_reservation_and_a_module(repository, tmp_path):
    """The example of docs/parallel.md, as it stands there."""
    blocks = (repository / "docs/parallel.md").read_text().split("```python\n")[1:]
    (example,) = [block.split("```")[0] for block in blocks if "def night_shift" in block]
    namespace: dict = {}
    exec(example, namespace)
    config = ParallelConfig.of({"env": "slurm", "options": {"queue": "cpu", "job_script_prologue": ["ulimit -c 0"]}})
    script = render(Array(tmp_path, "1-0", "run", ["spec.json"]), config)
    script, command = namespace["night_shift"](script, ["sbatch", "--parsable"], reservation="speech")
    lines = script.splitlines()
    module = lines.index("module load cuda/12.4")
    assert command == ["sbatch", "--parsable", "--reservation=speech"]
    assert max(i for i, line in enumerate(lines) if line.startswith("#SBATCH")) < module < lines.index("ulimit -c 0")


def test_a_hook_is_allowed_found_and_checked(monkeypatch):
    node = {"_target_": "parallel_toys.add_comment", "comment": "night"}
    hook = submission_hook(ParallelConfig.of({"submit": node, "allow": ["parallel_toys"]}))
    assert hook("#!/bin/bash\nexport A=1\n", ["sbatch"]) == (
        "#!/bin/bash\n# changed by the hook\nexport A=1\n",
        ["sbatch", "--comment=night"],
    )
    with pytest.raises(UserError, match="outside the allowed packages"):
        submission_hook(ParallelConfig.of({"submit": node}))
    with pytest.raises(UserError, match=r"it must return \(script, command\)"):
        submission_hook(ParallelConfig(), lambda script, command: script)("x", ["sbatch"])
