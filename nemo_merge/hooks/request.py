"""A merge that a configuration asks for: the settings of ``nemo-merge merge``, from a YAML file or as plain data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, NemoMergeError
from ..settings import MergeSettings, plain_settings, read_yaml, settings_of

if TYPE_CHECKING:
    from ..merging.in_memory import InMemoryMerge
    from ..methods import Method

YAML_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class MergeRequest:
    """What to merge and how.

    Attributes:
        settings: inputs and options; those that concern the output have no effect.
        method: the method with its parameters.
        source: how messages call the configuration.
        include: parts of names of the tensors that are wanted; all by default.
        exclude: parts of names of tensors that are not wanted.
    """

    settings: MergeSettings
    method: Method
    source: str
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    @classmethod
    def read(
        cls, source: str | os.PathLike[str] | Mapping[str, Any], name: str, *, parts: bool = False
    ) -> MergeRequest:
        """Reads a configuration as ``nemo-merge merge`` takes it.

        Args:
            source: a YAML file, whose relative paths count from the file, or a mapping, whose relative paths count
                from the working directory.
            name: how messages call a mapping.
            parts: whether ``include`` and ``exclude`` may stand among the settings.

        Raises:
            ConfigError: a key, method or value that does not exist; the message names the file.
        """
        path = Path(source) if isinstance(source, (str, os.PathLike)) else None
        if path is None and not hasattr(source, "items"):
            raise ConfigError(f"{name}={source!r} is neither a YAML file nor a mapping with base, experts and method")
        plain = plain_settings(read_yaml(path) if path is not None else source)
        name = str(path) if path is not None else name
        include, exclude = (
            _words(plain.pop(key, []), f"{name}: {key}") if parts else [] for key in ("include", "exclude")
        )
        request = replace(cls._of(plain, name), include=include, exclude=exclude)
        return request.in_folder(path.parent) if path is not None else request

    @classmethod
    def of(cls, experts: Any, method: str | Method, settings: Mapping[str, Any], source: str) -> MergeRequest:
        """A request from arguments; ``settings`` are options and parameters of the method."""
        known = {item.name for item in fields(MergeSettings)}
        parameters = {key: value for key, value in settings.items() if key not in known}
        plain = {key: value for key, value in settings.items() if key in known}
        plain["experts"] = experts if isinstance(experts, str) else [_plain_path(expert) for expert in experts]
        if isinstance(method, str):
            return cls._of({**plain, "method": {"name": method, **parameters}}, source)
        if parameters:
            raise ConfigError(f"{source}: {sorted(parameters)} cannot be given beside a finished method")
        return replace(cls._of(plain, source), method=method)

    @classmethod
    def _of(cls, plain: dict[str, Any], source: str) -> MergeRequest:
        try:
            settings, method = settings_of(plain)
        except NemoMergeError as error:
            raise ConfigError(f"{source}: {error}") from error
        if not settings.experts:
            raise ConfigError(f"{source}: experts are missing")
        if settings.as_adapter:
            raise ConfigError(f"{source}: as_adapter writes a file; a model is merged into memory here, leave it out")
        return cls(settings, method, source)

    def in_folder(self, folder: Path) -> MergeRequest:
        """The same with relative paths taken from ``folder``."""

        def placed(value: Any) -> Any:
            if isinstance(value, Mapping) and "path" in value:
                return {**value, "path": placed(value["path"])}
            if isinstance(value, list):
                return [placed(item) for item in value]
            return str(folder / value) if isinstance(value, str) else value

        settings = self.settings
        return replace(
            self,
            settings=replace(
                settings, base=placed(settings.base), experts=placed(settings.experts), audio=placed(settings.audio)
            ),
        )

    def with_base(self, base: Path) -> MergeRequest:
        """The same for another base."""
        return replace(self, settings=replace(self.settings, base=str(base)))

    def plan(self) -> InMemoryMerge:
        """Opens the inputs and plans; what it returns is a context manager.

        Raises:
            CheckpointError, PlanError, ConfigError: as by :func:`~nemo_merge.merging.merge`.
        """
        from ..merging.api import Options
        from ..merging.in_memory import InMemoryMerge

        settings = self.settings
        return InMemoryMerge(settings.base, settings.experts, self.method, Options(**settings.plan_options()))


def _plain_path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _words(value: Any, name: str) -> list[str]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ConfigError(f"{name}={value!r} is not a list of parts of tensor names")
    return words
