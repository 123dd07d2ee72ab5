"""The page at `/`, and what it shows of the release."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from sidr_core.serving.examples import examples
from sidr_core.serving.served import Served

HTML = Path(__file__).with_name("page.html").read_text()


def _digests(tag: str) -> str:
    """The page's own scripts or styles, as a policy names them."""
    texts = re.findall(rf"<{tag}>(.*?)</{tag}>", HTML, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)


#: Nothing but the page's own text runs in it, and it speaks to its own server alone.
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; script-src {_digests('script')}; style-src {_digests('style')}; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_USERS = 6


def about(served: Served) -> dict[str, Any]:
    """Names and figures of a release, for the page."""
    release, shelf = served.release, served.shelf
    return {
        "dataset": release.place.dataset,
        "snapshot": release.place.snapshot,
        "release": release.place.fingerprint,
        "synthetic": release.lists.synthetic,
        "names": dict(release.names),
        "choices": {
            mode: {key: value for key, value in release.choices.get(name, {}).items() if not isinstance(value, dict)}
            for mode, name in release.names.items()
        },
        "items": len(shelf),
        "users": len(shelf.users),
        "max_history": shelf.max_history,
        "categories": shelf.categories[:500],
        "users_shown": shelf.users[:: max(1, len(shelf.users) // _USERS)][:_USERS],
        "examples": [example.model_dump() for example in examples(served)],
    }
