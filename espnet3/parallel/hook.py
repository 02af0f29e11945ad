"""The submission hook: a user's function between a rendered job script and the command that submits it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

from espnet3.errors import UserError
from espnet3.parallel.config import ParallelConfig

Hook = Callable[[str, list[str]], tuple[str, list[str]]]


def submission_hook(config: ParallelConfig, runner_hook: Hook | None = None) -> Hook:
    """The runner's ``submit_hook`` followed by ``parallel.submit``, as one checked function.

    ``parallel.submit._target_`` names a function ``f(script, command, **rest)``, or a class whose instances, made with
    the node's other keys, are called with ``(script, command)``. It must come from an allowed package: see
    ``parallel.allow`` and the variable ``ESPNET3_ALLOW``.
    """
    hooks = [hook for hook in (runner_hook, _configured(config)) if hook is not None]

    def apply(script: str, command: list[str]) -> tuple[str, list[str]]:
        for hook in hooks:
            changed = hook(script, list(command))
            if not (isinstance(changed, (tuple, list)) and len(changed) == 2 and isinstance(changed[0], str)):
                name = getattr(hook, "__qualname__", repr(hook))
                raise UserError(f"the submission hook {name} returned {changed!r}; it must return (script, command)")
            script, command = changed[0], [str(word) for word in changed[1]]
        return script, command

    return apply


def _configured(config: ParallelConfig) -> Hook | None:
    if not config.submit:
        return None
    if "_target_" not in config.submit:
        raise UserError("parallel.submit: it has no _target_; name the function, as in mysite.slurm.add_reservation")
    from espnet3.config.instantiate import locate

    target = locate(config.submit["_target_"], config.allow)
    rest = {key: value for key, value in config.submit.items() if key not in ("_target_", "_partial_")}
    return target(**rest) if inspect.isclass(target) else functools.partial(target, **rest)
