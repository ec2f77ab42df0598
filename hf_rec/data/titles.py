"""Item text from strangers becomes one line of plain text."""

import html
import re
import unicodedata


# Only entities that end in a semicolon: `html.unescape` alone would read "Black&notes" as "Black¬es".
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# Only names that are HTML markup in practice: "I <3 You", "<s>" and "<|endoftext|>" are text.
_TAG = re.compile(
    r"</?(?:a|abbr|b|big|blockquote|body|br|center|code|dd|div|dl|dt|em|font|h[1-6]|head|hr|html|i|img|input|li|link"
    r"|meta|ol|p|pre|small|span|strong|sub|sup|table|tbody|td|th|tr|tt|u|ul)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_SCRIPT = re.compile(r"<(script|style)\b[^<>]*>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)


def unescape_html(text: str) -> str:
    """`text` with HTML entities resolved, also where they were escaped twice (`&amp;quot;`)."""
    for _ in range(3):
        if "&" not in text:
            break
        unescaped = _ENTITY.sub(lambda match: html.unescape(match.group()), text)
        if unescaped == text:
            break
        text = unescaped
    return text


def clean_title(title: str) -> str:
    """
    `title` as one line of plain text: HTML unescaped, tags stripped, whitespace collapsed, control characters removed.

    Format characters (right-to-left marks, joiners of emoji) stay: they are part of the text.
    """
    text = unescape_html(title)
    if "<" in text:
        text = _TAG.sub(" ", _SCRIPT.sub(" ", text))
    text = " ".join(text.split())
    if not text.isprintable():
        text = "".join(char for char in text if unicodedata.category(char) not in ("Cc", "Cs"))
        text = " ".join(text.split())
    return text
