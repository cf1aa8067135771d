"""Word error rates of merges under every policy for batch-normalisation statistics (docs/explanation/batch-norm.md).

    recipes/ep_mini/run.sh --stop_stage 3
    python benchmarks/batch_norm.py recipes/ep_mini

The base and the three experts of EP-mini are merged; statistics are estimated from the experts' development audio,
without its transcripts, and word error rates are those of the test sets. ``update_bn`` is
torch.optim.swa_utils.update_bn on the same audio, in padded batches of 16. Needs NeMo.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml

from nemo_merge import merge
from nemo_merge.scoring import ErrorCounts, bootstrap_interval
from nemo_merge.scoring.error_rates import word_errors
from nemo_merge.training.audio import read_audio
from nemo_merge.training.decode import transcribe
from nemo_merge.training.recalibrate import _features

METHODS = {
    "soup": ("soup", {}),
    "task_arithmetic, scale 0.6": ("task_arithmetic", {"scale": 0.6}),
    "task_arithmetic, scale 1": ("task_arithmetic", {"scale": 1.0}),
    "boosted_tsvm": ("boosted_tsvm", {}),
}
POLICIES = ("average", "pooled", "base", "recalibrate", "update_bn")
ORDER_SEED = 0


class ByBatch(torch.nn.Module):
    """An encoder as update_bn calls it: with one argument."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: dict[str, torch.Tensor]) -> None:
        self.encoder(**batch)


def with_update_bn(merged: Path, audio: list[str], output: Path) -> None:
    """A copy of a merged model whose statistics are those of torch's update_bn."""
    from nemo.collections.asr.models import ASRModel
    from torch.optim.swa_utils import update_bn

    model = ASRModel.restore_from(str(merged), map_location="cpu").eval()
    with torch.inference_mode():
        features = _features(model, read_audio(audio).pieces)
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(ORDER_SEED)).tolist()

        def batches() -> Iterator[dict[str, torch.Tensor]]:
            for first in range(0, len(order), 16):
                chosen = [features[index][0].T for index in order[first : first + 16]]
                padded = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True).transpose(1, 2)
                yield {"audio_signal": padded, "length": torch.tensor([len(item) for item in chosen])}

        update_bn(batches(), ByBatch(model.encoder))
    model.save_to(str(output))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="recipes/ep_mini, after its stages 0 to 3")
    parser.add_argument("--expdir", type=Path, help="RECIPE/exp by default")
    parser.add_argument("--datadir", type=Path, help="RECIPE/data by default")
    given = parser.parse_args()
    models, data = (given.expdir or given.recipe / "exp") / "models", given.datadir or given.recipe / "data"
    config = yaml.safe_load((given.recipe / "conf" / "ep_mini.yaml").read_text())
    domains, sets = config["domains"], config["decode"]["sets"]
    base, experts = models / "base.nemo", [models / f"{domain}.nemo" for domain in domains]
    audio = sorted(str(path) for domain in domains for path in (data / "ep_mini" / domain / "dev").rglob("*.flac"))
    cuts = {name: data / "cuts" / f"ep-mini-{name}_cuts_test.jsonl.gz" for name in sets}
    groups = {"domains": domains, "others": [name for name in sets if name not in domains]}
    sample = read_audio(audio)
    print(f"statistics from {len(sample.pieces)} utterances, {sample.seconds:.0f} s")
    work = Path(tempfile.mkdtemp(prefix="batch_norm-"))
    counts: dict[tuple[str, str], dict[str, list[ErrorCounts]]] = {}
    try:
        for label, (method, parameters) in METHODS.items():
            for policy in POLICIES:
                file = work / f"{method}-{len(counts)}.nemo"
                if policy == "update_bn":
                    with_update_bn(work / "average.nemo", audio, file)
                else:
                    extra = {"audio": audio} if policy == "recalibrate" else {}
                    merge(base, experts, method, output=file, batch_norm=policy, **extra, **parameters)
                if policy == "average":
                    shutil.copy(file, work / "average.nemo")
                heard = transcribe(file, cuts, work / file.stem)
                counts[label, policy] = {
                    name: word_errors([item.text for item in found], [item.pred_text for item in found])
                    for name, found in heard.items()
                }
                show(label, policy, counts, groups)
    finally:
        shutil.rmtree(work)


def show(
    label: str,
    policy: str,
    counts: dict[tuple[str, str], dict[str, list[ErrorCounts]]],
    groups: dict[str, list[str]],
) -> None:
    """Prints one row: mean word error rate by group of sets, and the difference to averaged statistics."""
    cells = []
    for group in groups.values():
        mine = [counts[label, policy][name] for name in group]
        rate = bootstrap_interval(mine)
        cell = f"{rate.value:6.1%} [{rate.low:.1%}, {rate.high:.1%}]"
        if policy != "average":
            change = bootstrap_interval(mine, [counts[label, "average"][name] for name in group])
            cell += f" {change.value * 100:+.1f} [{change.low * 100:+.1f}, {change.high * 100:+.1f}]"
        cells.append(cell)
    print(f"| {label} | {policy} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
