"""Measures which media a trained model uses: `python -m macaw_lit.evaluate model=logs/train/runs/<time>/model`."""

from pathlib import Path

from omegaconf import DictConfig

from macaw_lit.cli import command, print_config, run_folder


@command("evaluate", text=("model.path",))
def main(cfg: DictConfig) -> None:
    """Ask the held-out questions with true, absent and shuffled media; write table, plot and gallery."""
    # Heavy imports wait until the configuration is known to be sound.
    from macaw_lit.build import build_data, heldout_samples, set_up
    from macaw_lit.evaluation.prove import prove
    from macaw_lit.inference import load_answerer

    folder = run_folder()
    print_config(cfg, folder)
    set_up(cfg)
    settings = dict(cfg.evaluation)
    answerer = load_answerer(Path(cfg.model.path), cfg.device, settings.pop("max_new_tokens"))
    prove(answerer, heldout_samples(build_data(cfg)), folder, seed=cfg.seed, **settings)
    print(folder)


if __name__ == "__main__":
    main()
