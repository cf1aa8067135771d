"""The page of the documentation that lists every method: ``python -m nemo_merge.reporting.method_cards > PAGE``."""

from __future__ import annotations

from .. import methods
from ..methods import Method, PostProcessor

_INTRODUCTION = """# Methods

The same text as `nemo-merge methods NAME`; `make docs` writes this page. Every method has `scale` (lambda in
papers) and `weights` (one per expert). Formulas use `d_t` for the task vector of expert t and T for the number
of experts; `x'` is the transpose. What these methods do on one set of speech experts is in [All methods](all-
methods.md).
"""

_FAMILIES = {
    "parameter space": "Combine the weights of the experts themselves.",
    "task vectors": "Combine task vectors (expert minus base) entry by entry, or by their directions.",
    "task subspace": """Work on the singular values and vectors of matrices and pointwise convolutions; all other
tensors take the mean task vector unless the method says otherwise. All have
`conv_as_matrix`: treat convolutions of larger kernels as matrices too.""",
    "post-processor": "Change what a method gave, before `scale`; chained with `then=[lines]`, in order.",
}
_COMMON = ("scale", "weights", "conv_as_matrix")


def methods_page() -> str:
    """Markdown with the docstring and the parameters of every built-in method and post-processor."""
    cards: list[type[Method] | type[PostProcessor]] = [
        *map(methods.method_class, methods.names()),
        *map(methods.post_class, methods.post_names()),
    ]
    parts = [_INTRODUCTION]
    for family, text in _FAMILIES.items():
        parts.append(f"## {family.capitalize()}\n\n{text}\n")
        parts += [_card(cls) for cls in cards if cls.family == family and cls.__module__.startswith("nemo_merge.")]
    return "\n".join(parts)


def _card(cls: type[Method] | type[PostProcessor]) -> str:
    lines = [
        f"### {cls.name}\n",
        f"::: {cls.__module__}.{cls.__name__}",
        "    options: {members: false, show_bases: false, heading_level: 4}\n",
    ]
    own = [item for item in methods.parameters(cls) if item.name not in _COMMON]
    if own:
        lines += ["| parameter | default | range | meaning |", "| --- | --- | --- | --- |"]
        lines += [
            f"| `{item.name}` | {_shown(item.default)} | {item.range.replace(' | ', ', ')} | {item.description} |"
            for item in own
        ]
        lines.append("")
    return "\n".join(lines)


def _shown(default: object) -> str:
    return "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"


if __name__ == "__main__":
    print(methods_page(), end="")
