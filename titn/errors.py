"""A user's mistake is one clear line and exit code 2, never a traceback."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from titn.kernels.common.backend import BackendUnavailable


class UserError(Exception):
    """What is wrong and how to mend it, in one line."""


class Interrupted(Exception):
    """The run was asked to stop and has saved its state; `signal_number` is what asked."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def command(main: Callable[[list[str] | None], None]) -> Callable[..., None]:
    """Wrap a command's `main(argv)`: mistakes and failing files become `error: ...` on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # what the terminal cannot show must not end a training
                stream.reconfigure(errors="backslashreplace")
        try:
            main(argv)
            sys.stdout.flush()
        except (UserError, BackendUnavailable) as error:
            message = str(error)
        except Interrupted as stopped:
            print(stopped, file=sys.stderr)
            raise SystemExit(128 + stopped.signal_number) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from None
        except BrokenPipeError:  # the reader has seen enough; Python flushes standard output once more as it leaves
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(128 + signal.SIGPIPE) from None
        except OSError as error:
            if error.errno is None:
                raise
            message = f"{error.filename or 'a file'}: {error.strerror}; free some space or choose another folder"
        else:
            return
        print("error: " + " ".join(message.split()), file=sys.stderr)
        raise SystemExit(2)

    return wrapped
