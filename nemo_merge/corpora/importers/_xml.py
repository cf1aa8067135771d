"""XML of strangers: no entities, nothing fetched, and every element knows its line."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import Element
from xml.parsers import expat

from ..source import Source

_DECLARED = re.compile(rb"""<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)""")


class Node(Element):
    """An element that knows the line of its file; ``tail`` text is on the line of its end."""

    line: int = 0


def line_of(element: Element) -> int:
    """The line where an element of :func:`parse_xml` begins."""
    return element.line if isinstance(element, Node) else 0


class _EntityError(Exception):
    pass


def parse_xml(source: Source, path: Path, encoding: str | None = None) -> Node | None:
    """Root of an XML file; None, and a problem with line and column, when it is broken.

    A document type may be named and is not read; one that declares entities is refused (they can grow without limit
    and can name other files).

    Args:
        source: the corpus.
        path: the file.
        encoding: overrides what the file declares, which is often wrong.
    """
    content = source.note(path).read_bytes()
    declared = _DECLARED.search(content[:200])
    codec = encoding or (declared[1].decode("ascii") if declared else None)
    if codec:  # expat knows five encodings, Python all: hand it UTF-8
        try:
            content = content.decode(codec).encode("utf-8")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            source.problems.add(
                "encoding",
                f"{path}, line {line}",
                f"byte 0x{content[error.start]:02x} is not {codec}, which "
                f"{'was asked for' if encoding else 'the file declares'}; pass another encoding=",
            )
            return None
        except LookupError:
            source.problems.add("encoding", str(path), f"the encoding {codec!r} is unknown; pass encoding=")
            return None
    builder = _Builder(expat.ParserCreate("utf-8" if codec else None))
    try:
        builder.parser.Parse(content, True)
    except expat.ExpatError as error:
        message = f"broken XML ({expat.ErrorString(error.code)}, column {error.offset + 1})"
        source.problems.add("xml", f"{path}, line {error.lineno}", message)
        return None
    except _EntityError as error:
        source.problems.add("xml", f"{path}, line {builder.parser.CurrentLineNumber}", str(error))
        return None
    return builder.root


class _Builder:
    def __init__(self, parser: expat.XMLParserType) -> None:
        self.parser = parser
        self.root: Node | None = None
        self._open: list[Node] = []
        self._last: Node | None = None  # closed just now: text that comes is its tail
        parser.buffer_text = True
        parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.EntityDeclHandler = self._entity
        parser.ExternalEntityRefHandler = self._entity

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        node = Node(tag, attributes)
        node.line = self.parser.CurrentLineNumber
        if self._open:
            self._open[-1].append(node)
        else:
            self.root = node
        self._open.append(node)
        self._last = None

    def _end(self, _: str) -> None:
        self._last = self._open.pop()

    def _text(self, text: str) -> None:
        if self._last is not None:
            self._last.tail = (self._last.tail or "") + text
        elif self._open:
            self._open[-1].text = (self._open[-1].text or "") + text

    def _entity(self, *_: object) -> int:
        raise _EntityError("declares or names entities, which are not read from corpora")
