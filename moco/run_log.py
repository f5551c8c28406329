"""What ran and how it went, a JSON object a line, in the output folder."""

import json
import os
import platform
import socket
import subprocess
import sys
import time

import torch
import torchvision


class RunLog:
    """Appends lines to `log.jsonl`; a resumed run goes on in the same file. Readable at any time.

    Args:
        folder: of the file; None writes nothing, as on all ranks but one.
    """

    def __init__(self, folder):
        self.path = folder and os.path.join(folder, "log.jsonl")

    def write(self, kind, **facts):
        """One line: its kind, the time in seconds since 1970, and the facts."""
        if self.path is None:
            return
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps({"kind": kind, "time": round(time.time(), 3), **facts}) + "\n")
        except OSError as error:
            print(f"warning: can't write {self.path!r}: {error.strerror}; this log ends here", flush=True)
            self.path = None

    def start(self, args, device, processes, place):
        """The line of a start or a resume: what runs, on what, from which (epoch, step) on."""
        self.write(
            "resume" if args.resume else "start",
            argv=sys.argv,
            options={name: value for name, value in vars(args).items() if isinstance(value, (str, int, float, list))},
            seed=args.seed,
            place=place,
            git=git_commit(),
            host=socket.gethostname(),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            processes=processes,
            versions={
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "cuda": torch.version.cuda,
            },
        )


def git_commit():
    """The commit of this code, with "-dirty" behind it where files differ from it; None outside a clone."""
    here = os.path.dirname(os.path.abspath(__file__))
    command = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
