"""Says what a run will take, before it is launched: `python -m macaw_lit.plan experiment=macaw_7b`."""

import gc
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from macaw_lit.arguments import check
from macaw_lit.cli import command, conf_dir
from macaw_lit.errors import ConfigError
from macaw_lit.settings import check_run

if TYPE_CHECKING:
    from macaw_lit.planning.plan import Plan

GIB = 2**30
_OWN = ("gpu_gib", "reserve_gib", "gpu", "peak_tflops", "mfu", "row", "format", "unnamed_llm")
"""Settings that a plan alone has."""
_SHARED = ("weights", "gradients", "optimizer states")


@command("plan", open_keys=("model.llm.tokenizer",))
def main(cfg: DictConfig) -> None:
    """Print the plan as tables or JSON; exit code 2 if a GPU is too small for it."""
    if cfg.format not in ("table", "json"):
        raise ConfigError(f"format={cfg.format}: expected table or json")
    if OmegaConf.is_missing(cfg.model.llm, "tokenizer"):
        cfg.model.llm.tokenizer = None
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    _check_settings(settings)
    with _uncollected():
        # Heavy imports wait until the configuration is known to be sound.
        from macaw_lit.planning.plan import make_plan

        plan = make_plan(settings)
    if cfg.format == "json":
        print(json.dumps(plan.as_json(), indent=1))
    else:
        _show(plan, Console())
    if plan.needed > plan.limit:
        print(f"error: {_why(plan)}", file=sys.stderr)
        raise SystemExit(2)


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Check a run's settings; a Trainer and data by their classes, whose import takes long, if they have unusual names.

    Raises:
        ConfigError: a name is not known, or a value cannot be.
    """
    check_run(settings, _OWN)
    for group, shipped in (("trainer", "default"), ("data", "base")):
        usual = OmegaConf.load(conf_dir() / group / f"{shipped}.yaml")
        if {*(settings.get(group) or {})} - {*usual, "strategy"}:
            check(settings[group], group)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python from going through all that the imports have made again and again: a fifth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _show(plan: "Plan", console: Console) -> None:
    parts = Table("part", "trained", "parameters", title="parameters")
    for name, (trained, values) in plan.parts.items():
        parts.add_row(name, f"{trained:,}", f"{values:,}")
    totals = (sum(column) for column in zip(*plan.parts.values(), strict=True))
    parts.add_row("all", *(f"{total:,}" for total in totals), style="bold")
    console.print(parts)
    memory = Table("cause", "GiB", title=f"memory of each of {plan.world}: {plan.strategy}, {plan.precision}")
    for cause, size in plan.memory.items():
        memory.add_row(cause, f"{size / GIB:.2f}")
    memory.add_row(f"all, in the {plan.moment}", f"{plan.needed / GIB:.2f}", style="bold")
    memory.add_row("given", f"{plan.limit / GIB:.2f}")
    console.print(memory)
    facts = Table("what", "how much", title="the run")
    media = " + ".join(f"{kind} {count}" for kind, count in plan.row.media.items())
    facts.add_row("tokens of a row", f"{plan.row.tokens} = 1 + {media} + text {plan.row.text}")
    facts.add_row("rows of a batch", f"{plan.batch_size} on each; at most {plan.fits} fit")
    facts.add_row("rows of an optimizer step", f"{plan.rows_per_step:,}")
    facts.add_row("operations of an optimizer step", f"{plan.flops / 1e15:.3g} PFLOP")
    if plan.hours is None:
        facts.add_row("hours", "not known before the data is read: give trainer.max_steps")
    else:
        facts.add_row("hours", f"{plan.hours:.3g} for {plan.steps:,} steps, at {plan.assumption}")
    if plan.host:
        facts.add_row("main memory of all processes", f"{plan.host / GIB:.1f} GiB")
    disk = (
        f"{plan.checkpoints} checkpoints of {plan.checkpoint / GIB:.1f} GiB, model folder {plan.folder / GIB:.1f} GiB"
    )
    facts.add_row("disk", disk)
    console.print(facts)


def _why(plan: "Plan") -> str:
    """One line: how much is too much, what takes most of it, and what would help."""
    cause = max(plan.memory, key=plan.memory.__getitem__)
    shared = cause in _SHARED or cause.startswith(("communication", "the optimizer"))
    if plan.fits:
        remedy = f"data.batch_size={plan.fits} or less, and trainer.accumulate_grad_batches for the rest"
    elif shared and "zero3" not in plan.strategy and plan.strategy != "fsdp2":
        remedy = "trainer=deepspeed_zero3_bf16 on several GPUs, or adapt=lora or qlora"
    elif shared and "offload" not in plan.strategy:
        remedy = "more GPUs, trainer=deepspeed_zero3_offload_bf16, or adapt=lora or qlora"
    else:
        remedy = "adapt=lora, or a smaller data.preprocessor.max_length"
    return (
        f"it will not fit: {plan.needed / GIB:.1f} GiB on each of {plan.world}, given gpu_gib={plan.limit / GIB:g}; "
        f"most is {cause}, {plan.memory[cause] / GIB:.1f} GiB; remedy: {remedy}"
    )


if __name__ == "__main__":
    main()
