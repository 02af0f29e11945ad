"""espnet3: reproducible speech recognition recipes, from a corpus to a scored model.

The package imports nothing heavy: ``import espnet3`` is safe in a Snakefile. Torch, Lightning and Lhotse are imported by
the modules that use them.
"""

from __future__ import annotations

__version__ = "0.1.0"


def from_pretrained(path, **kwargs):
    """Load a packed model (``exp/<experiment>/pack``); see :func:`espnet3.inference.pretrained.from_pretrained`."""
    from espnet3.inference.pretrained import from_pretrained as load

    return load(path, **kwargs)
