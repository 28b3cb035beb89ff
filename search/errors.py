"""How errors end a command: one line instead of a traceback, and an exit code that scripts can use.

==== ===========================================================================================
0    done
1    the search failed, or storage did; what was finished is kept
2    the spec, the data, the model or the arguments are wrong
3    nothing satisfies the constraints
130  interrupted; the same command goes on
==== ===========================================================================================
"""

import importlib

FAILED, WRONG, NOTHING_FITS, INTERRUPTED = 1, 2, 3, 130

_CODES = {
    "search.spec_errors.SpecError": WRONG,
    "search.run_folder.RunChanged": WRONG,
    "search.run.RunError": WRONG,
    "search.lock.Locked": WRONG,
    "search.cluster.NoRoom": WRONG,
    "search.ablation.AblationError": WRONG,
    "search.export.ExportError": FAILED,
    "search.memory_ledger.LedgerError": FAILED,
    "search.engine.SearchFailed": FAILED,
    "search.engine.Interrupted": INTERRUPTED,
    "search.prepare.NothingFits": NOTHING_FITS,
    "search.select.NoChoice": NOTHING_FITS,
    "trainers.readers.DataError": WRONG,
    "trainers.model_files.ModelError": WRONG,
    "trainers.storage.StorageError": FAILED,
}


def exit_code(error: BaseException) -> int | None:
    """The exit code of an error that is meant for the user; None for a bug of ours."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    return next((code for name, code in _CODES.items() if name in names), None)


def missing_classes() -> list[str]:
    """Names above under which no class is defined: a test keeps this list empty."""
    missing = []
    for name in _CODES:
        module, _, kind = name.rpartition(".")
        found = getattr(importlib.import_module(module), kind, None)
        # A name that is only imported there would never be the one that ``exit_code`` sees.
        if found is None or found.__module__ != module:
            missing.append(name)
    return missing
