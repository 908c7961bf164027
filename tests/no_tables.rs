//! Stacks through code that no unwind information describes: rules come from the code itself, and hold at every instruction.

use crate::harness::{Report, Run, Target, check_functions, compiled, follow, require_root};

/// Builds without unwind information, and whether the C library has none either.
const BUILDS: [(&str, bool); 7] = [
    ("no tables -O0", false),
    ("no tables -O2", false),
    ("no tables -O3", false),
    ("no tables, frame pointers", false),
    ("no tables, static", false),
    ("no tables, musl", true),
    ("no tables, static musl", true),
];

/// Every instruction that a program runs leads to its caller by the rule that holds there, if there is one: what calls and returns
/// say is the truth.
#[test]
fn rules_from_code_hold_at_every_instruction() {
    for (build, _) in BUILDS {
        let program = compiled(build);
        let mut target = Target::start(&program);
        let shadow = follow(&mut target, "begin");
        assert_eq!(shadow.faults, [""; 0], "{build}");
        let own = &shadow.files[program.to_str().unwrap()];
        assert!(own.steps > 10_000 && own.calls > 500, "{build}: {own:?}");
        // What a program in C calls is proved, nearly all of it.
        assert!(own.without_rule * 20 < own.steps && own.calls_without_rule * 100 <= own.calls, "{build}: {own:?}");
    }
}

/// Names of the functions of the stacks of a caller, from `main` on.
fn below_main<'a>(report: &'a Report, caller: &str) -> Vec<Vec<&'a str>> {
    let stacks = report.stacks.iter().filter(|stack| stack.caller() == caller && stack.held.blocks > 0);
    let names = |functions: &'a [String]| {
        let main = functions.iter().position(|name| name == "main").unwrap_or(0);
        functions[main..].iter().map(String::as_str).collect()
    };
    stacks.map(|stack| names(&stack.functions)).collect()
}

#[test]
fn stacks_through_code_without_tables_are_whole() {
    require_root();
    for (build, _) in BUILDS {
        let program = compiled(build);
        let mut target = Target::start(&program);
        let tracer = Run::pid(target.pid()).start();
        let truth = target.ask("begin");
        let report = tracer.stop().report(0);
        report.assert_complete(build);
        check_functions(build, &report, &truth, Some(&program));
        let recursion = [&["recurse"; 21][..], &["below_recursion"]].concat();
        for (caller, expected) in [
            ("below_registers", &["with_registers", "below_registers"][..]),
            ("below_alloca", &["with_alloca", "below_alloca"]),
            ("below_array", &["with_array", "below_array"]),
            ("below_switch", &["with_switch", "below_switch"]),
            ("below_arguments", &["with_arguments", "many", "below_arguments"]),
            ("below_abort", &["with_abort", "below_abort"]),
            ("below_recursion", &recursion),
        ] {
            let stacks = below_main(&report, caller);
            assert!(!stacks.is_empty(), "{build}: {caller}");
            for stack in stacks {
                assert_eq!(stack, [&["main", "all_shapes"], expected].concat(), "{build}");
            }
        }
        for stack in below_main(&report, "below_sort") {
            let end = ["compare_and_allocate", "below_sort"];
            assert!(
                stack.starts_with(&["main", "all_shapes", "with_sort"]) && stack.ends_with(&end),
                "{build}: {stack:?}"
            );
        }
        let tables = report.json["unwind_tables"].as_array().unwrap();
        let own = tables.iter().find(|table| table["file"] == program.to_str().unwrap()).unwrap();
        assert!(own["synthesized_bytes"].as_u64().unwrap() > 1000, "{build}: {own}");
    }
}
