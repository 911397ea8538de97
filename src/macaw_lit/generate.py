"""Makes instruction data from captions: `python -m macaw_lit.generate source=coco path=… media_root=… target=…`."""

import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from macaw_lit.arguments import check
from macaw_lit.cli import command
from macaw_lit.errors import ConfigError

if TYPE_CHECKING:
    from macaw_lit.generation.pipeline import Project

ACTIONS = ("run", "build", "estimate", "review", "batch_export", "batch_import")
RULES = ("filters", "near_duplicate", "most_repeats", "alike", "least_grounded", "formats")
OVER_BUDGET = 3
"""Exit code of a run that ended because a limit of the budget was reached."""


@command("generate", text=("model.name", "source.name"), paths=("path", "media_root", "target", "sheet", "batch"))
def main(cfg: DictConfig) -> None:
    """Do what `cfg.action` says and print what came of it."""
    if cfg.action not in ACTIONS:
        raise ConfigError(f"action={cfg.action}: expected one of {', '.join(ACTIONS)}")
    if cfg.backend not in ("chat", "template"):
        raise ConfigError(f"backend={cfg.backend}: expected chat or template")
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    _check_types(settings)
    project = _project(settings)
    if settings["action"] in ("run", "build"):
        outcome = _run(settings, project) if settings["action"] == "run" else None
        _build(project)
        if outcome is not None:
            print(f"stopped: {outcome}; raise the limit and run the same command to go on", file=sys.stderr)
            raise SystemExit(OVER_BUDGET)
    elif settings["action"] == "estimate":
        left = project.estimate()
        print(f"{left.requests} requests, at most {left.tokens_in} + {left.tokens_out} tokens, {left.usd:.2f} USD")
    elif settings["action"] == "review":
        sheet = _file(settings, "sheet")
        print(f"{sheet}: {project.write_sheet(sheet, settings['sheet_items'], settings['seed'])} rows to judge")
    elif settings["action"] == "batch_export":
        batch = _file(settings, "batch")
        print(f"{batch}: {project.export_batch(batch, settings['api']['limit_field'])} requests")
    else:
        counts = project.import_batch(_file(settings, "batch"))
        print(_in_words(counts) or "an empty batch")
        _build(project)


def _check_types(settings: dict[str, Any]) -> None:
    """Refuse values of another type than what they are meant for."""
    top = {
        "pipeline.Finish": RULES,
        "pipeline.Captions": ("kind", "media", "seed", "strict"),
        "templates.Asking": ("max_tokens", "temperature"),
    }
    for name, keys in top.items():
        check({"_target_": f"macaw_lit.generation.{name}"} | {key: settings[key] for key in keys}, "")
    for key, name in (("limits", "runner.Limits"), ("budget", "budget.Budget")):
        check({"_target_": f"macaw_lit.generation.{name}"} | settings[key], key)


def _project(settings: dict[str, Any]) -> "Project":
    """The project of the settings; rejected captions are told on stderr."""
    from macaw_lit.generation.budget import Budget, Price  # heavy imports wait until the configuration is sound
    from macaw_lit.generation.pipeline import Captions, Finish, Project
    from macaw_lit.generation.runner import Limits
    from macaw_lit.generation.templates import Asking, Template

    prices = settings["price"].values()
    if settings["budget"]["max_usd"] is not None and None in prices:
        raise ConfigError("budget.max_usd needs price.input and price.output: USD per million tokens of your provider")
    path = Path(settings["path"])
    root = path.parent if settings["media_root"] is None else settings["media_root"]
    choice = {name: settings[name] for name in ("kind", "media", "seed", "strict")}
    records, rejected = Captions(settings["source"]["name"], path, root, **choice).read()
    if rejected:
        print(f"{path}: rejected {_in_words(rejected)}", file=sys.stderr)
    template = Template(**{**settings["template"], "types": tuple(settings["template"]["types"])})
    model = settings["model"]["name"] if settings["backend"] == "chat" else "template"
    asking = Asking(template, model, settings["max_tokens"], settings["temperature"], settings["seed"])
    price = Price(*(each or 0.0 for each in prices))
    project = Project.of(Path(settings["target"]), records, asking, Budget(**settings["budget"]), price)
    project.limits = Limits(**settings["limits"])
    sheet = settings["sheet"] if settings["action"] != "review" else None
    rules = {name: settings[name] for name in RULES}
    project.finish = Finish(**rules, sheet=None if sheet is None else Path(sheet))
    return project


def _run(settings: dict[str, Any], project: "Project") -> str | None:
    """Ask with a bar on stderr; returns which limit of the budget ended it."""
    from rich.console import Console
    from rich.progress import Progress

    from macaw_lit.generation.backend import Backend

    backend: Backend
    if settings["backend"] == "template":
        from macaw_lit.generation.grammar import TemplateBackend

        backend = TemplateBackend()
    else:
        from macaw_lit.generation.chat import ChatBackend

        backend = ChatBackend(settings["model"]["name"], **settings["api"], timeout=settings["limits"]["timeout"])
    console = Console(file=sys.stderr)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("media", total=len(project.jobs))
        outcome = asyncio.run(project.run(backend, lambda: progress.advance(task)))
    faults = _in_words(outcome.faults) or "none"
    print(f"{outcome.settled} media settled, {outcome.before} before, {outcome.left} left; faults met: {faults}")
    return outcome.stopped


def _build(project: "Project") -> None:
    from rich.console import Console

    from macaw_lit.generation.statistics import table

    written, found = project.build()
    Console().print(table(found))
    print(*written, sep="\n")


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _file(settings: dict[str, Any], name: str) -> Path:
    if settings[name] is None:
        raise ConfigError(f"action={settings['action']} needs a file: add {name}=…")
    return Path(settings[name])


if __name__ == "__main__":
    main()
