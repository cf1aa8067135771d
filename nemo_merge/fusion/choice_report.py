"""What a comparison of upstreams found: as data, as a table, as a picture."""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..checkpoints._work import write_whole
from ..errors import ConfigError, OutputError
from ..reporting.markdown import rate, table
from ..scoring.significance import Interval
from .choice_job import JSON, MARKDOWN, PICTURE


@dataclass(frozen=True)
class UpstreamScore:
    """What one encoder tells.

    Attributes:
        name: of the encoder.
        layers: the hidden layers that were looked at.
        dim: their width.
        frame_shift: seconds between its frames.
        accuracy: of the probe on all these layers, held out, with its 95 % interval.
        by_layer: of the probe on each layer.
    """

    name: str
    layers: list[int]
    dim: int
    frame_shift: float
    accuracy: Interval
    by_layer: list[Interval]


@dataclass(frozen=True)
class PairScore:
    """What two encoders tell together.

    Attributes:
        first, second: their names.
        accuracy: of the probe on all layers of both.
        better: the one whose own probe is more accurate.
        gain: accuracy above that one's, on the same utterances.
        redundancy: CKA of a layer with the most similar layer of the other encoder, mean over all layers of both.
    """

    first: str
    second: str
    accuracy: Interval
    better: str
    gain: Interval
    redundancy: float


@dataclass(frozen=True)
class UpstreamComparison:
    """The result of :func:`~nemo_merge.fusion.compare_upstreams`.

    Attributes:
        upstreams: one score per encoder.
        pairs: one per pair.
        cka: similarity of all layers, in the order of the encoders and their layers.
        label: what probes told apart.
        classes: its values.
        chance: share of the most frequent class: the accuracy of always naming it.
        utterances, seconds: what was heard.
        frames: frames that CKA was computed on.
        folds: of the cross-validation.
        apart: what is in one fold only, ``speakers`` or ``utterances``.
        seed: of all that was random.
    """

    upstreams: list[UpstreamScore]
    pairs: list[PairScore]
    cka: list[list[float]]
    label: str
    classes: list[str]
    chance: float
    utterances: int
    seconds: float
    frames: int
    folds: int
    apart: str
    seed: int

    @property
    def ranking(self) -> list[PairScore]:
        """Pairs by the accuracy of their probe; the less redundant one first where it is equal."""
        return sorted(self.pairs, key=lambda pair: (-pair.accuracy.value, pair.redundancy))

    def markdown(self) -> str:
        """The scores as tables."""
        singles = []
        for item in self.upstreams:
            best = max(range(len(item.layers)), key=lambda index: item.by_layer[index].value)
            shown = f"{item.layers[best]}: {rate(item.by_layer[best])}"
            singles.append([item.name, str(len(item.layers)), str(item.dim), rate(item.accuracy), shown])
        pairs = [
            [f"{item.first} + {item.second}", rate(item.accuracy), rate(item.gain), f"{item.redundancy:.2f}"]
            for item in self.ranking
        ]
        text = (
            "# Comparison of encoders\n\n"
            f"{self.utterances} utterances, {self.seconds:.0f} s. Probes name the {self.label} "
            f"({len(self.classes)} classes; always the most frequent one: {100 * self.chance:.1f} %), in {self.folds} "
            f"folds with {self.apart} apart; accuracy in % with 95 % bootstrap intervals over {self.apart}. CKA on "
            f"{self.frames} frames, without bias.\n\n"
            + table(["encoder", "layers", "width", "accuracy, all layers", "best layer (chosen on these)"], singles)
            + "\n"
        )
        if pairs:
            text += "\n" + table(["pair", "accuracy", "above the better one", "redundancy (CKA)"], pairs) + "\n"
        return text

    def draw(self) -> bytes:
        """A picture (PNG): CKA of all layers, probes by layer, and probes of encoders and pairs."""
        check_drawing()
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        figure = Figure(figsize=(12, 5.4), layout=ConstrainedLayoutEngine(w_pad=0.15))
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, 2, width_ratios=(1.1, 1))
        self._draw_similarity(figure, figure.add_subplot(grid[:, 0]))
        colours = [f"C{index}" for index in range(len(self.upstreams))]
        layers, bars = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
        for item, colour in zip(self.upstreams, colours, strict=True):
            depth = [layer / max(1, item.layers[-1]) for layer in item.layers]
            layers.plot(depth, [100 * each.value for each in item.by_layer], "o-", ms=3, color=colour, label=item.name)
        layers.set_xlabel("depth: first hidden layer 0, last 1", fontsize=8)
        scores = [(item.name, item.accuracy) for item in self.upstreams]
        scores += [(f"{item.first} + {item.second}", item.accuracy) for item in self.ranking]
        values = [100 * score.value for _, score in scores]
        spread = [
            [100 * (score.value - score.low) for _, score in scores],
            [100 * (score.high - score.value) for _, score in scores],
        ]
        fills = [*colours, *["#9aa0a6"] * len(self.pairs)]
        bars.barh(range(len(scores)), values, xerr=spread, color=fills, error_kw={"lw": 0.8, "ecolor": "#444"})
        bars.set_yticks(range(len(scores)), [name for name, _ in scores], fontsize=7)
        bars.invert_yaxis()
        bars.set_xlabel(f"{self.label} found, % of {self.utterances} utterances held out", fontsize=8)
        layers.axhline(100 * self.chance, color="#c5221f", ls="--", lw=1, label="most frequent class")
        bars.axvline(100 * self.chance, color="#c5221f", ls="--", lw=1)
        layers.legend(frameon=False, fontsize=7)
        for axes in (layers, bars):
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=7)
        layers.set_title("probes by layer, %", fontsize=9)
        bars.set_title("probes on all layers", fontsize=9)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=100)
        return stream.getvalue()

    def _draw_similarity(self, figure: Any, axes: Any) -> None:
        image = axes.imshow(self.cka, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        start, middles = 0, []
        for item in self.upstreams:
            if start:
                axes.axhline(start - 0.5, color="white", lw=1.5)
                axes.axvline(start - 0.5, color="white", lw=1.5)
            middles.append(start + (len(item.layers) - 1) / 2)
            start += len(item.layers)
        names = [item.name for item in self.upstreams]
        axes.set_xticks(middles, names, fontsize=8)
        axes.set_yticks(middles, names, fontsize=8, rotation=90, va="center")
        axes.tick_params(length=0)
        axes.set_title("linear CKA between layers, input to output", fontsize=9)
        figure.colorbar(image, ax=axes, shrink=0.8)


def check_drawing() -> None:
    """Refuses to go on where pictures cannot be drawn.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("the picture of a comparison needs matplotlib; pip install 'nemo-merge[report]'")


def write(report: UpstreamComparison, folder: Path) -> None:
    """Writes ``choice.json``, ``choice.md`` and ``choice.png``, each at once, when all of them are made.

    Raises:
        OutputError: the folder cannot be written to.
    """
    picture = report.draw()
    data = json.dumps(dataclasses.asdict(report), indent=1, ensure_ascii=False) + "\n"
    text = report.markdown() + f"\n![CKA between layers, and probes]({PICTURE})\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from error
    for name, content in ((PICTURE, picture), (MARKDOWN, text.encode()), (JSON, data.encode())):
        write_whole(folder / name, content)
