"""The diagonal Fisher information of a model: how much each weight matters for some data.

``F_i`` is the mean over utterances of the squared derivative of the loss of one utterance by weight i, in evaluation
mode (no dropout, no SpecAugment). With the transcripts of the data it is the empirical Fisher information; with what
the model itself hears (``pseudo``) it needs audio only. An utterance's loss is the model's own, so that its scale, for
example a mean over tokens, is part of the strength of the term that uses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError
from .jobs import Report
from .loading import inherited
from .regulariser_settings import EWCSettings
from .sources import Source, read_source
from .trainer import loader_config

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = "diagonal Fisher information"


def fisher_of(settings: EWCSettings, base: str | Path, model: Any, report: Report) -> dict[str, Tensor]:
    """The information that settings name: from their file, or estimated and written there.

    Args:
        settings: of the regulariser.
        base: the model's file, whose digest tells whether a file of information is about it.
        model: the base, without adapters.
        report: called with progress.

    Raises:
        ConfigError: there is neither a file nor a source, or the source is empty.
        CheckpointError: the file is damaged, or about another model.
    """
    from ..checkpoints._digests import sha256_of

    path, digest = Path(settings.fisher), sha256_of(Path(base))
    if path.is_file():
        report(f"Fisher information from {path}")
        return load_fisher(path, digest)
    if settings.source is None:
        raise ConfigError(f"regulariser ewc: {path} does not exist, and there is no source to estimate it from")
    source = read_source(settings.source, "regulariser.source")
    fisher, count = estimate_fisher(model, source, settings.utterances, settings.labels, report)
    save_fisher(fisher, path, {"base": digest, "utterances": str(count), "labels": settings.labels})
    return fisher


def estimate_fisher(
    model: Any, source: Source, utterances: int, labels: str = "reference", report: Report | None = None
) -> tuple[dict[str, Tensor], int]:
    """Estimates the diagonal Fisher information of all parameters.

    Args:
        model: NeMo model; it is left as it was.
        source: data.
        utterances: how many of it, from the beginning, to take.
        labels: ``reference`` or ``pseudo``.
        report: called with progress.

    Returns:
        The information by parameter, float32, and the number of utterances it is a mean over.

    Raises:
        ConfigError: the source has no utterances.
    """
    import torch
    from lightning.fabric.utilities import move_data_to_device

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    home, training = model.device, model.training
    model.to(device).eval()
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    sums = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in parameters.items()}
    count = 0
    try:
        batches = _batches(model, source, utterances, labels)
        for batch in batches:
            loss = _loss(model, move_data_to_device(batch, device))
            if not loss.isfinite():
                continue
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), found, strict=True):
                if gradient is not None:
                    total += gradient.float().square()
            count += 1
            if report is not None and count % max(1, utterances // 4) == 0:
                report(f"Fisher information: {count} of {utterances} utterances")
    finally:
        model.to(home).train(training)
    if not count:
        raise ConfigError("regulariser ewc: the source has no utterances that the model can learn from")
    return {name: (total / count).to(home) for name, total in sums.items()}, count


def save_fisher(fisher: Mapping[str, Tensor], path: Path, about: Mapping[str, str]) -> None:
    """Writes a file of information, which appears whole."""
    from safetensors.torch import save

    from ..checkpoints._work import write_whole

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.cpu().contiguous() for name, value in fisher.items()}
    write_whole(path, save(tensors, {"format": _FORMAT, **about}))


def load_fisher(path: Path, base: str) -> dict[str, Tensor]:
    """Reads a file of information about a base of this SHA-256.

    Raises:
        CheckpointError: it is damaged, or about another model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if about.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: holds no Fisher information; choose another name for the file")
    if about.get("base") != base:
        raise CheckpointError(
            f"{path}: is about another base (sha256 {str(about.get('base'))[:16]}...); remove it to estimate it anew"
        )
    return tensors


def _batches(model: Any, source: Source, utterances: int, labels: str) -> Iterator[Any]:
    """One utterance at a time, in the order of the source."""
    from omegaconf import OmegaConf

    options = {**inherited(model), "batch_size": 1, "shuffle": False, "use_bucketing": False, "force_finite": True}
    if labels == "pseudo":
        options["pretokenize"] = False  # the transcripts come later
    loader = model._setup_dataloader_from_config(OmegaConf.create(loader_config([source.input_cfg()], 0, **options)))
    if labels == "reference":
        yield from islice(iter(loader), utterances)
        return
    for cut in islice((cut for batch in loader.sampler for cut in batch), utterances):
        audio = cut.load_audio()[0]
        heard = model.transcribe([audio], batch_size=1, verbose=False, **_prompt(model, cut))[0].text.strip()
        if heard:
            model.eval()  # NeMo's transcribe leaves parts in training mode
            yield loader.dataset[_relabelled(cut, heard)]


def _prompt(model: Any, cut: Any) -> dict[str, Any]:
    """What a model with prompts is asked, as the manifest says."""
    if not hasattr(model, "prompt"):
        return {}
    known = {**(cut.custom or {}), **(cut.supervisions[0].custom or {} if cut.supervisions else {})}
    return {slot: known[slot] for slot in model.prompt.get_slots("user") if slot in known}


def _relabelled(cut: Any, text: str) -> Any:
    """The cut with another transcript, as a batch."""
    from lhotse import CutSet, SupervisionSegment
    from lhotse.utils import fastcopy

    segment = (
        fastcopy(cut.supervisions[0], text=text)
        if cut.supervisions
        else SupervisionSegment(cut.id, cut.recording_id, 0.0, cut.duration, text=text)
    )
    return CutSet.from_cuts([fastcopy(cut, supervisions=[segment])])


def _loss(model: Any, batch: Any) -> Tensor:
    """A model's loss outside of a trainer, whose counters ``training_step`` asks for and into whose results it logs."""
    import torch

    before = {name: getattr(model, name, None) for name in ("_optimizer", "_trainer")}
    model._optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}])
    model._trainer = SimpleNamespace(global_step=0, log_every_n_steps=1 << 30)
    model.log = model.log_dict = lambda *args, **kwargs: None
    try:
        with torch.backends.cudnn.flags(enabled=False):  # its recurrent layers have no gradients in evaluation mode
            loss = model.training_step(batch, 0)
    finally:
        del model.log, model.log_dict
        for name, value in before.items():
            setattr(model, name, value)
    return loss["loss"] if isinstance(loss, dict) else loss
