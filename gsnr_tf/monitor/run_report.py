"""A run as one HTML file: nothing is fetched, so it can be sent and printed."""

import html
import io
import os
import re
from pathlib import Path

import numpy as np

from gsnr_tf.monitor.charts import charts
from gsnr_tf.monitor.run import Run
from gsnr_tf.monitor.sentences import sentences

_COLUMNS = {
    "ratio": "GSNR",
    "r_q50": "median r",
    "multiplier": "mean multi&shy;plier",
    "at_floor": "at floor",
    "at_ceiling": "at ceiling",
    "cosine": "cosine",
    "gradient": "‖ḡ‖",
    "weights": "‖θ‖",
    "trust_ratio": "trust ratio",
}
_SHARES = ("at_floor", "at_ceiling")

_STYLE = """
body { font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1a1a1a;
  background: white; max-width: 1160px; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .4rem; }
p.note { color: #444; max-width: 52rem; margin: .2rem 0 .6rem; }
ul.says { padding-left: 1.2rem; max-width: 60rem; } ul.says li { margin: .35rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr max-content 1fr;
  gap: .15rem 1rem; margin: .8rem 0; }
dt { color: #555; } dd { margin: 0; }
figure { margin: 0; } svg { width: 100%; height: auto; display: block; }
svg text { font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif !important; }
table { border-collapse: collapse; font-size: .82rem; width: 100%; }
th, td { text-align: right; padding: .12rem .5rem; border-bottom: 1px solid #ddd;
  font-variant-numeric: tabular-nums; }
th { vertical-align: bottom; background: white; position: sticky; top: 0; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; width: 36%; }
footer { margin-top: 2rem; color: #555; font-size: .85rem; }
@media print {
  @page { size: A4; margin: 14mm; }
  body { font-size: 10.5pt; margin: 0; padding: 0; max-width: none; }
  h2 { break-after: avoid; } section.chart { break-inside: avoid; }
  tr { break-inside: avoid; } thead { display: table-header-group; }
  th { position: static; } table { font-size: 7.5pt; }
}
"""


def write(folder, output=None):
    """Writes the report of a run.

    Args:
        folder: The `log_dir` of a `GSNRMonitor`.
        output: Path of the file. Defaults to `report.html` in the folder.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: The folder holds no run.
    """
    run = Run(folder)
    path = Path(output) if output else run.folder / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_text(page(run), encoding="utf-8")
    os.replace(aside, path)
    return path


def page(run):
    """The report as a string of HTML."""
    escape = html.escape
    title = f"{run.info['optimizer']} on {run.info['model']}"
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _facts(run)
    )
    says = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences(run))
    drawn = "".join(
        f'<section class="chart"><h2>{escape(name)}</h2><p class="note">{escape(text)}</p>'
        f"<figure>{_svg(figure, name)}</figure></section>"
        for name, text, figure in charts(run)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><dl>{facts}</dl>"
        f'<h2>What it says</h2><ul class="says">{says}</ul>{drawn}{_table(run)}'
        "<footer>Steps and examples to the same loss follow from the noise scale by "
        "(S/S_min − 1)(E/E_min − 1) = 1, McCandlish et al., arXiv 1812.06162. It stands "
        "in for the critical batch: right in its order of magnitude.</footer>"
        "</body></html>\n"
    )


def _facts(run):
    info = run.info
    arguments = info.get("arguments", {})
    last = {
        name: run.last(name) for name in ("batch/examples", "batch/samples", "batch/accumulation")
    }
    if all(value is not None and value > 0 for value in last.values()):
        batch, samples, accumulation = last.values()
        yield (
            "Batch",
            (
                f"{batch:,.0f} examples = {info['workers']} worker(s) × {accumulation:.0f} "
                f"micro-batch(es) of {batch / info['workers'] / accumulation:,.0f}"
            ),
        )
        yield "Samples (k)", f"{samples:.0f} an update"
    examples, updates = run.series("progress/updates")
    if len(updates):
        yield "Trained", f"{updates[-1]:,.0f} updates, {examples[-1]:,.0f} examples"
    yield "Parameters", f"{run.sizes.sum():,.0f} in {len(run.paths)} variables"
    rate = run.last("batch/learning_rate")
    if rate is not None:
        yield "Learning rate", f"{rate:.4g} at the end"
    shown = ("estimator", "gamma", "ceiling", "second_moment", "weight_decay", "sharding",
             "clipnorm", "global_clipnorm", "clipvalue", "use_ema")  # fmt: skip
    given = [f"{n}={arguments[n]}" for n in shown if arguments.get(n) not in (None, False)]
    yield "Arguments", ", ".join(given)
    yield "Started", info["started"].replace("T", " ")
    yield "Versions", ", ".join(f"{n} {v}" for n, v in info["versions"].items())


def _svg(figure, name):
    """The figure as an SVG element that a screen reader can name."""
    buffer = io.StringIO()
    # Without a date, the same run makes the same file.
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(name)}"', 1)


def _table(run):
    """Each variable's numbers: medians of the last quarter of the run."""
    columns = {}
    for name in _COLUMNS:
        _, values = run.of_variables(name)
        if not len(values):
            return ""
        late = values[-max(1, len(values) // 4) :]
        known = np.isfinite(late).any(0)
        columns[name] = np.full(len(run.paths), np.nan)
        columns[name][known] = np.nanmedian(late[:, known], axis=0)
    head = "".join(f"<th>{label}</th>" for label in _COLUMNS.values())
    rows = "".join(
        f"<tr><td>{html.escape(path)}</td><td>{size:,.0f}</td>"
        + "".join(f"<td>{_cell(name, columns[name][i])}</td>" for name in _COLUMNS)
        + "</tr>"
        for i, (path, size) in enumerate(zip(run.paths, run.sizes))
    )
    return (
        '<section><h2>Variables</h2><p class="note">Medians of the last quarter of the '
        "run.</p><table><thead><tr><th>variable</th><th>elements</th>"
        f"{head}</tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _cell(name, value):
    if not np.isfinite(value):
        return "–"
    return f"{100 * value:.0f} %" if name in _SHARES else f"{value:.3g}"
