# A corpus, its manifests; an experiment's tokenizer and statistics.
localrules:
    corpus_conf,
    recordings,
    conf,


rule corpus_conf:
    output:
        "data/{corpus}/conf/{stage}.json",
    log:
        "data/{corpus}/log/conf.{stage}.log",
    wildcard_constraints:
        stage="corpus|manifest",
    params:
        text=corpus_slice,
    message:
        "{rule}: {output}"
    shell:
        "printf '%s\\n' {params.text:q} > {output} 2> {log}"


rule conf:
    output:
        "exp/{exp}/conf/{stage}.json",
    log:
        "exp/{exp}/log/conf.{stage}.log",
    params:
        text=experiment_slice,
    message:
        "{rule}: {output}"
    shell:
        "printf '%s\\n' {params.text:q} > {output} 2> {log}"


rule corpus:
    input:
        conf="data/{corpus}/conf/corpus.json",
    output:
        "data/{corpus}/corpus.jsonl",
    log:
        "data/{corpus}/log/corpus.log",
    benchmark:
        "data/{corpus}/benchmark/corpus.tsv"
    params:
        execution=execution,
    message:
        "{rule}: {output}"
    shell:
        "python -m espnet3 corpus --conf {input.conf} --output {output} --execution {params.execution:q} 2>&1 | tee {log}"


rule recordings:
    input:
        corpus_listing,
    output:
        "data/{corpus}/conf/recordings.{split}.json",
    log:
        "data/{corpus}/log/recordings.{split}.log",
    params:
        text=split_recordings,
    message:
        "{rule}: {output}"
    shell:
        "printf '%s\\n' {params.text:q} > {output} 2> {log}"


rule manifest:
    input:
        conf="data/{corpus}/conf/manifest.json",
        recordings="data/{corpus}/conf/recordings.{split}.json",
        corpus=corpus_listing,
    output:
        manifest="data/{corpus}/{split}.jsonl.gz",
        rejected="data/{corpus}/{split}.rejected.jsonl",
    log:
        "data/{corpus}/log/manifest.{split}.log",
    benchmark:
        "data/{corpus}/benchmark/manifest.{split}.tsv"
    params:
        execution=execution,
    message:
        "{rule}: {output}"
    shell:
        "python -m espnet3 manifest --conf {input.conf} --corpus {input.corpus} --split {wildcards.split}"
        " --output {output.manifest} --rejected {output.rejected} --execution {params.execution:q} > {log} 2>&1"


rule tokenizer:
    input:
        conf="exp/{exp}/conf/tokenizer.json",
        manifest=train_manifest,
    output:
        "exp/{exp}/tokenizer/tokens.txt",
    log:
        "exp/{exp}/log/tokenizer.log",
    benchmark:
        "exp/{exp}/benchmark/tokenizer.tsv"
    wildcard_constraints:
        exp=NOT_BPE,
    message:
        "{rule}: {output}"
    shell:
        "python -m espnet3 tokenizer --conf {input.conf} --manifest {input.manifest}"
        " --output-dir exp/{wildcards.exp}/tokenizer > {log} 2>&1"


use rule tokenizer as tokenizer_bpe with:
    output:
        "exp/{exp}/tokenizer/tokens.txt",
        "exp/{exp}/tokenizer/bpe.model",
    wildcard_constraints:
        exp=BPE,


rule stats_shard:
    input:
        conf="exp/{exp}/conf/stats.json",
        manifest=train_manifest,
    output:
        "exp/{exp}/stats/shard-{i}-of-{n}.npz",
    log:
        "exp/{exp}/log/stats.{i}-of-{n}.log",
    benchmark:
        "exp/{exp}/benchmark/stats.{i}-of-{n}.tsv"
    params:
        execution=execution,
    message:
        "{rule}: {output}"
    shell:
        "python -m espnet3 stats --conf {input.conf} --manifest {input.manifest} --shard {wildcards.i} --of {wildcards.n}"
        " --output {output} --execution {params.execution:q} > {log} 2>&1"


rule stats:
    input:
        stats_shards,
    output:
        "exp/{exp}/stats/cmvn.npz",
    log:
        "exp/{exp}/log/stats.log",
    benchmark:
        "exp/{exp}/benchmark/stats.tsv"
    message:
        "{rule}: {output}"
    shell:
        "python -m espnet3 stats-merge --output {output} {input} > {log} 2>&1"
