"""What the program says of itself, the man page, the README and the bash completion agree."""

import os
import re
import shlex
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from case import TOP, case, main, tool  # noqa: E402

VMSNAP = tool("vmsnap")
COMPLETION = os.path.join(TOP, "tools", "completion", "vmsnap")
OPTION = re.compile(r"(?:-(?P<letter>\w), )?--(?P<name>[a-z][a-z-]*)(?: (?P<argument>[A-Z]+))?$")


def read(*path):
    with open(os.path.join(TOP, *path), encoding="utf-8") as f:
        return f.read()


def output(*words):
    return subprocess.run([VMSNAP, *words], capture_output=True, text=True, timeout=10,
                          check=True).stdout


def sections(text, heading):
    """The lines of a text by the heading above them; `heading` is a regex with one group."""
    found, lines = {}, []
    for line in text.splitlines():
        match = re.match(heading, line)
        if match:
            lines = found.setdefault(match.group(1).strip('"').lower(), [])
        else:
            lines.append(line)
    return found


def commands():
    lines = sections(output("--help"), r"(\w+):$")["commands"]
    return [line.split()[0] for line in lines if line.startswith("  ")]


def parse_options(lines):
    """{name: (letter, argument)} of lines that begin with an option."""
    found = {}
    for line in lines:
        match = OPTION.match(line)
        if match:
            found[match["name"]] = (match["letter"], match["argument"])
    return found


def help_options(command):
    """What --help lists: the command's own options, and the common ones."""
    parts = sections(output(command, "--help"), r"([a-z ]+)(?: \(.*\))?:$")
    lefts = {name: [re.split(r"  +", line.strip())[0] for line in lines]
             for name, lines in parts.items()}
    return parse_options(lefts.get("options", [])), parse_options(lefts["common options"])


def man_tags(lines):
    """The tags of a man page's .TP entries as plain text."""
    plain = []
    for above, line in zip(lines, lines[1:]):
        if above == ".TP":
            line = line.replace("\\-", "-").replace("\\~", " ")
            plain.append("".join(shlex.split(line)[1:]))
    return plain


def man_sections():
    return sections(read("docs", "vmsnap.1"), r"\.S[SH] (.*)")


def complete(*words):
    """What bash offers for the last of `words`."""
    script = (f"source {shlex.quote(COMPLETION)}; COMP_WORDS=({shlex.join(words)}); "
              f"COMP_CWORD={len(words) - 1}; _vmsnap 2>/dev/null; "
              'printf "%s\\n" "${COMPREPLY[@]}"')
    return set(subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True,
                              timeout=10, check=True).stdout.split())


@case("cli.man-page-has-every-option", labels="cli", timeout=30)
def man_page_has_every_option(t):
    man = man_sections()
    names = commands()
    t.check(len(names) >= 6, f"only these commands are there: {names}")
    described = [s.split()[1] for s in man if s.startswith("vmsnap ")]
    t.equal(described, names, "the commands that the man page describes")
    for name in names:
        own, common = help_options(name)
        t.equal(parse_options(man_tags(man[f"vmsnap {name}"])), own, f"man page, {name}")
        t.equal(parse_options(man_tags(man["common options"])), common, "man page, common options")
        t.say(f"{name}: {len(own)} options")


@case("cli.completion-has-every-option", labels="cli", timeout=60)
def completion_has_every_option(t):
    t.equal(complete("vmsnap", ""), set(commands()) | {"--help", "--version"}, "commands offered")
    for name in commands():
        own, common = help_options(name)
        wanted = {f"--{o}" for o in {**own, **common}}
        t.equal(complete("vmsnap", name, "-"), wanted, f"options offered after {name}")
        t.check(len(wanted) > 4 or name == "info", f"{name} has no option of its own")
        for option, (_, argument) in own.items():
            if argument:
                check_values(t, name, option)


def check_values(t, command, option):
    """An option that takes names from a list: completion offers that list."""
    wrong = subprocess.run([VMSNAP, command, f"--{option}", "no-such-value"], capture_output=True,
                           text=True, timeout=10, check=False).stderr
    listed = re.search(r"it is one of: (.*)", wrong)
    if listed:
        t.equal(complete("vmsnap", command, f"--{option}", ""), set(listed[1].split(", ")),
                f"values offered after {command} --{option}")
        t.say(f"{command} --{option}: {listed[1]}")


@case("cli.hazards-are-documented", labels="cli", timeout=30)
def hazards_are_documented(t):
    parts = sections(output("check", "--help"), r"(hazards of a \w+|[a-z ]+)(?: \(.*\))?:$")
    for kind, least in (("snapshot", 8), ("restore", 4)):
        lines = (re.match(r"  (\S+)( \*)?", line) for line in parts[f"hazards of a {kind}"])
        shown = {m[1]: bool(m[2]) for m in lines if m}
        tags = [tag.split() for tag in man_tags(man_sections()[f"of a {kind}"])]
        t.check(len(shown) >= least, f"check --help lists only {sorted(shown)}")
        t.equal({tag[0]: len(tag) > 1 for tag in tags}, shown,
                f"hazards of a {kind} in the man page (True: --allow takes it)")


@case("cli.exit-codes-are-documented", labels="cli", timeout=30)
def exit_codes_are_documented(t):
    enum = re.search(r"enum vmsnap_exit \{(.*?)\}", read("common", "error.h"), re.S)[1]
    codes = sorted(int(n) for n in re.findall(r"= (\d+),", enum))
    t.check(len(codes) == 15, f"exit codes: {codes}")
    tags = " ".join(man_tags(man_sections()["exit status"]))
    t.equal(sorted(int(n) for n in re.findall(r"\d+", tags)), codes, "exit codes of the man page")
    table = read("README.md").split("## Exit codes")[1].split("\n## ")[0]
    rows = " ".join(re.findall(r"^\| ([\d, ]+) \|", table, re.M))
    t.equal(sorted(int(n) for n in re.findall(r"\d+", rows)), codes, "exit codes of the README")


@case("cli.man-page-is-well-formed", labels="cli", timeout=30)
def man_page_is_well_formed(t):
    run = t.run(["groff", "-man", "-ww", "-z", "-Tutf8", os.path.join(TOP, "docs", "vmsnap.1")])
    t.equal((run.returncode, run.stderr), (0, ""), "what groff says of the man page")


@case("cli.test-hooks-are-documented", labels="cli", timeout=30)
def test_hooks_are_documented(t):
    """docs/reliability.md lists every pause point, breakable rule, failure and feature mask."""
    used = set()
    for folder in ("common", "snapshot", "restore", "tools"):
        for base, _, names in os.walk(os.path.join(TOP, folder)):
            for name in names:
                if name.endswith(".c"):
                    text = read(os.path.relpath(os.path.join(base, name), TOP))
                    used |= set(re.findall(r'TESTHOOK_(POINT|BROKEN|FAIL)\("([^"]+)"\)', text))
    page = read("docs", "reliability.md")
    listed = set()
    for kind, heading in (("POINT", "Pause points"), ("BROKEN", "Rules that can be broken"),
                          ("FAIL", "Failures")):
        part = page.split(f"### {heading}\n")[1].split("\n#")[0]
        listed |= {(kind, name) for name in re.findall(r"^\| `([a-z0-9.-]+)` \|", part, re.M)}
    t.check(len(used) > 10, f"only {len(used)} hooks found in the sources")
    t.equal(sorted(used - listed), [], "hooks of the sources that docs/reliability.md lacks")
    t.equal(sorted(listed - used), [], "hooks in docs/reliability.md that are nowhere")


if __name__ == "__main__":
    main()
