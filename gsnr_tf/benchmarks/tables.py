"""What `gsnr-tf bench network` shows of its measurements."""

from rich.table import Table

NAMES = {
    "keras": "allreduce + Keras {rule}",
    "none": "GSNR {rule}, sharding=none",
    "slices": "GSNR {rule}, sharding=slices",
}


def bits(rate):
    """A rate in words: 1e9 is "1 Gbit/s"."""
    return f"{rate / 1e9:g} Gbit/s"


def network_table(answer):
    """One setting as a `rich` table of 80 columns.

    Args:
        answer: What `cluster` prints for a setting.
    """
    delay = f" and {1e3 * answer['delay']:g} ms of delay" if answer["delay"] else ""
    per_host = answer["ranks_per_host"]
    hosts = f" on {answer['ranks'] // per_host} hosts" if per_host > 1 else ""
    table = Table(
        title=f"{answer['ranks']} ranks{hosts}, {answer['elements']:,} parameters, "
        f"{bits(answer['rate'])}{delay}",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for heading in (
        "step ms",
        "x plain",
        "compute ms",
        "wire MB",
        "x plain",
        "headers",
    ):
        table.add_column(heading, justify="right")
    plain = answer["rows"][0]
    for row in answer["rows"]:
        wire, handed = row["wire_bytes"], row["handed_bytes"]
        table.add_row(
            NAMES[row["contender"]].format(rule=answer["rule"]),
            f"{1e3 * row['seconds']:.1f}",
            f"{row['ratio']:.2f}",
            f"{1e3 * row['compute']:.1f}",
            f"{wire / 1e6:.2f}",
            f"{wire / plain['wire_bytes']:.3f}",
            f"{100 * (wire - handed) / handed:.1f}%",
        )
    return table
