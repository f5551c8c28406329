import os
import signal
import time

import pytest

from moco.data.worker_processes import STOP_SIGNALS
from moco.engine import stop_signals_raise as module
from moco.engine.preemption import Stopped
from moco.engine.stop_signals_raise import stop_signals_raise


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_raises_once(number, capsys, monkeypatch):
    before = [signal.getsignal(n) for n in STOP_SIGNALS]
    with stop_signals_raise():
        with pytest.raises(Stopped) as stop:
            os.kill(os.getpid(), number)
        assert stop.value.code == 143
        os.kill(os.getpid(), number)  # a copy: from the launcher, or from the terminal
        monkeypatch.setattr(module, "ECHO", -1)
        with pytest.raises(Stopped):  # the user repeats it, since the program still runs
            os.kill(os.getpid(), number)
    assert capsys.readouterr() == ("", f"stopped by {signal.Signals(number).name}\n")
    assert [signal.getsignal(n) for n in STOP_SIGNALS] == before


class Signalling:
    """Its destructor receives a signal; Python would drop an exception there."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def test_a_stop_signal_within_a_destructor_raises_after_it(capsys):
    with stop_signals_raise(), pytest.raises(Stopped):
        Signalling()
        time.sleep(10)
    assert capsys.readouterr() == ("", "stopped by SIGTERM\n")
    with stop_signals_raise():
        Signalling()
    time.sleep(2 * module.AGAIN)  # no timer is left


def test_only_rank_0_says_it(monkeypatch, capsys):
    monkeypatch.setattr(module, "rank", lambda: 1)
    with stop_signals_raise(), pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)
    assert capsys.readouterr() == ("", "")
