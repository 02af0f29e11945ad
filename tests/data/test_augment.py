"""Augmentation and features where data is loaded: what they do to real speech, and that nothing about them is left to chance."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Fbank, FbankConfig
from lhotse.dataset import OnTheFlyFeatures
from scipy.signal import resample_poly

from espnet3.data.augment import AddNoise, Augmenter, Reverberate, SpeedPerturb
from espnet3.data.dataset import ESPnet3Dataset
from espnet3.data.features import LhotseFbank, LhotseFeatures
from espnet3.data.loader import make_dataloader
from espnet3.data.manifest import read_cuts, write_cuts
from espnet3.errors import UserError
from espnet3.models import frontend
from espnet3.trainer.batches import epoch_sampler, make_loader

NUMEL = {"type": "numel", "batch_bins": 16000 * 12}


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    """A folder of two noises, one of them short and at another rate."""
    folder = tmp_path_factory.mktemp("noises")
    (folder / "deep").mkdir()
    rng = np.random.default_rng(0)
    soundfile.write(folder / "long.wav", 0.1 * rng.standard_normal(16000 * 30), 16000)
    soundfile.write(folder / "deep" / "short.flac", 0.1 * rng.standard_normal(4000), 8000)
    return folder


def power(x) -> float:
    return float(np.mean(np.square(x, dtype=np.float64)))


def test_speed_is_resampling_and_each_factor_is_drawn(samples):
    step = SpeedPerturb([0.9, 1.0, 1.1])
    found = {len(step(samples, np.random.default_rng(i))) for i in range(30)}
    assert found == {-(-len(samples) * 10 // 9), len(samples), -(-len(samples) * 10 // 11)}
    slow = SpeedPerturb([0.9])(samples, np.random.default_rng(0))
    np.testing.assert_allclose(slow, resample_poly(samples, 10, 9), atol=1e-6)
    with pytest.raises(UserError, match=r"between 0\.2 and 5"):
        SpeedPerturb([0.0])


def test_noise_has_the_ratio_that_is_asked_for(samples, noises, tmp_path):
    cuts = [cut for path in sorted(noises.rglob("*.*")) for cut in [_cut(path)]]
    write_cuts(tmp_path / "noise.jsonl.gz", cuts)
    for source in (str(noises), CutSet.from_cuts(cuts), str(tmp_path / "noise.jsonl.gz"), str(noises / "long.wav")):
        step = AddNoise(source, 16000, snr=[7.0, 7.0])
        for seed in range(4):
            noisy = step(samples, np.random.default_rng(seed))
            assert noisy.shape == samples.shape
            assert 10 * np.log10(power(samples) / power(noisy - samples)) == pytest.approx(7.0, abs=0.01)
    silence = np.zeros(1000, np.float32)
    np.testing.assert_array_equal(step(silence, np.random.default_rng(0)), silence)
    with pytest.raises(UserError, match=r"no recordings in .*absent"):
        AddNoise(str(tmp_path / "absent"), 16000)


def _cut(path):
    from lhotse import Recording

    return Recording.from_file(path).to_cut()


def test_reverberation_keeps_length_power_and_onset(samples, tmp_path):
    wet = Reverberate(16000, rt60=[0.4, 0.4])(samples, np.random.default_rng(0))
    assert len(wet) == len(samples) and wet.dtype == np.float32
    assert power(wet) == pytest.approx(power(samples), rel=1e-3)
    lags = np.correlate(wet[:16000], samples[:16000], "full")
    assert abs(int(np.argmax(lags)) - 15999) <= 1
    # by 60 dB in rt60: half the time, half the decibels
    response = Reverberate(16000, rt60=[0.4, 0.4]).simulate(np.random.default_rng(0))[1:]
    early, late = power(response[:640]), power(response[3200 - 320 : 3200 + 320])
    assert 10 * np.log10(early / late) == pytest.approx(60 * (0.2 - 0.02) / 0.4, abs=1.5)
    soundfile.write(tmp_path / "rir.wav", np.r_[np.zeros(100), 1.0, np.zeros(50)], 16000, subtype="FLOAT")
    direct = Reverberate(16000, source=str(tmp_path))(samples, np.random.default_rng(0))
    np.testing.assert_allclose(direct, samples, atol=1e-5)


def nodes(noises) -> list[dict]:
    return [
        {"_target_": "espnet3.data.augment.SpeedPerturb", "factors": [0.9, 1.0, 1.1]},
        {
            "_target_": "espnet3.data.augment.AddNoise",
            "source": str(noises),
            "sampling_rate": 16000,
            "probability": 0.5,
        },
        {"_target_": "espnet3.data.augment.Reverberate", "sampling_rate": 16000, "probability": 0.5},
    ]


def test_an_utterance_sounds_the_same_in_any_batch_process_and_continuation(spoken_manifest, noises):
    dataset = ESPnet3Dataset(spoken_manifest)

    def heard(loader) -> dict[str, np.ndarray]:
        return {
            uid: np.array(speech[:length])
            for ids, batch in loader
            for uid, speech, length in zip(ids, batch["speech"], batch["speech_lengths"], strict=True)
        }

    def loader(sampler, epoch=0, **options):
        found = make_dataloader(dataset, sampler, shuffle=True, augment=nodes(noises), seed=2, **options)
        found.set_epoch(epoch)
        return found

    first = heard(loader(NUMEL))
    for other in (loader(None, batch_size=3), loader(NUMEL, num_workers=2)):
        again = heard(other)
        assert again.keys() == first.keys()
        for uid, speech in first.items():
            np.testing.assert_array_equal(again[uid], speech)
    later = heard(loader(NUMEL, epoch=1))
    assert sum(len(later[uid]) != len(first[uid]) or (later[uid] != first[uid]).any() for uid in first) > 15
    resumed = loader(NUMEL)
    resumed.load_state_dict({"epoch": 1, "batch": 2})
    rest = heard(resumed)
    assert 0 < len(rest) < 24
    for uid, speech in rest.items():
        np.testing.assert_array_equal(later[uid], speech)
    # the same through the trainer's configuration
    configured = make_loader(dataset, {"sampler": NUMEL, "augment": nodes(noises)}, seed=2, shuffle=True)
    epoch_sampler(configured).start(1, 2)
    assert all((speech == rest[uid]).all() for uid, speech in heard(configured).items())


def test_lhotses_cut_transforms_are_continued_too(spoken_manifest):
    node = {
        "sampler": {"_target_": "lhotse.dataset.DynamicBucketingSampler", "max_duration": 15.0, "num_buckets": 2},
        "cut_transforms": [{"_target_": "lhotse.dataset.PerturbSpeed", "factors": [0.9, 1.1], "p": 0.7}],
    }
    dataset = ESPnet3Dataset(spoken_manifest)

    def lengths(start: int):
        loader = make_loader(dataset, node, seed=0, shuffle=True)
        epoch_sampler(loader).start(0, start)
        return [dict(zip(ids, batch["speech_lengths"].tolist(), strict=True)) for ids, batch in loader]

    whole = lengths(0)
    assert lengths(2) == whole[2:]
    assert 5 < sum("_sp" in uid for batch in whole for uid in batch) < 24
    with pytest.raises(UserError, match="need one of Lhotse's samplers; use augment"):
        make_loader(dataset, {**node, "sampler": NUMEL}, seed=0, shuffle=True)


@pytest.mark.parametrize(("window", "n_mels", "fmax"), [("povey", 80, None), ("hamming", 40, 7000.0)])
def test_lhotses_features_on_the_fly_are_the_in_model_frontends(spoken_manifest, window, n_mels, fmax):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = FbankConfig(num_filters=n_mels, snip_edges=True, high_freq=fmax or 0.0, window_type=window)
    # in batches Lhotse rounds the number of frames, and the last two see padding
    strategy, batched = (OnTheFlyFeatures(Fbank(config), use_batch_extract=together) for together in (False, True))
    cuts = read_cuts(spoken_manifest).subset(first=5)
    theirs, their_lengths = strategy(cuts)
    floor = float(torch.finfo(torch.float32).eps)
    model = frontend.Fbank(16000, n_mels, fmax=fmax, window=window, framewise=True, floor=floor)
    waveforms = ESPnet3Dataset(cuts)
    _, batch = next(iter(make_dataloader(waveforms, batch_size=5)))
    ours, lengths = model(batch["speech"], batch["speech_lengths"])
    assert lengths.tolist() == their_lengths.tolist() and ours.shape == theirs.shape
    many, more = batched(cuts)
    for i, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(ours[i, :length], theirs[i, :length], atol=2e-3, rtol=0)
        torch.testing.assert_close(ours[i, :length], many[i, :length], atol=2e-3, rtol=0)
        assert length <= more[i] <= length + 2
    # fed to the model in place of waveforms, by each way of saying so
    own = LhotseFbank(n_mels=n_mels, fmax=fmax, window=window)
    for features in (LhotseFeatures(strategy, 16000), own):
        _, fed = next(iter(make_dataloader(waveforms, batch_size=5, features=features)))
        passed, passed_lengths = model(fed["speech"], fed["speech_lengths"])
        assert passed_lengths.tolist() == lengths.tolist()
        for i, length in enumerate(lengths.tolist()):
            torch.testing.assert_close(passed[i, :length], theirs[i, :length], atol=1e-5, rtol=0)


def test_the_models_own_frontend_runs_in_loader_processes(spoken_manifest):
    node = {"_target_": "espnet3.models.frontend.Fbank", "sampling_rate": 16000, "n_mels": 40}
    features = {"_target_": "espnet3.data.features.FrontendFeatures", "frontend": node}
    dataset = ESPnet3Dataset(spoken_manifest)
    model = frontend.Fbank(16000, 40)
    plain = {}
    for ids, batch in make_dataloader(dataset, batch_size=6):
        feats, lengths = model(batch["speech"], batch["speech_lengths"])
        plain |= {uid: f[:n] for uid, f, n in zip(ids, feats, lengths, strict=True)}
    for ids, batch in make_loader(
        dataset, {"sampler": NUMEL, "features": features, "num_workers": 1}, seed=0, shuffle=True
    ):
        for uid, feats, length in zip(ids, batch["speech"], batch["speech_lengths"], strict=True):
            torch.testing.assert_close(feats[:length], plain[uid], atol=1e-4, rtol=0)


def test_a_wrong_step_is_named():
    with pytest.raises(UserError, match=r"int .* is no step"):
        Augmenter([3])
    with pytest.raises(UserError, match=r"SpeedPerturb .probability 2"):
        Augmenter([SpeedPerturb(probability=2)])
