"""Providers build what a worker needs: data sets, models, helpers. Once in each worker, whatever the engine."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from espnet3.errors import UserError

Environment = dict[str, Any]


class EnvironmentProvider:
    """Builds the environment that :meth:`BaseRunner.forward` receives by parameter name.

    A subclass implements :meth:`build_env_local`. Asynchronous jobs build the provider anew from its class's import
    path and its *config*, so what it needs must be in there.

    Args:
        config: any mapping; an OmegaConf one is kept as it is.
    """

    params: dict[str, Any] | None = None

    def __init__(self, config: Mapping[str, Any] | None = None):
        self.config = config if config is not None else {}

    def build_env_local(self) -> Environment:
        """The environment, built in this process."""
        raise NotImplementedError(f"{type(self).__name__} must implement build_env_local()")

    def build_worker_setup_fn(self) -> Callable[[], Environment]:
        """A function without arguments that can be pickled; each worker calls it once and keeps what it returns."""
        return self.build_env_local


class InferenceProvider(EnvironmentProvider):
    """An environment of a data set and a model: ``{"dataset": ..., "model": ..., **params}``.

    A subclass implements the static methods :meth:`build_dataset` and :meth:`build_model`.

    Args:
        config: passed to both.
        params: further entries of the environment, such as a beam size or an output folder.
    """

    def __init__(self, config: Mapping[str, Any] | None = None, params: Mapping[str, Any] | None = None):
        super().__init__(config)
        self.params = dict(params or {})

    @staticmethod
    def build_dataset(config: Any) -> Any:
        """The data set; ``forward`` indexes it."""
        raise NotImplementedError("an InferenceProvider must implement the static method build_dataset(config)")

    @staticmethod
    def build_model(config: Any) -> Any:
        """The model, on its device, in evaluation mode."""
        raise NotImplementedError("an InferenceProvider must implement the static method build_model(config)")

    def build_env_local(self) -> Environment:
        """See :class:`InferenceProvider`."""
        return {"dataset": self.build_dataset(self.config), "model": self.build_model(self.config), **self.params}


def plain(config: Any) -> Any:
    """*config* as dicts and lists, with OmegaConf's interpolations resolved."""
    omegaconf = sys.modules.get("omegaconf")
    if omegaconf is not None and isinstance(config, omegaconf.Container):
        return omegaconf.OmegaConf.to_container(config, resolve=True)
    return config


def select_env(function: Callable, env: Environment, positional: int = 1) -> Environment:
    """The entries of *env* that *function* takes by name (all of them where it has ``**kwargs``).

    Args:
        positional: how many leading parameters the caller fills itself.

    Raises:
        UserError: *function* requires a name that *env* lacks.
    """
    parameters = list(inspect.signature(function).parameters.values())[positional:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        taken = dict(env)
    else:
        taken = {p.name: env[p.name] for p in parameters if p.name in env}
    for p in parameters:
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.default is p.empty and p.name not in env:
            has = ", ".join(sorted(env)) or "nothing"
            name = getattr(function, "__qualname__", str(function))
            raise UserError(f"{name} needs '{p.name}', which the provider does not build; it builds: {has}")
    return taken
