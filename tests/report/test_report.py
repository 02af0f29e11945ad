"""The report page and the plain table."""

import html.parser
import re

import pytest

from espnet3.errors import UserError
from espnet3.io import write_json, write_jsonl
from espnet3.report.costs import duration, read_costs
from espnet3.report.table import format_table, main
from espnet3.stages import report, score

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


@pytest.fixture
def experiment(tmp_path):
    """Two decodings of two test sets, scored; an index; benchmarks."""
    for test_set, count in (("test", 30), ("far <field>", 4)):
        cuts = [
            {"id": f"{test_set[0]}{i:03d}", "supervisions": [{"text": f"say the word w{i} & go", "speaker": "ann"}]}
            for i in range(count)
        ]
        write_jsonl(tmp_path / "m.jsonl.gz", cuts)
        for decoding, every in (("joint", 9), ("greedy", 3)):
            hypotheses = [
                {"id": c["id"], "text": "<b>say</b> word it" if i % every == 0 else c["supervisions"][0]["text"]}
                for i, c in enumerate(cuts)
            ]
            write_jsonl(tmp_path / "h.jsonl", hypotheses)
            score.run({}, tmp_path / "m.jsonl.gz", tmp_path / "h.jsonl", tmp_path / "score" / decoding / test_set)
    history = [
        {
            "epoch": e,
            "step": 10 * e,
            "seconds": 3.0,
            "lr": 0.1 / e,
            "metrics": {"train/loss": 90 / e, "valid/loss": None if e == 2 else 80 / e, "valid/acc": 1 - 1 / (e + 1)},
        }
        for e in range(1, 6)
    ]
    index = {"history": history, "checkpoints": [{"epoch": 4, "step": 40, "metrics": {}, "file": "f", "sha256": "0"}]}
    write_json(tmp_path / "checkpoints.json", index)
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark/train.tsv").write_text(HEADER + "3725.5\t1:02:05\t2048.0\t1\t1\t1\t0\t0\t97\t3600\n")
    for i in (1, 2):
        table = HEADER + f"{i}.5\t0:00:01\tNA\t1\t1\t1\t0\t0\t97\t-\n"
        (tmp_path / f"benchmark/decode.joint.test.{i}-of-2.tsv").write_text(table)
    (tmp_path / "benchmark/torn.tsv").write_text("s\th:m:s\n")
    return tmp_path


def metrics_of(experiment):
    return [experiment / "score" / d / t / "metrics.json" for d in ("joint", "greedy") for t in ("test", "far <field>")]


class Tags(html.parser.HTMLParser):
    """Checks that tags are closed in order, and keeps the text and all addresses."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self):
        super().__init__()
        self.open, self.text, self.addresses, self.ids = [], [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") or "url(" in (value or ""):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_needs_nothing_else(experiment):
    conf = {"decode": {"beam": 5}, "seed": 0}
    output = experiment / "report/index.html"
    arguments = ("demo", metrics_of(experiment), experiment / "checkpoints.json", output)
    report.run(*arguments, conf=conf, benchmarks=experiment / "benchmark")
    page = output.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert all(a.startswith("#") or "url(#" in a for a in tags.addresses), "an outside resource"
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert len(tags.ids) == len(set(tags.ids)) and not re.search(r"#01020\d", page)
    text = " ".join(" ".join(tags.text).split())
    # 4 of 30 utterances, 5 errors each in 6 words
    assert "WER, test 11.11 %" in text and "far <field>" in text and "beam: 5" in text
    assert "<b>say</b>" in text and "<b>say</b>" not in page
    assert page.count("<svg") == 3 and page.count('<ol class="worst">') == 2
    assert page.count('class="name"') == 4 + 1 + 10
    assert "1 h 02 min" in text and "2.0 GB" in text
    before = output.read_bytes()
    report.run(*arguments, conf=conf, benchmarks=experiment / "benchmark")
    assert output.read_bytes() == before


def test_a_page_of_little_is_still_a_page(experiment):
    write_json(experiment / "bare.json", {"checkpoints": []})
    report.run("demo", metrics_of(experiment)[:1], experiment / "bare.json", experiment / "bare.html")
    page = (experiment / "bare.html").read_text()
    assert "Error rates" in page and "Learning curves" not in page and "Cost" not in page


def test_costs_are_grouped_by_job(experiment):
    train, decode = read_costs(experiment / "benchmark")
    assert (train.name, train.cpu, train.memory) == ("train", 3600.0, 2048.0)
    assert (decode.name, decode.wall, decode.longest, decode.cpu) == ("decode", 4.0, 2.5, None)
    assert read_costs(None) == [] and read_costs(experiment / "nowhere") == []
    assert [duration(s) for s in (4.21, 185, 3725)] == ["4.2 s", "3 min 05 s", "1 h 02 min"]


def test_the_plain_table(experiment, capsys):
    table = format_table(metrics_of(experiment)).splitlines()
    assert re.split(r"\s{2,}", table[0])[:7] == [
        "decoding",
        "test set",
        "utterances",
        "words",
        "WER %",
        "95 %",
        "CER %",
    ]
    cells = re.split(r"\s{2,}", table[2])
    assert cells[:5] == ["joint", "test", "30", "180", "11.11"] and cells[7:] == ["13.33", "8", "0", "12"]
    assert main([str(experiment / "score"), "--report", str(experiment / "r.html")]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 8 and out.rstrip().endswith("r.html")
    with pytest.raises(UserError, match=r"no metrics\.json"):
        main([str(experiment / "benchmark")])
