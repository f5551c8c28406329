"""The faults that the campaign injects: each one is a function that starts runs and hurts them."""

import os
import signal
import time
from contextlib import suppress

from moco.engine.preemption import ECHO
from moco.faults.internal.faulty_run import SAVE_EVERY, steps_done

FAULTS = {}  # name: (times, steps that it may cost, function of (Workplace, random.Random))
IN_FLIGHT = 2 * SAVE_EVERY  # steps since the last complete checkpoint, if another one is being written


def fault(name, times=1, costs=IN_FLIGHT):
    """Registers a function that starts runs in a Workplace, injects the fault and waits for their end.

    Args:
        name: the row of the table. times: how often the campaign injects it. costs: steps that it may cost at most.
    """

    def register(function):
        FAULTS[name] = times, costs, function
        return function

    return register


def kill_after(steps, place, rng):
    """Starts a run and kills one of its ranks after so many steps."""
    run = place.start()
    run.wait_for_step(steps)
    run.signal_rank(rng.randrange(2), signal.SIGKILL)
    run.ended(1)


@fault("SIGKILL of a rank, in a step", 6)
def kill_in_step(place, rng):
    """Kills a rank at a random moment of a step."""
    run = place.start()
    run.wait_for_step(rng.randrange(1, 11))
    time.sleep(rng.random() * 0.3)
    run.signal_rank(rng.randrange(2), signal.SIGKILL)
    run.ended(1)


@fault("SIGKILL of rank 0, in a checkpoint write", 4)
def kill_in_write(place, rng):
    """Kills rank 0 while it writes a checkpoint."""
    run = place.start()
    run.wait_for_step(rng.randrange(1, 8))
    run.wait_until(lambda: place.files(".tmp"))
    run.signal_rank(0, signal.SIGKILL)
    run.ended(1)


@fault("SIGKILL of a rank, between epochs", 4)
def kill_between_epochs(place, rng):
    """Kills a rank just after an epoch's checkpoint."""
    run = place.start()
    epoch = rng.randrange(2)
    run.wait_until(lambda: place.files(f"_{epoch:04d}.pth.tar"))
    run.signal_rank(rng.randrange(2), signal.SIGKILL)
    run.ended(1)


@fault("SIGKILL of the launcher", 2, costs=0)
def kill_launcher(place, rng):
    """Kills the launcher; its processes stop with a checkpoint."""
    run = place.start()
    run.wait_for_step(rng.randrange(1, 9))
    os.kill(run.pid, signal.SIGKILL)
    run.ended(-signal.SIGKILL)


def stop(place, rng, send):
    """Starts a run and stops it by calling `send(run)`, which sends a signal."""
    run = place.start()
    run.wait_for_step(rng.randrange(1, 9))
    time.sleep(rng.random() * 0.3)
    send(run)
    run.ended(143)


@fault("SIGTERM to the launcher", 2, costs=0)
def stop_launcher(place, rng):
    """SIGTERM to the launcher, which passes it on."""
    stop(place, rng, lambda run: os.kill(run.pid, signal.SIGTERM))


@fault("SIGTERM to a rank", 2, costs=0)
def stop_rank(place, rng):
    """SIGTERM to one rank."""
    stop(place, rng, lambda run: run.signal_rank(rng.randrange(2), signal.SIGTERM))


@fault("SIGTERM to the whole group", 3, costs=0)
def stop_group(place, rng):
    """SIGTERM to every process, as a scheduler sends it."""
    stop(place, rng, lambda run: os.killpg(run.pid, signal.SIGTERM))


@fault("SIGUSR1 to a rank", 1, costs=0)
def stop_by_usr1(place, rng):
    """SIGUSR1 to one rank."""
    stop(place, rng, lambda run: run.signal_rank(rng.randrange(2), signal.SIGUSR1))


@fault("SIGINT to the whole group", 1, costs=0)
def stop_by_int(place, rng):
    """SIGINT to every process, as Ctrl-C sends it."""
    stop(place, rng, lambda run: os.killpg(run.pid, signal.SIGINT))


@fault("SIGTERM twice, a rank being frozen", 2)
def stop_twice(place, rng):
    """A second SIGTERM ends a run that can't agree to stop because one rank is frozen."""

    def twice(run):
        frozen = run.ranks()[rng.randrange(2)]
        os.kill(frozen, signal.SIGSTOP)
        os.kill(run.pid, signal.SIGTERM)
        time.sleep(ECHO + 0.5)
        os.kill(run.pid, signal.SIGTERM)
        time.sleep(0.5)
        with suppress(ProcessLookupError):
            os.kill(frozen, signal.SIGCONT)

    stop(place, rng, twice)


@fault("disk full", 3, costs=3 * SAVE_EVERY + 1)
def disk_full(place, rng):
    """Writes fail as on a full disk, by a limit of the file size."""
    run = place.start()
    run.wait_for_step(rng.randrange(1, 6))
    run.limit_files(rank=0, size=2**20)
    run.ended(1)
    run.must_say("File too large; the checkpoint before it could not be written either")


@fault("newest checkpoint damaged", 3, costs=IN_FLIGHT + SAVE_EVERY)
def damaged_checkpoint(place, rng):
    """Changes, cuts or empties the newest checkpoint."""
    kill_after(rng.randrange(6, 10), place, rng)
    path = place.newest()[1]
    with open(path, "rb") as file:
        data = bytearray(file.read())
    how = rng.randrange(3)
    if how == 0:  # a byte of a tensor, which only a checksum notices
        data[len(data) // 2] ^= 255
    elif how == 1:
        data = data[: rng.randrange(1, len(data))]
    else:
        data = b""
    with open(path, "wb") as file:
        file.write(data)


@fault("fresh run beside an earlier one's files, SIGKILL", 3)
def fresh_run_beside_an_earlier_one(place, rng):
    """Kills a fresh run where another run has stopped before, whose files must stay as they are."""
    run = place.start("--seed", "2")
    run.wait_for_step(rng.randrange(5, 11))
    os.kill(run.pid, signal.SIGTERM)
    run.ended(143)
    earlier = place.contents()
    place.runs.clear()
    place.more = ("--keep", "1")
    kill_after(rng.randrange(1, 9), place, rng)
    (folder,) = place.files("", "earlier-")
    assert place.contents(folder) == earlier


@fault("second run in the same folder", 2, costs=0)
def second_run(place, rng):
    """Starts a second run while the first one lives; it is refused, and the first one does not notice."""
    run = place.start()
    run.wait_for_step(rng.randrange(1, 9))
    run.signal_rank(rank := rng.randrange(2), signal.SIGSTOP)  # since the second run waits for 10 s
    second = place.start(*rng.choice(((), ("--resume", "auto"))))
    second.ended(2)
    second.must_say("wait until it ends, or give another --output-dir")
    place.runs.remove(second)
    run.signal_rank(rank, signal.SIGCONT)
    os.kill(run.pid, signal.SIGTERM)
    run.ended(143)


@fault("broken JPEG, --on-bad-image stop", 3)
def broken_image(place, rng):
    """A training image becomes unreadable; the run stops."""
    run = place.start()
    run.wait_for_step(rng.randrange(1, 5))
    path = place.break_image(rng.randrange(96), rng.random())
    run.ended(1)
    run.must_say(f"can't decode the image '{path}'")
    place.mend()


@fault("broken JPEG, --on-bad-image skip, SIGKILL", 2)
def skipped_image(place, rng):
    """A training image is unreadable and replaced by another."""
    path = place.break_image(17, 0.5)
    place.refer_to("skip", "--on-bad-image", "skip")
    kill_after(rng.randrange(1, 9), place, rng)
    with open(place.file("bad_images.txt")) as file:
        assert file.read() == f"{path}\n"


@fault("SIGKILL of a data worker", 3)
def kill_worker(place, rng):
    """Kills a data worker."""
    run = place.start()
    run.wait_for_step(rng.randrange(1, 8))
    run.signal_worker(rng.randrange(2), signal.SIGKILL)
    run.ended(1)
    run.must_say("a data worker was killed")


@fault("SIGTERM to a data worker", 1, costs=0)
def stop_worker(place, rng):
    """SIGTERM to a data worker, which must ignore it, then to the launcher."""
    run = place.start()
    run.wait_for_step(rng.randrange(1, 6))
    run.signal_worker(rng.randrange(2), signal.SIGTERM)
    time.sleep(0.5)
    os.kill(run.pid, signal.SIGTERM)  # the worker's signal has no effect
    run.ended(143)


@fault("rank frozen, --timeout 5", 1)
def frozen_rank(place, rng):
    """Freezes a rank; the watchdog ends the run and names it."""
    run = place.start("--timeout", "5")
    run.wait_for_step(rng.randrange(1, 9))
    rank = rng.randrange(2)
    run.signal_rank(rank, signal.SIGSTOP)
    run.ended(1)
    run.must_say("paused by SIGSTOP) did not arrive")
    run.must_say(f"rank {rank} (epoch ")


@fault("loss not finite", 1)
def infinite_loss(place, rng):
    """A learning rate of 1e30 makes the loss infinite after a resume."""
    kill_after(rng.randrange(3, 9), place, rng)
    before = place.newest()
    run = place.start("--resume", "auto", "--lr", "1e30", "--force")
    run.ended(1)
    run.must_say("finite in")  # the loss, or a weight
    assert place.newest() == before
    place.runs.pop()


@fault("SIGKILL of a rank, torchrun --max-restarts", 2)
def torchrun_restarts(place, rng):
    """Kills a rank; torchrun starts all processes again."""
    run = place.start("--resume", "auto", torchrun=True)
    run.wait_for_step(rng.randrange(1, 9))
    run.signal_rank(rng.randrange(2), signal.SIGKILL)
    place.done = steps_done(run)
    run.ended(0)
    place.continued = run


@fault("SIGTERM, resumed by 1 process with --bn-splits 2", 1, costs=0)
def fewer_processes(place, rng):
    """Stops the run; one process continues it as two batch-norm groups."""
    stop(place, rng, lambda run: os.kill(run.pid, signal.SIGTERM))
    place.fewer = True


@fault("linear classification: SIGKILL of a rank", 2)
def probe_killed(place, rng):
    """Kills a rank of main_lincls.py."""
    place.probe()
    kill_in_step(place, rng)


@fault("linear classification: SIGTERM in validation", 2, costs=0)
def probe_stopped(place, rng):
    """Stops main_lincls.py during its validation."""
    place.probe()
    run = place.start()
    epoch = rng.randrange(2)
    run.wait_until(lambda: sum(line.startswith("Test:") for line in run.lines) > 3 * epoch)
    os.kill(run.pid, signal.SIGTERM)
    run.ended(143)
