"""What Lightning calls in every ``Trainer()`` of an environment that has this package: nothing happens unless asked.

Lightning collects callbacks from the entry points ``lightning.pytorch.callbacks_factory``, so that scripts of NeMo that
know nothing of this package have its callbacks, without a change and past NeMo's list of allowed classes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Callback

VARIABLE = "NEMO_MERGE_CALLBACKS"
"""Environment variable with the path of a file of callbacks; without it the factory gives none and imports nothing."""


def callbacks_factory() -> list[Callback]:
    """The callbacks of the file that :data:`VARIABLE` names; also registers the hooks of NeMo.

    Raises:
        ConfigError: the file or one of its entries is wrong.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return []
    from .callbacks_file import callbacks_from_file
    from .registration import register_if_installed

    callbacks = callbacks_from_file(path)
    register_if_installed()
    return callbacks
