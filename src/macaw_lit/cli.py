"""How commands run: find `conf/`, compose with Hydra, answer mistakes in one line."""

import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from macaw_lit import record
from macaw_lit.errors import ConfigError, in_one_line
from macaw_lit.hints import explain
from macaw_lit.words import check_flags, is_override, literal, placed

Main = Callable[[DictConfig], Any]


def command(
    name: str, text: Sequence[str] = (), paths: Sequence[str] = (), open_keys: Sequence[str] = ()
) -> Callable[[Main], Callable[[], None]]:
    """Turn `main(cfg)` into a command that composes `conf/<name>.yaml` with the overrides of the command line.

    A user's mistake becomes one line `error: …` on stderr and exit code 1, Ctrl-C exit code 130; anything else is a
    bug and keeps its traceback. `HYDRA_FULL_ERROR=1` shows the traceback of mistakes too.

    Args:
        name: the primary config.
        text: keys whose values are taken literally, whatever they contain (see `literal`).
        paths: keys whose values are taken literally too, unless they are lists.
        open_keys: keys that may stay `???`.
    """

    def decorate(main: Main) -> Callable[[], None]:
        @functools.wraps(main)
        def run() -> None:
            given, verbose = sys.argv, os.environ.get("HYDRA_FULL_ERROR") == "1"

            def answered(error: Exception) -> str | None:
                return explain(error, conf_dir(), name, overrides)

            def answer(error: Exception) -> NoReturn:
                if isinstance(error, BrokenPipeError) and _unread():
                    raise SystemExit(141) from None  # as other programs end then: 128 + SIGPIPE
                message = None if verbose else answered(error)
                if message is None:
                    raise error
                _stop(f"error: {message}", 1)

            def checked(cfg: DictConfig) -> Any:
                require_all(cfg, text, open_keys)
                return main(cfg)

            @functools.wraps(main)
            def task(cfg: DictConfig) -> Any:
                # Lightning starts its other processes with both: they quote free text and answer mistakes themselves.
                sys.argv = given
                if not verbose:
                    os.environ.pop("HYDRA_FULL_ERROR", None)
                multirun = in_sweep()
                try:
                    return _job(checked, cfg, answered) if multirun else checked(cfg)
                except Exception as error:
                    if multirun:
                        raise
                    answer(error)
                finally:
                    os.environ["HYDRA_FULL_ERROR"] = "1"

            overrides = [word for arg in given[1:] for word in placed(literal(arg, text, paths))]
            overrides.sort(key=is_override)  # argparse trips over flags amidst them
            sys.argv = [given[0], *overrides]
            os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints every error itself and ends the process
            try:
                check_flags(overrides)
                hydra.main(config_path=str(conf_dir()), config_name=name, version_base="1.3")(task)()
                sys.stdout.flush()
            except KeyboardInterrupt:
                _stop("interrupted", 130)
            except SystemExit as end:
                if isinstance(end.__context__, KeyboardInterrupt):  # Lightning's answer to Ctrl-C
                    _stop("interrupted", 130)
                raise
            except Exception as error:
                answer(error)
            finally:
                sys.argv = given
                if not verbose:
                    os.environ.pop("HYDRA_FULL_ERROR", None)
                GlobalHydra.instance().clear()

        return run

    return decorate


def _job(main: Main, cfg: DictConfig, explained: Callable[[Exception], str | None]) -> Any:
    """Run one job of a sweep, unless it is done already; if it fails the others go on, which is answered at the end."""
    folder, words, number = run_folder(), job_overrides(), HydraConfig.get().job.num
    waiting = f"job {number} runs in another process: waiting for it"  # of a second sweep, or left by a killed one
    with record.one_run(folder, waiting) if first_process() else nullcontext():
        if finished := record.done(folder, words):
            print(f"job {number} is done: {folder}", flush=True)
            return finished.get("value")
        return _run_job(main, cfg, explained)


def _run_job(main: Main, cfg: DictConfig, explained: Callable[[Exception], str | None]) -> Any:
    folder, words, number = run_folder(), job_overrides(), HydraConfig.get().job.num
    # Lightning starts its other processes with these, for this job alone and in its folder.
    resumed = "ckpt_path" in cfg and cfg.ckpt_path is None  # a job that was stopped goes on from its own checkpoint
    if resumed:
        cfg.ckpt_path = "auto"
    sys.argv = [sys.argv[0], *words, *(["ckpt_path=auto"] if resumed else [])]
    settings: Any = HydraConfig.get()
    with read_write(settings), open_dict(settings):
        settings.run.dir = str(folder)
    before = set(os.environ)
    try:
        return main(cfg)
    except Exception as error:
        why = explained(error)
        if why is None:
            traceback.print_exc()
            why = f"{type(error).__name__}: {in_one_line(error)}"
        if first_process():
            record.write(folder, "failed", words, error=why)
        raise record.JobError(f"job {number} ({' '.join(words)}) failed: {why}", folder) from error
    finally:
        _leave_processes(before)


def _leave_processes(before: set[str]) -> None:
    """Undo what Lightning leaves of a job's processes: the next job would start none and wait for the old ones."""
    for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if name not in before:
            os.environ.pop(name, None)
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _unread() -> bool:
    """Whether nobody reads the output any more, as behind `| head`; then the rest goes nowhere."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _stop(line: str, code: int) -> NoReturn:
    print(" ".join(line.split()), file=sys.stderr)
    raise SystemExit(code)


def conf_dir() -> Path:
    """Return the folder of the configs: inside the installed package, or beside `src/` in a working copy."""
    package = Path(__file__).resolve().parent
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parents[1] / "conf"


def require_all(cfg: DictConfig, text: Sequence[str] = (), open_keys: Sequence[str] = ()) -> None:
    """Raise ConfigError naming every value that is still `???` and not open; text keys are named as they are typed."""
    missing = sorted(set(_missing(OmegaConf.to_container(cfg))) - set(open_keys))
    names = [name.partition(".")[0] if name in text else name for name in missing]
    if names:
        raise ConfigError(f"{', '.join(names)} must be given: add {' '.join(f'{name}=…' for name in names)}")


def _missing(node: Any, prefix: str = "") -> Iterator[str]:
    if node == "???":
        yield prefix[:-1]
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _missing(value, f"{prefix}{key}.")


def run_folder() -> Path:
    """Return the folder of the running command, as chosen by `paths.run_dir`."""
    return Path(HydraConfig.get().runtime.output_dir)


def job_overrides() -> list[str]:
    """Return the overrides of the running command, or of the running job in a sweep, without Hydra's own."""
    return list(HydraConfig.get().overrides.task)


def in_sweep() -> bool:
    """Tell whether the running command is a job of a sweep."""
    return HydraConfig.get().mode is RunMode.MULTIRUN


def in_search() -> bool:
    """Tell whether the running command is a job of a sweep that goes by its result."""
    return in_sweep() and "direction" in HydraConfig.get().sweeper


def first_process() -> bool:
    """Tell whether this is the first of all processes of a run, on all machines, before they have been introduced."""
    names = ["RANK"] if "RANK" in os.environ else ["LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"]  # torchrun's; others'
    return all(os.environ.get(name, "0") == "0" for name in names)


def run_id() -> str:
    """Return what a run folder is called: the time; or, where a launcher starts several processes, what it calls them.

    Raises:
        ConfigError: torchrun has no name for the run, so that its processes cannot agree.
    """
    if os.environ.get("SLURM_NTASKS", "1") != "1":
        return f"slurm-{os.environ.get('SLURM_JOB_ID')}.{os.environ.get('SLURM_STEP_ID', '0')}"
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None or os.environ.get("WORLD_SIZE", "1") == "1":
        return datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if name == "none":
        raise ConfigError(
            "torchrun without --rdzv-id: its processes would each name a run folder of their own; add "
            "--rdzv-id=<a name for this run>, the same on all machines, or hydra.run.dir=<folder>"
        )
    return f"torchrun-{name}"


OmegaConf.register_new_resolver("run_id", run_id, use_cache=True, replace=True)


def print_config(cfg: DictConfig, folder: Path) -> None:
    """Print the resolved config as a tree and save it as `config.yaml` in `folder`, once per run."""
    if not first_process():
        return
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    tree = Tree("config")
    _grow(tree, OmegaConf.to_container(cfg, resolve=True))
    Console().print(tree)


def _grow(tree: Tree, node: Any) -> None:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, dict | list) and value:
            _grow(tree.add(f"[bold]{escape(str(key))}[/]"), value)
        else:
            tree.add(f"{escape(str(key))}: [cyan]{escape(str(value))}[/]")
