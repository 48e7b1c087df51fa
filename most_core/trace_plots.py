"""The charts of a routing report, for papers: one column wide, as SVG and PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from most_core.metrics import FREQUENCY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

TEXT, AUDIO = "#0072B2", "#D55E00"  # told apart by the colour-blind, too
LOOKS = {"text": {"color": TEXT, "marker": "o"}, "audio": {"color": AUDIO, "marker": "s"}}
WIDTH = 3.4  # inches: a column
STYLE = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 6,
    "text.parse_math": False,  # names of classes come from files
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "most",  # the same report gives the same file
}
UNUSED = "0.88"  # where nothing is defined


def draw(told: Mapping[str, Any], folder: Path) -> list[Path]:
    """The files written into `folder`, which is made; `told` is `most_core.metrics.report`."""
    import matplotlib  # slow to import, and rarely needed

    folder.mkdir(parents=True, exist_ok=True)
    sides = {name: side for name, side in told["modalities"].items() if side["n"]}
    charts = {"load": _load, "specialisation": _specialisation, "coactivation": _coactivation, "locality": _locality}
    paths = []
    with matplotlib.rc_context(STYLE):
        for name, chart in charts.items():
            figure = chart(sides)
            for suffix, metadata in ((".svg", {"Date": None}), (".png", {})):
                paths.append(folder / f"{name}{suffix}")
                figure.savefig(paths[-1], dpi=300, metadata=metadata)
    return paths


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure  # no pyplot: no display

    return Figure(figsize=(WIDTH, height), layout="constrained")


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.array(values, float)  # None becomes nan


def _empty(figure: Figure) -> Figure:
    figure.text(0.5, 0.5, "no tokens: nothing to draw", ha="center", va="center", color="0.35")
    return figure


def _lines(axes: Axes, sides: Mapping[str, Any], kind: str, value: str, chance: str) -> None:
    """A figure by layer, and its chance beneath."""
    numbers = sorted({layer["layer"] for side in sides.values() for layer in side["layers"]})
    for name, side in sides.items():
        layers = [layer["layer"] for layer in side["layers"]]
        colour = LOOKS[name]["color"]
        found = _numbers([layer[kind][value] for layer in side["layers"]])
        n = side["layers"][0][kind].get("n", side["n"])
        axes.plot(layers, found, **LOOKS[name], markersize=3, linewidth=1, label=f"{name}, n = {n:,}")
        line = _numbers([layer[kind][chance] for layer in side["layers"]])
        axes.plot(layers, line, color=colour, linewidth=0.8, linestyle="--" if name == "text" else ":")
        axes.plot(
            [], [], color=colour, linewidth=0.8, linestyle="--" if name == "text" else ":", label=f"{name}, chance"
        )
    axes.set_xticks(numbers[:: 1 + len(numbers) // 14])
    axes.set_xlabel("MoE layer")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Axes, counted: str) -> None:
    handles, labels = axes.get_legend_handles_labels()
    labels = [f"{label} {counted}" if " n = " in label else label for label in labels]
    axes.legend(handles, labels, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _grid(axes: Axes, values: np.ndarray, side: Mapping[str, Any], ticks: int, **colours: Any) -> ScalarMappable:
    """Layers down, places of experts in their group across, at most `ticks` of them with their numbers."""
    image = axes.imshow(values, aspect="auto", interpolation="nearest", **colours)
    layers = [layer["layer"] for layer in side["layers"]]
    step = 1 + len(layers) // 9
    axes.set_yticks(range(0, len(layers), step), layers[::step])
    groups = [layer["experts"] for layer in side["layers"]]
    if all(group == groups[0] for group in groups):
        step = -(-len(groups[0]) // ticks)
        axes.set_xticks(range(0, len(groups[0]), step), groups[0][::step])
    axes.set_facecolor(UNUSED)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def _across(side: Mapping[str, Any]) -> str:
    groups = [layer["experts"] for layer in side["layers"]]
    return "expert" if all(group == groups[0] for group in groups) else "expert, by place in its layer's group"


def _rows(values: Sequence[Sequence[Any]]) -> np.ndarray:
    """[L, G], groups that are smaller than others filled up with nan."""
    full = np.full((len(values), max(map(len, values))), np.nan)
    for row, some in enumerate(values):
        full[row, : len(some)] = _numbers(some)
    return full


def _load(sides: Mapping[str, Any]) -> Figure:
    figure = _figure(1.9 + 1.5 * len(sides))
    figure.suptitle(f"Load. {FREQUENCY.capitalize()}", x=0.01, ha="left", fontweight="bold", fontsize=8)
    if not sides:
        return _empty(figure)
    panels = np.atleast_1d(figure.subplots(1 + len(sides), 1, height_ratios=[1.3] + [1] * len(sides)))
    _lines(panels[0], sides, "load", "cv", "cv_chance")
    panels[0].set_ylabel("load CV (std / mean)")
    _legend(panels[0], "tokens")
    loads = {
        name: _rows([_numbers(layer["load"]["share"]) * len(layer["experts"]) for layer in side["layers"]])
        for name, side in sides.items()
    }
    most = max(2.0, *(np.nanmax(values) for values in loads.values()))
    for axes, (name, side) in zip(panels[1:], sides.items()):
        image = _grid(axes, loads[name], side, 16, cmap="cividis", vmin=0, vmax=most)
        axes.set_title(f"{name} experts, n = {side['n']:,} tokens", color=LOOKS[name]["color"])
        axes.set_ylabel("MoE layer")
        axes.set_xlabel(_across(side))
    bar = figure.colorbar(image, ax=list(panels[1:]), aspect=30, pad=0.02)
    bar.set_label("load over an even share (1)")
    bar.ax.axhline(1, color="white", linewidth=1)
    return figure


def _diverging() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("blue-orange", [TEXT, "#f7f7f7", AUDIO])


def _specialisation(sides: Mapping[str, Any]) -> Figure:
    """D(e, c) beside its lift, a row for each class of each modality."""
    panels = [
        (name, side, kind, label)
        for name, side in sides.items()
        for kind in side["layers"][0]["specialisation"]
        for label in (each["name"] for each in side["layers"][0]["specialisation"][kind]["classes"])
    ]
    figure = _figure(0.75 + 1.15 * max(1, len(panels)))
    figure.suptitle("Specialisation D(e, c) = N_ec / N_c", x=0.01, ha="left", fontweight="bold", fontsize=8)
    if not panels:
        return _empty(figure)
    grid = figure.subplots(len(panels), 2, squeeze=False)
    for row, (name, side, kind, label) in enumerate(panels):
        found = [layer["specialisation"][kind] for layer in side["layers"]]
        place = [each["name"] for each in found[0]["classes"]].index(label)
        n, chances = found[0]["classes"][place]["n"], sorted({f"{each['chance']:.2f}" for each in found})
        shares = _rows([each["share"][place] for each in found])
        with np.errstate(divide="ignore"):
            lifts = np.log2(_rows([each["lift"][place] for each in found]))
        left = _grid(grid[row, 0], shares, side, 8, cmap="cividis", vmin=0, vmax=1)
        right = _grid(grid[row, 1], lifts.clip(-2, 2), side, 8, cmap=_diverging(), vmin=-2, vmax=2)
        grid[row, 0].set_title(f"{name}, {label}, n = {n:,}", color=LOOKS[name]["color"])
        grid[row, 1].set_title(f"over chance, {' to '.join({chances[0]: 0, chances[-1]: 0})}")
        grid[row, 0].set_ylabel("MoE layer")
        grid[row, 1].set_yticks([])
        grid[row, 1].sharex(grid[row, 0])
    for axes in grid[-1]:
        axes.set_xlabel(_across(panels[-1][1]).replace(", by", ",\nby"))
    bar = figure.colorbar(left, ax=list(grid[:, 0]), location="bottom", aspect=25, pad=0.02)
    bar.set_label("share of the class's tokens")
    _lift_bar(figure, right, list(grid[:, 1]), "lift (1: chance)")
    return figure


def _lift_bar(figure: Figure, image: ScalarMappable, panels: list[Axes], label: str) -> None:
    bar = figure.colorbar(image, ax=panels, location="bottom", aspect=25, pad=0.02)
    bar.set_ticks([-2, -1, 0, 1, 2], labels=["≤ 1/4", "1/2", "1", "2", "≥ 4"])
    bar.set_label(label)


def _coactivation(sides: Mapping[str, Any]) -> Figure:
    """Lift over its chance of all pairs, layer by layer, experts in the report's order."""
    across = 3 if all(len(side["layers"]) <= 6 for side in sides.values()) else 5
    downs = [-(-len(side["layers"]) // across) for side in sides.values()]
    figure = _figure(0.9 + (WIDTH / across + 0.12) * max(1, sum(downs)))
    figure.suptitle(
        "Co-activation: all pairs, alike experts side by side", x=0.01, ha="left", fontweight="bold", fontsize=8
    )
    if not sides:
        return _empty(figure)
    grid, image, top = figure.subplots(sum(downs), across, squeeze=False), None, 0
    for axes in grid.flat:
        axes.set_axis_off()
    for (name, side), down in zip(sides.items(), downs):
        for axes, layer in zip(grid[top : top + down].flat, side["layers"]):
            found, order = layer["coactivation"], layer["coactivation"]["order"]
            places = [layer["experts"].index(expert) for expert in order]
            with np.errstate(divide="ignore"):
                lift = np.log2(_numbers(found["lift"]) / (found["lift_chance"] or np.nan))[np.ix_(places, places)]
            image = axes.imshow(lift.clip(-2, 2), cmap=_diverging(), vmin=-2, vmax=2, interpolation="nearest")
            axes.set_axis_on()
            axes.set_facecolor(UNUSED)
            axes.tick_params(length=0, labelsize=5, pad=1)
            axes.spines[:].set_visible(False)
            ticks = range(len(order)) if across == 3 and len(order) <= 12 else []
            labels = [order[place] for place in ticks]
            axes.set_xticks(ticks, labels)
            axes.set_yticks(ticks, labels)
            axes.set_title(f"layer {layer['layer']}", pad=2, fontsize=6)
        first, colour = grid[top, 0], LOOKS[name]["color"]
        heading = f"{name}, n = {side['n']:,} tokens\n{first.get_title(loc='left')}"
        first.set_title(heading, pad=2, color=colour, fontsize=6)
        top += down
    _lift_bar(figure, image, list(grid.flat), "lift of a pair over that of a fair draw (1: chance); grey: undefined")
    return figure


def _locality(sides: Mapping[str, Any]) -> Figure:
    figure = _figure(2.1)
    figure.suptitle("Locality", x=0.01, ha="left", fontweight="bold", fontsize=8)
    if not sides:
        return _empty(figure)
    axes = figure.subplots()
    _lines(axes, sides, "locality", "mean", "chance")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share of experts kept")
    _legend(axes, "pairs")
    return figure
