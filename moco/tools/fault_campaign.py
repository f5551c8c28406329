"""Hurts runs in every way that it knows, has --resume auto go on, and compares with runs that nothing happened to.

On a tiny fake ImageNet, 2 processes, Linux. Each row of the table is a fault at a random moment (of --seed): how many
steps were done, from which one the run went on, how many that cost and may cost, whether its final weights and
optimizer state are the undisturbed run's to the bit, and whether it left no process and no temporary file. Takes about
20 minutes on 2 cores.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress

import torch

from moco.interruption import ECHO
from moco.tools import fake_imagenet
from moco.tools.hurt_run import SAVE_EVERY, Workplace, steps_done

FAULTS = {}  # name: (times, steps that it may cost, function of (Workplace, random.Random))
IN_FLIGHT = 2 * SAVE_EVERY  # steps since the last checkpoint but one, if the last was being written


def fault(name, times=1, costs=IN_FLIGHT):
    """Registers a function that starts runs in a Workplace, hurts them and sees them end."""

    def register(function):
        FAULTS[name] = times, costs, function
        return function

    return register


def kill_after(steps, place, rng):
    """A run that ends when one of its ranks is killed after so many steps."""
    run = place.start()
    run.wait_for_step(steps)
    run.signal_rank(rng.randrange(2), signal.SIGKILL)
    run.ended(1)


@fault("SIGKILL of a rank, in a step", 6)
def kill_in_step(place, rng):
    run = place.start()
    run.wait_for_step(rng.randrange(1, 11))
    time.sleep(rng.random() * 0.3)
    run.signal_rank(rng.randrange(2), signal.SIGKILL)
    run.ended(1)


@fault("SIGKILL of rank 0, in a checkpoint write", 4)
def kill_in_write(place, rng):
    run = place.start()
    run.wait_for_step(rng.randrange(1, 8))
    run.wait_until(lambda: place.files(".tmp"))
    run.signal_rank(0, signal.SIGKILL)
    run.ended(1)


@fault("SIGKILL of a rank, between epochs", 4)
def kill_between_epochs(place, rng):
    run = place.start()
    epoch = rng.randrange(2)
    run.wait_until(lambda: place.files(f"_{epoch:04d}.pth.tar"))
    run.signal_rank(rng.randrange(2), signal.SIGKILL)
    run.ended(1)


@fault("SIGKILL of the launcher", 2, costs=0)
def kill_launcher(place, rng):
    run = place.start()
    run.wait_for_step(rng.randrange(1, 9))
    os.kill(run.pid, signal.SIGKILL)
    run.ended(-signal.SIGKILL)


def stop(place, rng, send):
    """A run that is stopped by what `send` does to it."""
    run = place.start()
    run.wait_for_step(rng.randrange(1, 9))
    time.sleep(rng.random() * 0.3)
    send(run)
    run.ended(143)


@fault("SIGTERM to the launcher", 2, costs=0)
def stop_launcher(place, rng):
    stop(place, rng, lambda run: os.kill(run.pid, signal.SIGTERM))


@fault("SIGTERM to a rank", 2, costs=0)
def stop_rank(place, rng):
    stop(place, rng, lambda run: run.signal_rank(rng.randrange(2), signal.SIGTERM))


@fault("SIGTERM to the whole group", 3, costs=0)
def stop_group(place, rng):
    stop(place, rng, lambda run: os.killpg(run.pid, signal.SIGTERM))


@fault("SIGUSR1 to a rank", 1, costs=0)
def stop_by_usr1(place, rng):
    stop(place, rng, lambda run: run.signal_rank(rng.randrange(2), signal.SIGUSR1))


@fault("SIGINT to the whole group", 1, costs=0)
def stop_by_int(place, rng):
    stop(place, rng, lambda run: os.killpg(run.pid, signal.SIGINT))


@fault("SIGTERM twice, a rank being frozen", 2)
def stop_twice(place, rng):
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
    run = place.start()
    run.wait_for_step(rng.randrange(1, 6))
    run.limit_files(rank=0, size=2**20)
    run.ended(1)
    run.must_say("File too large; nor could the checkpoint before it")


@fault("newest checkpoint damaged", 3, costs=IN_FLIGHT + SAVE_EVERY)
def damaged_checkpoint(place, rng):
    kill_after(rng.randrange(6, 10), place, rng)
    path = place.newest()[1]
    with open(path, "rb") as file:
        data = bytearray(file.read())
    how = rng.randrange(3)
    if how == 0:  # bytes of a tensor, of which only a checksum tells
        data[len(data) // 2] ^= 255
    elif how == 1:
        data = data[: rng.randrange(1, len(data))]
    else:
        data = b""
    with open(path, "wb") as file:
        file.write(data)


@fault("broken JPEG, --on-bad-image stop", 3)
def broken_image(place, rng):
    run = place.start()
    run.wait_for_step(rng.randrange(1, 5))
    path = place.break_image(rng.randrange(96), rng.random())
    run.ended(1)
    run.must_say(f"can't decode the image '{path}'")
    place.mend()


@fault("broken JPEG, --on-bad-image skip, SIGKILL", 2)
def skipped_image(place, rng):
    path = place.break_image(17, 0.5)
    place.refer_to("skip", "--on-bad-image", "skip")
    kill_after(rng.randrange(1, 9), place, rng)
    with open(place.file("bad_images.txt")) as file:
        assert file.read() == f"{path}\n"


@fault("SIGKILL of a data worker", 3)
def kill_worker(place, rng):
    run = place.start()
    run.wait_for_step(rng.randrange(1, 8))
    run.signal_worker(rng.randrange(2), signal.SIGKILL)
    run.ended(1)
    run.must_say("a data worker was killed")


@fault("SIGTERM to a data worker", 1, costs=0)
def stop_worker(place, rng):
    run = place.start()
    run.wait_for_step(rng.randrange(1, 6))
    run.signal_worker(rng.randrange(2), signal.SIGTERM)
    time.sleep(0.5)
    os.kill(run.pid, signal.SIGTERM)  # the worker's did nothing
    run.ended(143)


@fault("rank frozen, --timeout 5", 1)
def frozen_rank(place, rng):
    run = place.start("--timeout", "5")
    run.wait_for_step(rng.randrange(1, 9))
    rank = rng.randrange(2)
    run.signal_rank(rank, signal.SIGSTOP)
    run.ended(1)
    run.must_say(f"wait for rank {rank} (no answer), which did not arrive")


@fault("loss not finite", 1)
def infinite_loss(place, rng):
    kill_after(rng.randrange(3, 9), place, rng)
    before = place.newest()
    run = place.start("--resume", "auto", "--lr", "1e30", "--force")
    run.ended(1)
    run.must_say("is not finite")
    assert place.newest() == before
    place.runs.pop()


@fault("SIGKILL of a rank, torchrun --max-restarts", 2)
def torchrun_restarts(place, rng):
    run = place.start("--resume", "auto", torchrun=True)
    run.wait_for_step(rng.randrange(1, 9))
    run.signal_rank(rng.randrange(2), signal.SIGKILL)
    place.done = steps_done(run)
    run.ended(0)
    place.continued = run


@fault("SIGTERM, resumed by 1 process with --bn-splits 2", 1, costs=0)
def fewer_processes(place, rng):
    stop(place, rng, lambda run: os.kill(run.pid, signal.SIGTERM))
    place.fewer = True


@fault("linear classification: SIGKILL of a rank", 2)
def probe_killed(place, rng):
    place.probe()
    kill_in_step(place, rng)


@fault("linear classification: SIGTERM in validation", 2, costs=0)
def probe_stopped(place, rng):
    place.probe()
    run = place.start()
    epoch = rng.randrange(2)
    run.wait_until(lambda: sum(line.startswith("Test:") for line in run.lines) > 3 * epoch)
    os.kill(run.pid, signal.SIGTERM)
    run.ended(143)


def trial(name, root, images, references, seed):
    """Hurts, continues and compares; returns the row of the table and whether all is well."""
    rng, (_, costs, hurt) = random.Random(f"{name} {seed}"), FAULTS[name]
    with tempfile.TemporaryDirectory(dir=root) as folder:
        place = Workplace(folder, images, references)
        try:
            hurt(place, rng)
            done, newest = place.done or steps_done(place.runs[0]), place.newest()
            resumed_at = place.finish(newest)
            equal, tidy = place.compare(), place.tidy()
        finally:
            place.close()
    lost = max(0, done - resumed_at)
    well = lost <= costs and equal != "no" and tidy == "yes"
    return f"{name:<52} {done:>5} {resumed_at:>7} {lost:>5} {costs:>6} {equal:>7} {tidy:>6}", well


def campaign(names, seed, rounds=None):
    """Runs the named faults, each as often as its table says or `rounds` times; returns how many went wrong."""
    wrong = count = 0
    print(f"{'fault':<52} {'done':>5} {'resumed':>7} {'lost':>5} {'at most':>6} {'equal':>6} {'tidy':>6}", flush=True)
    with tempfile.TemporaryDirectory() as root:
        images = os.path.join(root, "images")
        fake_imagenet.make(images, train=8, val=3, size=40)
        references = {}
        for name in names:
            for i in range(rounds or FAULTS[name][0]):
                try:
                    row, well = trial(name, root, images, references, f"{seed} {i}")
                except Exception as error:
                    row, well = f"{name:<52} failed: {error}", False
                print(row, flush=True)
                count, wrong = count + 1, wrong + (not well)
    print(f"{count} faults, {wrong} of them with too much lost, a difference or something left behind; seed {seed}")
    print(f"a checkpoint every {SAVE_EVERY} steps, 4 steps an epoch, torch {torch.__version__}", flush=True)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    parser.add_argument("--rounds", type=int, help="of each fault, in place of its own number")
    parser.add_argument("--only", metavar="WORDS", default="", help="faults whose names contain this")
    args = parser.parse_args()
    sys.exit(campaign([name for name in FAULTS if args.only in name], args.seed, args.rounds) > 0)


if __name__ == "__main__":
    main()
