"""A user's mistake is one clear line and exit code 2, never a traceback."""

from __future__ import annotations

import argparse
import difflib
import errno
import functools
import os
import re
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from titn.kernels.common.backend import BackendUnavailable
from titn.pipelines.image_files import UndecodableImage


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
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        close = difflib.get_close_matches(unknown[1], self._option_string_actions, 1) if unknown else []
        hint = f"did you mean {close[0]}?" if close else f"see {self.prog} --help"
        raise UserError(f"{message}; {hint}")


def count(number: int, one: str, more: str | None = None) -> str:
    """`number` with its noun: 1 image, 2 images."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def command(main: Callable[[list[str] | None], None]) -> Callable[..., None]:
    """Wrap a command's `main(argv)`: mistakes and failing files become `error: ...` on stderr and exit code 2.

    Where the reader of the output has gone (`| head`), the command ends without a word and with exit code 1.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # what the terminal cannot show must not end a training
                stream.reconfigure(errors="backslashreplace")
        try:
            main(argv)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            if not _reader_has_gone():
                raise
            raise SystemExit(1) from None
        except (UserError, BackendUnavailable, UndecodableImage) as error:
            message = str(error)
        except Interrupted as stopped:
            print(stopped, file=sys.stderr)
            raise SystemExit(128 + stopped.signal_number) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from None
        except OSError as error:
            if error.errno is None:
                raise
            file, full = error.filename or "a file", (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
            message = (
                f"cannot write {file}: {error.strerror}; free some space or choose another folder"
                if error.errno in full
                else f"cannot use {file}: {error.strerror}"
            )
        else:
            return
        print("error: " + " ".join(message.split()), file=sys.stderr)
        raise SystemExit(2)

    return wrapped


def _reader_has_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more; what is still buffered for it is then dropped."""
    output = 1
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True
