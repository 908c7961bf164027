#!/bin/sh
# The compiler of the workspace's own crates for fuzzing (`RUSTC_WORKSPACE_WRAPPER`): with the checks of development and some
# optimisations, counting edges and telling operands of comparisons as libFuzzer wants them. Not in what runs while
# building: nothing there takes the counts.
case " $* " in
*" --crate-name build_script_"* | *" --crate-type proc-macro "*) exec "$@" ;;
esac
exec "$(dirname "$0")/../xtask/checked.sh" "$@" \
    -Copt-level=1 \
    -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
