"""A critic that dies when it reads certain words."""

import os
import signal

from cprs_integrations.critics.known import KnownCritic


class MortalCritic(KnownCritic):
    """Ends its process at the word "poison"; at "stumble", once for each file that is there to be taken away."""

    def __init__(self, lives=None):
        super().__init__({"Hillary": 0.9})
        self._lives = lives

    def score(self, windows):
        for window in windows:
            text = " ".join(piece.text for piece in window.pieces)
            if "poison" in text:
                os.kill(os.getpid(), signal.SIGKILL)
            if "stumble" in text and self._lives is not None:
                try:
                    os.remove(self._lives)
                    os.kill(os.getpid(), signal.SIGKILL)
                except FileNotFoundError:
                    pass
            if "mistake" in text:
                raise ZeroDivisionError("a mistake of the critic")
            yield from super().score([window])
