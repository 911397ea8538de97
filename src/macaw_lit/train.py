"""Trains a model: `python -m macaw_lit.train experiment=demo`."""

from typing import Any

from omegaconf import DictConfig

from macaw_lit.cli import command, print_config, run_folder


@command("train")
def main(cfg: DictConfig) -> Any:
    """One run: train in one stage, save the model folder, measure if asked, and leave everything in the run folder.

    Returns the metric named by `cfg.optimized_metric`, for sweeps.
    """
    # Heavy imports wait until the configuration is known to be sound.
    from macaw_lit.build import attach, build_data, build_module, build_trainer, heldout_samples, set_up
    from macaw_lit.evaluation import plot_loss
    from macaw_lit.evaluation.prove import prove
    from macaw_lit.inference import Answerer, save_folder

    folder = run_folder()
    print_config(cfg, folder)
    set_up(cfg)
    module = build_module(cfg)
    datamodule = build_data(cfg)
    attach(datamodule, module)
    trainer = build_trainer(cfg)
    trainer.fit(module, datamodule, ckpt_path=cfg.ckpt_path)
    if trainer.is_global_zero:
        save_folder(folder / "model", module.model, datamodule.preprocess)
        if (folder / "metrics.csv").is_file():
            plot_loss(folder / "metrics.csv", folder / "loss.png")
        if cfg.evaluation:
            settings = dict(cfg.evaluation)
            answerer = Answerer(module.model.eval(), datamodule.preprocess, settings.pop("max_new_tokens"))
            prove(answerer, heldout_samples(datamodule), folder, seed=cfg.seed, **settings)
        print(folder)


if __name__ == "__main__":
    main()
