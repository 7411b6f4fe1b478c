#!/bin/bash
# lint.sh CHECK BUILD_DIR - one checker over the sources: format, tidy, tidy-deep, cppcheck, shell;
# or planted: each of them over a file with a mistake that it must find.
set -eu
check=$1
build=$2
cd "$(dirname "$0")/../.."

sources() { # sources PATTERN...: files of the project by name, zero-terminated
    local pattern names=()
    for pattern in "$@"; do
        names+=(-o -name "$pattern")
    done
    find common snapshot restore tools tests \( "${names[@]:1}" \) -type f -print0 | sort -z
}

# The compiled files, one per line: what compile_commands.json lists within the tree.
compiled() {
    sed -n 's/^ *"file": "\(.*\)",\{0,1\}$/\1/p' "$build/compile_commands.json" | sort -u
}

cppcheck_on() {
    # varFuncNullUB: glibc's NULL is a pointer. resourceLeak: does not know the cleanup attribute.
    # TestSuite: Criterion's macro.
    cppcheck --quiet --enable=warning,performance,portability --inline-suppr --error-exitcode=1 \
        --suppress=varFuncNullUB --suppress=resourceLeak --suppress=missingIncludeSystem \
        '-DTestSuite(...)=extern int test_suite' "$@"
}

# tidy_on WORDS...: with these options more; file names on stdin, one per line.
tidy_on() {
    # clang-tidy counts the warnings that it has suppressed on stderr.
    xargs -d '\n' -P 2 -n 4 clang-tidy -p "$build" --quiet \
        --extra-arg=-Wno-unknown-warning-option "$@" \
        2> >(grep -v 'warnings generated' >&2)
}

# The analyzer follows a ninth of the paths that it would by default: a tenth of the time. Tidy-deep
# follows them all.
shorter=(--extra-arg=-Xclang --extra-arg=-analyzer-config
    --extra-arg=-Xclang --extra-arg=max-nodes=25000)

must_find() { # must_find WORDS...: runs them; they have to find something (exit code 1)
    local code=0
    "$@" >/dev/null 2>&1 || code=$?
    if [ "$code" != 1 ]; then
        echo "nothing found in a planted mistake (exit code $code): $*"
        exit 1
    fi
}

planted() {
    local dir=$build/planted
    mkdir -p "$dir"
    printf 'int  f( void ){return 1;}\n' >"$dir/format.c"
    cp .clang-format "$dir/"
    must_find clang-format --dry-run -Werror "$dir/format.c"
    printf '#include <string.h>\nint f(const char *s);\nint f(const char *s)\n{\n%s\n}\n' \
        '    return memcmp(s, "abc", sizeof(s) / sizeof(s));' >"$dir/tidy.c"
    cp .clang-tidy "$dir/"
    must_find clang-tidy --quiet "$dir/tidy.c" --
    printf 'int f(void)\n{\n    int a[4];\n    a[4] = 1;\n    return a[4];\n}\n' >"$dir/cpp.c"
    must_find cppcheck_on "$dir/cpp.c"
    # shellcheck disable=SC2016
    printf '#!/bin/bash\ncd $1\nrm -rf $2/*\n' >"$dir/shell.sh"
    must_find shellcheck -S warning "$dir/shell.sh"
}

case $check in
format) sources '*.c' '*.h' | xargs -0 clang-format --dry-run -Werror ;;
tidy) compiled | tidy_on "${shorter[@]}" ;;
tidy-deep) compiled | tidy_on ;;
cppcheck) cppcheck_on -j 2 --project="$build/compile_commands.json" ;;
shell) sources '*.sh' | xargs -0 shellcheck -x -S warning ;;
planted) planted ;;
*) exit 2 ;;
esac
