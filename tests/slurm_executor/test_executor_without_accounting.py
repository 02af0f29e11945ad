"""The executor on a cluster that keeps no accounts."""

from __future__ import annotations

from slurm_runs import until


def test_accounting_disabled(unaccounted, start):
    """The plugin's default is to ask sacct, which is installed and fails: it says nothing and waits for ever."""
    ours = start(unaccounted, "disabled", "slurm-espnet3", '"hold.txt"')
    plain = start(unaccounted, "disabled", "slurm", '"hold.txt"')
    for run in (ours, plain):
        run.release()
    assert ours.ends() == 0
    assert ours.content("hold.txt") == "done\n"
    assert "Slurm accounting storage is disabled" in ours.text
    until(lambda: (plain.folder / "hold.txt").exists(), "the job is done")
    until(plain.lost, "the plugin has lost its job")
    assert plain.waits and plain.content("hold.txt") == "done\n"
