"""kNN classification: what a checkpoint is worth, in minutes and without training.

    python -m moco.tools.knn CHECKPOINT DIR [--k 10 20 100 200]

Each image of DIR/val is classified by the k images of DIR/train with the most similar features, those of the frozen
backbone. Each of them votes for its class with the weight exp(cosine similarity / 0.07), as in InstDisc and DINO. All
GPUs of the machine share the work. To compare with random weights, give none with the same --arch and --crop-size.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.tools.knn", file=sys.stderr)
    sys.exit(2)
if __name__ == "__main__":
    from moco.engine.early_signals import exit_on_signals

    exit_on_signals()  # before the imports that take seconds

import json

from moco.distributed import rank
from moco.engine.command_line import number
from moco.engine.size_checks import process_memory
from moco.engine.stop_signals_raise import stop_signals_raise
from moco.evaluation.knn import K, accuracy_line, knn_accuracy, left_out_line
from moco.evaluation.knn_images import check_features, check_k, labelled_splits
from moco.pipe_safe_print import say
from moco.tools.internal.encoder_program import EncoderParser, launch_of, start


def main(argv=None):
    parser = EncoderParser(
        __doc__,
        __spec__.name,
        "/path/to/imagenet",
        "folder with labelled images in train/ and val/, or train.tar and val.tar",
    )
    help = f"numbers of nearest neighbours that vote, one result each; give them after DIR (default: {K})"
    parser.add_argument("--k", metavar="K", nargs="+", type=number(int, 1), help=help)
    help = "what to do if an image can't be decoded: end, or leave it out"
    parser.add_argument("--on-bad-image", choices=["stop", "skip"], default="stop", help=help)
    parser.add_argument("--json", action="store_true", help="print the result as JSON, too, in the last line")
    args = parser.parse_args(argv)
    args.k = args.k or [K]
    try:
        val, train = labelled_splits(args.dir)
        check_k(args.k, train, "--k")
        encoder = parser.open(args)
        check_features(val, encoder.dim, process_memory(launch_of(args).local))
    except (OSError, ValueError) as error:
        parser.error(error)
    for line in (train.summary(), val.summary(), encoder.summary(args.checkpoint)):
        say(line)
    with stop_signals_raise():
        start(classify, args, encoder, val, train)


def classify(encoding, val, train):
    """Classifies in one process; rank 0 prints the result."""
    args, encoder = encoding.args, encoding.encoder
    loaders = [encoding.loader(folder, "kNN", args.on_bad_image == "skip") for folder in (val, train)]
    done = encoding.progress("kNN", *loaders)
    accuracies, left_out = knn_accuracy(
        encoder.network, encoder.dim, *loaders, args.k, encoding.device, step_done=done
    )
    if rank() != 0:
        return
    results = [{"k": k, "acc1": acc1, "acc5": acc5} for k, (acc1, acc5) in zip(args.k, accuracies, strict=True)]
    for result in results:
        say(accuracy_line(**result))
    if left_out:
        say(left_out_line(left_out))
    if args.json:
        about = {"checkpoint": args.checkpoint, "arch": encoder.arch, "crop_size": encoder.crop_size, "data": args.dir}
        say(json.dumps({**results[0], "results": results, **about}))


if __name__ == "__main__":
    main()
