"""`python -m most_core.trace report PREFIX`: what the routing of recorded replies says, as a table, JSON and plots."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from most_core.metrics import FREQUENCY, agreement, report
from most_core.trace_files import SCHEMAS
from most_core.trace_rows import RoutingTrace

COLUMNS = [  # heading, where in a layer of a report, where its chance is
    ("load CV", ("load", "cv"), ("load", "cv_chance")),
    ("MaxVio", ("load", "max_vio"), ("load", "max_vio_chance")),
    ("dead", ("load", "dead_share"), ("load", "dead_chance")),
    ("effective", ("load", "effective"), ("load", "effective_chance")),
    ("entropy", ("entropy", "mean"), None),
    ("q1-q2", ("confidence", "mean"), None),
    ("cut", ("cut_margin", "mean"), None),
    ("locality", ("locality", "mean"), ("locality", "chance")),
    ("removed", ("suppressed", "mean"), ("suppressed", "chance")),
    ("unmasked in", ("unmasked", "inside"), ("unmasked", "chance")),
    ("routed norm", ("norms", "routed_share"), None),
]
LEGEND = f"""\
In brackets: chance. Load is how often an expert is chosen: {FREQUENCY}.
load CV: spread of the loads over their mean; MaxVio: busiest over mean, less 1; dead: share of experts never chosen;
effective: as many experts, used evenly; entropy: of the probabilities in the group, 1 is even; q1-q2: confidence;
cut: last chosen less first not chosen; locality: experts that the token before had, too; removed: probability that the
mask took away; unmasked in: choices that would stay in the group without one layer's mask (a plain mixture, trained
without a mask, is another model)."""


def read(prefixes: Sequence[str]) -> list[RoutingTrace]:
    """The traces with these prefixes; one of a trace's three files names it, too."""
    return [RoutingTrace.load(_prefix(given)) for given in prefixes]


def _prefix(given: str) -> str:
    for name in SCHEMAS:
        given = given.removesuffix(f".{name}.parquet")
    return given


def table(told: Mapping[str, Any]) -> str:
    """A report for people."""
    model, leak = told["model"], told["leakage"]
    name = f"model {model['hash'][:12] or '?'}, {model['dtype'] or '?'}"
    lines = [
        f"{_count(told['traces'], 'trace')}, {_count(told['tokens'], 'token')} ({name})",
        f"leakage: {leak['outside']:,} of {leak['decisions']:,} choices outside the token's group"
        + ("" if model["apart"] else " (the plain router: every expert is in both groups)"),
    ]
    for modality, side in told["modalities"].items():
        if not side["n"]:
            lines += ["", f"{modality}: no tokens"]
            continue
        sizes = sorted({len(layer["experts"]) for layer in side["layers"]})
        pairs = side["layers"][0]["locality"]["n"]
        lines += [
            "",
            f"{modality}: {_count(side['n'], 'token')}, {_count(pairs, 'pair')} of neighbours; {model['per_token']} of "
            f"{' or '.join(map(str, sizes))} experts a token",
        ]
        columns = [column for column in COLUMNS if any(_at(layer, column[1]) is not None for layer in side["layers"])]
        rows = [["layer", *(heading for heading, *_ in columns)]]
        for layer in side["layers"]:
            cells = [_cell(_at(layer, where), _at(layer, chance) if chance else None) for _, where, chance in columns]
            rows.append([str(layer["layer"]), *cells])
        means = [_cell(_mean(side["layers"], w), _mean(side["layers"], c) if c else None) for _, w, c in columns]
        lines += _aligned([*rows, ["mean", *means]])
        for layer in side["layers"]:
            for kind, found in layer["specialisation"].items():
                tells = found["mutual_information"]
                if tells["mi"] is not None:
                    lines.append(
                        f"layer {layer['layer']}: of {kind} the strongest expert tells {tells['mi']:.3f} of "
                        f"{tells['entropy']:.3f} nats (null {tells['null']:.3f}, p {tells['p']:.3f}, n {tells['n']:,})"
                    )
    if "against" in told:
        lines += _against(told["against"])
    return "\n".join([*lines, "", LEGEND])


def _against(compared: Mapping[str, Any]) -> list[str]:
    other = compared["models"][1]
    lines = ["", f"agreement with {other['hash'][:12] or '?'}, {other['dtype'] or '?'}: share of a token's experts"]
    rows = [["layer", *compared["modalities"]]]
    sides = [side["layers"] for side in compared["modalities"].values()]
    for layers in zip(*sides):
        rows.append([str(layers[0]["layer"]), *(_cell(layer["mean"], layer["chance"]) for layer in layers)])
    return [*lines, *_aligned(rows)]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _at(layer: Mapping[str, Any], where: tuple[str, str]) -> float | None:
    return (layer[where[0]] or {}).get(where[1])


def _mean(layers: Sequence[Mapping[str, Any]], where: tuple[str, str]) -> float | None:
    known = [value for value in (_at(layer, where) for layer in layers) if value is not None]
    return sum(known) / len(known) if known else None


def _cell(value: float | None, chance: float | None) -> str:
    return ("-" if value is None else f"{value:.2f}") + ("" if chance is None else f" ({chance:.2f})")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]


def run(args: argparse.Namespace) -> None:
    """The report of the command line. OSError or ValueError where it cannot be made."""
    if args.plots and args.plots.exists() and not args.plots.is_dir():
        raise NotADirectoryError(f"--plots {args.plots}: this is a file; name a folder")
    orders = None
    if args.order:
        try:
            orders = json.loads(args.order.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"--order {args.order}: this is no report: {error}") from error
    traces = read(args.prefixes)
    told: dict[str, Any] = {"prefixes": [_prefix(given) for given in args.prefixes], **report(traces, orders=orders)}
    if args.against:
        against = {"prefixes": [_prefix(given) for given in args.against]}
        told["against"] = against | agreement(traces, read(args.against))
    written = json.dumps(told, allow_nan=False, ensure_ascii=False)
    if args.json == "-":
        print(written)
    else:
        path = Path(args.json or f"{told['prefixes'][0]}.report.json")
        path.write_text(written + "\n", encoding="utf-8")
        print(table(told))
        print(f"\nwritten: {path}")
    if args.plots:
        from most_core.trace_plots import draw

        paths = draw(told, args.plots)
        if args.json != "-":
            print("\n".join(f"written: {path}" for path in paths))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m most_core.trace", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    told = commands.add_parser("report", help="what the routing of recorded replies says", description=LEGEND)
    told.add_argument(
        "prefixes", nargs="+", metavar="PREFIX", help="of PREFIX.tokens.parquet and its kin; several are one corpus"
    )
    told.add_argument("--json", metavar="FILE", help="(default: PREFIX.report.json; - prints it, and no table)")
    told.add_argument("--plots", metavar="FOLDER", type=Path, help="draw load, specialisation, co-activation, locality")
    told.add_argument("--against", nargs="+", metavar="PREFIX", help="compare with other runs over the same tokens")
    told.add_argument("--order", metavar="REPORT", type=Path, help="order experts as in this report's co-activation")
    args = parser.parse_args(argv)
    try:
        run(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
