"""An inspection of data as one HTML page that needs nothing else: no script, no network."""

from collections.abc import Iterable, Iterator
from html import escape

from qlora_core.data import Inspection, Piece, ShownRow
from qlora_profiles.visible import visible
from qlora_run.report.data_words import bin_labels, facts, row_title, set_aside, title

MOST_LETTERS = 20_000
"""Of a stretch of a row; more makes a page that browsers scroll badly."""
CLASSES = {"given": "given", "learned": "learned", "cut": "cut"}
TAGS = {"given": "span", "learned": "mark", "cut": "del"}

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1e21; --dim: #5c636b; --line: #dfe3e8; --box: #f6f7f9;
  --learned: #d3f3d8; --learned-ink: #0b3d17; --warn: #a62b00; --bar: #4a7fb5; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e4e6e9; --dim: #9aa2ab; --line: #33383e;
  --box: #1f2226; --learned: #1d4a2a; --learned-ink: #d9f7df; --warn: #ff9b73; --bar: #6ea3d8; } }
body { background: var(--paper); color: var(--ink); margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
  font: 16px/1.55 system-ui, "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif; }
h1 { font-size: 1.35rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dt { color: var(--dim); }
dd { margin: 0; overflow-wrap: anywhere; } .warning { color: var(--warn); font-weight: 600; }
table { border-collapse: collapse; width: 100%; } td { padding: .1rem .6rem .1rem 0; white-space: nowrap; }
td.count, td.bin { text-align: right; font-variant-numeric: tabular-nums; } td.bar { width: 100%; }
td.bar div { background: var(--bar); height: .8rem; border-radius: 2px; }
section { border: 1px solid var(--line); border-radius: 6px; margin: 1rem 0; overflow: hidden; }
section h3 { background: var(--box); font-size: .95rem; font-weight: 600; margin: 0; padding: .5rem .8rem; }
pre { font: 14px/1.6 ui-monospace, Consolas, "Noto Sans Mono CJK SC", "Microsoft YaHei", monospace; margin: 0;
  max-height: 32rem; overflow: auto; padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.given { color: var(--dim); } mark { background: var(--learned); color: var(--learned-ink); border-radius: 3px; }
del { color: var(--warn); } .role { color: var(--bar); font-weight: 600; } .left-out { color: var(--dim); }
"""

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
"""


def data_page(found: Inspection) -> str:
    """The page; all that the data says is escaped, and control characters are spelled out."""
    heading = _text(title(found))
    parts = [
        HEAD.format(title=heading, style=STYLE),
        f"<h1>{heading}</h1>\n",
        *(f'<p class="warning">Warning: {_text(warning)}</p>\n' for warning in found.warnings),
        _facts(found),
        _histogram(found),
        *_listed("Rows set aside", set_aside(found)),
        *_listed("Notes", found.notes),
        _legend(found),
        *(_row(row, found) for row in found.shown),
        "</body>\n</html>\n",
    ]
    return "".join(parts)


def _text(text: str) -> str:
    return escape(visible(text))


def _facts(found: Inspection) -> str:
    rows = "".join(f"<dt>{_text(label)}</dt><dd>{_text(said)}</dd>\n" for label, said in facts(found))
    return f"<dl>\n{rows}</dl>\n"


def _histogram(found: Inspection) -> str:
    most = max(one.rows for one in found.lengths.histogram)
    rows = "".join(
        f'<tr><td class="bin">{_text(label)}</td><td class="count">{one.rows:,}</td>'
        f'<td class="bar"><div style="width:{100 * one.rows / most:.1f}%"></div></td></tr>\n'
        for label, one in zip(bin_labels(found), found.lengths.histogram, strict=True)
    )
    return f"<h2>Lengths, in {found.lengths.unit}</h2>\n<table>\n{rows}</table>\n"


def _listed(heading: str, sentences: Iterable[str]) -> Iterator[str]:
    items = "".join(f"<li>{_text(sentence)}</li>\n" for sentence in sentences)
    if items:
        yield f"<h2>{heading}</h2>\n<ul>\n{items}</ul>\n"


def _legend(found: Inspection) -> str:
    if not found.shown:
        return ""
    cut = ", <del>cut off</del>" if found.cuts and found.cuts.rows else ""
    return f'<h2>Rows</h2>\n<p><span class="given">given</span>, <mark>learned</mark>{cut}</p>\n'


def _row(row: ShownRow, found: Inspection) -> str:
    pieces = ("\n" if found.model is None else "").join(map(_piece, row.pieces))
    return f'<section>\n<h3>{_text(row_title(row, found))}</h3>\n<pre dir="auto">{pieces}</pre>\n</section>\n'


def _piece(piece: Piece) -> str:
    role = f'<span class="role">{_text(piece.role)}</span>\n' if piece.role else ""
    left_out = len(piece.text) - MOST_LETTERS
    more = f'<span class="left-out"> ... {left_out:,} more letters</span>' if left_out > 0 else ""
    tag = TAGS[piece.kind]
    return f'{role}<{tag} class="{CLASSES[piece.kind]}">{_text(piece.text[:MOST_LETTERS])}</{tag}>{more}'
