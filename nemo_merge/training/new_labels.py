"""Characters that a base lacks get outputs of their own before it is fine-tuned, so that it can learn another alphabet.

NeMo's ``change_vocabulary`` makes the whole output layer anew; here all rows that the base has stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..vocabulary import Token, rows_of, tables_of, with_extra
from .jobs import Report

if TYPE_CHECKING:
    from .fine_tune import FineTuningJob


def label_problems(job: FineTuningJob) -> Iterator[str]:
    """What stands against new labels in a job."""
    if isinstance(job.labels, str) or not all(isinstance(item, str) and item for item in job.labels):
        yield f"labels={job.labels!r} is not a list of characters"
    elif len(set(job.labels)) != len(job.labels):
        yield "labels: a character appears twice"
    if job.trains_adapter or job.trainable == "encoder":
        yield f"labels: trainable={job.trainable!r} would leave the outputs of new characters as they were drawn"
    if job.scale != 1.0:
        yield "labels: new characters have no weights in the base that scale could go back to"
    if job.regulariser is not None and job.regulariser.get("name") == "ewc":
        yield "labels: regulariser ewc knows nothing of new characters; use l2_sp"


def add_labels(model: Any, labels: Sequence[str], report: Report) -> list[str]:
    """Gives a NeMo model over characters outputs for further ones; its other weights stay as they are.

    New rows are drawn as NeMo draws those of a new output layer. They follow the base's characters in the order of
    ``labels``; what comes after the characters (blank, durations) moves up.

    Args:
        model: NeMo model with ``labels`` in its configuration.
        labels: characters that it must know; those that it has are left alone.
        report: told which are new.

    Returns:
        The new ones.

    Raises:
        ConfigError: the model writes pieces of words, not characters.
    """
    import torch
    from omegaconf import OmegaConf, open_dict

    known = model.cfg.get("labels")
    if known is None or hasattr(model, "tokenizer"):
        raise ConfigError(
            "labels: the base writes pieces of words; train the expert with a tokenizer that has those of its language"
        )
    known = list(known)
    added = [label for label in labels if label not in known]
    if not added:
        return added
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config: Any = OmegaConf.to_container(model.cfg)
    tables = tables_of({name: tuple(value.shape) for name, value in before.items()}, len(known), config)
    model.change_vocabulary([*known, *added])
    with open_dict(model.cfg):
        model.cfg.labels = [*known, *added]
    old, new = ([Token("", text) for text in texts] for texts in (known, model.cfg.labels))
    after = model.state_dict()
    with torch.no_grad():
        for name, value in before.items():
            if name not in tables:
                after[name].copy_(value)
                continue
            kind, extra = tables[name]
            target = with_extra(new, kind.extra_rows(len(new), extra))
            rows = torch.tensor(rows_of(target, with_extra(old, extra)))
            after[name][rows >= 0] = value[rows[rows >= 0]]
    report(f"{len(added)} new characters: {' '.join(map(repr, added))}")
    return added
