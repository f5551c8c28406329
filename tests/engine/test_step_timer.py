"""The split of an epoch's time."""

import torch

from moco.data.prefetch_to_device import prefetched
from moco.engine.step_timer import StepTimer
from tests.fake_gpu import CUDA
from tests.gpu_checks import fake_gpu


def test_outlook_is_arithmetic():
    watch = StepTimer()
    watch.batch_time.update(2.0, 10)
    watch.data_time.update(0.5, 10)
    assert watch.outlook(1800) == ("Left 1:00:00", "Wait  25%")


def test_on_a_gpu_the_wait_lasts_until_the_batch_is_augmented():
    """The fake GPU's clock counts operations, one a millisecond."""

    def finish(batch):
        return [torch.zeros(2, device=CUDA) + 1], torch.zeros(2, device=CUDA)

    with fake_gpu():
        timer = StepTimer(CUDA)
        timer.step_ended()
        assert len(list(timer.arriving(prefetched(timer.waiting([0]), finish, CUDA)))) == 1
        timer.batch_time.sum = 1.0
        assert timer.share_waited() == 3 / 1000
