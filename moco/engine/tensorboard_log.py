"""--tensorboard: the figures of log.jsonl as curves for TensorBoard, and a picture of the views at the start.

The curves have the names `step/FIGURE` and `epoch/FIGURE`, after the kinds and keys of the lines in log.jsonl. They
share one axis, the 0-based global step. An epoch's figures stand at its last step.

Each run of a script has a folder of its own, `tensorboard/SCRIPT-RUN/` in the output folder, where RUN is its id. A
resume keeps the id, so it continues the curves. It adds a file, whose first event tells TensorBoard to drop what the
run had logged after the checkpoint.

Torch's SummaryWriter is not used. It writes in a thread, which a full disk ends with a traceback, and a run that is
killed loses its last events. Here each line is appended at once, as in log.jsonl.
"""

import io
import os
import sys
import time

import torch
import torch.nn.functional as F
from PIL import Image

from moco.pipe_safe_print import first_line, say
from moco.views.normalize import to_pixels

IMAGES, GAP = 8, 4  # rows of the picture at most; white pixels between views


def event_classes():
    """The classes Event, SessionLog and RecordWriter of the optional package tensorboard.

    Raises:
        ValueError: the package is missing, or can't be imported.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
    except Exception as error:  # not only ImportError: protobuf raises a TypeError if its version does not fit
        raise ValueError(
            f"--tensorboard needs the package tensorboard, and its import fails ({first_line(error)}); pip install "
            "tensorboard, or leave the flag out"
        ) from error
    return Event, SessionLog, RecordWriter


class TensorBoardLog:
    """Appends events to a new file in `tensorboard/SCRIPT-RUN/`. TensorBoard can read it at any time.

    Args:
        folder: the output folder. Give None without --tensorboard and on all ranks except rank 0; then nothing is
            written.
        run: the id of the run. steps: in an epoch.
        place: (finished epochs, finished steps of the next epoch) at the start.
    """

    def __init__(self, folder, run=None, steps=1, place=(0, 0)):
        self.path, self.steps = None, steps
        if folder is None:
            return
        self.Event, SessionLog, self.RecordWriter = event_classes()
        script = os.path.splitext(os.path.basename(sys.argv[0]))[0]
        file = f"events.out.tfevents.{time.time_ns()}"  # TensorBoard reads the files of a folder in this order
        self.path = os.path.join(folder, "tensorboard", f"{script}-{run}", file)
        start = {"session_log": {"status": SessionLog.START}}  # drops earlier events of the same or a later step
        self._append({"file_version": "brain.Event:2"}, {"step": self._global(*place), **start})

    def write(self, kind, epoch, step=None, first_step=None, **figures):
        """Appends the figures of one line of log.jsonl.

        Args:
            kind: "step" or "epoch". epoch, step: 0-based; no step stands for the epoch's last one.
            first_step: of a line of kind "epoch"; it is no curve. figures: numbers by name.
        """
        step = self.steps - 1 if step is None else step
        values = [{"tag": f"{kind}/{name}", "simple_value": value} for name, value in figures.items()]
        self._append({"step": self._global(epoch, step), "summary": {"value": values}})

    def write_views(self, images, epoch, step):
        """Appends the picture `views`: a row for each of the first IMAGES images of a batch, a column for each view.

        Args:
            images: a list with one batch per view, N x 3 x size x size, normalised. epoch, step: 0-based.
        """
        if self.path is None:
            return
        picture, file = picture_of([view[:IMAGES] for view in images]), io.BytesIO()
        picture.save(file, "PNG")
        size = {"height": picture.height, "width": picture.width, "colorspace": 3}
        value = {"tag": "views", "image": {**size, "encoded_image_string": file.getvalue()}}
        self._append({"step": self._global(epoch, step), "summary": {"value": [value]}})

    def _global(self, epoch, step):
        return epoch * self.steps + step

    def _append(self, *events):
        if self.path is None:
            return
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            with open(self.path, "ab") as file:
                for event in events:
                    self.RecordWriter(file).write(self.Event(wall_time=time.time(), **event).SerializeToString())
        except OSError as error:
            say(f"warning: can't write {self.path!r}: {error.strerror}; TensorBoard's curves end here")
            self.path = None


def picture_of(images):
    """A PIL image with one row per image and one column per view; smaller views are padded with white.

    Args:
        images: a list with one batch per view, N x 3 x size x size, normalised, on any device.
    """
    side = GAP + max(view.shape[-1] for view in images)
    columns = []
    for view in images:
        pad = side - view.shape[-1]
        tiles = F.pad(to_pixels(view.cpu()), (0, pad, 0, pad), value=255)  # N x 3 x side x side
        columns.append(tiles.transpose(0, 1).flatten(1, 2))  # 3 x N side x side
    return Image.fromarray(torch.cat(columns, dim=2).permute(1, 2, 0).contiguous().numpy())
