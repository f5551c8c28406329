"""The command-line flags that both scripts share."""

from moco.engine import speed_flags
from moco.engine.architectures import STEMS, architectures
from moco.engine.command_line import SECONDS, SEED, number


def add_shared(parser, epochs, batch_size, lr, weight_decay, stem, lr_help="initial learning rate"):
    """Adds the flags of both scripts to `parser`; the other arguments are what differs between the scripts."""
    whole, some = number(int, 0), number(int, 1)
    rate = number(float, 0, 1e30)  # larger numbers overflow in float32 when they are multiplied
    names = architectures()
    add = parser.add_argument
    add(
        "data",
        metavar="DIR",
        help="folder with train/ and val/, or train.tar and val.tar, each with one folder of images per class; "
        "main_moco.py also takes any other folder of images or tar archives, and needs no classes",
    )
    add("-a", "--arch", metavar="ARCH", default="resnet50", choices=names, help="network: " + " | ".join(names))
    help = "first layers of a ResNet; small: a 3x3 convolution of stride 1, no max-pooling; for images of about 32 px"
    help += " (default: that of the pretrained or resumed checkpoint)" * (stem is None)
    add("--stem", choices=STEMS, default=stem, help=help)
    help = "number of data workers on this node, at most one per CPU core"
    add("-j", "--workers", metavar="N", default=32, type=whole, help=help)
    add("--epochs", metavar="N", default=epochs, type=some, help="total number of epochs")
    help = "0-based epoch to start with (default: 0, or the epoch at which the resumed checkpoint stopped)"
    add("--start-epoch", metavar="N", type=whole, help=help)
    help = "images per step on this node, over all its processes"
    add("-b", "--batch-size", metavar="N", default=batch_size, type=some, help=help)
    add("--lr", "--learning-rate", metavar="LR", default=lr, type=rate, help=lr_help)
    add("--momentum", metavar="M", default=0.9, type=number(float, 0, 1), help="momentum of the optimizer")
    wd = {"metavar": "W", "dest": "weight_decay", "default": weight_decay, "type": rate}
    add("--wd", "--weight-decay", help="weight decay of the optimizer", **wd)
    add("-p", "--print-freq", metavar="N", default=10, type=some, help="steps between two log lines")
    help = "checkpoint to continue from; auto: the newest checkpoint in --output-dir, if there is one"
    add("--resume", metavar="FILE", help=help)
    help = "steps between two checkpoints within an epoch (default: no such checkpoints)"
    add("--save-every", metavar="STEPS", type=some, help=help)
    help = (
        "seconds that the start or one step may take; then the run ends and names the processes that did not respond"
    )
    add("--timeout", metavar="S", default=600.0, type=SECONDS, help=help)
    help = "resume even if a flag that changes the result differs from the checkpoint's"
    add("--force", action="store_true", help=help)
    help = "print what the run would do, up to its first step, and end without changing anything in --output-dir"
    add("--dry-run", action="store_true", help=help)
    help = "random seed (default: the resumed checkpoint's seed; otherwise a new one, which is printed)"
    add("--seed", metavar="N", type=SEED, help=help)
    add("--output-dir", metavar="DIR", default=".", help="folder for checkpoints and log.jsonl")
    help = "write the figures of log.jsonl and a picture of the views for TensorBoard, to tensorboard/ in --output-dir"
    add("--tensorboard", action="store_true", help=help)
    help = "what to do if a training image can't be decoded: end the run, or use another image instead"
    add("--on-bad-image", choices=["stop", "skip"], default="stop", help=help)
    add(
        "--crop-size", metavar="PX", default=224, type=some, help="side of the network's normal input images in pixels"
    )

    speed_flags.add_speed_flags(parser)

    add = parser.add_argument_group("processes (torchrun needs none of these flags)").add_argument
    help = "start one process per GPU of this node, as in MoCo"
    add("--multiprocessing-distributed", action="store_true", help=help)
    help = "number of processes to start on this node (default: 1, or one per GPU with --multiprocessing-distributed)"
    add("--nproc", metavar="N", type=some, help=help)
    add("--world-size", metavar="N", default=1, type=some, help="number of nodes")
    add("--rank", metavar="N", default=0, type=whole, help="0-based number of this node")
    help = "rendezvous address, tcp://HOST:PORT; needed only for several nodes"
    add("--dist-url", metavar="URL", help=help)
    help = "backend of the process group (default: nccl with GPUs, gloo without)"
    add("--dist-backend", choices=["nccl", "gloo"], help=help)
    add("--gpu", metavar="N", type=whole, help="0-based index of the GPU to use with one process (default: 0)")
