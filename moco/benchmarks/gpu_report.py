"""Tries and measures on a GPU what needs one, and writes a report with the tables of moco/benchmarks/README.md.

    python -m moco.benchmarks.gpu_report --out DIR [--minutes 9] [--only NAME ...] [--small]

It runs parts, the most telling first: the tests marked gpu, the training step beside the original's, the augmentation
on the GPU, the memory over epochs, a real run from JPEGs, a SIGTERM with its resume, linear classification, NCCL.
DIR/report.json and DIR/report.md are written after each part, and DIR/NAME.log has the output of the part NAME.

A call ends when its time is over, and the report lists the parts that did not fit. Another call with the same DIR
continues: it does not repeat what is done or skipped, and it runs last what has failed before. A part that takes more
than half of --minutes is killed and has failed. DIR keeps the generated images (about 250 MB) and a checkpoint.

The exit code is 0, or 1 if a part has failed.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    name = "moco.benchmarks.gpu_report"
    print(f"error: this program can't be started by its path; use python -m {name}", file=sys.stderr)
    sys.exit(2)

import fnmatch
import json
import os
import signal
import time
import traceback
from datetime import timedelta

import torch

from moco.benchmarks.internal.gpu_report_job import Job, PartFailed, PartSkipped, TimeOver
from moco.benchmarks.internal.gpu_report_parts import PARTS, PROGRAMS
from moco.benchmarks.internal.gpu_report_tables import markdown
from moco.data.worker_processes import STOP_SIGNALS
from moco.engine.command_line import Parser, number, output_folder
from moco.engine.early_signals import EXIT_CODE
from moco.pipe_safe_print import first_line, say

SMALL_ESTIMATE = 10  # seconds that a part takes with --small
LINES = 20  # of a failed part's output that the report has


def main(argv=None):
    parser = Parser(__doc__, __spec__.name, example="--out report")
    help = "folder of the report; it is created if it is missing"
    parser.add_argument("--out", metavar="DIR", type=output_folder, required=True, help=help)
    minutes = number(float, 0, 10**4, exclusive=True)
    parser.add_argument("--minutes", metavar="M", type=minutes, default=9, help="time for this call")
    help = f"run only these parts; a NAME may have wildcards, as 'step-*'. The parts: {', '.join(PARTS)}"
    parser.add_argument("--only", metavar="NAME", nargs="+", help=help)
    help = "shrink everything to try this program on a CPU in 3 minutes; parts that need a GPU are skipped"
    parser.add_argument("--small", action="store_true", help=help)
    args = parser.parse_args(argv)
    end = time.monotonic() + 60 * args.minutes
    out = os.path.abspath(args.out)
    try:
        names = chosen(args.only)
        if not args.small and not torch.cuda.is_available():
            raise ValueError("no GPU is visible, and this report is about one; give --small to try it on the CPU")
        report = opened(out, args.small)
    except ValueError as error:
        parser.error(error)
    run_parts(names, out, report, end, 60 * args.minutes / 2)
    counts = [part["status"] for part in report["parts"].values()]
    counts = ", ".join(f"{counts.count(status)} {status}" for status in dict.fromkeys(counts))
    say(f"{counts}; {os.path.join(out, 'report.md')}")
    sys.exit(any(part["status"] == "failed" for part in report["parts"].values()))


def chosen(patterns):
    """The names of the parts that --only selects, in their order; raises ValueError for a pattern of no part."""
    for pattern in patterns or ():
        if not fnmatch.filter(PARTS, pattern):
            raise ValueError(f"--only {pattern!r} is no part; give some of {', '.join(PARTS)}")
    return [name for name in PARTS if not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def opened(out, small):
    """The report of an earlier call in the folder `out`, or a new one; with this call's machine and date.

    Raises:
        ValueError: the folder can't be used, or its report is of another kind or of another machine.
    """
    path, report = os.path.join(out, "report.json"), {"small": small, "commits": [], "parts": {}}
    try:
        os.makedirs(out, exist_ok=True)
        if os.path.exists(path):
            with open(path) as file:
                earlier = json.load(file)
            report = {key: earlier[key] for key in ("small", "commits", "parts", "machine")}
        elif os.path.exists(os.path.join(out, "work")):  # a Job would remove it
            raise ValueError(f"--out {out!r} has a folder 'work', but no report; give another folder")
    except OSError as error:
        raise ValueError(f"--out {out!r} can't be used: {error.strerror}; give another folder") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{path!r} is damaged; remove it, or give another --out") from None
    if report["small"] != small:
        there, here = ("without", "with") if small else ("with", "without")
        raise ValueError(f"--out {out!r} has a report {there} --small, this call is {here} it; give another folder")
    facts = machine(out, small)
    for name in ("device", "gpus", "torch"):
        if (before := report.get("machine", facts)[name]) != facts[name]:
            difference = f"{name} was {before} there and is {facts[name]} here"
            raise ValueError(f"--out {out!r} has a report of another machine: {difference}; give another folder")
    commits = dict.fromkeys([*report["commits"], str(facts["commit"])])
    date = time.strftime("%Y-%m-%d")
    return report | {"machine": facts, "commits": list(commits), "date": date, "names": list(PARTS)}


def machine(out, small):
    """What the program `machine` finds out, a dict; raises ValueError if it fails.

    It runs in a process of its own, since this one must not occupy a GPU.
    """
    with Job(out, "machine", small, {}, time.monotonic() + 120) as job:
        try:
            return job.result_of(*PROGRAMS, "machine")
        except (PartFailed, TimeOver) as error:
            raise ValueError(f"the machine can't be examined: {first_line(error)}; see {job.log!r}") from None


def run_parts(names, out, report, end, half):
    """Runs the parts that are not done yet, and writes the report after each of them.

    Args:
        names: of the parts. out: the report's folder. report: the dict of report.json, which is updated.
        end: when the time of this call is over, on the clock of time.monotonic(). half: seconds that a part may take.
    """
    parts = report["parts"]
    left = [name for name in names if parts.get(name, {}).get("status") not in ("done", "skipped")]
    write(out, report)
    if not left:
        say("nothing is left to do")
    left.sort(key=lambda name: parts.get(name, {}).get("status") == "failed")
    estimates = [SMALL_ESTIMATE if report["small"] else PARTS[name].estimate for name in left]
    for i, (name, estimate) in enumerate(zip(left, estimates, strict=True)):
        rest = end - time.monotonic()
        if rest < min(estimate, half) / 2:
            reason = f"{max(rest, 0):.0f} s were left, and it takes about {estimate} s"
            part = {"status": "did not fit", "reason": reason, "seconds": 0, "commands": [], "figures": {}}
        else:
            seconds = timedelta(seconds=round(min(rest, sum(estimates[i:]))))
            say(f"gpu_report: {i} of {len(left)} parts, {seconds} left; now: {name}, about {estimate} s", True)
            part = attempt(name, out, report, end, half)
        status, reason = part["status"], part["reason"]
        say(f"{name}: {status} after {part['seconds']:.0f} s" + f" ({reason})" * bool(reason))
        if status != "did not fit" or parts.get(name, {}).get("status") != "failed":  # a failure is not forgotten
            parts[name] = part
        write(out, report)


def attempt(name, out, report, end, half):
    """Runs one part; returns its entry in the report. The arguments are those of `run_parts`."""
    start, reason = time.monotonic(), ""
    with Job(out, name, report["small"], report["machine"], min(end, start + half)) as job:
        try:
            PARTS[name].function(job)
            status = "done"
        except PartSkipped as error:
            status, reason = "skipped", str(error)
        except TimeOver:
            status, reason = "did not fit", "it was killed when the time was over"
            if job.end < end:
                status, reason = "failed", f"it was killed after {half:.0f} s, half of --minutes; give more --minutes"
        except PartFailed as error:
            status, reason = "failed", str(error)
        except Exception as error:
            status, reason = "failed", f"{type(error).__name__}: {first_line(error)}"
            with open(job.log, "a") as log:
                traceback.print_exc(file=log)
    part = {"status": status, "reason": reason, "seconds": time.monotonic() - start}
    part |= {"commands": job.commands, "figures": job.figures}
    return part | ({"output": job.lines()[-LINES:]} if status == "failed" else {})


def write(out, report):
    """Writes report.json and report.md, each in one step, so that a killed call leaves complete files."""
    for name, text in (("report.json", json.dumps(report, indent=1) + "\n"), ("report.md", markdown(report))):
        path = os.path.join(out, name)
        with open(f"{path}.tmp", "w") as file:
            file.write(text)
        os.replace(f"{path}.tmp", path)


if __name__ == "__main__":
    for stop in STOP_SIGNALS:  # an orderly exit, which ends the programs that this one has started
        signal.signal(stop, lambda *_: sys.exit(EXIT_CODE))
    main()
