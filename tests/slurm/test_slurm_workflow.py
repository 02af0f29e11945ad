"""`snakemake --profile slurm` on a real SLURM gives the files that `--profile local` gives."""

from __future__ import annotations

import shutil

from product import tiny_project


def test_the_slurm_profile_decodes_to_the_same_bytes(slurm, tmp_path):
    project = tiny_project(tmp_path / "project")
    project.snakemake("exp/tiny/decode")
    hypotheses = sorted((project.root / "exp/tiny/decode").rglob("hyp.jsonl"))
    before = {path: path.read_bytes() for path in hypotheses}
    assert len(before) == 4
    shutil.rmtree(project.root / "exp/tiny/decode")
    shutil.rmtree(project.root / "exp/tiny/average")
    done = project.snakemake("exp/tiny/decode", "--latency-wait", "5", profile="slurm")
    assert "SLURM" in done.stdout and "train: " not in done.stdout
    assert {path: path.read_bytes() for path in hypotheses} == before
