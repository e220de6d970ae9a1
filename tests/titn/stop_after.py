"""A training that is asked to end."""

from __future__ import annotations

import os
import signal

from titn.training.callbacks import Callback


class StopAfter(Callback):
    """Asks a training to end after a step, as a user or a scheduler does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: int, *_: object) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
