"""``_target_`` builds what is allowed, and nothing that only looks allowed."""

from __future__ import annotations

import pytest

from espnet3.config.instantiate import instantiate, locate
from espnet3.errors import UserError


def test_nested_targets_and_partials():
    import torch

    built = instantiate(
        {"a": [{"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}], "b": {"c": 1}}, extra=4
    )
    assert isinstance(built["a"][0], torch.nn.Linear)
    assert built["b"] == {"c": 1} and built["extra"] == 4
    make = instantiate({"_target_": "torch.optim.AdamW", "lr": 0.5, "_partial_": True})
    assert make(built["a"][0].parameters()).defaults["lr"] == 0.5


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "espnet3.io.os.system",
        "espnet3.io.contextlib.suppress",
        "lhotse.dataset.collation.torch.load",
        "torch.nn.functional.torch.load",
        "torch.load",
        "torch.hub.load",
        "espnet3.config.instantiate.importlib.import_module",
        "functools.partial",
    ],
)
def test_the_allowlist_looks_at_what_the_name_resolves_to(target):
    with pytest.raises(UserError):
        locate(target)


def test_a_wrong_argument_is_one_line():
    with pytest.raises(UserError, match=r"torch.nn.Linear: .*in_feature"):
        instantiate({"_target_": "torch.nn.Linear", "in_feature": 2})


def test_code_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mycode_for_test.py").write_text("class Model:\n    def __init__(self, n): self.n = n\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="'allow:' list"):
        instantiate({"_target_": "mycode_for_test.Model", "n": 1})
    assert instantiate({"_target_": "mycode_for_test.Model", "n": 1}, allow=("mycode_for_test",)).n == 1
