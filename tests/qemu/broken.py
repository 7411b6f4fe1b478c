#!/usr/bin/python3
"""The suite can fail. Test builds can break one rule each (VMSNAP_BREAK); for each rule the ordinary
check that is there to catch it is run with this one broken: red, for the reason that the rule is
there to prevent. With all rules kept it is a test of its own, and green."""

import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import badimage  # noqa: E402
import instant  # noqa: E402
import roundtrip  # noqa: E402
from case import TOP, Failed, case, main  # noqa: E402
from vmsnap import broken, hooks_in_sources  # noqa: E402

TORN = r"the image is a point in time"
WRONG_IN_GUEST = r"the guest's own check failed"


def one_image(t):
    instant.series(t, 1)


# What is done, the test that does it with all rules kept, and for each rule that it is there to catch:
# how the failure must read, how often it is tried (some faults need a writer at the right moment).
CHECKS = {
    "one-image": (one_image, "qemu.instant.series-3",
                  {"release-before-save": (TORN, 4), "unprotected-block": (TORN, 2)}),
    "precopy": (lambda t: instant.series(t, 1, precopy=3), "qemu.instant.precopy-2",
                {"dirty-before-unprotect": (TORN, 4)}),
    "discards": (instant.discards, "qemu.instant.discards", {"discard-ignored": (r"differs from pmemsave", 1)}),
    "first-touch": (instant.first_touch, "qemu.instant.first-touch", {"phase-early": (WRONG_IN_GUEST, 3)}),
    "prealloc": (roundtrip.prealloc, "qemu.roundtrip.prealloc", {"present-taken-for-absent": (WRONG_IN_GUEST, 1)}),
    "verify": (lambda t: badimage.verify_random(t, 20), "qemu.badimage.verify-200",
               {"checksum-ignored": (r"^verify with a bit flipped", 1)}),
}

# Rules whose check needs no QEMU guest: where it is run with the rule broken.
ELSEWHERE = {"done-before-content": "tests/serve/CMakeLists.txt",
             "done-before-install": "tests/serve/CMakeLists.txt",
             "event-forgotten": "tests/serve/CMakeLists.txt",
             "filled-over-discard": "tests/serve/CMakeLists.txt",
             "huge-left-split": "tests/minivm/huge.py",
             "minor-refilled": "tests/serve/CMakeLists.txt"}

# No rule: for tests that want a guest whose server is not replaced (tests/minivm/supervised.py).
SWITCHES = ["not-supervised"]


def goes_red(t, check, rule, reads, tries):
    for _ in range(tries):
        broken_run = t.sub()
        try:
            with broken(rule):
                check(broken_run)
        except Failed as red:
            t.say(f"red: {str(red)[:300]}")
            t.check(re.search(reads, str(red)), f"red for another reason than {reads!r}: {red}")
            return
        finally:
            broken_run.end()
    t.check(False, f"{rule} is broken, and nothing went red in {tries} tries")


def register(name, check, rules):
    @case(f"qemu.broken.{name}", "qemu", 120 + 60 * sum(tries for _, tries in rules.values()))
    def run(t):
        for rule, (reads, tries) in rules.items():
            goes_red(t, check, rule, reads, tries)


for _name, (_check, _, _rules) in CHECKS.items():
    register(_name, _check, _rules)


@case("qemu.broken.all-rules", "cli", 10)
def all_rules(t):
    """Every rule that a test build can break has its check, above or elsewhere."""
    there = hooks_in_sources("TESTHOOK_BROKEN")
    checked = [rule for _, _, rules in CHECKS.values() for rule in rules]
    t.equal(sorted(there), sorted(checked + list(ELSEWHERE) + SWITCHES), "rules that can be broken")
    for rule, path in ELSEWHERE.items():
        with open(os.path.join(TOP, path), encoding="utf-8") as f:
            t.check(re.search(rf"broken\w*\([^)]*\b{rule}\b", f.read()), f"{path} breaks {rule}")
    for _, green, _ in CHECKS.values():
        with open(os.path.join(TOP, "tests/qemu", green.split(".")[1] + ".py"), encoding="utf-8") as f:
            t.check(f'@case("{green}", "qemu",' in f.read(), f"{green} is a test that is not slow")


if __name__ == "__main__":
    main()
