"""The process of the command line: Ctrl-C ends it with status 130 and one sentence, whenever it comes.

Before a command begins, and once it is over, there is nothing to tidy up: the process leaves at once. In between, the
first Ctrl-C is a KeyboardInterrupt, so that files and stores are closed, and a second one leaves at once. This file
imports nothing that takes time; a process that has been started with Ctrl-C ignored goes on ignoring it.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, NoReturn

__all__ = ["interrupted", "interruptible", "program", "tell"]


class _Ending:
    """What is said when the process is interrupted, and whether it was."""

    sentence: Callable[[], str] = staticmethod(lambda: "interrupted; nothing was written")
    heard = told = False


def program() -> NoReturn:
    """Runs the command that the process was started with."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)
        sys.unraisablehook = _unraisable
        # After all else that is done at exit; the interpreter would take the handler away, and a signal kill it.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    sys.exit(import_module("noisykernels.cli.main").main())


@contextmanager
def interruptible(sentence: Callable[[], str]) -> Iterator[None]:
    """A block that Ctrl-C ends by a KeyboardInterrupt, also in a process that is ours; then this is what is said."""
    _Ending.sentence, _Ending.heard, _Ending.told = staticmethod(sentence), False, False
    ours = signal.getsignal(signal.SIGINT) is _leave
    if ours:
        signal.signal(signal.SIGINT, _raise)
    yield
    if ours:
        signal.signal(signal.SIGINT, _leave)


def interrupted() -> bool:
    """Whether Ctrl-C came: whatever a command ends with then, it is of no interest."""
    return _Ending.heard


def _raise(*_: object) -> NoReturn:
    """The first Ctrl-C of a command."""
    _Ending.heard = True
    signal.signal(signal.SIGINT, _leave)
    raise KeyboardInterrupt


def tell() -> int:
    """Says how it ended, once; the status."""
    if not _Ending.told:
        _Ending.told = True
        text = f"{_Ending.sentence()}\n"
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except RuntimeError:  # the signal came in the middle of another write
            os.write(2, text.encode(errors="backslashreplace"))
    return 130


def _leave(*_: object) -> NoReturn:
    """Says it, and ends the process at once."""
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(tell())


def _unraisable(what: Any) -> None:
    """A KeyboardInterrupt that came where none can be raised, as in a destructor, would be lost."""
    if issubclass(what.exc_type, KeyboardInterrupt):
        _leave()
    sys.__unraisablehook__(what)
