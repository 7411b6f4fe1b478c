/*
 * testhook.h - what test builds (VMSNAP_TEST_HOOKS) can do to a running vmsnap, by name. In other
 * builds every macro is nothing.
 *
 *   TESTHOOK_POINT("name")   a named pause point. With VMSNAP_PAUSE_AT=name in the environment the
 *                            thread that gets there appends "name PID\n" to the file named by
 *                            VMSNAP_PAUSE_LOG and sleeps until that file's name + ".go" exists.
 *                            VMSNAP_KILL_AT=name[:N] ends the process by SIGKILL there (the N-th
 *                            time it gets there, default 1) after writing the same line.
 *   TESTHOOK_SUCCEED(nth)    this process takes the place of one that was killed, as the nth (from
 *                            1) that does: VMSNAP_KILL_AT holds for it only if
 *                            VMSNAP_KILL_AGAIN=M says that the first M such are killed as well.
 *   TESTHOOK_BROKEN("rule")  true when VMSNAP_BREAK lists the rule (comma separated).
 *   TESTHOOK_FAIL("name")    true when VMSNAP_FAIL_AT=name[:N] and this is the N-th time, once:
 *                            the caller then behaves as if the call next to it had failed.
 *
 * VMSNAP_MASK_FEATURES (a comma list of kernel_features names, see common/kernel.h) hides kernel
 * features. The full list of names stands in docs/reliability.md.
 */
#ifndef VMSNAP_COMMON_TESTHOOK_H
#define VMSNAP_COMMON_TESTHOOK_H

#include <stdbool.h>

#ifdef VMSNAP_TEST_HOOKS
void testhook_point(const char *name);
bool testhook_broken(const char *rule);
bool testhook_fail(const char *name);
bool testhook_listed(const char *variable, const char *name);
void testhook_succeed(unsigned nth);
#define TESTHOOK_POINT(name) testhook_point(name)
#define TESTHOOK_BROKEN(rule) testhook_broken(rule)
#define TESTHOOK_FAIL(name) testhook_fail(name)
#define TESTHOOK_MASKED(feature) testhook_listed("VMSNAP_MASK_FEATURES", feature)
#define TESTHOOK_SUCCEED(nth) testhook_succeed(nth)
#else
#define TESTHOOK_POINT(name) ((void)0)
#define TESTHOOK_BROKEN(rule) false
#define TESTHOOK_FAIL(name) false
#define TESTHOOK_MASKED(feature) false
#define TESTHOOK_SUCCEED(nth) ((void)0)
#endif

#endif
