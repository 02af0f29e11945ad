# Training and the average. Resumable state lies beside the outputs, in checkpoints/state-<hash>, and is no rule's output:
# Snakemake removes the outputs of a job that fails, and a killed training must go on from its last checkpoint.
rule train:
    input:
        conf="exp/{exp}/conf/train.json",
        train=train_manifest,
        valid=valid_manifest,
        tokens=tokenizer_files,
        cmvn="exp/{exp}/stats/cmvn.npz",
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
