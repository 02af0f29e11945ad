"""A test set through shards to hyp.jsonl: same bytes for any number of shards, same words for any batch."""

import json
import random

import pytest
import torch
from speech_task import JOINT, MODEL, TOKENS, make_task, read_lines, slice_of

from espnet3.errors import UserError
from espnet3.inference import DecodeProvider, DecodeRunner
from espnet3.inference.plan import plan_decoding
from espnet3.io import write_jsonl
from espnet3.parallel import plan_batches
from espnet3.stages import decode


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    torch.set_num_threads(1)
    return make_task(tmp_path_factory.mktemp("task"))


def run(task, folder, shards, settings=JOINT):
    paths = [folder / f"shard-{i}-of-{shards}.jsonl" for i in range(1, shards + 1)]
    for i, path in enumerate(paths, 1):
        decode.run_shard(slice_of(settings), shard=i, of=shards, output=path, execution={"accelerator": "cpu"}, **task)
    decode.merge(task["manifest"], paths, folder / "hyp.jsonl")
    return (folder / "hyp.jsonl").read_bytes()


def test_any_number_of_shards_gives_the_same_bytes(task, tmp_path):
    one = run(task, tmp_path / "1", 1)
    assert run(task, tmp_path / "3", 3) == one
    assert run(task, tmp_path / "30", 30) == one
    records = [json.loads(line) for line in one.splitlines()]
    assert [r["id"] for r in records] == [f"u{i:02d}" for i in range(23)]
    assert len({r["text"] for r in records}) > 5, (
        "random weights must give different hypotheses for this test to mean much"
    )
    for record in records:
        assert set(record) == {"id", "text", "tokens", "score", "ctc", "att"}
        assert "".join(" " if t == "<space>" else t for t in record["tokens"]) == record["text"]
        assert record["score"] == pytest.approx(0.3 * record["ctc"] + 0.7 * record["att"], abs=2e-3)


@pytest.mark.parametrize("settings", [JOINT, {"method": "ctc_greedy"}, {**JOINT, "method": "ctc_beam"}], ids=str)
def test_the_batch_size_changes_no_word(task, tmp_path, settings):
    runs = []
    for seconds in (0.1, 4.0, 1000.0):
        run(task, tmp_path / str(seconds), 2, {**settings, "batch_seconds": seconds})
        runs.append(read_lines(tmp_path / str(seconds) / "hyp.jsonl"))
    for records in zip(*runs, strict=True):
        assert len({record["text"] for record in records}) == 1
        for name in ("score", "ctc"):
            assert max(r[name] for r in records) - min(r[name] for r in records) < 2e-3


def test_nbest_is_recorded_with_component_scores(task, tmp_path):
    run(task, tmp_path, 1, {**JOINT, "nbest": 3})
    for record in read_lines(tmp_path / "hyp.jsonl"):
        nbest = record["nbest"]
        assert 1 <= len(nbest) <= 3 and nbest[0]["text"] == record["text"]
        assert all(h["score"] == pytest.approx(0.3 * h["ctc"] + 0.7 * h["att"], abs=2e-3) for h in nbest)


def test_the_runner_in_processes_gives_the_words_of_the_stage(task, tmp_path):
    run(task, tmp_path, 2)
    expected = [record["text"] for record in read_lines(tmp_path / "hyp.jsonl")]
    config = {"conf": slice_of(JOINT), "execution": {"accelerator": "cpu"}, **task}
    runner = DecodeRunner(
        DecodeProvider(config),
        batch_size=5,
        shards=3,
        parallel={"env": "multiprocessing", "n_workers": 2},
        name="decode",
    )
    assert [record["text"] for record in runner(range(23))] == expected


def test_a_killed_shard_resumes_to_the_same_bytes(task, tmp_path):
    whole = run(task, tmp_path / "a", 1)
    path = tmp_path / "b/shard-1-of-1.jsonl"
    settings = slice_of(JOINT)
    forward, calls = DecodeRunner.forward, []

    def dies(idx, **env):
        calls.append(idx)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return forward(idx, **env)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeRunner, "forward", staticmethod(dies))
        with pytest.raises(KeyboardInterrupt):
            decode.run_shard(settings, shard=1, of=1, output=path, execution={"accelerator": "cpu"}, **task)
    assert path.with_name(path.name + ".partial").stat().st_size > 0
    decode.run_shard(settings, shard=1, of=1, output=path, execution={"accelerator": "cpu"}, **task)
    decode.merge(task["manifest"], [path], tmp_path / "b/hyp.jsonl")
    assert (tmp_path / "b/hyp.jsonl").read_bytes() == whole


def test_shards_are_made_of_whole_batches_and_balanced():
    generator = random.Random(0)
    durations = [generator.uniform(0.5, 20) for _ in range(500)]
    ids = [f"u{i}" for i in range(500)]
    together = [b for s in plan_decoding(ids, durations, 1, 60.0) for b in plan_batches(s, None, 60.0, durations)]
    for shards in (4, 16):
        plan = plan_decoding(ids, durations, shards, 60.0)
        apart = [batch for shard in plan for batch in plan_batches(shard, None, 60.0, durations)]
        assert sorted(apart) == sorted(together)
        loads = [sum(durations[i] for i in shard) for shard in plan]
        assert max(loads) - min(loads) <= 61
    for batch in together:
        assert len(batch) == 1 or len(batch) * max(durations[i] for i in batch) <= 60


def test_merge_refuses_missing_foreign_and_repeated_utterances(task, tmp_path):
    records = [{"id": f"u{i:02d}", "text": "a"} for i in range(23)]
    write_jsonl(tmp_path / "a.jsonl", records[:12])
    write_jsonl(tmp_path / "b.jsonl", records[14:])
    with pytest.raises(UserError, match=r"2 of 23 utterances .* in no shard: u12, u13$"):
        decode.merge(task["manifest"], [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "hyp.jsonl")
    write_jsonl(tmp_path / "b.jsonl", records[11:])
    with pytest.raises(UserError, match=r"b.jsonl: utterance u11 is also in .*a.jsonl"):
        decode.merge(task["manifest"], [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "hyp.jsonl")
    write_jsonl(tmp_path / "b.jsonl", [*records[12:], {"id": "stranger", "text": ""}])
    with pytest.raises(UserError, match="stranger is not in"):
        decode.merge(task["manifest"], [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "hyp.jsonl")
    assert not (tmp_path / "hyp.jsonl").exists()


def test_weights_of_another_vocabulary_are_refused_in_one_line(task, tmp_path):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens/tokens.txt").write_text("\n".join([*TOKENS[:-1], "z", TOKENS[-1]]) + "\n")
    other = {**task, "tokens": str(tmp_path / "tokens")}
    with pytest.raises(UserError, match=r"weights.safetensors: does not fit .* 13 tokens") as caught:
        decode.run_shard(slice_of(JOINT), shard=1, of=1, output=tmp_path / "s.jsonl", **other)
    assert "\n" not in str(caught.value)


def test_a_method_that_the_model_cannot_do_is_refused(task, tmp_path):
    conf = slice_of({**JOINT, "method": "attention"})
    conf["model"] = {k: v for k, v in MODEL.items() if k != "decoder"} | {"ctc_weight": 1.0}
    from safetensors.torch import load_file, save_file

    state = {k: v for k, v in load_file(task["weights"]).items() if not k.startswith("decoder.")}
    save_file(state, tmp_path / "ctc.safetensors")
    with pytest.raises(UserError, match="'attention' needs an attention decoder"):
        other = {**task, "weights": str(tmp_path / "ctc.safetensors")}
        decode.run_shard(conf, shard=1, of=1, output=tmp_path / "s.jsonl", **other)
