"""Names that somebody may have given a photo to do harm, or without a thought.

All of them can stand on Linux: no NUL, at most 255 bytes, and not hidden. The few with a slash, as closing
markup has one, are a folder and a file.
"""

import os
from functools import cache

MARKUP = [
    "<script>alert(1)<script>",
    "<img src=x onerror=alert(1)>",
    "\"><svg onload=alert(1)>",
    "'><b>",
    "<iframe srcdoc='&lt;script&gt;alert(1)'>",
    "<a href=javascript:alert(1)>x",
    "<meta http-equiv=refresh content=0>",
    "<base href=x>",
    "<style>*{display:none}",
    "<!--",
    "-->",
    "]]>",
    "<![CDATA[x",
    "<?php echo 1 ?>",
    "&lt;b&gt;",
    "&#60;b&#62;",
    "&amp;",
    "a&b;c",
    "{{ 7*7 }}",
    "{% raw %}",
    "{# x #}",
    "${7*7}",
    "javascript:alert(1)",
    "data:text,x",
    "x onmouseover=alert(1) y",
    "a=\"b\" style='c'",
    "`tick`",
]  # fmt: skip

TERMINAL = [
    "[/b]",
    "[red]x",
    "[link=x]y[/link]",
    "\x1b[2J\x1b[H",
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x1b]52;c;cm0gLXJm\x07",
    "\x1b]8;;x\x1b\\link",
    "\x1bP+q\x1b\\",
    "\x9b2J",
    "\x9d0;title\x9c",
    "\x07bell",
    "\x08\x08\x08back",
    "a\nb",
    "a\r\nb",
    "\rover",
    "a\tb",
    "\x01",
    "\x7f",
    "\x85",
    "%s%n%x",
]

UNICODE = [
    "gpj\u202eexe",
    "\u2066iso\u2069",
    "\u200bzero",
    "\ufeffbom",
    "\u2028line",
    "\u2029paragraph",
    "\u00adsoft",
    "caf\u00e9",
    "cafe\u0301 nfd",
    "\ufb01 ligature",
    "👩\u200d🦰",
    "皮鞋",
    "שולחן",
    "مرحبا",
    "Z" + "\u0335" * 20,
    "\ufffe",
    "\uffff",
    "\U000e0041tag",
    "\ue000private",
    os.fsdecode(b"caf\xe9"),
    os.fsdecode(b"\xff\xfe<b>"),
    os.fsdecode(b"\xed\xa0\x80 surrogate"),
    os.fsdecode(b"\xc0\xafoverlong"),
]

SHELL_AND_SHEETS = [
    "-rf",
    "--help",
    "-",
    "=1+1",
    "=HYPERLINK(\"x\",\"y\")",
    "=cmd|' C'!A0",
    "+1",
    "@SUM(1)",
    " =1",
    "\uff1d1+1",
    "'quoted",
    "\"double\"",
    "a,b;c\td",
    "$(touch canary)",
    ";touch canary",
    "|cat",
    "a b  c",
    "*",
    "?",
    "[a-z]",
    "~",
    "!x",
    "#x",
    "a#b",
    "a?b=c",
    "a%2e%2eb",
    "%00",
    "100%",
    "a\\b",
    "..\\..\\x",
    "C:x",
    "http:evil",
]  # fmt: skip

PLACES = [
    "CON",
    "NUL",
    "aux",
    "COM1",
    "LPT9",
    "trailing.",
    "trailing ",
    " leading",
    "a..b",
    "index.html",
    "page-002.html",
    "report",
    "lock",
    "x.crm-run-1-abcd.part",
    "crm-20200101-1-aa.part",
    "n" * 240,
    "é" * 120,
    "x.glb",
    "x.jpg",
    "0",
    "None",
    "null",
    "true",
    "1e5",
]


@cache
def names(count: int = 300) -> tuple[str, ...]:
    """So many different ones, without an extension; every one of the above first."""
    first = [name for name in (*MARKUP, *TERMINAL, *UNICODE, *SHELL_AND_SHEETS, *PLACES) if name[0] != "."]
    longer = (f"{a}{b}" for shift in range(1, len(first)) for a, b in zip(first, first[shift:], strict=False))
    found: dict[str, None] = dict.fromkeys(first)
    for name in longer:
        if len(found) >= count:
            break
        if len(os.fsencode(name)) <= 240:
            found[name] = None
    assert len(found) >= count
    return tuple(found)[:count]
