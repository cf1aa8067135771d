"""``nemo-merge corpora``: lists the corpora and formats that can be prepared, or explains one."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..corpora import Corpus


@click.command("corpora")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print everything that is known, as JSON.")
@click.option("--domain", help="Only those of this domain.")
@click.option("--language", help="Only those with this language, as a BCP-47 tag; pt includes pt-PT.")
def command(name: str | None, as_json: bool, domain: str | None, language: str | None) -> None:
    """List corpora and formats, with their licences and how well each recipe was tested, or explain one by NAME."""
    from ..corpora import corpora, find

    chosen = [find(name)] if name else corpora()
    chosen = [item for item in chosen if domain in (None, item.domain) and _speaks(item, language)]
    if as_json:
        click.echo(json.dumps([about(item) for item in chosen], ensure_ascii=False, indent=1))
    elif name:
        _explain(chosen[0])
    else:
        _list(chosen)


def about(corpus: Corpus) -> dict[str, Any]:
    """Everything that the registry knows of a corpus, as plain data."""
    known = {item.name: getattr(corpus, item.name) for item in fields(corpus)}
    known["prepare"], known["download"] = corpus.prepare is not None, corpus.download is not None
    known["options"] = {
        key: None if default is inspect.Parameter.empty else default for key, default in corpus.options.items()
    }
    return known


def _speaks(corpus: Corpus, language: str | None) -> bool:
    return language is None or any(f"{tag}-".startswith(f"{language}-") for tag in corpus.languages)


def _list(chosen: list[Corpus]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ._console import console

    out = console()
    for kind, title in (("corpus", "Corpora"), ("format", "Formats of your own corpora")):
        listed = [item for item in chosen if item.kind == kind]
        if not listed:
            continue
        columns = (
            ["name", "domain", "languages", "licence", "access", "recipe"] if kind == "corpus" else ["name", "reads"]
        )
        table = Table(*columns, box=None, pad_edge=False)
        for item in listed:
            if kind == "format":
                table.add_row(item.name, Text(item.layout))
                continue
            licence = item.licence if item.licence_verified else f"{item.licence} (?)"
            languages = ", ".join(item.languages)
            table.add_row(item.name, item.domain, languages, Text(licence), item.access, item.status.replace("_", " "))
        out.print(Text(title, style="bold"))
        out.print(table)
        out.print()
    out.print("(?): the licence text was not read; check it. Details: nemo-merge corpora NAME")


def _explain(corpus: Corpus) -> None:
    from rich.table import Table
    from rich.text import Text

    from ..corpora.registry import ACCESS, STATUS
    from ._console import console

    out = console()
    out.print(Text(f"{corpus.name}: {corpus.title}", style="bold"))
    out.print(Text(inspect.cleandoc(getattr(corpus.prepare, "__doc__", None) or "").split("\n")[0]))
    table = Table(show_header=False, box=None, pad_edge=False)
    unread = "" if corpus.licence_verified else "; the licence text was not read: check it"
    about_corpus = (
        ("domain", corpus.domain),
        ("languages", ", ".join(corpus.languages)),
        ("variety", corpus.variety),
        ("licence", corpus.licence + unread),
        ("access", f"{corpus.access}: {ACCESS[corpus.access]}"),
        ("source", corpus.source),
        ("layout", corpus.layout),
        ("splits", ", ".join(corpus.splits)),
        ("citation", corpus.citation),
        ("recipe", f"{corpus.status.replace('_', ' ')}: {STATUS[corpus.status]}"),
        ("note", corpus.note),
    )
    for key, value in about_corpus if corpus.kind == "corpus" else (("layout", corpus.layout),):
        if value:
            table.add_row(key, Text(value))
    meanings = dict(
        re.findall(r"^    (\w+): (.*(?:\n     .*)*)", getattr(corpus.prepare, "__doc__", None) or "", re.MULTILINE)
    )
    for option, default in corpus.options.items():
        meaning = " ".join(meanings.get(option, "").replace("``", "").split())
        table.add_row("option", Text(f"{option}={_shown(default)}  {meaning}"))
    out.print(table)
    source = "/" if corpus.name == "asterisk" else "SRC"
    needed = "".join(f" {key}=..." for key, value in corpus.options.items() if value is inspect.Parameter.empty)
    out.print(Text(f"try:    nemo-merge prepare {corpus.name} {source} OUT{needed}"))
    if corpus.download:
        out.print(Text(f"fetch:  nemo-merge download {corpus.name} SRC"))


def _shown(default: object) -> str:
    if default is inspect.Parameter.empty:
        return "... (must be given)"
    if isinstance(default, tuple):
        return "[" + ",".join(map(str, default)) + "]"
    return {None: "(none)", True: "true", False: "false"}.get(default, str(default))  # type: ignore[call-overload]
