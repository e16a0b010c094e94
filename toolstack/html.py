"""HTML files that need nothing else: from a template, with pictures inside.

Rule: whatever goes in is text, and never markup.
"""

import base64
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES: Final = Path(__file__).with_name("templates")


def rendered(template: str, **values: Any) -> str:
    """The text of `template`, with `values` in it."""
    # By its name Jinja would not see that it is HTML.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(f"{template}.html.j2").render(**values)


def embedded(data: bytes) -> str:
    """`data` for a data: URL."""
    return base64.b64encode(data).decode()
