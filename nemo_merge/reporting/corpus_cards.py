"""The page of the documentation that lists every corpus: ``python -m nemo_merge.reporting.corpus_cards > PAGE``."""

from __future__ import annotations

import inspect

from ..corpora.registry import ACCESS, STATUS, Corpus, corpora
from .markdown import table

_INTRODUCTION = """# Corpora

The same as `nemo-merge corpora`; `make docs` writes this page. A domain is a word by which experts and test sets are
grouped; it is not claimed that a paper used this corpus for that domain.

"""


def corpora_page() -> str:
    """Markdown with a table of all corpora, one of the formats, and a card for each corpus."""
    own = [item for item in corpora() if (item.prepare.__module__ if item.prepare else "").startswith("nemo_merge.")]
    listed = [item for item in own if item.kind == "corpus"]
    formats = [item for item in own if item.kind == "format"]
    rows = [
        [f"[`{item.name}`](#{item.name})", item.domain, ", ".join(item.languages), item.access, _status(item)]
        for item in listed
    ]
    parts = [
        _INTRODUCTION,
        table(["name", "domain", "languages", "access", "recipe"], rows),
        "\n\nAccess: " + "; ".join(f"*{key}*, {meaning}" for key, meaning in ACCESS.items()) + ".",
        "\n\nRecipe: " + "; ".join(f"*{key.replace('_', ' ')}*, {meaning}" for key, meaning in STATUS.items()) + ".",
        "\n\n## Formats of your own corpora\n\n",
        "All need `name=` and `language=` (a BCP-47 tag) and take `domain=`.\n\n",
        table(
            ["name", "reads", "options"],
            [[f"`{item.name}`", _layout(item), _options(item, ("name", "language", "domain"))] for item in formats],
        ),
        "\n\n## One by one\n",
        *map(_card, listed),
    ]
    return "".join(parts)


def _card(corpus: Corpus) -> str:
    unread = "" if corpus.licence_verified else " (the licence text was not read: check it)"
    entries = [
        ("", corpus.title + (f", {corpus.variety}" if corpus.variety else "")),
        ("Licence", corpus.licence + unread),
        ("Source", corpus.source),
        ("Layout", _layout(corpus)),
        ("Splits", ", ".join(corpus.splits)),
        ("Options", _options(corpus)),
        ("Cite", corpus.citation),
        ("Note", corpus.note),
    ]
    lines = [f"- {key}: {value}" if key else f"{value}.\n" for key, value in entries if value]
    return f"\n### {corpus.name}\n\n" + "\n".join(lines) + "\n"


def _options(corpus: Corpus, without: tuple[str, ...] = ()) -> str:
    shown = []
    for key, default in corpus.options.items():
        if key in without:
            continue
        if isinstance(default, tuple):
            default = "[" + ",".join(default) + "]"
        given = default is inspect.Parameter.empty or default in (None, "")
        value = str(default).lower() if isinstance(default, bool) else default
        shown.append(f"`{key}`" if given else f"`{key}={value}`")
    return ", ".join(shown)


def _layout(corpus: Corpus) -> str:
    """As code where Markdown would read it as something else."""
    return f"`{corpus.layout}`" if set("{<*") & set(corpus.layout) else corpus.layout


def _status(corpus: Corpus) -> str:
    return corpus.status.replace("_", " ")


if __name__ == "__main__":
    print(corpora_page(), end="")
