# The report page and the model package.
localrules:
    report,
    pack,


rule report:
    input:
        conf="exp/{exp}/conf/report.json",
        index="exp/{exp}/checkpoints/checkpoints.json",
        metrics=all_metrics,
    output:
        "exp/{exp}/report/index.html",
    log:
        "exp/{exp}/log/report.log",
    benchmark:
        "exp/{exp}/benchmark/report.tsv"
    message:
        "{rule}: {output}"
    shell:
        "python -m espnet3 report --conf {input.conf} --experiment {wildcards.exp} --index {input.index}"
        " --output {output} --benchmarks exp/{wildcards.exp}/benchmark {input.metrics} > {log} 2>&1"


rule pack:
    input:
        conf="exp/{exp}/conf/pack.json",
        weights=packed_weights,
        language_models=packed_language_models,
        tokens=tokenizer_files,
        train=train_manifest,
        metrics=all_metrics,
    output:
        "exp/{exp}/pack/model.safetensors",
        "exp/{exp}/pack/config.json",
        "exp/{exp}/pack/tokens.txt",
        "exp/{exp}/pack/metrics.json",
        "exp/{exp}/pack/README.md",
    log:
        "exp/{exp}/log/pack.log",
    benchmark:
        "exp/{exp}/benchmark/pack.tsv"
    params:
        lm=lm_option,
    message:
        "{rule}: {output}"
    shell:
        "python -m espnet3 pack {params.lm} --conf {input.conf} --experiment {wildcards.exp} --weights {input.weights}"
        " --tokens exp/{wildcards.exp}/tokenizer --train {input.train} --output-dir exp/{wildcards.exp}/pack"
        " {input.metrics} > {log} 2>&1"
