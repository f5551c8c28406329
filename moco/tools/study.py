"""A study: pretrains with each design on either side, and measures what the encoders have learned.

    python -m moco.tools.study DIR --out FOLDER --runs baseline multicrop multicrop:target --seeds 0 1 2 -- -a resnet18

The name of a run is baseline, or designs that are joined by +, each as --design of main_moco.py takes it. What follows
-- are flags of main_moco.py for all runs. Each run is pretrained, and then its frozen features are classified by kNN
and by logistic regression; so are those of a random network. FOLDER gets results.jsonl (a line for each run and seed),
table.md and study.png. If the study was interrupted, the same command continues it.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.tools.study", file=sys.stderr)
    sys.exit(2)
if __name__ == "__main__":
    from moco.engine.early_signals import exit_on_signals

    exit_on_signals()  # before the imports that take seconds

import argparse
import os
import shlex
import traceback

import main_lincls
import main_moco
from moco.engine.command_line import SEED, Parser, number, output_folder
from moco.engine.early_signals import EXIT_CODE
from moco.engine.known_causes import known_cause
from moco.engine.preemption import Stopped
from moco.engine.stop_signals_raise import stop_signals_raise
from moco.pipe_safe_print import say
from moco.tools.internal.study_programs import ProgramFailed, gpu_shares, run_at_once
from moco.tools.internal.study_results import write_results
from moco.tools.internal.study_runs import BASELINE, name_of, paper_runs, parse_run
from moco.tools.internal.study_settings import complete_flags, open_study
from moco.tools.internal.study_stages import missing_stages, perform


class StudyParser(Parser):
    """A Parser that says where the flags of the scripts belong."""

    def _check_flag(self, word):
        name = word.partition("=")[0]
        if name.startswith("-") and name not in self._option_string_actions:
            places = ((main_moco, "after --"), (main_lincls, f"like --lincls='{word}'"))
            known = [
                (script, place) for script, place in places if name in script.build_parser()._option_string_actions
            ]
            if known:
                them = (f"a flag of {script.__name__}.py (give it {place})" for script, place in known)
                self.error(f"{name} is {' and '.join(them)}")
        super()._check_flag(word)


def build_parser():
    """The parser of the study's own flags; those after -- are not for it."""
    parser = StudyParser(__doc__, __spec__.name, "/path/to/imagenet --out study --preset paper -- -a resnet18")
    add, some = parser.add_argument, number(int, 1)
    add("dir", metavar="DIR", help="images for the pretraining, as main_moco.py takes them")
    add("--out", metavar="FOLDER", type=output_folder, required=True, help="folder for the runs and results")
    help = "folder whose train and val are classified, each with one folder of images per class (default: DIR)"
    add("--labelled", metavar="DIR2", help=help)
    which = parser.add_mutually_exclusive_group()
    help = "runs, such as baseline, multicrop, multicrop:target, scalemix:both, multicrop+mean_encoding"
    which.add_argument("--runs", metavar="NAME", nargs="+", type=run_name, help=f"{help} (default: {BASELINE})")
    help = "paper: the baseline, and each of the five designs on the source, the target and both"
    which.add_argument("--preset", choices=["paper"], help=help)
    help = "random seeds; each run is repeated with each (default: 0)"
    add("--seeds", metavar="N", nargs="+", type=SEED, help=help)
    help = "cross-validate over train and val together, in N parts (default: classify val by means of train)"
    add("--folds", metavar="N", type=number(int, 2), help=help)
    help = "runs at once; each gets the Nth part of the cores and GPUs"
    add("--jobs", metavar="N", type=some, default=1, help=help)
    help = "also classify by main_lincls.py, with these flags, such as --lincls='--lars --epochs 50'"
    add("--lincls", metavar="FLAGS", nargs="?", const="", type=flag_words, help=help)
    help = "only print one command for each run and seed, for an array of jobs of a cluster"
    add("--print-commands", action="store_true", help=help)
    parser.usage = f"{parser.format_usage().removeprefix('usage: ').rstrip()} [-- FLAGS of main_moco.py]"
    return parser


def run_name(text):
    """Converter for argparse: the one name of a run."""
    try:
        return name_of(parse_run(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def flag_words(text):
    """Converter for argparse: the words of a command line."""
    try:
        return shlex.split(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} has a quotation mark without a second one; add it") from None


def main(argv=None):
    parser, words = build_parser(), sys.argv[1:] if argv is None else list(argv)
    end = words.index("--") if "--" in words else len(words)
    args, flags = parser.parse_args(words[:end]), words[end + 1 :]
    names = paper_runs() if args.preset else args.runs or [BASELINE]
    jobs = [(name, seed) for seed in dict.fromkeys(args.seeds or [0]) for name in dict.fromkeys(names)]
    gpus = gpu_shares(args.jobs)
    os.environ |= gpus[0]  # so that the checks see the GPUs that a run will see
    try:
        flags = complete_flags(args, flags)
        if args.print_commands:
            for job in jobs:
                print(shlex.join(["python", *command(args, flags, *job)]))
            return
        study = open_study(args, flags, names)
    except (OSError, ValueError) as error:
        parser.error(error)
    with stop_signals_raise():
        failed = run_alone(study, *jobs[0]) if len(jobs) == 1 else run_all(args, flags, study, jobs, gpus)
    for line in write_results(study):
        say(line)
    if failed:
        say(f"failed: {failed}", True)
        sys.exit(1)


def command(args, flags, name, seed):
    """The words after `python` that do one run with one seed, and nothing else."""
    words = ["-m", "moco.tools.study", os.path.abspath(args.dir), "--out", os.path.abspath(args.out)]
    words += ["--labelled", os.path.abspath(args.labelled)] if args.labelled else []
    words += ["--folds", str(args.folds)] if args.folds else []
    words += [f"--lincls={shlex.join(args.lincls)}"] if args.lincls is not None else []
    return [*words, "--runs", name, "--seeds", str(seed), *(["--", *flags] if flags else [])]


def run_all(args, flags, study, jobs, gpus):
    """Runs each of the jobs, pairs (name, seed), in a process of its own; returns in words which of them failed.

    `gpus` is as of `run_at_once`.
    """
    waiting = [job for job in jobs if missing_stages(study, *job)]
    say(f"study: {len(jobs)} runs, of which {len(jobs) - len(waiting)} are finished already")
    commands = {f"{name} with seed {seed}": command(args, flags, name, seed) for name, seed in waiting}
    try:
        codes = run_at_once(commands, gpus)
    except Stopped:
        say("the study is not complete; the same command continues it", True)
        raise
    failed = [f"{title} (code {code})" for title, code in codes.items() if code]
    return f"{', '.join(failed)}; the same command tries again" if failed else ""


def run_alone(study, name, seed):
    """Does the missing stages of one run; returns in words which failed. The others of a run need its pretraining."""
    failed = []
    for run, stage in missing_stages(study, name, seed):
        if (run, "pretraining") in failed:
            continue
        try:
            perform(study, run, seed, stage)
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and error.code == EXIT_CODE:  # a signal
                raise
            say(f"error: {run}, seed {seed}, {stage}: {reason_of(error)}", True)
            failed.append((run, stage))
    return ", ".join(f"{stage} of {run} with seed {seed}" for run, stage in failed)


def reason_of(error):
    """Why a stage failed: one line, or the traceback of an exception of no known kind. Call it in `except`."""
    if isinstance(error, SystemExit):
        return "see above"
    return error if isinstance(error, ProgramFailed) else known_cause(error) or f"\n{traceback.format_exc()}"


if __name__ == "__main__":
    main()
