"""The data type ``nemo_merge_domain``: a split of a domain of a corpus, by name, in a NeMo configuration.

.. code-block:: yaml

    input_cfg:
      - {type: nemo_merge_domain, corpus: ep_mini, domain: telephone, split: train, root: data/ep_mini, weight: 0.6}
      - {type: nemo_merge_domain, corpus: ep_mini, domain: parliament, split: train, root: data/ep_mini, weight: 0.4}

``weight``, ``tags`` and everything that NeMo hands down to an entry mean what they mean for its types ``lhotse`` and
``nemo``, which do the reading. Cuts carry ``corpus`` and ``domain`` among their custom fields, like tags.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..corpora.domains import find_manifest, is_cuts
from ..errors import ConfigError

if TYPE_CHECKING:
    from lhotse import CutSet

TYPE = "nemo_merge_domain"
_KEYS = ("corpus", "domain", "split", "root")


def domain_cuts(config: Any) -> tuple[CutSet, bool]:
    """Reads an entry of ``input_cfg``.

    Args:
        config: ``corpus``, ``domain``, ``split`` and ``root`` (see :func:`~nemo_merge.corpora.domains.find_manifest`),
            and what NeMo's readers take.

    Returns:
        The cuts, and whether they come from tar files: never.

    Raises:
        ConfigError: a key is missing, or the corpus has no such manifest; the message says what there is.
    """
    from nemo.collections.common.data.lhotse.cutset import attach_tags, get_parser_fn
    from omegaconf import OmegaConf

    missing = [key for key in _KEYS if config.get(key) is None]
    if missing:
        raise ConfigError(f"input_cfg: an entry of type {TYPE} has no {', '.join(missing)}")
    corpus, domain = str(config.corpus), str(config.domain)
    path = find_manifest(str(config.root), corpus, domain, str(config.split))
    rest = {key: value for key, value in config.items() if key not in _KEYS}
    kind, key = ("lhotse", "cuts_path") if is_cuts(path) else ("nemo", "manifest_filepath")
    cuts, tarred = get_parser_fn(kind)(OmegaConf.create({**rest, "type": kind, key: str(path)}))
    return cuts.map(partial(attach_tags, tags={"corpus": corpus, "domain": domain}), apply_fn=None), tarred


def install() -> Callable[[], None]:
    """Registers the type; the result takes it out again."""
    from nemo.collections.common.data.lhotse import cutset

    before = cutset.KNOWN_DATA_CONFIG_TYPES.get(TYPE)
    cutset.data_type_parser(TYPE)(domain_cuts)

    def undo() -> None:
        if before is None:
            cutset.KNOWN_DATA_CONFIG_TYPES.pop(TYPE, None)
        else:
            cutset.KNOWN_DATA_CONFIG_TYPES[TYPE] = before

    return undo
