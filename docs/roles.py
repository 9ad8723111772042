"""Turn the roles of docstrings, as in :class:`lkm_calc.Graph`, into links of this site."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([\w.]+)`")


def linked(match: re.Match[str]) -> str:
    """Return the name as code, and as a link where the site describes it."""
    name = match[1]
    return f'<autoref identifier="{name}" optional><code>{name}</code></autoref>'


class Roles(Extension):
    """Applied to every object that griffe reads."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(linked, obj.docstring.value)
