"""Make stock audiocraft 1.3.0 importable beside a current stack.

audiocraft imports xformers, spacy and librosa at the top of modules that MusicGen needs, though MusicGen on the
torch attention backend uses three names of them, all of `xformers.ops`. They are left out of the install, and
`import_audiocraft` puts stand-ins into `sys.modules` before audiocraft's first import, only where the real
package is missing. Whatever else is asked of a stand-in raises and names the package to install.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from types import ModuleType
from typing import Any

import torch

from musicgen_core.stages import announce_import


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _not_installed(f"{self.__name__}.{name}")


def _not_installed(asked_for: str) -> ImportError:
    package = asked_for.split(".")[0]
    return ImportError(f"{asked_for} was asked for, but {package} is not installed: pip install {package}")


class _LowerTriangularMask:
    """Marker for causal attention, which is all that audiocraft uses it for on torch's backend."""


def _memory_efficient_attention(*_: Any, **__: Any) -> Any:
    # audiocraft imports it whenever a model's configuration says `memory_efficient`; torch's backend never calls it.
    raise _not_installed("xformers.ops.memory_efficient_attention")


def _stand_in(name: str, **attributes: Any) -> None:
    module = _StandIn(name)
    module.__path__ = []  # a package, so that `from xformers.ops import …` looks inside it
    # transformers asks importlib whether packages exist, which fails for a module without a spec.
    module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
    vars(module).update(attributes)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def _missing(package: str) -> bool:
    return package not in sys.modules and importlib.util.find_spec(package) is None


def import_audiocraft(module: str = "audiocraft.models") -> ModuleType:
    """Import a module of audiocraft with stand-ins for its stale dependencies and torch's own attention."""
    announce_import("audiocraft", "audiocraft")
    if _missing("xformers"):
        _stand_in("xformers")
        _stand_in(
            "xformers.ops",
            unbind=torch.unbind,
            LowerTriangularMask=_LowerTriangularMask,
            memory_efficient_attention=_memory_efficient_attention,
        )
    if _missing("spacy"):
        _stand_in("spacy")
    if _missing("librosa"):
        _stand_in("librosa")
        _stand_in("librosa.filters")
    # submitit, which dora imports, reconfigures logging. That flushes every handler under logging's own lock, and
    # Prefect's handler waits there for threads that may be waiting for this lock: the process would hang for good.
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")
    with warnings.catch_warnings():
        # torch's deprecation warnings are about audiocraft's own code; users can't act on them.
        warnings.simplefilter("ignore")
        importlib.import_module("audiocraft.modules.transformer").set_efficient_attention_backend("torch")
        return importlib.import_module(module)
