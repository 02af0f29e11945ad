"""Recipes of public corpora, on stand-ins of their shape: builders, manifests, checks, and the workflow's plan."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from espnet3.config.compose import load_config
from espnet3.data.corpora import recipe
from espnet3.data.corpora.librispeech import PARTS
from espnet3.data.corpora.standin import STANDINS, librispeech
from espnet3.errors import UserError
from espnet3.io import read_jsonl
from espnet3.stages import corpus, manifest

# experiment: its stand-in, utterances in each split, a transcript, and whether the size is checked by a key
RECIPES = {
    "an4": ("an4", {"train": 6, "valid": 2, "test": 4}, True),
    "commonvoice": ("commonvoice", {"train": 12, "valid": 4, "test": 4}, False),
    "librispeech_100": ("librispeech", {"train": 4, "valid": 8, "test_clean": 4, "test_other": 4}, True),
    "ljspeech": ("ljspeech", {"train": 30, "valid": 5, "test": 5}, True),
    "yesno": ("yesno", {"train": 27, "valid": 3, "test": 30}, False),
}


@pytest.fixture(scope="session")
def standins(tmp_path_factory) -> dict[str, Path]:
    """Every stand-in, made once."""
    folder = tmp_path_factory.mktemp("standins")
    for name, make in STANDINS.items():
        if name == "librispeech":
            librispeech(folder / name, ("train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other"))
        else:
            make(folder / name)
    return {name: folder / name for name in STANDINS}


def configured(experiment: str, source: Path, repository: Path) -> dict:
    """The experiment's data section, with its source."""
    _, _, checked = RECIPES[experiment]
    overrides = [f"data.builder.source={source}", *(["data.builder.check=false"] if checked else [])]
    if experiment == "ljspeech":
        # two of a hundred are none of forty
        overrides.append("data.builder.fractions={valid:0.1,test:0.1}")
    return load_config(experiment, overrides, repository / "config")["data"]


@pytest.mark.parametrize("experiment", RECIPES)
def test_a_recipe_gives_every_split_that_its_experiment_names(experiment, standins, repository, tmp_path):
    name, counts, _ = RECIPES[experiment]
    data = configured(experiment, standins[name], repository)
    corpus.run({"data": data}, tmp_path / "corpus.jsonl")
    for split in (data["train"], data["valid"], *data["test"]):
        output = tmp_path / f"{split}.jsonl.gz"
        manifest.run({"data": {**data, "max_rejected": 0.0}}, tmp_path / "corpus.jsonl", split, output, tmp_path / "r")
        cuts = list(read_jsonl(output))
        assert len(cuts) == counts[split], split
        assert all(cut["recording"]["sampling_rate"] == data["sampling_rate"] for cut in cuts)
        text = cuts[0]["supervisions"][0]["text"]
        assert text.split() and "<s>" not in text and (data["builder"].get("normalize") != "basic" or text.islower())
    speakers = {}
    for record in read_jsonl(tmp_path / "corpus.jsonl"):
        speakers.setdefault(record["split"], set()).add(record.get("speaker"))
    if experiment in ("an4", "librispeech_100"):
        assert not speakers["train"] & speakers["valid"]


def test_the_workflow_plans_every_recipe_on_its_stand_in(standins, project):
    pairs = [(e, f"data.builder.source={standins[name]}") for e, (name, _, _) in RECIPES.items()]
    pairs.append(("librispeech_960", f"data.builder.source={standins['librispeech']}"))
    jobs = project.jobs(
        *(f"exp/{e}/decode" for e, _ in pairs), "--config", f"overrides={' '.join(f'{e}:{o}' for e, o in pairs)}"
    )
    assert jobs["train"] == len(pairs) and jobs["corpus"] == len(pairs)
    # 16 shards of two decodings of two test sets, twice; 16 of two decodings, 4 of them twice, and one
    assert jobs["decode_shard"] == 2 * 2 * 2 * 16 + 2 * 16 + 2 * 2 * 4 + 2


def archive_of(folder: Path, path: Path, top: str) -> Path:
    """A tar archive of *folder* below the name *top*."""
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname=top)
    return path


def test_an_archive_as_source_is_checked_and_unpacked_once(standins, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive = archive_of(standins["an4"], tmp_path / "an4_sphere.tar.gz", "an4")
    node = {"_target_": "espnet3.data.corpora.an4.An4Corpus", "source": str(archive), "check": False}
    with pytest.raises(UserError, match=r"wrong checksum \(.*, not 0000.*delete it and fetch it anew"):
        corpus.run({"data": {"builder": {**node, "sha256": "0" * 64}}}, tmp_path / "data/an4/corpus.jsonl")
    assert not (tmp_path / "data/downloads/an4").exists()
    node["sha256"] = hashlib.sha256(archive.read_bytes()).hexdigest()
    corpus.run({"data": {"builder": node}}, tmp_path / "data/an4/corpus.jsonl")
    first = (tmp_path / "data/an4/corpus.jsonl").read_bytes()
    archive.write_bytes(b"no longer an archive")
    corpus.run({"data": {"builder": node}}, tmp_path / "data/an4/corpus.jsonl")
    assert (tmp_path / "data/an4/corpus.jsonl").read_bytes() == first
    assert all(not Path(record["audio"]).is_absolute() for record in read_jsonl(tmp_path / "data/an4/corpus.jsonl"))


@pytest.mark.parametrize("kind", ["hard link", "symbolic link", "device", "escape"])
def test_a_hostile_archive_is_refused(tmp_path, kind):
    path = tmp_path / "an4_sphere.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("an4/../../../etc/x" if kind == "escape" else "an4/etc/passwd")
        if kind != "escape":
            member.type = {"hard link": tarfile.LNKTYPE, "symbolic link": tarfile.SYMTYPE, "device": tarfile.CHRTYPE}[
                kind
            ]
            member.linkname = "/etc/passwd"
        tar.addfile(member, io.BytesIO())
    with pytest.raises(UserError, match=r"no regular file|would leave the folder"):
        recipe.obtain(recipe.Archive("https://x/an4_sphere.tar.gz", "etc", None, 1 << 20), tmp_path / "out", path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "an4.An4Corpus", "source": "an4"}, "8 utterances in 'train' where 948 belong"),
        ({"_target_": "an4.An4Corpus", "source": "yesno"}, "has neither etc nor an4_sphere.tar.gz"),
        ({"_target_": "an4.An4Corpus", "source": "nowhere"}, "no such file or folder"),
        ({"_target_": "ljspeech.LjSpeechCorpus", "source": "ljspeech"}, "40 utterances where 13100 belong"),
        ({"_target_": "librispeech.LibriSpeechCorpus", "splits": {"train": ["tran-clean-100"]}}, "did you mean 'train-clean"),
        ({"_target_": "yesno.YesNoCorpus", "source": "ljspeech/wavs"}, "prepare_yesno cannot read it"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_source_is_named(standins, tmp_path, node, message):
    node = {**node, "_target_": f"espnet3.data.corpora.{node['_target_']}"}
    if "source" in node:
        node["source"] = str(standins["an4"].parent / node["source"])
    with pytest.raises(UserError, match=message):
        corpus.run({"data": {"builder": node}}, tmp_path / "corpus.jsonl")


def test_librispeech_is_known_by_its_published_sizes():
    assert sum(count for part, (count, _) in PARTS.items() if part.startswith("train")) == 281241
    assert all(len(digest) == 64 and int(digest, 16) for _, digest in PARTS.values())
