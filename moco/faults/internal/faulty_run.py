"""A training run as a process that faults are injected into, its folder, and the comparison of its result."""

import glob
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import zipfile

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
SAVE_EVERY, STEPS = 2, 4  # steps between two checkpoints, and in an epoch
SHARED = ["-a", "shufflenet_v2_x0_5", "--crop-size", "32", "-b", "24", "--epochs", "3", "-j", "2", "-p", "1"]
SHARED += ["--seed", "1", "--save-every", str(SAVE_EVERY)]
PRETRAINING = [*SHARED, "--moco-k", "96", "--enable-scalemix", "--enable-asym-bn", "--enable-mean-encoding"]
PROBE = [*SHARED, "--pretrained", "none"]
MARK = "ASYM_SIAM_FAULT_RUN"  # environment variable that marks a run's processes, so that they are found later
PATIENCE = 120  # seconds


class TrainingRun:
    """A running script with its processes.

    Args:
        folder: the folder of its Workplace. script: file name of the script. words: the script's command line.
        processes: number of ranks. torchrun: whether torchrun starts them, with restarts.
    """

    def __init__(self, folder, script, words, processes=2, torchrun=False):
        launcher = [sys.executable, os.path.join(ROOT, script), "--nproc", str(processes)]
        if torchrun:
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            launcher += ["--max-restarts", "2", os.path.join(ROOT, script)]
        self.temporary = os.path.join(folder, "tmp")
        os.makedirs(self.temporary, exist_ok=True)
        # torch creates a folder for its compiler when it is imported.
        settings = {"TMPDIR": self.temporary, "TORCHINDUCTOR_CACHE_DIR": os.path.join(folder, "compiler")}
        cores = sorted(os.sched_getaffinity(0))[:2]  # one core per rank, also with torchrun
        self.process = subprocess.Popen(
            launcher + words,
            # Without GPUs, so that the runs need two processes but not two GPUs.
            env={**os.environ, **settings, MARK: folder, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        self.pid, self.lines = self.process.pid, []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    def wait_until(self, condition):
        """Waits until `condition()` is true; raises RuntimeError if the run ends before that."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the run ended or hung before that: {''.join(self.lines[-20:])}")
            time.sleep(0.001)

    def wait_for_step(self, n):
        """Waits until `n` steps are done."""
        self.wait_until(lambda: steps_done(self) >= n)

    def ended(self, code):
        """Waits for the end of the run; raises RuntimeError if its exit code is not `code`."""
        seen = self.process.wait(PATIENCE)
        self.reader.join(PATIENCE)
        if seen != code:
            raise RuntimeError(f"exit code {seen} rather than {code}: {''.join(self.lines[-20:])}")

    def must_say(self, words):
        """Raises RuntimeError if the run has not printed `words`."""
        if words not in "".join(self.lines):
            raise RuntimeError(f"the run does not say {words!r}: {''.join(self.lines[-20:])}")

    def ranks(self):
        """The process ids of its ranks."""
        return [pid for pid in children(self.pid) if "resource_tracker" not in command_of(pid)]

    def signal_rank(self, rank, number):
        """Sends a signal to one of its ranks."""
        os.kill(self.ranks()[rank], number)

    def signal_worker(self, rank, number):
        """Sends a signal to a data worker of a rank, from another program."""
        self.wait_until(lambda: len(children(self.ranks()[rank])) > 1)
        _watchdog, worker, *_ = children(self.ranks()[rank])
        subprocess.run(["kill", f"-{int(number)}", str(worker)], check=True)

    def limit_files(self, rank, size):
        """Limits the size of every file that a rank writes to `size` bytes, which acts like a full disk."""
        resource.prlimit(self.ranks()[rank], resource.RLIMIT_FSIZE, (size, size))


class Workplace:
    """The folder of a run that suffers a fault and is then resumed.

    Args:
        folder: an empty folder. images: a fake ImageNet with STEPS batches.
        references: dict from the kind of run to the final checkpoint of a run without a fault; filled when needed.
    """

    def __init__(self, folder, images, references):
        self.folder, self.images, self.references = folder, images, references
        self.output = os.path.join(folder, "output")
        self.script, self.words, self.last = "main_moco.py", PRETRAINING, "checkpoint__0002.pth.tar"
        self.runs, self.kind, self.more, self.continued = [], "plain", (), None
        self.fewer, self.broken, self.done = False, None, None

    def probe(self):
        """Switches to linear classification."""
        self.script, self.words, self.last, self.kind = "main_lincls.py", PROBE, "checkpoint.pth.tar", "probe"

    def refer_to(self, kind, *more):
        """Adds flags to all its runs and to the run without a fault that they are compared with."""
        self.kind, self.more = kind, more

    def start(self, *more, torchrun=False):
        """Starts a run and returns it; `more` are additional flags."""
        self.runs.append(self._run(self.output, more, torchrun=torchrun))
        return self.runs[-1]

    def _run(self, output, more=(), **how):
        words = [self.images, "--output-dir", output, *self.words, *self.more, *more]
        return TrainingRun(self.folder, self.script, words, **how)

    def file(self, name):
        """The path of a file of the output folder."""
        return os.path.join(self.output, name)

    def files(self, ending, beginning=""):
        """The names in the output folder with that ending and beginning."""
        names = os.listdir(self.output) if os.path.exists(self.output) else []
        return [name for name in names if name.endswith(ending) and name.startswith(beginning)]

    def contents(self, below=""):
        """The checkpoints in the output folder, or a folder in it: dict from name to bytes."""
        return {
            os.path.basename(path): open(path, "rb").read()
            for path in glob.glob(os.path.join(self.output, below, "*.pth.tar"))
        }

    def break_image(self, index, share):
        """Cuts a training image to that share of its bytes, until `mend` is called; returns its path."""
        path = sorted(glob.glob(os.path.join(self.images, "train", "*", "*")))[index]
        with open(path, "rb") as file:
            self.broken = path, file.read()
        with open(path, "wb") as file:
            file.write(self.broken[1][: int(share * len(self.broken[1]))])
        return path

    def mend(self):
        """Restores the broken image, if there is one."""
        if self.broken:
            path, data = self.broken
            with open(path, "wb") as file:
                file.write(data)

    def newest(self):
        """The newest intact checkpoint as (steps done, path); (0, None) if there is none."""
        places = [(0, None)]
        for path in map(self.file, self.files(".pth.tar")):
            try:
                checkpoint = torch.load(path, weights_only=True)
                with zipfile.ZipFile(path) as file:
                    if file.testzip() is not None:  # a wrong checksum, which torch ignores
                        continue
            except Exception:
                continue
            places.append((STEPS * checkpoint["epoch"] + checkpoint["step"], path))
        return max(places, key=lambda place: place[0])

    def finish(self, newest):
        """Resumes the run by --resume auto and waits for its end; returns the step from which it continued.

        Args:
            newest: the newest intact checkpoint, as `self.newest` returns it.

        Raises:
            RuntimeError: the run continued from an older checkpoint.
        """
        run = self.continued
        if run is None:
            fewer = ("--bn-splits", "2") if self.fewer else ()
            run = self._run(self.output, ("--resume", "auto", *fewer), processes=1 if self.fewer else 2)
            run.ended(0)
        found = re.findall(r"^resumed .*: (\d+) of \d+ epochs(?: and (\d+) steps)? are done", "".join(run.lines), re.M)
        at = STEPS * int(found[-1][0]) + int(found[-1][1] or 0) if found else 0
        if run is not self.continued and at < newest[0]:
            raise RuntimeError(f"continued from step {at}, although {newest[1]} has {newest[0]} steps")
        return at

    def compare(self):
        """Whether the result equals that of the run without a fault: "yes" (bit by bit), "1e-3" (within) or "no"."""
        if self.kind not in self.references:
            output = os.path.join(self.folder, "reference")
            self._run(output).ended(0)
            self.references[self.kind] = torch.load(os.path.join(output, self.last), weights_only=True)
        a, b = self.references[self.kind], torch.load(self.file(self.last), weights_only=True)
        weights = [(tensor, b["state_dict"][name]) for name, tensor in a["state_dict"].items()]
        if self.fewer:
            return "1e-3" if all(torch.allclose(x, y, 1e-3, 1e-3) for x, y in weights) else "no"
        if self.kind == "probe":
            best = torch.load(self.file("model_best.pth.tar"), weights_only=True)
            if not a["best_acc1"] == b["best_acc1"] == best["best_acc1"]:
                return "no"
        states = zip(*(x["optimizer"]["state"].values() for x in (a, b)), strict=True)
        pairs = [*weights, *((x["momentum_buffer"], y["momentum_buffer"]) for x, y in states)]
        return "yes" if all(torch.equal(x, y) for x, y in pairs) else "no"

    def tidy(self):
        """ "yes" if nothing is left behind, or else a list of processes and temporary files."""
        deadline = time.monotonic() + 20  # a data worker checks for its parent every 5 seconds
        while (left := processes_of(self.folder)) and time.monotonic() < deadline:
            time.sleep(0.1)
        temporary = os.listdir(os.path.join(self.folder, "tmp"))
        files = self.files(".tmp") + [name for name in temporary if not name.startswith("torchelastic_")]  # torchrun's
        return ", ".join([f"process {pid}" for pid in left] + files) or "yes"

    def close(self):
        """Kills processes that are left and restores the broken image."""
        for pid in processes_of(self.folder):
            os.kill(pid, signal.SIGKILL)
        self.mend()


def steps_done(run):
    """The number of finished steps of the whole training, from a run's log."""
    found = re.findall(r"^Epoch: \[(\d+)\]\[ *(\d+)/", "".join(run.lines), re.M)
    return max((STEPS * int(epoch) + int(step) + 1 for epoch, step in found), default=0)


def children(pid):
    """The process ids of a process's children, in the order of their start."""
    found = []
    for other in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            with open(f"/proc/{other}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append((int(fields[19]), other))
    return [other for _, other in sorted(found)]


def command_of(pid):
    """A process's command line."""
    with open(f"/proc/{pid}/cmdline") as file:
        return file.read().replace("\0", " ")


def processes_of(folder):
    """The process ids of the remaining processes of a Workplace's runs."""
    mark, found = f"{MARK}={folder}".encode(), []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    found.append(int(pid))
        except OSError:
            continue
    return found
