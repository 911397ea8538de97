"""Signals that end a run: noted, obeyed, handed on; and the handlers that were there come back."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from macaw_lit.training import signals
from macaw_lit.training.checkpoints import Checkpoints
from macaw_lit.training.module import MacawModule
from macaw_lit.training.signals import Stopped, StopSignals, stop_signals

NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05)


@pytest.fixture
def stops() -> Iterator[StopSignals]:
    before = [signal.getsignal(number) for number in NUMBERS]
    found = StopSignals()
    yield found
    found.leave()
    assert [signal.getsignal(number) for number in NUMBERS] == before


@pytest.mark.parametrize("number", NUMBERS[:2])
def test_a_signal_is_noted_until_it_is_to_be_obeyed(stops, number):
    assert stops.heed()
    assert not stops.heed(), "it does so already"
    signal.raise_signal(number)
    assert stops.asked == number
    with pytest.raises(Stopped, match=f"stopped by {number.name}"):
        stops.obey()


def test_it_is_obeyed_where_it_comes_once_there_is_nothing_to_wait_for(stops):
    stops.heed()
    stops.obey()
    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        signal.raise_signal(signal.SIGTERM)


def test_one_wish_may_come_twice_and_a_second_one_ends_the_process():
    program = (
        "import signal; from types import SimpleNamespace; from macaw_lit.training import signals; "
        "signals.time = SimpleNamespace(monotonic=iter([0, 0.9, 10, 10.9, 12]).__next__); "
        "signals.stop_signals.heed(); signal.raise_signal(15); signal.raise_signal(15); print('noted', flush=True); "
        "signal.raise_signal(10); print('another', flush=True); signal.raise_signal(10); "
        "print('the same', flush=True); signal.raise_signal(10); print('never')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (-signal.SIGUSR1, "noted\nanother\nthe same\n"), ended.stderr


def test_a_launcher_s_own_answer_follows(stops, monkeypatch):
    told: list[int] = []
    stops.heed()
    signal_before = signal.getsignal(signal.SIGUSR2)
    assert signal_before is signal.SIG_DFL, "nobody answers it, so it is left alone"
    stops.leave()
    monkeypatch.setattr(signals, "ONE_WISH", 60.0)
    try:
        signal.signal(signal.SIGUSR2, lambda number, frame: told.append(number))
        stops.heed()
        os.kill(os.getpid(), signal.SIGUSR2)
        assert (stops.asked, told) == (signal.SIGUSR2, [])
        with pytest.raises(Stopped, match="stopped by SIGUSR2") as stopped:
            stops.obey()
        stops.leave()
        stopped.value.answer()
        assert told == [signal.SIGUSR2]
    finally:
        stops.leave()
        signal.signal(signal.SIGUSR2, signal_before)


def test_training_stops_for_a_signal_that_came_before_it_began(stops, sizes, make_data, make_trainer, tmp_path):
    before = [signal.getsignal(number) for number in NUMBERS]
    trainer = make_trainer(Checkpoints(str(tmp_path / "checkpoints")), max_epochs=1)
    stop_signals.heed()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped by SIGTERM after step 0"):
            trainer.fit(MacawModule(sizes, sgd), make_data([Path()] * 4))
        assert signal.getsignal(signal.SIGTERM) == stop_signals._note, "the command has not ended yet"
    finally:
        stop_signals.leave()
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert not (tmp_path / "checkpoints").exists(), "there was nothing to save"


def test_it_may_be_used_without_the_command(sizes, make_data, make_trainer, tmp_path):
    class KilledCheckpoints(Checkpoints):
        def on_train_start(self, trainer, pl_module) -> None:
            super().on_train_start(trainer, pl_module)
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.01)

    trainer = make_trainer(KilledCheckpoints(str(tmp_path)), max_epochs=1)
    before = [signal.getsignal(number) for number in NUMBERS]
    with pytest.raises(Stopped, match="stopped by SIGUSR1 after step 0"):
        trainer.fit(MacawModule(sizes, sgd), make_data([Path()] * 4))
    assert [signal.getsignal(number) for number in NUMBERS] == before
