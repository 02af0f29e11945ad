# Shards balanced by audio duration are decoded, merged in the order of the manifest, and scored.
localrules:
    hypotheses,
    score,


rule decode_shard:
    input:
        conf="exp/{exp}/conf/decode.{decoding}.json",
        manifest=test_manifest,
        weights=decoding_weights,
        tokens=tokenizer_files,
        language_models=decoding_language_models,
    output:
        "exp/{exp}/decode/{decoding}/{split}/shard-{i}-of-{n}.jsonl",
    log:
        "exp/{exp}/log/decode.{decoding}.{split}.{i}-of-{n}.log",
    benchmark:
        "exp/{exp}/benchmark/decode.{decoding}.{split}.{i}-of-{n}.tsv"
    params:
        execution=execution,
        lm=lm_option,
    message:
        "{rule}: {output}"
    shell:
        "python -m espnet3 decode {params.lm} --conf {input.conf} --manifest {input.manifest} --weights {input.weights}"
        " --tokens exp/{wildcards.exp}/tokenizer --shard {wildcards.i} --of {wildcards.n} --output {output}"
        " --encoded exp/{wildcards.exp}/encoded"
        " --execution {params.execution:q} > {log} 2>&1"


rule hypotheses:
    input:
        manifest=test_manifest,
        shards=decoding_shards,
    output:
        "exp/{exp}/decode/{decoding}/{split}/hyp.jsonl",
    log:
        "exp/{exp}/log/hypotheses.{decoding}.{split}.log",
    benchmark:
        "exp/{exp}/benchmark/hypotheses.{decoding}.{split}.tsv"
    message:
        "{rule}: {output}"
    shell:
        "python -m espnet3 decode-merge --manifest {input.manifest} --output {output} {input.shards} > {log} 2>&1"


rule score:
    input:
        conf="exp/{exp}/conf/score.json",
        manifest=test_manifest,
        hypotheses="exp/{exp}/decode/{decoding}/{split}/hyp.jsonl",
        tokens=tokenizer_files,
    output:
        metrics="exp/{exp}/score/{decoding}/{split}/metrics.json",
        hyp="exp/{exp}/score/{decoding}/{split}/hyp.trn",
        ref="exp/{exp}/score/{decoding}/{split}/ref.trn",
        alignment="exp/{exp}/score/{decoding}/{split}/alignment.txt",
    log:
        "exp/{exp}/log/score.{decoding}.{split}.log",
    benchmark:
        "exp/{exp}/benchmark/score.{decoding}.{split}.tsv"
    message:
        "{rule}: {output}"
    shell:
        "python -m espnet3 score --conf {input.conf} --manifest {input.manifest} --hypotheses {input.hypotheses}"
        " --output-dir exp/{wildcards.exp}/score/{wildcards.decoding}/{wildcards.split}"
        " --tokens exp/{wildcards.exp}/tokenizer > {log} 2>&1"
