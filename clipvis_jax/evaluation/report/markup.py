"""HTML and SVG from nested calls: text is escaped, so that no name of a class, file or video can break a page."""

import html


class Markup(str):
    """Text that is markup already and must not be escaped again."""

    __slots__ = ()


_VOID = {"circle", "img", "input", "line", "meta", "path", "polyline", "rect"}
"""Elements without content."""


def element(name: str, *children: str | list[Markup], **attributes: str | int | float | None) -> Markup:
    """Write one element.

    Args:
        name: Its tag.
        children: Markup, lists of markup, or plain text, which is escaped.
        attributes: Their names, with ``_`` for ``-`` and one ``_`` added to Python's keywords (``class_``). None and
            False leave an attribute out, True gives it no value.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value not in (None, False))
    if name in _VOID:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str | list[Markup]) -> Markup:
    """Put markup, lists of markup and plain text, which is escaped, one after another."""
    return Markup("".join(_content(child) for child in children))


def _attribute(key: str, value: str | int | float | None) -> str:
    key = key.rstrip("_").replace("_", "-")
    return f" {key}" if value is True else f' {key}="{html.escape(str(value))}"'


def _content(child: str | list[Markup]) -> str:
    if isinstance(child, list):
        return "".join(child)
    return child if isinstance(child, Markup) else html.escape(child)
