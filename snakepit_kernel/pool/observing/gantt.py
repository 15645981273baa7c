"""A timeline as html: a bar for each call, in a row of its worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .html import shown, style
from .timeline import TimelineCall, seconds, span_of, tracks

MAX_BARS = 2000
"""Calls that are drawn: a browser has to show each of them."""

_WIDTH, _LABEL, _ROW, _TOP, _TICKS = 900, 130, 22, 20, 5

_FINE = {"ok", "cancelled"}


def page(title: str, calls: Sequence[TimelineCall]) -> str:
    """Return a timeline as html with an inline picture. All texts of the user's are escaped."""
    drawn = calls[-MAX_BARS:]
    about = "" if len(drawn) == len(calls) else f" (the last {MAX_BARS} are drawn)"
    picture = _picture(drawn) if drawn else ""
    return (
        f'<div class="snakepit-pool snakepit-timeline"><style>{style()}</style>'
        f'<div class="snakepit-title">{shown(title)}'
        f'<span class="snakepit-quiet">{about}</span></div>{picture}</div>'
    )


def _picture(calls: Sequence[TimelineCall]) -> str:
    rows = tracks(calls)
    began, ended = span_of(calls)
    scale = (_WIDTH - _LABEL) / max(ended - began, 1e-6)
    height = _TOP + _ROW * len(rows)
    parts = [*_axis(began, ended, scale, height)]
    before = ""
    for number, (name, row) in enumerate(rows):
        y = _TOP + _ROW * number
        if name != before:
            parts.append(f'<text x="0" y="{y + 15}">{shown(name)}</text>')
            before = name
        parts += (_bar(call, began, scale, y) for call in row)
    return f'<svg viewBox="0 0 {_WIDTH} {height + 4}" role="img">{"".join(parts)}</svg>'


def _axis(began: float, ended: float, scale: float, height: float) -> Iterator[str]:
    for tick in range(_TICKS + 1):
        offset = (ended - began) * tick / _TICKS
        x = _LABEL + offset * scale
        anchor = "end" if tick == _TICKS else "start"
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 4}" y2="{height}"/>'
        yield f'<text class="snakepit-tick" x="{x:.1f}" y="12" text-anchor="{anchor}">'
        yield f"{seconds(offset) if tick else '0'}</text>"


def _bar(call: TimelineCall, began: float, scale: float, y: float) -> str:
    queued, x = (_LABEL + (at - began) * scale for at in (call.queued_at, call.began_at))
    width = max(call.ran * scale, 1.0)
    told = [
        f"{call.kind} {call.tool}: {call.outcome}",
        f"waited {seconds(call.waited)}, ran {seconds(call.ran)}",
        *([f"session {call.session}"] if call.session else []),
        *([f"worker {call.worker}"] if call.worker else []),
        call.correlation_id,
    ]
    outcome = call.outcome if call.outcome in _FINE else "failed"
    return (
        f'<g data-outcome="{outcome}"><title>{shown(chr(10).join(told))}</title>'
        f'<rect class="snakepit-wait" x="{queued:.1f}" y="{y + 18}" '
        f'width="{max(x - queued, 0):.1f}" height="2"/>'
        f'<rect x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="14" rx="2"/></g>'
    )
