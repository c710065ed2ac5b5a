"""The ranks' output, interleaved by time: which lines, and how they are drawn. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter

from rich.cells import cell_len, set_cell_size
from rich.style import Style

from dpwatch.run.model.snapshot import ENDED, Printed, RankOutput, RunView
from dpwatch.text_safety import clean, visible
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.palette import Palette
from dpwatch.tui.draw.sentences import plural
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import clip, fitted, left, line, right, wrapped

Entry = tuple[int, int, Printed]
"""A line: its wall clock in ns, its rank, and the line itself."""

ERR_MARK = "!"
_TIME = 8
_WRAPPED = 1 << 16
_TO_SEE_IT = "dpwatch run -- torchrun --nproc-per-node 4 train.py"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The lines to show: of one rank or all, stderr only, with these words."""

    rank: int | None = None
    only_err: bool = False
    terms: str = ""


def entries(output: Sequence[RankOutput], choice: Choice) -> list[Entry]:
    """The chosen lines, oldest first; lines of the same time in the order of ranks."""
    terms = choice.terms.casefold().split()
    found = [
        (printed.wall_ns, each.rank, printed)
        for each in output
        if choice.rank in (None, each.rank)
        for printed in each.lines
        if not (choice.only_err and printed.stream != "err")
        and (not terms or _has(printed.text, terms))
    ]
    found.sort(key=itemgetter(0))
    return found


def _has(text: str, terms: Sequence[str]) -> bool:
    folded = visible(text).casefold()
    return all(term in folded for term in terms)


def tag_width(output: Sequence[RankOutput]) -> int:
    """Cells of the longest rank's name."""
    return 1 + len(str(max((each.rank for each in output), default=0)))


def text_room(width: int, tag: int) -> int:
    """Cells left for a line's text after its time, rank and mark."""
    return max(width - _TIME - tag - 4, 8)


@lru_cache(maxsize=_WRAPPED)
def pieces(text: str, room: int) -> tuple[str, ...]:
    """A line's text as shown, in as many lines as it takes."""
    text = visible(text)
    found = []
    while cell_len(text) > room:
        piece = set_cell_size(text, room)
        # A two-cell character that doesn't fit leaves a blank, which is not part of the text.
        cut = len(piece) if text.startswith(piece) else len(piece) - 1
        blank = text.rfind(" ", cut // 2, cut)
        cut = blank + 1 or cut
        found.append(text[:cut])
        text = text[cut:]
    return (*found, text)


def entry_line(entry: Entry, part: int, width: int, tag: int, terms: str, palette: Palette) -> Text:
    """One of an entry's lines; the first starts with time, rank and mark."""
    wall_ns, rank, printed = entry
    color = rank_style(rank, palette)
    room = text_room(width, tag)
    text = pieces(printed.text, room)[part]
    body = _marked(text, terms, palette)
    if part:
        bar = (" " * (_TIME + 1 + tag + 1), palette.text), ("┆ ", palette.faint)
        return line(*bar, body)
    err = printed.stream == "err"
    return line(
        (f"{left(fmt.time_of_day(wall_ns // 10**9), _TIME)} ", palette.muted),
        (right(f"r{rank}", tag), color),
        (f" {ERR_MARK if err else ' '} ", palette.warn),
        body,
    )


def _marked(text: str, terms: str, palette: Palette) -> Text:
    """The text, with the search terms highlighted."""
    result = line((text, palette.text))
    folded, found = text.casefold(), palette.accent + Style(bold=True, underline=True)
    if len(folded) == len(text):
        for term in terms.casefold().split():
            at = folded.find(term)
            while at >= 0:
                result.stylize(found, at, at + len(term))
                at = folded.find(term, at + len(term))
    return result


def rank_style(rank: int, palette: Palette) -> Style:
    """A rank's colour; with more ranks than colours, their numbers distinguish them."""
    return palette.series[rank % len(palette.series)]


def head_line(view: RunView, choice: Choice, shown: int, width: int, palette: Palette) -> Text:
    """Whose lines these are, of which stream, and how many."""
    if choice.rank is None:
        number, of = len(view.output), len({rank.rank for rank in view.run.ranks})
        told = f"all {number} ranks" if number >= of else f"{number} of {of} ranks"
        who = line((told if max(number, of) > 1 else "the only rank", palette.strong))
    else:
        who = line(
            (f"r{choice.rank}", rank_style(choice.rank, palette) + Style(bold=True)),
            (" only", palette.strong),
        )
    what = line(
        ("  stderr only" if choice.only_err else "  stdout, and stderr marked ", palette.text)
    )
    if not choice.only_err:
        what.append(ERR_MARK, palette.warn)
    count = line((f"  {plural(shown, 'line')}", palette.muted))
    if choice.terms:
        room = width - who.cell_len - what.cell_len - count.cell_len - 9
        what.append(f"  only “{clip(clean(choice.terms), max(room, 4))}”", palette.strong)
    start = line(who, what)
    return line(fitted(start, width - count.cell_len), count)


def foot_line(
    view: RunView, choice: Choice, below: int | None, width: int, palette: Palette
) -> Text:
    """Whether the newest line is followed, and what is missing.

    Args:
        view: The run.
        choice: Whose lines are shown.
        below: Lines under the screen's last one, None while the newest is followed.
        width: Cells.
        palette: Theme.
    """
    if below is None:
        state = line(("● following the newest line", palette.good))
    else:
        state = line(("‖ held", palette.warn))
        state.append(f", {below:,} more below: G follows again", palette.text)
    seen = [each for each in view.output if choice.rank in (None, each.rank)]
    left_out, let_go = sum(e.left_out for e in seen), sum(e.let_go for e in seen)
    for lost in _lost(left_out, let_go):
        if state.cell_len + len(lost) + 2 <= width:
            return line(fitted(state, width - len(lost)), (lost, palette.muted))
    return fitted(state, width)


def _lost(left_out: int, let_go: int) -> list[str]:
    """What is missing, in words; shorter versions follow."""
    if not (left_out or let_go):
        return []
    parts, short = [], []
    if left_out:
        parts.append(f"{left_out:,} left out, too many at once")
        short.append(f"{left_out:,} left out")
    if let_go:
        parts.append(f"{let_go:,} older not kept")
        short.append(f"{let_go:,} not kept")
    return ["; ".join(parts), ", ".join(short), f"{left_out + let_go:,} lost"]


def empty_lines(view: RunView, choice: Choice, width: int, palette: Palette) -> list[Text]:
    """Why there are no lines, and what to do."""
    room = min(width, 76)

    def said(text: str) -> list[Text]:
        return wrapped(text, room, palette.muted, indent=2)

    command = line(("    $ ", palette.faint), (_TO_SEE_IT, palette.strong))
    if any(each.lines for each in view.output):
        wanted = f"with “{clean(choice.terms, 40)}”" if choice.terms else "of this kind"
        whose = "no rank has" if choice.rank is None else f"rank {choice.rank} has not"
        undo = "esc clears the filter" if choice.terms else "t shows both streams again"
        if choice.rank is not None:
            undo += ", ← and → change the rank"
        return said(f"{whose} printed a line {wanted}; {undo}")
    blank = Text()
    if view.tells_output:
        over = view.run.state in ENDED
        told = "" if over else "Lines appear here as ranks write them to stdout and stderr. "
        told += "Output before the first optimizer or process group is not captured."
        head = "No output" if over else "No output yet"
        return [line((f"  ○ {head}", palette.accent)), blank, *said(told)]
    return [
        line(("  ○ The output of this run is not captured", palette.accent)),
        blank,
        *said("The output of commands started by dpwatch is shown here, unless with --no-output:"),
        blank,
        command,
        blank,
        *said(
            "For a script that calls dpwatch.watch() itself, set DPWATCH_OUTPUT=1 in its "
            "environment."
        ),
    ]
