"""Replaces a method of one object, so that a stock trainer or script calls ours and the class stays as it is."""

from __future__ import annotations

import inspect
from typing import Any


class InstanceMethod:
    """Stands in for a method of one object; subclasses define ``__call__`` and reach what was there by ``original``.

    It is an object rather than a closure so that a copy of its owner gets one of its own.

    Args:
        owner: the object.
        name: the method.
    """

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name
        self.original = getattr(owner, name)
        self._was_own = name in vars(owner)
        # Lightning looks at a hook's signature and code through this attribute.
        self.__wrapped__ = inspect.unwrap(self.original)
        setattr(owner, name, self)

    def remove(self) -> None:
        """Puts the method back; where something has replaced this one since, that stays and calls this one."""
        if vars(self.owner).get(self.name) is not self:
            return
        if self._was_own:
            setattr(self.owner, self.name, self.original)
        else:
            delattr(self.owner, self.name)
