#!/usr/bin/python3
"""The suite can fail. Test builds can break one rule each (VMSNAP_BREAK); for each rule the ordinary
check that is there to catch it is run twice: with all rules kept it must be green, with this one broken
red, for the reason that the rule is there to prevent."""

import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import badimage  # noqa: E402
import instant  # noqa: E402
import roundtrip  # noqa: E402
from case import Failed, case, main  # noqa: E402
from vmsnap import broken, hooks_in_sources  # noqa: E402

TORN = r"the image is a point in time"
WRONG_IN_GUEST = r"the guest's own check failed"

# rule -> (the ordinary check, how its failure must read, how often it is tried: some faults need a
# writer at the right moment)
RULES = {
    "release-before-save": (lambda t: instant.series(t, 1), TORN, 4),
    "unprotected-block": (lambda t: instant.series(t, 1), TORN, 2),
    "discard-ignored": (instant.discards, r"differs from pmemsave", 1),
    "dirty-before-unprotect": (lambda t: instant.series(t, 1, precopy=3), TORN, 4),
    "phase-early": (instant.first_touch, WRONG_IN_GUEST, 3),
    "present-taken-for-absent": (roundtrip.prealloc, WRONG_IN_GUEST, 1),
    "checksum-ignored": (lambda t: badimage.verify_random(t, 20), r"^verify with a bit flipped", 1),
}


def register(rule, check, reads, tries):
    @case(f"qemu.broken.{rule}", "qemu", 120 + 60 * tries)
    def run(t):
        kept = t.sub()
        check(kept)
        kept.end()
        t.say("green, with all rules kept")
        for _ in range(tries):
            try:
                with broken(rule):
                    check(t.sub())
            except Failed as red:
                t.say(f"red: {str(red)[:300]}")
                t.check(re.search(reads, str(red)), f"red for another reason than {reads!r}: {red}")
                return
        t.check(False, f"{rule} is broken, and nothing went red in {tries} tries")


for _rule, (_check, _reads, _tries) in RULES.items():
    register(_rule, _check, _reads, _tries)


@case("qemu.broken.all-rules", "cli", 10)
def all_rules(t):
    """Every rule that a test build can break has its check above."""
    there = hooks_in_sources("TESTHOOK_BROKEN")
    t.equal(sorted(there), sorted(RULES), "rules that can be broken")


if __name__ == "__main__":
    main()
