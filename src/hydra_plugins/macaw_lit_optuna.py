"""Hydra's way to Optuna: a search that goes on after a stop, with the same numbers and no job run twice.

Hydra finds sweepers in the namespace package `hydra_plugins` alone. Its contributed one wants Optuna before version 3,
and numbers its jobs anew at each start.
"""

import math
import os
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from filelock import BaseFileLock, FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from macaw_lit.errors import ConfigError, in_one_line


class Range(NamedTuple):
    """What a key may be: as it was typed, and the call of an Optuna trial that chooses."""

    text: str
    method: str
    bounds: list[Any]
    options: dict[str, Any]


_SAMPLERS = ("tpe", "random")


class OptunaSweeper(Sweeper):
    """Chooses values by Optuna until the study has `n_trials`.

    A trial has its job's number. One without a result, because it failed or was stopped, is run again by the next
    start of the same command, with the same values. What is drawn depends on `seed` and the trial's number, so that
    a search that was stopped goes the way it would have gone. A result that is not finite counts as none.

    The same command started twice at once is one search: a job that the other runs is waited for.

    Args:
        params: what varies, as on the command line, which has the last word.
        sampler: `tpe` (Bergstra et al., 2011) or `random`.
        n_jobs: trials chosen together; they do not learn from each other.

    Raises:
        ConfigError: a count is not positive, there is no such direction or sampler, or torchrun started the search.
    """

    def __init__(
        self,
        study_name: str,
        storage: str,
        direction: str,
        n_trials: int,
        n_jobs: int,
        sampler: str,
        n_startup_trials: int,
        seed: int,
        params: Mapping[str, Any],
    ) -> None:
        for name, count in (("n_trials", n_trials), ("n_jobs", n_jobs), ("n_startup_trials", n_startup_trials)):
            if count < 1:
                raise ConfigError(f"hydra.sweeper.{name}={count}: expected at least 1")
        if direction not in ("minimize", "maximize"):
            raise ConfigError(f"hydra.sweeper.direction={direction}: expected minimize or maximize")
        if sampler not in _SAMPLERS:
            raise ConfigError(f"hydra.sweeper.sampler={sampler}: expected {' or '.join(_SAMPLERS)}")
        self.study_name, self.storage, self.direction = study_name, storage, direction
        self.n_trials, self.n_jobs, self.sampler = n_trials, n_jobs, sampler
        self.n_startup_trials, self.seed, self.params = n_startup_trials, seed, params
        self.failures: dict[int, Exception] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.cfg = hydra_context, config  # the base's own may be None, for the type checker
        self.hydra_context, self.config = hydra_context, config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        if (started := os.environ.get("WORLD_SIZE", "1")) != "1":
            raise ConfigError(
                f"a search in {started} processes, of which each would choose for itself: start it without torchrun; "
                "the processes of a job are started by trainer.devices, or hydra/launcher=slurm"
            )
        fixed, space = self._space([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        folder = Path(self.cfg.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.cfg, folder / "multirun.yaml")
        lock = FileLock(folder / ".lock")  # two processes must not make one study, draw one trial or end it at once
        with lock:
            study = self._open([*fixed], space)
        while batch := self._next(study, space, lock):
            jobs = [fixed + [f"{key}={trial.params[key]}" for key in space] for trial in batch]
            self.validate_batch_is_legal(jobs)
            returns = self.launcher.launch(jobs, initial_job_idx=batch[0].number)
            with lock:
                for trial, result in zip(batch, returns, strict=True):
                    self._tell(study, trial.number, result)
        if study.best_trials:
            best, metric = study.best_trial, self.cfg.get("optimized_metric")
            chosen = " ".join(f"{key}={value}" for key, value in best.params.items())
            print(f"best of {len(study.trials)}: job {best.number} with {metric}={best.value:.5g}: {chosen}")
        print(folder.resolve())
        for failure in self.failures.values():
            raise failure

    def _space(self, words: list[str]) -> tuple[list[str], dict[str, Range]]:
        """Overrides that all jobs have, and the range of each key that varies."""
        fixed: dict[str, str] = {}
        space: dict[str, Range] = {}
        for override in OverridesParser.create(self.context.config_loader).parse_overrides(words):
            key = override.get_key_element()
            fixed.pop(key, None)
            space.pop(key, None)
            if override.is_sweep_override():
                space[key] = _range(override)
            else:
                fixed[key] = f"{key}={override.get_value_element_as_str()}"
        if not space:
            raise ConfigError(
                "nothing to search: give a key choices or an interval, such as "
                "optim.lr='tag(log,interval(1e-4,1e-2))', or set hydra.sweeper.params"
            )
        return list(fixed.values()), space

    def _open(self, fixed: list[str], space: Mapping[str, Range]) -> Any:
        """The study, new or found again.

        Raises:
            ConfigError: another search has this name, or Optuna is not installed.
        """
        try:
            import optuna  # only for a search: Hydra reads this file at the start of every command
            from optuna.study import StudyDirection
            from sqlalchemy.exc import SQLAlchemyError
        except ImportError as error:
            raise ConfigError(f"hparams_search=optuna ({error}): pip install 'macaw-lit[sweeps]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        direction = StudyDirection[self.direction.upper()]
        try:
            study = optuna.create_study(
                study_name=self.study_name, storage=self.storage, load_if_exists=True, direction=direction
            )
        except (ValueError, RuntimeError, ImportError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
            raise ConfigError(
                f"hydra.sweeper.storage={self.storage} cannot be opened ({in_one_line(error)}): give a database such "
                "as sqlite:////my/study.db that Optuna of this version has made"
            ) from error
        what = sorted([*fixed, *(f"{key}={space[key].text}" for key in space), f"direction={self.direction}"])
        before = study.user_attrs.get("search", what)
        if before != what:
            differing = " ".join(sorted(set(before).symmetric_difference(what)))
            raise ConfigError(
                f"{self.storage} holds another search by this name (differing in {differing}): choose another "
                "hydra.sweeper.study_name"
            )
        study.set_user_attr("search", what)
        return study

    def _next(self, study: Any, space: Mapping[str, Range], lock: BaseFileLock) -> list[Any]:
        """Trials to run now, unfinished ones of an earlier start first; their numbers follow one another."""
        from optuna import Trial
        from optuna.trial import TrialState

        batch: list[Any] = []
        with lock:
            found = study.get_trials(deepcopy=False)
            unfinished = {t.number: t for t in found if t.state is TrialState.RUNNING and t.number not in self.failures}
            numbers = [*unfinished, *range(len(found), self.n_trials)][: self.n_jobs]
            for number in takewhile(lambda number: number - numbers[0] == len(batch), numbers):
                study.sampler = self._sampler(self.seed * 1_000_003 + number)
                trial = Trial(study, unfinished[number]._trial_id) if number in unfinished else study.ask()
                for key, wanted in space.items():  # what was chosen before the stop is chosen again
                    getattr(trial, wanted.method)(key, *wanted.bounds, **wanted.options)
                batch.append(trial)
        return batch

    def _sampler(self, seed: int) -> Any:
        from optuna import samplers

        if self.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        return samplers.TPESampler(n_startup_trials=self.n_startup_trials, seed=seed)

    def _tell(self, study: Any, number: int, result: JobReturn) -> None:
        from optuna.trial import TrialState

        value = result._return_value  # the property raises what failed, after words of its own on stderr
        if result.status is JobStatus.FAILED:
            self.failures[number] = value
        elif value is None:
            metric, folder = self.cfg.get("optimized_metric"), self.cfg.hydra.sweep.dir
            raise ConfigError(
                f"job {number} did not measure optimized_metric={metric}: choose one of those in "
                f"{folder}/{number}/metrics.json; val/loss needs held-out rows (data.heldout) and a validation before "
                "training ends (trainer.val_check_interval)"
            )
        elif math.isfinite(value):
            study.tell(number, value, skip_if_finished=True)  # told by another process that had waited too
        else:
            study.tell(number, state=TrialState.FAIL, skip_if_finished=True)


def _range(override: Override) -> Range:
    """`a,b`, `choice(…)`, `range(…)` and `interval(…)`, with `tag(log, …)` on a logarithmic scale."""
    sweep, text = override.value(), override.get_value_string()
    if isinstance(sweep, IntervalSweep):
        whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
        options = {"log": "log" in sweep.tags}
        start, end = float(sweep.start or 0), float(sweep.end or 0)
        if start >= end or (options["log"] and start <= 0):
            wanted = "a lower end below the upper one" + ", and above 0 on a logarithmic scale" * options["log"]
            raise ConfigError(f"{override.input_line}: expected {wanted}")
        return Range(text, "suggest_int" if whole else "suggest_float", [sweep.start, sweep.end], options)
    if override.is_range_sweep():
        values: list[Any] = sorted(override.sweep_iterator())
        step = values[1] - values[0] if len(values) > 1 else 1
        method = "suggest_int" if all(isinstance(value, int) for value in values) else "suggest_float"
        return Range(text, method, [values[0], values[-1]], {"step": step})
    return Range(text, "suggest_categorical", [list(override.sweep_string_iterator())], {})
