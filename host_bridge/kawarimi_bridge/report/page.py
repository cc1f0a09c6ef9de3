"""One self-contained HTML file of an operation. Whatever is not made by `tag` is escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Mapping

from kawarimi_bridge.report import tables
from kawarimi_bridge.report.account import Account
from kawarimi_bridge.report.tables import Table, printable

_STYLE = """
body { font: 15px/1.45 sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .4rem 0 1.2rem; }
caption { text-align: left; font-weight: bold; padding: .3rem 0; white-space: nowrap; }
th, td { text-align: left; padding: .1rem .9rem .1rem 0; border-bottom: 1px solid #ddd;
  vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.error { border-left: 4px solid #c0392b; padding-left: 1rem; }
img { max-width: 100%; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The file loads nothing and runs nothing, whatever a name in it may look like."""


class Html(str):
    """A text that is HTML already."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str) -> Html:
    """Return an element; children that are not HTML are escaped, and so are all attributes."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escape(value)}"'
        for key, value in attributes.items()
    )
    inner = "".join(child if isinstance(child, Html) else _escape(child) for child in children)
    return Html(f"<{name}{words}>{inner}</{name}>")


def page(one: Account, images: Mapping[str, bytes]) -> str:
    """Return the whole file, the images inside it."""
    title = f"kawarimi {one.operation}"
    head = tag(
        "head",
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        tag("title", title),
        tag("style", Html(_STYLE)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", *_body(one, images)), lang="en")


def _body(one: Account, images: Mapping[str, bytes]) -> Iterator[Html]:
    yield tag("h1", one.operation)
    yield tag("p", tables.headline(one))
    if error := tables.error_lines(one):
        yield tag("div", *(tag("p", line) for line in error), class_="error")
    for name, content in images.items():
        source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        yield Html(f'<p><img src="{source}" alt="{_escape(name.removesuffix(".png"))}"></p>')
    if "throughput.png" not in images:
        yield tag("p", "throughput: no samples")
    for guest in one.guests:
        yield _table(tables.phase_table(guest))
        yield tag("p", tables.qemu_account(guest))
    for switch in one.switches:
        yield _table(tables.switch_table(switch))
    for more in (tables.rank_table(one), tables.journal_table(one)):
        if more is not None:
            yield _table(more)


def _table(content: Table) -> Html:
    def row(kind: str, cells: list[str]) -> Html:
        return tag(
            "tr",
            *(
                tag(kind, cell, class_="number" if number >= content.numbers_from else "text")
                for number, cell in enumerate(cells)
            ),
        )

    header = row("th", list(content.header))
    return tag(
        "table",
        tag("caption", content.title),
        header,
        *(row("td", list(cells)) for cells in content.rows),
    )


def _escape(text: str) -> str:
    return html.escape(printable(text), quote=True)
