# Training and the average. Resumable state lies beside the outputs, in checkpoints/state-<hash>, and is no rule's output:
# Snakemake removes the outputs of a job that fails, and a killed training must go on from its last checkpoint.
rule train:
    input:
        conf="exp/{exp}/conf/train.json",
        train=train_manifest,
        valid=valid_manifest,
        tokens=tokenizer_files,
        # how the statistics are cut into shards leaves them as they are: training follows what they are of
        stats="exp/{exp}/conf/stats.json",
        cmvn=ancient("exp/{exp}/stats/cmvn.npz"),
        init=initial_weights,
    output:
        last="exp/{exp}/checkpoints/last.ckpt",
        index="exp/{exp}/checkpoints/checkpoints.json",
    log:
        "exp/{exp}/log/train.log",
    benchmark:
        "exp/{exp}/benchmark/train.tsv"
    params:
        execution=execution,
    message:
        "{rule}: {output}"
    shell:
        "python -m espnet3 train --conf {input.conf} --train {input.train} --valid {input.valid}"
        " --tokens exp/{wildcards.exp}/tokenizer --cmvn {input.cmvn} --output-dir exp/{wildcards.exp}/checkpoints"
        " --execution {params.execution:q} 2>&1 | tee {log}"


rule average:
    input:
        conf="exp/{exp}/conf/average.json",
        index="exp/{exp}/checkpoints/checkpoints.json",
    output:
        "exp/{exp}/average/{monitor}.ave_{k}best.safetensors",
    log:
        "exp/{exp}/log/average.{monitor}.{k}.log",
    benchmark:
        "exp/{exp}/benchmark/average.{monitor}.{k}.tsv"
    message:
        "{rule}: {output}"
    shell:
        "python -m espnet3 average --index {input.index} --monitor {wildcards.monitor} --k {wildcards.k}"
        " --output {output} > {log} 2>&1"


# The language model, of experiments that have one: its state goes on where it was, as the recogniser's does.
rule lm:
    input:
        conf="exp/{exp}/conf/lm.json",
        train=train_manifest,
        valid=valid_manifest,
        tokens=tokenizer_files,
        text=lm_text,
    output:
        last="exp/{exp}/lm/last.ckpt",
        index="exp/{exp}/lm/checkpoints.json",
        weights="exp/{exp}/lm/lm.safetensors",
    log:
        "exp/{exp}/log/lm.log",
    benchmark:
        "exp/{exp}/benchmark/lm.tsv"
    params:
        execution=execution,
    message:
        "{rule}: {output}"
    shell:
        "python -m espnet3 lm --conf {input.conf} --train {input.train} --valid {input.valid}"
        " --tokens exp/{wildcards.exp}/tokenizer --output-dir exp/{wildcards.exp}/lm"
        " --execution {params.execution:q} 2>&1 | tee {log}"


rule average_epochs:
    input:
        conf="exp/{exp}/conf/average.json",
        index="exp/{exp}/checkpoints/checkpoints.json",
    output:
        "exp/{exp}/average/epochs_{first}-{last}.safetensors",
    log:
        "exp/{exp}/log/average.epochs_{first}-{last}.log",
    benchmark:
        "exp/{exp}/benchmark/average.epochs_{first}-{last}.tsv"
    wildcard_constraints:
        first=r"\d+",
        last=r"\d+",
    message:
        "{rule}: {output}"
    shell:
        "python -m espnet3 average --index {input.index} --epochs {wildcards.first}-{wildcards.last}"
        " --output {output} > {log} 2>&1"
