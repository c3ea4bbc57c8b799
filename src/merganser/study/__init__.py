"""Studies: methods compared over orders and seeds, with their statistics, tables and page.

``merganser.study(...)`` runs one: the module is callable (:func:`merganser.study.study.study`).
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from merganser.study.study import study

        return study(*arguments, **options)


sys.modules[__name__].__class__ = _CallableModule
