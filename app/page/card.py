"""What is known about the loaded checkpoint, for people: sentences, its figures, its README. All of it safe HTML."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from markdown_it import MarkdownIt
from markdown_it.token import Token

from app.page.words import words
from most_core import Most, MostForCausalLM

WEB = ("https://", "http://")


def read_figures(folder: Path) -> dict[str, dict[str, float]]:
    """The checkpoint's figures.json: numbers by bench, by name. Empty where there is none that can be read."""
    try:
        read = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
        benches = {name: bench["figures"] for name, bench in read.items()}
        return {
            name: {key: float(value) for key, value in figures.items() if _is_number(value)}
            for name, figures in benches.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def read_readme(folder: Path) -> str:
    """The body of the checkpoint's README.md, without its front matter; "" if there is none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    _, mark, body = text.partition("\n---\n") if text.startswith("---\n") else ("", "", "")
    return (body if mark else text).strip()


def count_parameters(most: Most) -> int:
    """Of decoder, encoder and vocoder; quantized weights count as what they stand for."""
    with torch.device("meta"):
        decoder = MostForCausalLM(most.config)
    modules = [decoder, most.encoder and most.encoder.model, most.vocoder and most.vocoder.model]
    return sum(parameter.numel() for module in modules if module is not None for parameter in module.parameters())


def sentences(most: Most, figures: dict[str, dict[str, float]]) -> str:
    """What it can do and what it cannot. What holds of nano alone is told of a model that was measured as nano."""
    card, config = words()["card"], most.config
    hears, speaks = most.encoder is not None, most.vocoder is not None
    can = [card[("reads", "speaks", "hears", "hears_and_speaks")[2 * hears + speaks]]]
    cannot = [card["unknown"]]
    if "nano" in figures:
        can, cannot = card["nano_can"], card["nano_cannot"]
    built = [card["parameters"].format(parameters=f"{count_parameters(most):,}")]
    if config.moe_layers:
        apart = "experts" if config.use_modality_aware_routing else "experts_shared_by_all"
        told = card[apart].format(
            moe_layers=len(config.moe_layers),
            all_layers=config.num_hidden_layers,
            per_token=config.num_experts_per_tok,
            routed=config.n_routed_experts,
        )
        built.append(told)
    else:
        built.append(card["no_experts"])
    return _section(card["can"], [*can, *built]) + _section(card["cannot"], cannot)


def _section(title: str, lines: Sequence[str]) -> str:
    return f"<h2>{escape(title)}</h2>" + "".join(f"<p>{escape(line)}</p>" for line in lines)


def table(figures: dict[str, dict[str, float]]) -> str:
    """The figures that a person wants, with their intervals."""
    card = words()["card"]
    rows = []
    for name, told in card["figures"].items():
        found = next((bench for bench in figures.values() if name in bench), None)
        if found is None:
            continue
        low, high = found.get(f"{name}_low"), found.get(f"{name}_high")
        count = found.get(f"n_{name}", found.get(f"n_{name.rpartition('_')[2]}"))  # or that of the whole set
        interval = "" if low is None or high is None else f"{100 * low:.1f} to {_percent(high)}"
        cells = [told, _percent(found[name]), interval, "" if count is None else f"{count:,.0f}"]
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    title = f"<h2>{escape(card['measured'])}</h2>"
    if not rows:
        return f"{title}<p>{escape(card['no_figures'])}</p>"
    heads = [card[key] for key in ("figure", "value", "interval", "count")]
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def readme(text: str) -> str:
    """Markdown of anybody's: no HTML of its own, no pictures, and links to the web alone."""
    if not text:
        return f"<p>{escape(words()['card']['no_readme'])}</p>"
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(text)
    for token in tokens:
        if token.children:
            token.children = _tamed(token.children)
    return reader.renderer.render(tokens, reader.options, {})


def _tamed(tokens: Sequence[Token]) -> list[Token]:
    kept: list[Token] = []
    leads: list[bool] = []  # whether each link that is open leads to the web
    for token in tokens:
        if token.type == "image":
            kept.append(Token("text", "", 0, content=token.content))
        elif token.type == "link_open":
            leads.append(str(token.attrGet("href")).startswith(WEB))
            if leads[-1]:
                token.attrSet("target", "_blank")
                token.attrSet("rel", "noopener noreferrer")
                kept.append(token)
        elif token.type != "link_close" or leads.pop():
            kept.append(token)
    return kept


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
