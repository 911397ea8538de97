"""Settings of a run that no class refuses, or only after minutes."""

from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from macaw_lit import build
from macaw_lit.build import check_metric, check_settings
from macaw_lit.cli import conf_dir
from macaw_lit.errors import ConfigError

MISTAKES = {
    # Types and ranges
    "optim.lr=abc": "optim.lr=abc: expected a number",
    "optim.lr=nan": "optim.lr=nan: expected a number",
    "data.num_workers=many": "data.num_workers=many: expected a whole number",
    "data.num_workers=99999": "data.num_workers=99999: expected a number from 0 to 1000",
    "data.batch_size=0": "data.batch_size=0: expected a number from 1 to",
    "callbacks.checkpoint.every_n_minutes=abc": "callbacks.checkpoint.every_n_minutes=abc: expected",
    "trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches=0: expected at least 1",
    "trainer.accumulate_grad_batches=1.5": "trainer.accumulate_grad_batches=1.5: expected a whole number",
    "trainer.max_epochs=abc": "trainer.max_epochs=abc: expected a whole number or null",
    "trainer.gradient_clip_val=-1": "trainer.gradient_clip_val=-1: expected at least 0",
    "trainer.log_every_n_steps=-1": "trainer.log_every_n_steps=-1: expected at least 0",
    "trainer.val_check_interval=0": "trainer.val_check_interval=0: expected at least",
    "trainer.check_val_every_n_epoch=0": "trainer.check_val_every_n_epoch=0: expected at least 1",
    "trainer.devices=-2": "trainer.devices=-2: expected",
    "trainer.devices=[-1]": "trainer.devices=[-1]: expected how many",
    "trainer.devices=[]": "trainer.devices=[]: expected how many",
    "trainer.precision=foo": "trainer.precision=foo: expected 64 or 32 or 16",
    "+trainer.strategy=ddpp": "trainer.strategy=ddpp: no such strategy; did you mean ddp?",
    "seed=-1": "seed=-1: expected a number from 0 to 4294967295",
    "seed=1.5": "seed=1.5: expected a whole number",
    "warmup_ratio=2": "warmup_ratio=2: expected a number from 0 to 1",
    "warmup_ratio=true": "warmup_ratio=true: expected a number",
    "threads=0": "threads=0: expected at least 1",
    "threads=true": "threads=true: expected a whole number or null",
    "loss_mean=token": "loss_mean=token: expected tokens or microbatches",
    "checkpointing=llm": "checkpointing=llm: expected a list",
    "tags=3": "tags=3: expected a list, each a text",
    "+data.train.mine.count=3": "data.train.mine={'count': 3}: expected a mapping with _target_, a Source",
    "data.train.image.read=null": "data.train.image.read=null: expected a mapping with _target_ and _partial_: true",
    "model.adapt.llm={lora: 3}": "model.adapt.llm.lora=3: expected a mapping or null",
    "model.modalities.image.aligner.stride=abc": "model.modalities.image.aligner.stride=abc: expected a whole number",
    "model.llm=foo": "model.llm=foo: expected a mapping",
    "model.encoders.vision=3": "model.encoders.vision=3: expected a mapping",
    "model.modalities=3": "model.modalities=3: expected a mapping, each a mapping",
    "model.modalities.image=null": "model.modalities.image=null: expected a mapping",
    "model.aligner=linear": "model.aligner=linear: expected a mapping",
    # Names
    "+model.modalities.image.aligner.kernl=3": "did you mean model.modalities.image.aligner.kernel?",
    "+optim.beta=1": "optim.beta: macaw_lit.training.optim.MuonAdamW takes no such argument; did you mean optim.betas?",
    "+data.preprocessor.max_lenght=3": "did you mean data.preprocessor.max_length?",
    "+data.train.text.read.pth=x": "did you mean data.train.text.read.path?",
    "+model.encoders.vision.widht=3": "did you mean model.encoders.vision.width?",
    "+warmup_ration=0.1": "warmup_ration: no such key; did you mean warmup_ratio?",
    "+batch_size=8": "batch_size: no such key",
    "+paths.data_dri=x": "paths.data_dri: no such key; did you mean paths.data_dir?",
    "+model.adpt=full": "model.adpt: no such key; did you mean model.adapt?",
    "+model.modalities.image.algner=1": "did you mean model.modalities.image.aligner?",
    "+model.llm.config.hiden_size=64": "no such setting of llama; did you mean model.llm.config.hidden_size?",
    "+evaluation.itmes=3": "evaluation.itmes: no such key",
    # What is taken out
    "~warmup_ratio": "warmup_ratio is not there: a run needs it",
    "~trainer.devices": "trainer.devices is not there",
    "~model.adapt": "model.adapt is not there",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_mistakes_are_told_before_anything_is_built(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(composed([word]))
    assert MISTAKES[word] in str(caught.value)


def test_a_figure_that_a_callback_watches_must_be_measured() -> None:
    best = "callbacks=[default,best]"
    check_metric(composed([best]), searching=False)
    check_metric(composed(["callbacks=[default,best,throughput]", "callbacks.best.monitor=speed/padding"]), False)
    expected = (
        r"^callbacks\.best\.monitor=val/los: nothing measures it; did you mean val/loss\? there will be train/loss,"
    )
    with pytest.raises(ConfigError, match=expected):
        check_metric(composed([best, "callbacks.best.monitor=val/los"]), searching=False)
    with pytest.raises(ConfigError, match="monitor=seconds: nothing measures it"):  # only when training is over
        check_metric(composed([best, "callbacks.best.monitor=seconds"]), searching=False)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_a_logger_without_its_package_is_told_at_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(build, "find_spec", lambda package: None if package == name else object())
    expected = rf"^logger\.{name} needs the package {name}: pip install 'macaw-lit\[loggers\]'$"
    with pytest.raises(ConfigError, match=expected):
        check_settings(composed([f"logger={name}"]))


@pytest.mark.parametrize(
    "word",
    [
        "trainer.devices='0,1'",
        "trainer.devices=[2]",
        "trainer.devices=-1",
        "trainer.val_check_interval=00:00:10:00",
        "trainer.gradient_clip_val=null",
        "threads=null",
        "+model.llm.config.rope_theta=500000",  # an older name of transformers
        "+model.llm.config.head_dim=32",
        "logger=none",
    ],
)
def test_what_may_be_is_taken(word: str) -> None:
    check_settings(composed([word]))


def composed(words: list[str]) -> Any:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=["experiment=demo", "paths.root_dir=.", "paths.run_dir=.", *words])
