"""The figures of a run: what was measured, against what, and the aim; as a table and as JSON."""

import json

from measure import NoFigure, spread
from side_by_side import markdown

SCALES = {"ms": 1e3, "us": 1e6, "s": 1.0, "MiB": 1 / (1 << 20), "%": 100.0,
          "GB/s": 1e-9, "x": 1.0, "": 1.0}
SI_UNITS = {"ms": "s", "us": "s", "MiB": "B", "%": "", "GB/s": "B/s"} # of the numbers themselves


class Figures:
    """All rows. A row is one comparison; one that could not be measured says why."""

    def __init__(self):
        self.rows = []
        self.tables = [] # of SideBySide
        self.series = [] # {"plot", "label", "points"}: what the plots are made of

    def add(self, name, case, ours, theirs=None, against="", unit="s", aim="", reached=None):
        """One row: medians of `ours` and `theirs` (lists of numbers in SI units; `theirs` may be a
        NoFigure). reached(ours, theirs) of the medians says whether the aim is reached."""
        row = {"name": name, "case": case, "unit": unit, "against": against, "aim": aim}
        if isinstance(ours, NoFigure):
            self.rows.append({**row, "no_figure": str(ours)})
            return
        row["vmsnap"] = spread(ours)
        if isinstance(theirs, NoFigure):
            row["no_comparison"] = str(theirs)
        elif theirs:
            row["other"] = spread(theirs)
            if row["other"]["median"]:
                row["ratio"] = row["vmsnap"]["median"] / row["other"]["median"]
        if reached and (theirs is None or "other" in row):
            row["reached"] = bool(reached(row["vmsnap"]["median"],
                                          row.get("other", {}).get("median")))
        self.rows.append(row)

    def none(self, name, why, case=""):
        self.add(name, case, NoFigure(str(why)))

    def plot(self, plot, label, points):
        self.series.append({"plot": plot, "label": label, "points": [list(p) for p in points]})

    def json(self, machine, options):
        return json.dumps({"schema_version": 1, "machine": machine, "options": options,
                           "figures": [{**row, "unit": SI_UNITS.get(row["unit"], row["unit"])}
                                       for row in self.rows],
                           "tables": [table.data() for table in self.tables],
                           "series": self.series}, indent=1)

    def text(self):
        """The table of all rows, and those that have methods side by side."""
        parts = ["\n".join(markdown(table.data())) for table in self.tables]
        return "\n\n".join(([self.table()] if self.rows else []) + parts)

    def table(self):
        """Markdown: it reads well on a terminal and goes into docs/performance.md as it is."""
        head = ["figure", "case", "vmsnap", "compared with", "", "ratio", "aim", ""]
        lines = [head] + [cells(row) for row in self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

        def text(line):
            return "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths)) + " |"
        rule = "| " + " | ".join("-" * max(w, 3) for w in widths) + " |"
        return "\n".join([text(head), rule, *map(text, lines[1:])])


def number(value, unit):
    value *= SCALES[unit]
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def shown(s, unit):
    """"3.1 ms (2.9-3.4)": the median, and least and most when there were several."""
    text = f"{number(s['median'], unit)} {unit}".strip()
    if s["n"] > 1:
        text += f" ({number(s['min'], unit)}-{number(s['max'], unit)})"
    return text


def cells(row):
    if "no_figure" in row:
        return [row["name"], row["case"], "no figure", row["no_figure"], "", "", "", ""]
    unit = row["unit"]
    other = shown(row["other"], unit) if "other" in row else ""
    if "no_comparison" in row:
        other = "no figure: " + row["no_comparison"]
    verdict = {True: "reached", False: "missed"}.get(row.get("reached"), "")
    return [row["name"], row["case"], shown(row["vmsnap"], unit), row["against"], other,
            f"{row['ratio']:.2f}" if "ratio" in row else "", row["aim"], verdict]


def at_most(factor, or_plus=None):
    """ours <= factor * theirs, or, with or_plus, <= theirs + or_plus."""
    return lambda ours, theirs: (ours <= factor * theirs or
                                 or_plus is not None and ours <= theirs + or_plus)


def at_least(factor):
    return lambda ours, theirs: ours >= factor * theirs
