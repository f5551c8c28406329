"""A training run as a process to be hurt, its output folder, and the comparison with an undisturbed run."""

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

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SAVE_EVERY, STEPS = 2, 4  # steps between checkpoints, and in an epoch
SHARED = ["-a", "shufflenet_v2_x0_5", "--crop-size", "32", "-b", "24", "--epochs", "3", "-j", "2", "-p", "1"]
SHARED += ["--seed", "1", "--save-every", str(SAVE_EVERY)]
PRETRAINING = [*SHARED, "--moco-k", "96", "--enable-scalemix", "--enable-asym-bn", "--enable-mean-encoding"]
PROBE = [*SHARED, "--pretrained", "none"]
MARK = "ASYM_SIAM_HURT_RUN"  # an environment variable, by which a run's processes are found
PATIENCE = 120  # seconds


class HurtRun:
    """A run of one of the scripts on 2 processes.

    Args:
        folder: a Workplace's, for its temporary files. words: the command line after the script's name.
    """

    def __init__(self, folder, script, words, processes=2, torchrun=False):
        launcher = [sys.executable, os.path.join(ROOT, script), "--nproc", str(processes)]
        if torchrun:
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            launcher += ["--max-restarts", "2", os.path.join(ROOT, script)]
        self.temporary = os.path.join(folder, "tmp")
        os.makedirs(self.temporary, exist_ok=True)
        # Importing torch makes a folder for its compiler.
        settings = {"TMPDIR": self.temporary, "TORCHINDUCTOR_CACHE_DIR": os.path.join(folder, "compiler")}
        cores = sorted(os.sched_getaffinity(0))[:2]  # one a process, whatever the launcher
        self.process = subprocess.Popen(
            launcher + words,
            env={**os.environ, **settings, MARK: folder, "OMP_NUM_THREADS": "1"},
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
        """Waits for `condition()` while the run goes on."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the run did not come so far: {''.join(self.lines[-20:])}")
            time.sleep(0.001)

    def wait_for_step(self, n):
        """Waits until `n` steps are done."""
        self.wait_until(lambda: steps_done(self) >= n)

    def ended(self, code):
        """Sees to it that the run ends by itself, with this exit code."""
        seen = self.process.wait(PATIENCE)
        self.reader.join(PATIENCE)
        if seen != code:
            raise RuntimeError(f"exit code {seen} rather than {code}: {''.join(self.lines[-20:])}")

    def must_say(self, words):
        """Raises RuntimeError where the run has not printed `words`."""
        if words not in "".join(self.lines):
            raise RuntimeError(f"the run does not say {words!r}: {''.join(self.lines[-20:])}")

    def ranks(self):
        """The process numbers of its ranks."""
        return [pid for pid in children(self.pid) if "resource_tracker" not in command_of(pid)]

    def signal_rank(self, rank, number):
        """Sends a signal to one of its ranks."""
        os.kill(self.ranks()[rank], number)

    def signal_worker(self, rank, number):
        """Sends a signal, as from another program, to a data worker of a rank."""
        self.wait_until(lambda: children(self.ranks()[rank]))
        subprocess.run(["kill", f"-{int(number)}", str(children(self.ranks()[rank])[0])], check=True)

    def limit_files(self, rank, size):
        """Lets no file of a rank grow beyond `size` bytes, as on a disk that is full."""
        resource.prlimit(self.ranks()[rank], resource.RLIMIT_FSIZE, (size, size))


class Workplace:
    """The folder of a run that is hurt and then continued.

    Args:
        folder: an empty one. images: a fake ImageNet of `STEPS` batches.
        references: dict of what to final checkpoints of undisturbed runs, filled as they are needed.
    """

    def __init__(self, folder, images, references):
        self.folder, self.images, self.references = folder, images, references
        self.output = os.path.join(folder, "output")
        self.script, self.words, self.last = "main_moco.py", PRETRAINING, "checkpoint__0002.pth.tar"
        self.runs, self.kind, self.more, self.continued = [], "plain", (), None
        self.fewer, self.broken, self.done = False, None, None

    def probe(self):
        """Makes it a place of linear classification."""
        self.script, self.words, self.last, self.kind = "main_lincls.py", PROBE, "checkpoint.pth.tar", "probe"

    def refer_to(self, kind, *more):
        """Gives all its runs, and the undisturbed one, more flags."""
        self.kind, self.more = kind, more

    def start(self, *more, torchrun=False):
        """Starts a run; `more` are flags."""
        self.runs.append(self._run(self.output, more, torchrun=torchrun))
        return self.runs[-1]

    def _run(self, output, more=(), **how):
        words = [self.images, "--output-dir", output, *self.words, *self.more, *more]
        return HurtRun(self.folder, self.script, words, **how)

    def file(self, name):
        """The path of a file of the output folder."""
        return os.path.join(self.output, name)

    def files(self, ending):
        """The names of the files of the output folder that end so."""
        names = os.listdir(self.output) if os.path.exists(self.output) else []
        return [name for name in names if name.endswith(ending)]

    def break_image(self, index, share):
        """Leaves that share of a training image's bytes, until `mend`; returns its path."""
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
        """(steps done, path) of the newest intact checkpoint, (0, None) without one."""
        places = [(0, None)]
        for path in map(self.file, self.files(".pth.tar")):
            try:
                checkpoint = torch.load(path, weights_only=True)
                with zipfile.ZipFile(path) as file:
                    if file.testzip() is not None:  # a wrong checksum, of which torch takes no notice
                        continue
            except Exception:
                continue
            places.append((STEPS * checkpoint["epoch"] + checkpoint["step"], path))
        return max(places, key=lambda place: place[0])

    def finish(self, newest):
        """Has --resume auto go on to the end; returns after how many steps it went on.

        Raises:
            RuntimeError: that was before the newest checkpoint.
        """
        run = self.continued
        if run is None:
            fewer = ("--bn-splits", "2") if self.fewer else ()
            run = self._run(self.output, ("--resume", "auto", *fewer), processes=1 if self.fewer else 2)
            run.ended(0)
        found = re.findall(r"^resumed .*: (\d+) of \d+ epochs(?: and (\d+) steps)? are done", "".join(run.lines), re.M)
        at = STEPS * int(found[-1][0]) + int(found[-1][1] or 0) if found else 0
        if run is not self.continued and at < newest[0]:
            raise RuntimeError(f"went on after {at} steps, though {newest[1]} has {newest[0]}")
        return at

    def compare(self):
        """ "yes", "no", or "1e-3": whether the end is the undisturbed run's, and how exactly."""
        if self.kind not in self.references:
            output = os.path.join(self.folder, "undisturbed")
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
        """ "yes", or what is left: processes, temporary files."""
        deadline = time.monotonic() + 20  # a data worker looks for its parent every 5 seconds
        while (left := processes_of(self.folder)) and time.monotonic() < deadline:
            time.sleep(0.1)
        temporary = os.listdir(os.path.join(self.folder, "tmp"))
        files = self.files(".tmp") + [name for name in temporary if not name.startswith("torchelastic_")]  # torchrun's
        return ", ".join([f"process {pid}" for pid in left] + files) or "yes"

    def close(self):
        """Ends what is left and mends what was broken."""
        for pid in processes_of(self.folder):
            os.kill(pid, signal.SIGKILL)
        self.mend()


def steps_done(run):
    """How many steps of the whole training a run's log shows as done."""
    found = re.findall(r"^Epoch: \[(\d+)\]\[ *(\d+)/", "".join(run.lines), re.M)
    return max((STEPS * int(epoch) + int(step) + 1 for epoch, step in found), default=0)


def children(pid):
    """The process numbers of a process's children, in the order in which they were started."""
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
    """The process numbers of what is left of a Workplace's runs."""
    mark, found = f"{MARK}={folder}".encode(), []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    found.append(int(pid))
        except OSError:
            continue
    return found
