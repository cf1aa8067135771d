"""Pictures of an analysis, for people who tell colours badly too: dark to light, with markers and labels."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...merging.analysis import Analysis, Part
from ...merging.measures import CURVE
from ..markdown import percent
from .tables import relative_effective_rank, top_tensors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 110
_MANY = 7  # with more experts than colours that can be told apart, they are drawn in grey behind their median
# Okabe and Ito's colours, which people with any kind of colour blindness tell apart; the pale yellow is left out.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vPX"
_GREY = "#9aa0a6"


def pictures(analysis: Analysis, names: Sequence[str], top: int) -> dict[str, bytes]:
    """PNG files by name; what cannot be measured, such as cosines of one expert, has none."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    makers: dict[str, Callable[[Analysis, Sequence[str], int], Figure | None]] = {
        "norms.png": _norms,
        "cosines.png": _cosines,
        "spectra.png": _spectra,
        "signs.png": _signs,
        "interference.png": _interference,
        "tensors.png": _tensors,
    }
    made = {}
    for file, make in makers.items():
        figure = make(analysis, names, top)
        if figure is not None:
            content = io.BytesIO()
            figure.savefig(content, dpi=_DPI)
            pyplot.close(figure)
            made[file] = _small(content)
    return made


def _small(picture: io.BytesIO) -> bytes:
    """The same picture with a palette, a third of the size, and without the version of what drew it."""
    from PIL import Image

    content = io.BytesIO()
    with Image.open(picture) as image:
        plain = image.convert("RGB").quantize(255, dither=Image.Dither.NONE)
        plain.save(content, "PNG", optimize=True)
    return content.getvalue()


def _norms(analysis: Analysis, names: Sequence[str], top: int) -> Figure | None:
    if not bool(analysis.total.norms.any()):
        return None
    figure, by_depth, by_module = _two_panels(analysis, "norm of the task vector / norm of the base")
    farthest = int(analysis.total.relative_norms.argmax())
    for _, blocks, offset in _stacks(analysis, by_depth):
        values = torch.stack([part.relative_norms for part in blocks.values()])
        _lines(by_depth, [offset + block for block in blocks], values.T, names, farthest, first=offset == 0)
    modules = {str(key): part for key, part in analysis.modules.items()}
    for place, part in enumerate(modules.values()):
        for expert, value in enumerate(part.relative_norms.tolist()):
            style = _style(expert, len(names))
            if len(names) > _MANY and expert == farthest:
                style = _style(1, 2)
            label = names[expert] if place == 0 and len(names) <= _MANY and not analysis.depths else None
            spread = (expert - (len(names) - 1) / 2) * min(0.12, 0.7 / len(names))
            by_module.plot([value], [place + spread], linestyle="", markersize=6, label=label, **style)
    _module_axis(by_module, modules)
    by_module.set_xlim(0, 1.1 * by_module.dataLim.x1)
    _from_zero(by_depth)
    _legend(figure, by_depth if analysis.depths else by_module)
    return figure


def _cosines(analysis: Analysis, names: Sequence[str], top: int) -> Figure | None:
    count = len(names)
    if count < 2:
        return None
    from matplotlib import pyplot

    labels = [_shortened(name, 22) for name in names]
    size = max(3.2, min(8.0, 1.2 + 0.5 * count))
    words = 0.09 * max(map(len, labels))
    figure, axes = pyplot.subplots(figsize=(size + 0.8 + words, size + (0.6 * words if count > 3 else 0)), dpi=_DPI)
    figure.set_layout_engine("constrained")
    cosines = analysis.total.cosines
    image = axes.imshow(cosines.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
    font = 9 if count <= 10 else 7.5
    axes.set_xticks(range(count), labels, rotation=45 if count > 3 else 0, ha="right" if count > 3 else "center")
    axes.set_yticks(range(count), labels)
    axes.tick_params(labelsize=font, length=0)
    for i in range(count):
        for j in range(count):
            value = float(cosines[i, j])
            text = "n/a" if math.isnan(value) else _hundredths(value, short=count > 10)
            colour = "white" if abs(value) > 0.6 else "black"
            axes.text(j, i, text, ha="center", va="center", fontsize=font if count <= 10 else 6.5, color=colour)
    axes.set_title("cosine between task vectors", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def _spectra(analysis: Analysis, names: Sequence[str], top: int) -> Figure | None:
    if not analysis.total.spectra:
        return None
    from matplotlib import pyplot

    figure, (curves, ranks) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    steps = [100 * index / (CURVE - 1) for index in range(CURVE)]
    modules = {str(key): part for key, part in analysis.modules.items() if part.spectra}
    for place, (module, part) in enumerate(modules.items()):
        stack = torch.stack([found.curve for _, _, found in part.spectra])
        low, middle, high = stack.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=stack.dtype), dim=0)
        rank = relative_effective_rank(part)
        colour = _COLOURS[place % len(_COLOURS)]
        curves.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
        label = f"{module}: effective rank {percent(rank)} of full"
        curves.plot(steps, middle, color=colour, marker=_MARKERS[place % len(_MARKERS)], markevery=8, ms=4, label=label)
    curves.set_xlabel("place of the singular value, % of all")
    curves.set_ylabel("singular value / largest")
    curves.set_title("spectra: median and 10 to 90 % of tensors and experts", fontsize=10)
    curves.set_ylim(0, 1.02)
    curves.legend(frameon=False, fontsize=8)
    drawn = False
    for _, blocks, offset in _stacks(analysis, ranks):
        held = {offset + block: 100 * relative_effective_rank(part) for block, part in blocks.items() if part.spectra}
        ranks.plot(list(held), list(held.values()), color=_COLOURS[0], marker="o", ms=4, lw=1.4)
        drawn = drawn or bool(held)
    if not drawn:
        values = [100 * relative_effective_rank(part) for part in modules.values()]
        ranks.bar(list(modules), values, 0.5, color=_COLOURS[0])
    _from_zero(ranks)
    ranks.set_ylabel("effective rank, % of full")
    ranks.set_title(f"effective rank by {'block' if drawn else 'module'}, mean", fontsize=10)
    for axes in (curves, ranks):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _signs(analysis: Analysis, names: Sequence[str], top: int) -> Figure | None:
    if math.isnan(analysis.total.signs.pairwise):
        return None
    measures = {
        "all entries": lambda part: 100 * part.signs.pairwise,
        "largest 20 % of each expert": lambda part: 100 * part.top_signs.pairwise,
    }
    figure, axes = _shares(analysis, measures, "opposite signs of a pair, %")
    by_depth, by_module = axes
    style: dict[str, Any] = {"color": _GREY, "linestyle": "--", "lw": 1.2, "label": "unrelated experts"}
    if analysis.depths:
        by_depth.axhline(50, **style)
        by_depth.set_ylim(0, max(60, by_depth.get_ylim()[1]))
    by_module.axvline(50, **style)
    by_module.set_xlim(-3, max(60, by_module.get_xlim()[1]))
    _legend(figure, by_depth if analysis.depths else by_module)
    return figure


def _interference(analysis: Analysis, names: Sequence[str], top: int) -> Figure | None:
    if not analysis.total.interference:
        return None
    from matplotlib import pyplot

    figure, (sti, overlap) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    chance: Callable[[Part], float] = lambda part: 100 * part.mean_interference(lambda found: found.chance)  # noqa: E731
    series: list[tuple[Axes, Callable[[Part], float], dict[str, Any]]] = [
        (sti, lambda part: part.mean_interference(lambda found: found.relative), _style(0, 1)),
        (overlap, lambda part: 100 * part.mean_interference(lambda found: found.overlap), _style(0, 1)),
        (overlap, chance, {"color": _GREY, "marker": "_", "linestyle": "--"}),
    ]
    for place, (axes, value, style) in enumerate(series):
        label = (None, "measured", "random directions")[place]
        if analysis.depths:
            for _, blocks, offset in _stacks(analysis, axes, draw=place < 2):
                held = {offset + block: value(part) for block, part in blocks.items() if part.interference}
                axes.plot(list(held), list(held.values()), ms=4, lw=1.4, label=label if offset == 0 else None, **style)
        else:
            parts = {str(key): part for key, part in analysis.modules.items() if part.interference}
            points = [value(part) for part in parts.values()]
            axes.plot(list(parts), points, ms=7, label=label, **style | {"linestyle": ""})
            axes.margins(x=0.3)
    share = percent(analysis.rank_fraction)
    sti.set_title(f"singular task interference, leading {share} of triplets", fontsize=10)
    sti.set_ylabel("STI / sum of singular values")
    overlap.set_title("overlap of singular subspaces", fontsize=10)
    overlap.set_ylabel("overlap, %")
    overlap.set_ylim(0, 100)
    overlap.legend(frameon=False, fontsize=8)
    _from_zero(sti)
    for axes in (sti, overlap):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _tensors(analysis: Analysis, names: Sequence[str], top: int) -> Figure | None:
    found = top_tensors(analysis, min(top, 30))
    if not found:
        return None
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 1.0 + 0.24 * len(found)), layout="constrained")
    labels = [_shortened(tensor.name, 60) for tensor, _ in reversed(found)]
    widths = [100 * share for _, share in reversed(found)]
    places = range(len(found))
    axes.barh(places, widths, 0.72, color=_COLOURS[0], label="share of the squared change, mean over experts")
    sizes = [100 * tensor.spec.numel / analysis.total.elements for tensor, _ in reversed(found)]
    axes.plot(sizes, places, "|", color=_COLOURS[1], ms=11, mew=2.2, label="share of the parameters")
    for place, width in zip(places, widths, strict=True):  # in a column of their own, where no mark can cross them
        axes.text(
            0.99, place, f"{width:.1f}", ha="right", va="center", fontsize=8, transform=axes.get_yaxis_transform()
        )
    axes.set_yticks(places, labels)
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.set_xlabel("%")
    axes.set_xlim(0, 1.12 * max(*widths, *sizes))
    axes.margins(y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def _shares(
    analysis: Analysis, measures: Mapping[str, Callable[[Part], float]], label: str
) -> tuple[Figure, tuple[Axes, Axes]]:
    """Panels by block and by module with one series per measure."""
    figure, by_depth, by_module = _two_panels(analysis, label)
    modules = {str(key): part for key, part in analysis.modules.items() if part.signs.several}
    for place, (name, value) in enumerate(measures.items()):
        style = _style(place, len(measures))
        for _, blocks, offset in _stacks(analysis, by_depth, draw=place == 0):
            points = {offset + block: value(part) for block, part in blocks.items()}
            by_depth.plot(
                list(points), list(points.values()), ms=4, lw=1.4, label=name if offset == 0 else None, **style
            )
        values = [value(part) for part in modules.values()]
        by_module.plot(values, range(len(modules)), linestyle="", ms=7, label=name, **style)
    _module_axis(by_module, modules)
    return figure, (by_depth, by_module)


def _two_panels(analysis: Analysis, label: str) -> tuple[Figure, Axes, Axes]:
    from matplotlib import pyplot

    figure, (by_depth, by_module) = pyplot.subplots(1, 2, figsize=(10, 4), width_ratios=(1.7, 1), layout="constrained")
    by_depth.set_ylabel(label)
    by_module.set_xlabel(label)
    by_depth.set_title("by block", fontsize=10)
    by_module.set_title("by module", fontsize=10)
    for axes in (by_depth, by_module):
        axes.spines[["top", "right"]].set_visible(False)
    if not analysis.depths:
        by_depth.set_axis_off()
        by_depth.text(0.5, 0.5, "no stack of blocks", ha="center", transform=by_depth.transAxes, color="#555")
    return figure, by_depth, by_module


def _stacks(analysis: Analysis, axes: Axes, *, draw: bool = True) -> Iterator[tuple[str, dict[int, Part], int]]:
    """Stacks one beside the other on the axis of blocks, each with its place there."""
    offset, ticks = 0, {}
    for stack, blocks in analysis.depths.items():
        yield stack, blocks, offset
        count = max(blocks) + 1
        step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if count / step <= 9)
        ticks.update({offset + block: str(block) for block in range(0, count, step)})
        if draw:
            if offset:
                axes.axvline(offset - 1, color="#ddd", lw=1)
            axes.text(
                offset + (count - 1) / 2,
                -0.13,
                f"{_shortened(stack.rstrip('.') or 'model', 28)}, block",
                ha="center",
                va="top",
                fontsize=9,
                transform=axes.get_xaxis_transform(),
            )
        offset += count + 1
    if draw and ticks:
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xlim(-0.6, offset - 1.4)


def _lines(
    axes: Axes, blocks: Sequence[int], values: torch.Tensor, names: Sequence[str], farthest: int, *, first: bool
) -> None:
    """One line per expert; with many of them all in grey, their median and the one that moves farthest."""
    lines = values.tolist()
    if len(names) <= _MANY:
        for expert, line in enumerate(lines):
            axes.plot(blocks, line, ms=4, lw=1.4, label=names[expert] if first else None, **_style(expert, len(names)))
        return
    for expert, line in enumerate(lines):
        axes.plot(blocks, line, color=_GREY, lw=0.8, alpha=0.7, label="each expert" if first and not expert else None)
    middle = values.quantile(0.5, dim=0).tolist()
    axes.plot(blocks, middle, color=_COLOURS[0], lw=2, label="median of the experts" if first else None)
    label = f"{names[farthest]} (farthest in all)" if first else None
    axes.plot(blocks, lines[farthest], ms=3.5, lw=1.4, label=label, **_style(1, 2))


def _style(place: int, count: int) -> dict[str, Any]:
    if count > _MANY:
        return {"color": _GREY, "marker": "o"}
    return {"color": _COLOURS[place], "marker": _MARKERS[place]}


def _module_axis(axes: Axes, modules: Mapping[str, Part]) -> None:
    axes.set_yticks(range(len(modules)), list(modules))
    axes.set_ylim(len(modules) - 0.5, -0.5)
    axes.grid(axis="y", color="#eee")
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=5)


def _from_zero(axes: Axes) -> None:
    """Lets the vertical axis start at 0 and leaves some air above what is drawn."""
    highest = float(axes.dataLim.y1)
    if math.isfinite(highest) and highest > 0:
        axes.set_ylim(0, 1.12 * highest)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        shown = [_shortened(label, 44) for label in labels]
        columns = max(1, min(len(shown), 120 // (max(map(len, shown)) + 6)))
        figure.legend(handles, shown, loc="outside upper center", ncols=columns, frameon=False, fontsize=8)


def _hundredths(value: float, *, short: bool) -> str:
    text = f"{value:.2f}"
    text = "0.00" if text == "-0.00" else text
    return text.replace("0.", ".", 1) if short and abs(value) < 0.995 else text


def _shortened(name: str, length: int) -> str:
    """A long name with its middle left out."""
    return name if len(name) <= length else f"{name[: length // 3]}…{name[-(length - length // 3 - 1) :]}"
