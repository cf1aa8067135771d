"""What PEFT's ``adapter_config.json`` says of an adapter, as far as it decides what the adapter does to weights."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

CONFIG = "adapter_config.json"
_MAX_TEXT = 16 << 20
_LONGEST_PATTERN = 1000
_MOST_REPEATS = 5  # the time to match may grow with the length of a name to this power
_parser: Any = re._parser  # type: ignore[attr-defined]
_REPEATS = (_parser.MAX_REPEAT, _parser.MIN_REPEAT, _parser.POSSESSIVE_REPEAT)

# Starting points that leave the base's weights as they are; others (PiSSA, OLoRA, CorDA, LoftQ ...) change them too,
# and the adapter alone does not say how.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# Options of LoRA under which the change is not scaling * B @ A.
_OTHER_PRODUCTS = (
    "use_qalora", "alora_invocation_tokens", "velora_config", "monteclora_config", "kasa_config", "use_bdlora",
    "arrow_config", "layer_replication", "target_parameters", "trainable_token_indices",
)  # fmt: skip
_MERGE_FIRST = "merge it into its base with PEFT's merge_and_unload(), save the model and give that as the expert"


@dataclass(frozen=True)
class PeftConfig:
    """The settings of an adapter.

    Attributes:
        path: the file.
        kind: ``LORA`` or ``IA3``.
        base_model: what the adapter says it was trained on, if anything.
        rank, alpha, rank_pattern, alpha_pattern, rslora: what the scaling of a module comes from.
        transposed: whether weights of linear layers are stored as [in, out] (``fan_in_fan_out``).
        dora: whether the weights are decomposed into magnitude and direction.
        feedforward: names or pattern of the modules whose inputs IA3 scales; it scales the outputs of the others.
    """

    path: Path
    kind: str
    base_model: str | None = None
    rank: int = 0
    alpha: float = 0.0
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    transposed: bool = False
    dora: bool = False
    feedforward: Sequence[str] | str = ()

    def rank_of(self, module: str) -> int:
        """The rank of a module's adapter; ``module`` is the name that PEFT knows."""
        return int(_matching(self.rank_pattern, module, self.rank))

    def scaling_of(self, module: str) -> float:
        """The factor on ``B @ A``: alpha over the rank, or over its root (rank-stabilised LoRA)."""
        rank = self.rank_of(module)
        return float(_matching(self.alpha_pattern, module, self.alpha)) / (math.sqrt(rank) if self.rslora else rank)

    def scales_inputs(self, module: str) -> bool:
        """Whether IA3 multiplies the inputs of this module rather than its outputs."""
        if isinstance(self.feedforward, str):
            return re.fullmatch(self.feedforward, module) is not None
        return any(module == key or module.endswith(f".{key}") for key in self.feedforward)

    @property
    def summary(self) -> dict[str, Any]:
        """What the record of a merge says of the adapter."""
        if self.kind != "LORA":
            return {"type": self.kind}
        patterns = {key: dict(value) for key in ("rank_pattern", "alpha_pattern") if (value := getattr(self, key))}
        return {
            "type": self.kind,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "use_rslora": self.rslora,
            "use_dora": self.dora,
            **patterns,
        }


def _matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that the end of the name matches, as in PEFT."""
    return next(
        (patterns[pattern] for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", module)),
        default,
    )


def read_peft_config(path: Path) -> PeftConfig:
    """Reads and checks ``adapter_config.json``.

    Raises:
        CheckpointError: missing or damaged, or an adapter that is no change of the base's weights.
    """
    values = read_json(path)
    kind = values.get("peft_type")
    if kind not in ("LORA", "IA3"):
        raise CheckpointError(
            f"{path}: an adapter of type {kind!r}; LORA and IA3 can be merged as adapters. Where the type changes "
            f"weights, {_MERGE_FIRST}; prompts and prefixes are inputs and cannot be merged"
        )
    base_model = values.get("base_model_name_or_path")
    base_model = base_model if isinstance(base_model, str) else None
    transposed = bool(values.get("fan_in_fan_out", False))
    if kind == "IA3":
        feedforward = values.get("feedforward_modules") or ()
        if isinstance(feedforward, str):
            _check_patterns(path, "feedforward_modules", [feedforward])
        elif not all(isinstance(key, str) for key in feedforward):
            raise CheckpointError(
                f"{path}: feedforward_modules={feedforward!r} is neither a pattern nor a list of names"
            )
        return PeftConfig(path, kind, base_model, transposed=transposed, feedforward=feedforward)
    for key in _OTHER_PRODUCTS:
        if values.get(key):
            raise CheckpointError(f"{path}: {key} is set, so its change is not that of plain LoRA; {_MERGE_FIRST}")
    start = values.get("init_lora_weights", True)
    start = start.lower() if isinstance(start, str) else start
    if start not in _PLAIN_STARTS:
        raise CheckpointError(
            f"{path}: init_lora_weights={start!r} changed the base's weights before training, which the adapter does "
            "not "
            "hold; save it with save_pretrained(..., path_initial_model_for_weight_conversion=...), which makes it "
            f"plain LoRA, or {_MERGE_FIRST}"
        )
    rank, alpha = values.get("r"), values.get("lora_alpha")
    rank_pattern, alpha_pattern = (values.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
    for key, table in (("rank_pattern", rank_pattern), ("alpha_pattern", alpha_pattern)):
        if not isinstance(table, dict):
            raise CheckpointError(f"{path}: {key}={table!r} is not a mapping from patterns to numbers")
        _check_patterns(path, key, table)
    for key, value in [("r", rank), *((f"rank_pattern[{name!r}]", value) for name, value in rank_pattern.items())]:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{path}: {key}={value!r} is not a whole number of 1 or more")
    for key, value in [
        ("lora_alpha", alpha),
        *((f"alpha_pattern[{name!r}]", value) for name, value in alpha_pattern.items()),
    ]:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise CheckpointError(f"{path}: {key}={value!r} is not a finite number")
    assert isinstance(rank, int)
    assert isinstance(alpha, (int, float))
    rslora = bool(values.get("use_rslora", False))
    dora = bool(values.get("use_dora", False))
    return PeftConfig(path, kind, base_model, rank, alpha, rank_pattern, alpha_pattern, rslora, transposed, dora)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file.

    Raises:
        CheckpointError: missing, damaged, or no object.
    """
    try:
        if path.stat().st_size > _MAX_TEXT:
            raise CheckpointError(f"{path}: too large to be a configuration")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such file; an adapter needs it for its scaling, save it with save_pretrained()"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return values


def _check_patterns(path: Path, key: str, patterns: Any) -> None:
    for pattern in patterns:
        try:
            if len(pattern) > _LONGEST_PATTERN:
                raise CheckpointError(f"{path}: {key} holds a pattern of {len(pattern)} characters")
            with warnings.catch_warnings(action="ignore"):
                re.compile(pattern)
            if _repeats(_parser.parse(pattern)) > _MOST_REPEATS:
                raise re.error("it repeats too many parts")
        except (re.error, RecursionError, OverflowError) as error:
            raise CheckpointError(f"{path}: {key}: {pattern!r} is not a regular expression ({error})") from error


def _repeats(node: Any, within: bool = False) -> int:
    """How many parts of a pattern may match more or less of a name.

    Raises:
        re.error: a part that may do so, or alternatives, are repeated: ``(a+)+`` takes exponential time.
    """
    if not isinstance(node, (tuple, list, _parser.SubPattern)):
        return 0
    if len(node) == 2 and node[0] in _REPEATS:
        low, high, body = node[1]
        if within and low != high:
            raise re.error("repetitions within repetitions take very long")
        return (low != high) + _repeats(body, within or high > 1)
    if within and len(node) == 2 and node[0] is _parser.BRANCH:
        raise re.error("repeated alternatives take very long")
    return sum(_repeats(child, within) for child in node)
