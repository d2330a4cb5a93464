"""What a study tells: in the terminal, and in a file that needs nothing else."""

import base64
import html
import io
from statistics import median

import rich.box
from rich.table import Table

from gsnr_tf.compare import decision, outcomes, plots, race, verdicts
from gsnr_tf.compare.settings import NAMED

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; color: #111; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ccc; }
th { border-bottom: 2px solid #111; } td.left, th.left { text-align: left; }
tr.first td { border-top: 2px solid #888; } td:nth-child(n+3) { white-space: nowrap; }
img { max-width: 100%; height: auto; } li { margin: .3rem 0; }
@media print { h2 { break-before: page; } img, table { break-inside: avoid; } }
"""


def how(study, task):
    """Sentences: what was compared, and that everyone was treated alike."""
    s = study.settings
    starts = {c.contender.rule: study.start_of(c.contender.rule) for c in study.cells}
    ranks = f" on {s.ranks} ranks" if s.ranks > 1 else ""
    yield (
        f"{s.task}, size {s.size}: {task.epochs:g} epochs for every run. Updates by "
        f"k = {s.samples} gradient samples{ranks} where a form does not say otherwise, "
        "base and control included; warm-up over a tenth of the updates, then a cosine "
        "to 0."
    )
    values = ""
    if task.regularizer is not None:
        listed = ", ".join(f"{value:g}" for value in task.regularizers)
        values = f" × values of {task.regularizer} ({listed})"
    yield (
        f"Tuned alike: at each batch every contender tried the same grid of {s.trials} "
        "learning rates around the usual one ("
        + ", ".join(f"{rule} {start:g}" for rule, start in starts.items())
        + f"), each twice the last,{values} on {race.GRID_SEEDS} seeds. After a third of the "
        "updates the worse half of each stopped. Where anyone's best lay at an end, the grid "
        f"grew for all. The best {race.FEW} ran on {race.FEW_SEEDS} seeds, the best of them on "
        "all. Of base these all ran on all seeds; it chose by all, and who is ahead must lead at "
        "each. A rate at which somebody's seeds spread over three times the median, or some "
        "diverged, was dropped for all, with the higher ones."
    )
    if s.baselines:
        yield (
            f"Baselines ({', '.join(s.baselines)}): optimizers of Keras, tuned in the same way on "
            "grids of their own; AdamW by its own decay in place of the regularizer. The "
            "strongest base at a batch is that with the best validation score at its chosen "
            "setting; comparisons with it are exploratory."
        )
    share = "each seed shares out training and validation rows anew" if task.resplit else ""
    yield (
        f"Chosen by the mean validation score{'; ' * bool(share)}{share}. Scored on the test "
        f"split, the same for all, by which nothing was chosen: {s.seeds} seeds at the chosen "
        "setting. ± is the standard deviation over them."
    )
    yield (
        "A seed gives all contenders the same weights, rows and order. Verdicts are by the "
        "difference seed by seed: its mean, the 95 % interval of a paired t-test, and p-values "
        f"corrected (Holm) for the comparisons named in advance, {len(s.named())} here, at "
        f"most {NAMED}; all others are exploratory. The sign-flip test assumes no "
        "distribution. An interval by test rows tells how much is chance of these rows."
    )
    if task.target is not None:
        yield (
            f"Target: a validation {task.metric} of {task.target:g}. Medians over seeds; "
            "a run that misses it counts as infinite."
        )


def plan(study, jobs, console):
    """Says what will be done, and what the verdict will be about, before it is."""
    named = [f"{c.contender.rule} {c.batch:,} {c.contender.label}" for c in study.settings.named()]
    console.print(
        f"{len(study.cells)} contenders and batches: about {study.left():,.0f} trainings to "
        f"do, {jobs} at a time, in {study.folder}",
        highlight=False,
    )
    console.print(f"Named in advance, against base: {'; '.join(named)}", highlight=False)


def finish(study, task, console, groups=None):
    """Prints tables and sentences and writes `report.html` and its pictures.

    Args:
        study: The `Study`.
        task: Its `Task`.
        console: A `rich.console.Console`.
        groups: `[test rows]`, whose row each is, or `None`.
    """
    found = outcomes.outcomes(study, task)
    lines = list(sentences(study, found, groups))
    for optimizer in dict.fromkeys(o.optimizer for o in found):
        console.print(_terminal_table(found, optimizer, task))
    for line in lines:
        console.print(f"• {line}", highlight=False)
    file = study.folder / "report.html"
    file.write_text(page(study, task, found, lines), encoding="utf-8")
    brief = study.folder / "decision.md"
    brief.write_text(decision.page(study, task, found), encoding="utf-8")
    console.print(f"\nsaved {file} and, for who decides, {brief}", highlight=False)


def sentences(study, found, groups=None):
    """Everything that may be said, the most important first."""
    named = [
        (c.contender.rule, c.batch, c.contender.label, c.contender.samples)
        for c in study.settings.named()
    ]
    each = outcomes.comparisons(found, named, study.folder)
    yield from verdicts.verdicts(each)
    yield from verdicts.verdicts(outcomes.against_the_strongest(found, study.folder))
    yield from verdicts.beside_the_score(each)
    yield from verdicts.what_it_takes(each, groups, study.folder)
    yield from verdicts.tallies(each)
    yield from verdicts.reaches(found)
    yield from verdicts.cautions(found)
    for group in study.groups:
        unstable = group.state().unstable
        if unstable is not None:
            yield f"{group.name}: rates from {unstable:g} on were dropped for all."


COLUMNS = ("batch", "contender", "rate", "reg.", "test", "gap", "updates")


def _cells(outcome):
    """The numbers of an outcome, as text, for both kinds of table."""
    rate, value = ("!" * (n in outcome.edges) for n in ("learning rate", "regularizer"))
    return [
        f"{outcome.batch:,}",
        outcome.contender,
        f"{outcome.learning_rate:.3g}{rate}",
        "–" if outcome.regularizer is None else f"{outcome.regularizer:.3g}{value}",
        verdicts.with_std(outcome.scores),
        verdicts.with_std(outcome.gaps),
        verdicts.reached(outcome.median_to_target("update")),
        verdicts.reached(outcome.median_to_target("seconds"), "{:.1f}"),
    ]


def _terminal_table(found, optimizer, task):
    table = Table(
        title=f"{optimizer}, {task.metric} (! at the end of the grid)",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
    )
    for name in COLUMNS:
        left = name == "contender"
        table.add_column(name, justify="left" if left else "right", no_wrap=not left, max_width=17)
    last = None
    for outcome in (o for o in found if o.optimizer == optimizer):
        if last not in (None, outcome.batch):
            table.add_section()
        batch, contender, rate, value, test, gap, updates, _ = _cells(outcome)
        gap = gap.split(" ")[0]
        table.add_row(
            "" if last == outcome.batch else batch,
            *(contender, rate, value, test, gap, updates),
        )
        last = outcome.batch
    return table


def page(study, task, found, lines):
    """The report as HTML, pictures included."""
    title = f"Base and GSNR on {type(task).__name__}"
    body = [f"<h1>{html.escape(title)}</h1>", _list(lines)]
    body += ["<h2>How it was compared</h2>", _list(how(study, task))]
    for optimizer in dict.fromkeys(o.optimizer for o in found):
        body += [f"<h2>{optimizer}</h2>", _html_table(found, optimizer, task)]
        for name, draw in (("results", plots.results), ("rates", plots.rates)):
            figure = draw(found, optimizer, task.metric)
            file = study.folder / f"{name}-{optimizer}.png"
            body.append(_picture(figure, file, f"{optimizer}: {name}, numbers in the table"))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>{chr(10).join(body)}</body></html>\n"
    )


def _list(lines):
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _html_table(found, optimizer, task):
    measures = outcomes.measure_names([r for o in found for r in o.by_seed.values()])
    heads = [
        "batch", "contender", "k", "learning rate", task.regularizer or "regularizer",
        f"test {task.metric}", "train-test gap", "updates to target", "seconds to target",
        "seconds a run", "share of noise", *measures,
    ]  # fmt: skip
    rows, last = [], None
    for outcome in (o for o in found if o.optimizer == optimizer):
        batch, contender, *rest = _cells(outcome)
        cells = [batch, contender, str(outcome.samples), *rest]
        cells.append(f"{median(run['seconds'] for run in outcome.runs):.1f}")
        cells.append("–" if outcome.noise is None else f"{outcome.noise:.2f}")
        runs = outcome.by_seed.values()
        for name in measures:
            cells.append(verdicts.with_std([run["measures"][name] for run in runs]))
        first = ' class="first"' if last != outcome.batch else ""
        rows.append(f"<tr{first}>{_tags('td', cells)}</tr>")
        last = outcome.batch
    return f"<table><tr>{_tags('th', heads)}</tr>{''.join(rows)}</table>"


def _tags(tag, cells):
    def one(index, cell):
        left = ' class="left"' if index == 1 else ""
        return f"<{tag}{left}>{html.escape(cell)}</{tag}>"

    return "".join(one(index, cell) for index, cell in enumerate(cells))


def _picture(figure, file, words):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    plots.plt.close(figure)
    file.write_bytes(buffer.getvalue())
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<p><img alt="{html.escape(words)}" src="data:image/png;base64,{data}"></p>'
