"""Methods side by side: each once per round, who comes first changes from round to round."""

import os
import sys
import time

from case import Failed
from measure import NoFigure
from qmp import QmpError, QmpGone


def in_turns(t, run, methods, at_least=1):
    """Runs every method of {name: function} run.rounds times (or `at_least`, for what is quick and
    noisy), or as often as there is time for;
    {name: [results] or NoFigure}. A method that fails is not tried again; the others go on."""
    results = {name: [] for name in methods}
    order, longest, rounds = list(methods), 0.0, max(run.rounds, at_least)
    for number in range(rounds):
        began = time.monotonic()
        if began + 1.2 * longest > run.until:
            t.say(f"  time is short: {number} of {rounds} rounds")
            break
        for name in order:
            if isinstance(results[name], NoFigure):
                continue
            try:
                results[name].append(methods[name]())
                t.say(f"  {name}, round {number + 1} of {rounds}: {brief(results[name][-1])}")
            except (NoFigure, Failed, QmpError, QmpGone) as why:
                text = str(why).split("\n", maxsplit=1)[0]
                results[name] = NoFigure(text)
                t.say(f"  {name}: no figure: {text}")
        order = order[1:] + order[:1]
        longest = max(longest, time.monotonic() - began)
    return results


def chosen_by(name, all_names):
    """An experiment's own name, or what the names of several begin with ("restore")."""
    return [n for n in all_names if n == name or n.startswith(name + "-")]


def brief(result):
    parts = [f"{result['wall']:.2f} s"] if "wall" in result else []
    if result.get("pause") is not None:
        parts.append(f"pause {result['pause'] * 1e3:.1f} ms")
    if "seen" in result:
        seen = result["seen"]
        parts.append(f"longest gap {seen.gap * 1e3:.1f} ms, lost {seen.lost:.2f} s")
    return ", ".join(parts)


def values(results, method, of):
    """The numbers of(result) of a method's rounds, or its NoFigure."""
    runs = results.get(method)
    if runs is None:
        return NoFigure("not run")
    if isinstance(runs, NoFigure):
        return runs
    try:
        return [of(run) for run in runs] or NoFigure("not run")
    except KeyError as missing:
        return NoFigure(f"the summary has no {missing}")


def say(text):
    print(text, file=sys.stderr, flush=True)


def remove(path):
    if os.path.exists(path):
        os.unlink(path)
