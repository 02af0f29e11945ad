# espnet3: from a corpus to a scored model. `snakemake --profile local exp/asr/decode`, `--profile slurm` on a cluster.
# Every experiment is one file, config/<experiment>.yaml; `snakemake -n exp/<experiment>/decode` says what would be made.
from snakemake.utils import min_version

min_version("9.0")


# used with `--sdm apptainer` alone: an image that has requirements.lock installed
container: config.get("container", "docker://python:3.11-slim")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/decode.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/targets.smk"
