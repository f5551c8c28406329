"""The split of an epoch's time."""

from moco.engine.step_timer import StepTimer


def test_outlook_is_arithmetic():
    watch = StepTimer()
    watch.batch_time.update(2.0, 10)
    watch.data_time.update(0.5, 10)
    assert watch.outlook(1800) == ("Left 1:00:00", "Wait  25%")
