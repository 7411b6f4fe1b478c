#!/usr/bin/python3
"""Many methods of doing one thing, a column for each and a row per figure. As a program: the tables of a run that was
made, for the documentation.

    tools/bench/side_by_side.py build/bench/results.json
"""

import json
import sys

from measure import NoFigure, spread

SCALES = {"ms": 1e3, "MiB": 1 / (1 << 20), "": 1.0}


class SideBySide:
    """`title`: what was measured on. Cells are the medians (of SI numbers) with least and most, or why there is
    none."""

    def __init__(self, title, methods):
        self.title, self.methods, self.rows = title, list(methods), []

    def add(self, name, unit, found):
        """`found`: {method: numbers, or a NoFigure}."""
        cells = {m: {"no_figure": str(v)} if isinstance(v, NoFigure) else spread(v)
                 for m, v in found.items()}
        self.rows.append({"name": name, "unit": unit, "cells": cells})

    def data(self):
        return {"title": self.title, "methods": self.methods, "rows": self.rows}


def text_of(cell, unit):
    """"3.1 (2.9-3.4)"."""
    if cell is None:
        return ""
    if "no_figure" in cell:
        return cell["no_figure"]

    def number(value):
        value *= SCALES[unit]
        digits = 0 if unit == "" or value >= 100 else 1 if value >= 10 else 2
        return f"{value:.{digits}f}"
    median, least, most = (number(cell[key]) for key in ("median", "min", "max"))
    return median if least == most else f"{median} ({least}-{most})"


def markdown(table):
    """The lines of one, as data() gives it."""
    rows = [[table["title"], *table["methods"]]]
    rows.append(["---"] * len(rows[0]))
    for row in table["rows"]:
        name = f"{row['name']}, {row['unit']}" if row["unit"] else row["name"]
        rows.append([name] + [text_of(row["cells"].get(m), row["unit"]) for m in table["methods"]])
    return ["| " + " | ".join(row) + " |" for row in rows]


def main():
    with open(sys.argv[1], encoding="utf-8") as f:
        found = json.load(f)
    for table in found["tables"]:
        print("\n".join(markdown(table)), end="\n\n")


if __name__ == "__main__":
    main()
