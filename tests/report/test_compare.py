"""Two decodings side by side."""

import json
import random

import pytest

from espnet3.errors import UserError
from espnet3.io import read_json, write_jsonl
from espnet3.report.compare import main
from espnet3.stages import score


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Decodings good, same and bad of the test sets clean and noisy: manifests, hypotheses and scores."""
    folder = tmp_path_factory.mktemp("scored")
    generator = random.Random(0)
    for test_set in ("clean", "noisy"):
        cuts = [
            {"id": f"{test_set}-{i}", "supervisions": [{"text": f"Say word w{i} and go", "speaker": f"s-{i % 5}"}]}
            for i in range(120)
        ]
        write_jsonl(folder / f"{test_set}.jsonl.gz", cuts)
        for decoding, rate in (("good", 0.02), ("same", 0.02), ("bad", 0.15)):
            hypotheses = []
            for cut in cuts:
                words = cut["supervisions"][0]["text"].split()
                heard = [w for w in words if generator.random() > rate]
                hypotheses.append({"id": cut["id"], "text": " ".join(heard)})
            path = folder / f"{decoding}.{test_set}.jsonl"
            write_jsonl(path, hypotheses)
            score.run({}, folder / f"{test_set}.jsonl.gz", path, folder / decoding / test_set)
    return folder


def test_a_difference_is_found_and_a_chance_one_is_not(scored, capsys):
    assert main([str(scored / "good"), str(scored / "bad")]) == 0
    out = capsys.readouterr().out
    assert out.count("A is better, significant at the 5% level") == 2 and "noisy: 120 utterances, 600 words" in out
    assert main([str(scored / "bad/clean/metrics.json"), str(scored / "good/clean"), "--by", "speaker"]) == 0
    assert "B is better" in capsys.readouterr().out
    assert main([str(scored / "good/clean"), str(scored / "same/clean")]) == 0
    assert "no significant difference" in capsys.readouterr().out


def test_figures_for_a_program_are_those_of_the_scores(scored, capsys):
    assert main([str(scored / "good/clean"), str(scored / "bad/clean"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["clean"]
    metrics = [read_json(scored / name / "clean/metrics.json") for name in ("good", "bad")]
    assert [found["a"]["wer"], found["b"]["wer"]] == [m["wer"] for m in metrics]
    assert found["a"]["intervals"]["wer"] == metrics[0]["intervals"]["wer"]
    assert found["bootstrap"]["difference"] == pytest.approx(metrics[1]["wer"] - metrics[0]["wer"], abs=1e-5)
    assert len(metrics[0]["speakers"]) == 5


def test_hypotheses_with_a_manifest(scored, capsys):
    hypotheses = [str(scored / f"{name}.clean.jsonl") for name in ("good", "bad")]
    assert main([*hypotheses, "--manifest", str(scored / "clean.jsonl.gz"), "--normalize", "basic"]) == 0
    assert "A is better" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"good.clean.jsonl: no hypothesis of utterance noisy-0"):
        main([*hypotheses, "--manifest", str(scored / "noisy.jsonl.gz")])


def test_what_cannot_be_compared_is_named(scored, tmp_path):
    with pytest.raises(UserError, match=r"ref.trn: utterance .* is not as in"):
        main([str(scored / "good/clean"), str(scored / "good/noisy")])
    with pytest.raises(UserError, match=r"no hyp.trn here"):
        main([str(tmp_path), str(scored / "good")])
    conf = {"score": {"normalize": "basic"}}
    score.run(conf, scored / "clean.jsonl.gz", scored / "good.clean.jsonl", tmp_path / "score/good/clean")
    with pytest.raises(UserError, match=r"same score\.normalize"):
        main([str(scored / "good"), str(tmp_path / "score/good")])
