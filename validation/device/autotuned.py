"""Autotuned kernels where no GPU can time their configurations."""

from collections.abc import Callable, Sequence
from typing import Any

from validation.device.private import triton_module


def take(choose: Callable[[Sequence[Any]], Any]) -> None:
    """Launch autotuned kernels with a chosen configuration from now on, since timing them needs a GPU.

    As on a GPU, ``early_config_prune`` decides which ones a shape allows, unless it needs a GPU: a kernel of one row
    per program is wrong with a block shorter than the row. ``perf_model`` only ranks them, and is not called. Otherwise
    this is the launch of a kernel tuned before: the configuration's own ``pre_hook`` runs; the tuner's hooks
    (``pre_hook``, ``reset_to_zero``, ``restore_value``), which undo the effects of timing, do not.

    Args:
        choose: one of the configurations that a launch allows, in the tuner's order.
    """
    tuner = triton_module("triton.runtime.autotuner").Autotuner

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        configs = _allowed(self, kwargs) if len(self.configs) > 1 else self.configs
        self.best_config = config = choose(configs)
        if config.pre_hook is not None:
            config.pre_hook({**self.nargs, **kwargs, **config.all_kwargs()})
        result = self.fn.run(*args, **kwargs, **config.all_kwargs())
        self.nargs = None
        return result

    tuner.run = run


def _allowed(tuner: Any, kwargs: dict[str, Any]) -> Any:
    ranking, tuner.perf_model = tuner.perf_model, None
    try:
        return tuner.prune_configs(kwargs)
    except (RuntimeError, AssertionError):  # raised by Triton's driver and torch.cuda without a GPU
        return tuner.configs
    finally:
        tuner.perf_model = ranking
