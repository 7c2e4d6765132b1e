"""The playground at `/`: one file, and a policy that lets it load and run nothing but itself."""

import base64
import hashlib
import re
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

_FILE = Path(__file__).with_name("page.html")


def add_page(app: FastAPI) -> None:
    """Add the page."""
    html = _FILE.read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": _policy(html), "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}

    @app.get("/", tags=["operation"], response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        """A page to try the engine on."""
        return HTMLResponse(html, headers=headers)


def _policy(html: str) -> str:
    """Let the page's own style and script in, by their hashes, and nothing else."""
    allowed = {name: _hashes(html, name) for name in ("style", "script")}
    return (
        f"default-src 'none'; style-src {allowed['style']}; script-src {allowed['script']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(html: str, tag: str) -> str:
    found = re.findall(f"<{tag}>(.*?)</{tag}>", html, flags=re.S)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in found)
