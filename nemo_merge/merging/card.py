"""The model card of a merged checkpoint, in the form of the Hugging Face Hub."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints import Checkpoint
from ..checkpoints._yaml import dump
from ..errors import CheckpointError
from .plan import MergePlan

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_TEMPLATE = """\
---
{{ front }}---

# {{ name }}

One model, merged from {{ inside.experts | length }} expert{{ "s" if inside.experts | length > 1 }} by \
**{{ inside.method.name }}** with nemo_merge {{ version }}, without training.

| | model | weight | SHA-256 |
|---|---|---|---|
{% if base %}| base | {{ base.path }} | | {{ short(base) }} |
{% endif %}{% for expert in experts %}| expert | {{ expert.path }} | {{ "%g" % weights[loop.index0] }} | \
{{ short(expert) }} |
{% endfor %}
{% if composition %}## What is inside

| expert | weight | model | pack |
|---|---|---|---|
{% for expert in inside.experts %}| {{ expert.name }} | {{ "%g" % expert.weight }} | {{ expert.path }} | \
{% if "kept_as" in expert %}{{ expert.kept_as.path }} ({{ "%.1f" % (expert.kept_as.bytes / 1e6) }} MB, lacks \
{{ "%.1f" % (100 * expert.kept_as.error) }} % of its change){% endif %} |
{% endfor %}
{% for line in inside.history %}{{ loop.index }}. {{ line }}
{% endfor %}
```bash
nemo-merge extend {{ file }} EXPERT -o OUTPUT
nemo-merge forget {{ file }} {{ quote(inside.experts[0].name) }} -o OUTPUT
```

{% endif %}## How it was merged

{{ source }}

```yaml
{{ settings }}```

| treatment | tensors |
|---|---|
{% for treatment, roles in tensors.items() %}| {{ treatment }} | {% for role, count in roles.items() %}{{ count }} \
{{ role }}{{ ", " if not loop.last }}{% endfor %} |
{% endfor %}{% if warnings %}
## To know

{% for warning in warnings %}- {{ warning }}
{% endfor %}{% endif %}
## Use

```python
{{ use }}
```

## Repeat it

```bash
nemo-merge reproduce {{ file }}
{{ command }}
```

The accuracy of this model was not measured by the merge; measure it on every domain of its experts and on the base's.
"""

_USE_ADAPTER = """\
from peft import PeftModel

model = PeftModel.from_pretrained(base, "{name}")  # base: the model that the experts were trained from"""


def model_card(output: Path, record: Mapping[str, Any], plan: MergePlan, warnings: Sequence[str] = ()) -> str:
    """The text of ``README.md``: what was merged, how, what to know, how to load it and how to repeat it.

    Args:
        output: where the checkpoint goes.
        record: its provenance.
        plan: the merge.
        warnings: what the merge warned of.
    """
    import jinja2

    settings = {
        key: record[key]
        for key in ("method", "rules", "then", "batch_norm", "audio", "dtype", "vocabulary")
        if key in record
    }
    template = jinja2.Environment(
        autoescape=False, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    ).from_string(_TEMPLATE)
    return template.render(
        front=dump(_front_matter(plan, record)),
        name=output.stem if plan.template.path.is_file() else output.name,
        base=record["base"],
        experts=record["experts"],
        composition="composition" in record,
        inside=record.get("composition", record),
        method=record["method"],
        weights=record["method"]["weights"],
        version=record["nemo_merge"],
        source=f"{type(plan.method).__doc__ or ''}".strip().splitlines()[0],
        settings=dump(settings),
        tensors=record["tensors"],
        warnings=[*record.get("composition", {}).get("approximations", ()), *warnings],
        use=_USE_ADAPTER.format(name=output.name) if "as_adapter" in record else _use(plan.template, output.name),
        file=output.name,
        command=record["command"],
        quote=shlex.quote,
        short=lambda entry: next(iter(entry["sha256"].values()), "")[:16],
    )


def _front_matter(plan: MergePlan, record: Mapping[str, Any]) -> dict[str, Any]:
    inputs = [*([plan.base] if plan.base is not None else []), *plan.experts]
    cards = [_card_of(checkpoint) for checkpoint in inputs]
    front: dict[str, Any] = {}
    licences = [card.get("license") for card in cards]
    if licences and licences[0] and all(licence == licences[0] for licence in licences):
        front["license"] = licences[0]  # the licence of a mixture is for people to decide
    languages = [language for card in cards for language in _as_list(card.get("language"))]
    if languages:
        front["language"] = sorted(set(map(str, languages)))
    if "as_adapter" in record:
        front["library_name"] = "peft"
    else:
        front["library_name"] = "transformers" if plan.template.format == "huggingface" else "nemo"
    front["pipeline_tag"] = "automatic-speech-recognition"
    front["tags"] = ["automatic-speech-recognition", "merge", "nemo_merge", record["method"]["name"]]
    known = [str(checkpoint.metadata.config.get("_name_or_path", "")) for checkpoint in inputs]
    hub = sorted({name for name in known if _HUB_NAME.fullmatch(name)})
    if hub:
        front["base_model"] = hub
        front["base_model_relation"] = "merge"
    return front


def _card_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The front matter of an input's own card, if it has one."""
    from ..checkpoints._yaml import load

    path = checkpoint.path / "README.md"
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() and path.stat().st_size < 1 << 20 else ""
    except (OSError, UnicodeDecodeError):
        return {}
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return {}
    try:
        return load(text[4:].partition("\n---")[0] + "\n", path)
    except CheckpointError:
        return {}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _use(template: Checkpoint, file: str) -> str:
    if template.format == "nemo":
        return (
            "from nemo.collections.asr.models import ASRModel\n\n"
            f'model = ASRModel.restore_from("{file}", map_location="cpu")\n'
            'print(model.transcribe(["audio.wav"])[0].text)'
        )
    if template.format == "huggingface":
        return (
            "from transformers import pipeline\n\n"
            f'recognise = pipeline("automatic-speech-recognition", model="{file}")\n'
            'print(recognise("audio.wav")["text"])'
        )
    return f'from nemo_merge import open_checkpoint\n\ncheckpoint = open_checkpoint("{file}")\nprint(list(checkpoint))'
