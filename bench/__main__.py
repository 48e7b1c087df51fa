"""`python -m bench WHAT [--json]`: every number that the README claims, measured here and now."""

from __future__ import annotations

import argparse
import sys

from bench import app, decode, gpu, latency, memory, moe, page, quantized, routing, train

BENCHES = {
    "memory": memory,
    "decode": decode,
    "moe": moe,
    "gpu": gpu,
    "latency": latency,
    "quantized": quantized,
    "train": train,
    "app": app,
    "page": page,
    "routing": routing,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="bench", required=True)
    for name, module in BENCHES.items():
        command = commands.add_parser(name, help=module.__doc__.split("\n")[0], description=module.__doc__)
        command.add_argument("--json", action="store_true", help="print one JSON object as the last line")
        module.add_arguments(command)
    args = parser.parse_args(argv)
    try:
        BENCHES[args.bench].run(args).show(args.json)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
