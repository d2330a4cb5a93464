"""What `gsnr-tf plan` prints: tables and sentences of 80 columns."""

import dataclasses
import textwrap

from rich.table import Table

WIDTH = 80


def _table(title, *headings):
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def wrapped(sentence):
    """A sentence in lines of the terminal, a blank line after it."""
    return textwrap.fill(sentence, WIDTH) + "\n"


def _short(number):
    return f"{number:,.1f}" if number < 1000 else f"{number:,.0f}"


def plan_tables(rows):
    """Step time and scaling efficiency, then memory; a row for each number of workers.

    Args:
        rows: `plan.Row`s.
    """
    schemes = list(rows[-1].steps)
    speed = _table(
        "step time in ms, then scaling efficiency in %",
        "workers",
        "hosts",
        *schemes,
        *schemes,
    )
    room = _table("memory of a worker in GB", "workers", *rows[-1].memory)
    for row in rows:
        shown = [s if s in row.steps else None for s in schemes]
        speed.add_row(
            f"{row.workers}",
            f"{row.hosts}",
            *(_short(1e3 * row.steps[s].seconds) if s else "-" for s in shown),
            *(f"{100 * row.efficiency[s]:.0f}" if s else "-" for s in shown),
        )
        room.add_row(f"{row.workers}", *(f"{m / 1e9:.2f}" for m in row.memory.values()))
    return speed, room


def costs_table(fitted):
    """What calibration found, in units that people read.

    Args:
        fitted: `calibrate.Fitted`.
    """
    table = _table(f"learned from {fitted.rows} measurements", "what", "value", "")
    table.columns[0].justify = table.columns[2].justify = "left"
    table.add_row("latency of a message", _short(1e6 * fitted.latency), "µs")
    units = {
        "launch": (1e6, "µs for each collective"),
        "fixed": (1e6, "µs of any update"),
    }
    units["per_byte"] = (1e9, "ns for each byte sent and received")
    for name, value in dataclasses.asdict(fitted.costs).items():
        factor, unit = units.get(name, (1e9, "ns for each parameter"))
        table.add_row(name, _short(factor * value), unit)
    return table


def comparison_table(compared):
    """Predictions beside measurements.

    Args:
        compared: `calibrate.Compared`s.
    """
    table = _table(
        "predicted and measured",
        "ranks",
        "parameters",
        "Gbit/s",
        "delay ms",
        "step",
        "predicted ms",
        "measured ms",
        "error",
    )
    for one in compared:
        table.add_row(
            f"{one.ranks}",
            f"{one.parameters:,}",
            f"{one.rate / 1e9:g}",
            f"{1e3 * one.delay:g}",
            one.scheme,
            f"{1e3 * one.predicted:.1f}",
            f"{1e3 * one.measured:.1f}",
            f"{100 * one.error:+.0f}%",
        )
    worst = max(compared, key=lambda one: abs(one.error))
    within = sum(abs(one.error) <= 0.25 for one in compared)
    table.caption = (
        f"{within} of {len(compared)} within 25%; the farthest is {100 * worst.error:+.0f}%"
    )
    table.caption_justify = "left"
    return table
