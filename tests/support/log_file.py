"""A tool's long output, in which one line answers."""

HIT = "2024-05-01 12:03:37 ERROR payment: card of order 8812 refused, insufficient funds"
ASKED = "Why was order 8812 refused?"


def log_file(size: int = 120, hit: int = 60) -> str:
    """Lines of a log; the one with number `hit`, counted from 1, is `HIT`."""
    lines = [
        f"2024-05-01 12:{n // 60:02d}:{n % 60:02d} INFO http: request {1000 + n} handled in {n % 37} ms" for n in range(size)
    ]
    lines[hit - 1] = HIT
    return "\n".join(lines)
