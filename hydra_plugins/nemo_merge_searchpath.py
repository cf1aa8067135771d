"""Lets every Hydra application, NeMo's scripts among them, find the configurations of nemo_merge.

``hydra_plugins`` is a namespace package that Hydra searches; it must not have an ``__init__.py``.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class NemoMergeSearchPath(SearchPathPlugin):
    """Appends the package's configurations, after those of the application."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="nemo_merge", path="pkg://nemo_merge.configs")
