"""`python -m train COMMAND`: build the voice assistant, step by step."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

# Before anything of Hugging Face is imported: no look-ups on the network, no advice about packages we do not use.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")  # batches have many shapes: plan for each only once

from train.config import RunOptions, find_config, load_config, to_yaml

# Command -> its module (with `Config` and `run`), what it does, an example.
COMMANDS = {
    "synthesize": (
        "train.data.synthesize",
        "speak sentences with the installed speech engines: shards of speech to train on",
        "python -m train synthesize --config english-debug --out runs/debug/speech/english",
    ),
    "dialogues": (
        "train.data.dialogues",
        "speak the users' turns of conversations: shards of conversations to train on",
        "python -m train dialogues --config dialogues-debug --out runs/debug/speech/dialogues",
    ),
    "replies": (
        "train.data.replies",
        "make conversations of recorded orders, and of sounds that nobody can understand",
        "python -m train replies --config replies-debug --out runs/debug/speech/replies",
    ),
    "corpus": (
        "train.data.corpus",
        "read a corpus of recordings: shards of speech to train on",
        "python -m train corpus --set kind=librispeech location=LibriSpeech split=train-clean-100",
    ),
    "encoder": (
        "train.encoder",
        "train the speech encoder, which turns sound into features",
        "python -m train encoder --config ears-nano --out runs/nano/encoder --minutes 30",
    ),
    "units": (
        "train.units",
        "cluster the encoder's features into speech units",
        "python -m train units --config units-nano --out runs/nano/ears",
    ),
    "vocoder": (
        "train.vocoder",
        "train the vocoder, which turns speech units into sound",
        "python -m train vocoder --config vocoder-nano --out runs/nano/mouth --minutes 90",
    ),
    "prepare": (
        "train.prepare",
        "turn speech, conversations and texts into lessons for the language model",
        "python -m train prepare --config lessons-nano --out runs/nano/lessons",
    ),
    "stage1": (
        "train.stages",
        "teach the language model to hear and to speak",
        "python -m train stage1 --config stage1-nano --out runs/nano/stage1",
    ),
    "stage2": (
        "train.stages",
        "teach it to answer",
        "python -m train stage2 --config stage2-nano --out runs/nano/stage2",
    ),
    "export": (
        "train.export",
        "put decoder, ears and mouth into one folder to load, with a model card",
        "python -m train export --set model=runs/nano/stage2/model --out runs/nano/export",
    ),
}
# What can be measured -> its module (with `run`), what is measured, an example.
EVALUATIONS = {
    "ears": (
        "train.evaluate_ears",
        "word errors on each test set, clean and in noise",
        "python -m train evaluate ears --model assets/nano --json",
    ),
    "mouth": (
        "train.evaluate_mouth",
        "word errors of an independent recognizer, likeness, speed",
        "python -m train evaluate mouth --model assets/nano --json",
    ),
    "nano": (
        "train.evaluate_nano",
        "the whole assistant: transcripts, spoken questions, orders, controls, honesty",
        "python -m train evaluate nano --model assets/nano --json",
    ),
    "routing": (
        "train.evaluate_routing",
        "whether experts are used evenly, what they are for, what the mask takes away",
        "python -m train evaluate routing --model assets/nano --json",
    ),
    "voices": (
        "train.evaluate_voices",
        "which synthetic voice is understood best and easiest to make of units",
        "python -m train evaluate voices --model assets/nano",
    ),
}
MEANT_FOR = {  # options that not every evaluation has a use for
    "data": ("ears", "nano", "routing"),
    **dict.fromkeys(("human", "only"), ("ears", "nano")),
    "count": ("nano", "routing"),
    **dict.fromkeys(("stage1", "stage2", "plot", "direct"), ("nano",)),
}
EPILOG = """examples, in the order of a training:
{examples}

Every command may be stopped at any time, with Ctrl-C or harder; the same command continues where it was.
"python -m train COMMAND --help" lists the options of a command; --dry-run shows all of its settings."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    examples = "\n".join(f"  {example}" for *_, example in [*COMMANDS.values(), *EVALUATIONS.values()])
    top = argparse.ArgumentParser(
        prog="python -m train",
        description="Build the voice assistant, step by step: data, speech parts, measurements.",
        epilog=EPILOG.format(examples=examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def add(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument(
            "--threads", type=_positive(int), metavar="N", help="CPU threads (default: torch's choice)"
        )
        command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: a GPU if any")
        return command

    for name, (_, summary, example) in COMMANDS.items():
        command = add(name, summary, example)
        command.add_argument(
            "--config", metavar="NAME_OR_PATH", help="a preset in train/configs or a YAML file (default: built in)"
        )
        command.add_argument(
            "--set", action="extend", nargs="+", default=[], metavar="NAME=VALUE", help="change a setting"
        )
        command.add_argument(
            "--out", type=Path, metavar="FOLDER", help=f"where results go (default: runs/CONFIG/{name})"
        )
        command.add_argument("--dry-run", action="store_true", help="print the settings and try one step on fake data")
        command.add_argument(
            "--minutes", type=_positive(float), metavar="N", help="stop, to be continued, after N minutes"
        )
        command.add_argument("--fresh", action="store_true", help="begin anew: discards the checkpoints in --out")
    evaluation_examples = "\n  ".join(example for *_, example in EVALUATIONS.values())
    command = add("evaluate", "measure a trained model: how well it hears and speaks", evaluation_examples)
    told = "; ".join(f"{name}: {summary}" for name, (_, summary, _) in EVALUATIONS.items())
    command.add_argument("what", choices=tuple(EVALUATIONS), help=told)
    command.add_argument(
        "--model", type=Path, default=Path("assets/nano"), metavar="FOLDER", help="default: assets/nano"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    command.add_argument(
        "--data", type=Path, metavar="FOLDER", help="keeps the synthesized test sets (default: runs/evaluation)"
    )
    command.add_argument(
        "--human", type=Path, metavar="FOLDER", help="recorded coffee orders (default: $MOST_HUMAN_SPEECH)"
    )
    command.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="ears: only these of seen, unseen, human; nano: of asr, qa, speech, tts, orders, controls, honesty, text",
    )
    command.add_argument("--count", type=_positive(int), metavar="N", help="nano, routing: at most N of each set")
    for stage in ("stage1", "stage2"):
        command.add_argument(
            f"--{stage}", type=Path, metavar="FOLDER", help=f"nano: weights after {stage}, for the loss of text"
        )
    command.add_argument(
        "--direct", action="store_const", const=True, help="nano: of a model that answers without telling what it heard"
    )
    command.add_argument("--plot", type=Path, metavar="FILE", help="nano: an image of how sure it is and how right")
    command.add_argument("--out", type=Path, metavar="FILE", help="a figures.json to put the figures into")
    return top


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 interrupted, 2 refused with one line on stderr (MOST_DEBUG=1: with a traceback)."""
    top = parser()
    args = top.parse_args(argv)
    if args.command is None:
        top.print_help()
        return 2
    try:
        return _run(args)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        if os.environ.get("MOST_DEBUG") == "1":
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    if args.command == "evaluate":
        options = RunOptions(threads=args.threads, device=args.device)
        own = {name: getattr(args, name) for name, kinds in MEANT_FOR.items() if args.what in kinds}
        if given := [name for name in MEANT_FOR if name not in own and getattr(args, name) is not None]:
            kinds = " and ".join(f"`evaluate {kind}`" for kind in MEANT_FOR[given[0]])
            raise ValueError(f"--{given[0]} is for {kinds}: leave it out of `evaluate {args.what}`")
        evaluation = importlib.import_module(EVALUATIONS[args.what][0])
        return evaluation.run(args.model, args.json, options, out=args.out, **own)
    path = find_config(args.config) if args.config else None
    command = importlib.import_module(COMMANDS[args.command][0])
    config = load_config(command.Config, path, args.set)
    if args.dry_run:
        print(to_yaml(config))
    out = args.out or Path("runs") / (path.stem if path else "default") / args.command
    options = RunOptions(args.dry_run, args.minutes, args.fresh, args.threads, args.device)
    return command.run(config, out, options)


def _one_line(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """An argparse type that refuses zero and less, and says what it wants."""

    def parse(text: str) -> float:
        number = kind(text)
        if not number > 0:
            raise ValueError(text)
        return number

    parse.__name__ = f"positive {'whole ' if kind is int else ''}number"
    return parse


if __name__ == "__main__":
    sys.exit(main())
