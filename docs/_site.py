"""What the site adds to the pages: README as its first page, the two references, formulas.

The pages themselves read well as plain Markdown; MkDocs calls these hooks when it builds the site.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
import typer.main
from mkdocs.structure.pages import Page

import reparam
from reparam.cli.app import COMMANDS, app

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+([^)]*)\)")
ROLE = re.compile(r":(?:func|meth|class|mod|attr|data):<code>~?(?:[\w.]+\.)?(\w+)</code>")
FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL | re.MULTILINE
)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Fill the generated pages; name files outside of the site instead of linking to them."""
    match page.file.src_uri:
        case "index.md":
            markdown = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
            markdown = re.sub(r"\]\((CONTRIBUTING|CHANGELOG)\.md\)", r"](../\1.md)", markdown)
        case "reference/api.md":
            markdown += api()
        case "reference/cli.md":
            markdown += commands()
    if page.file.src_uri.count("/") == 0:
        markdown = OUTSIDE.sub(_named, markdown)
    return markdown


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers draw without a script, and names without roles."""
    return FORMULA.sub(_formula, ROLE.sub(r"<code>\1</code>", content))


def api() -> str:
    """Every public name, from its docstring."""
    return "\n".join(
        f"\n::: {home}.{name}\n" for name, home in sorted(reparam._HOMES.items(), key=_by_kind)
    )


def commands() -> str:
    """Every command, from its own help."""
    text = []
    with typer.main.get_command(app).make_context("reparam", [], resilient_parsing=True) as parent:
        for name, what in COMMANDS.items():
            command = parent.command.get_command(parent, name)
            inner = command.make_context(name, [], parent=parent, resilient_parsing=True)
            text += [f"\n## reparam {name}\n\n{what}\n\n```text", command.get_help(inner), "```\n"]
    return "\n".join(text)


def _by_kind(entry: tuple[str, str]) -> tuple[bool, str]:
    return entry[0][0].isupper(), entry[0]


def _named(link: re.Match[str]) -> str:
    words, path = link.groups()
    return words if path in words else f"{words} (`{path}`)"


def _formula(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    return latex2mathml.converter.convert(html.unescape(found[2]).strip(), display=display)
