//! The rules, as data: where each applies, what it looks for, and what to tell who breaks it.

/// One rule of the repository.
pub(super) struct Rule {
    /// Short name, printed with each violation.
    pub(super) name: &'static str,
    /// Files it applies to, and files among them that it does not: a folder with `/` at its end, `*.SUFFIX`, or a path.
    pub(super) within: &'static [&'static str],
    pub(super) except: &'static [&'static str],
    pub(super) check: Check,
    /// What to do about it.
    pub(super) advice: &'static str,
}

/// What a rule looks for.
pub(super) enum Check {
    /// The file starts with a `//!` comment.
    HeadComment,
    /// The file has at most so many lines.
    MaxLines(usize),
    /// Each unsafe block or impl has a `SAFETY:` comment, each unsafe fn a `# Safety` section.
    Safety,
    /// None of these words in code, tests included.
    Words(&'static [&'static str]),
    /// None of these paths, or what is below them, imported or named in code outside of unit tests.
    Paths(&'static [&'static str]),
    /// None of these in comments.
    Comments(&'static [&'static str]),
    /// None of these anywhere.
    Text(&'static [&'static str]),
    /// No absolute path into somebody's home.
    HomePaths,
}

const ANY: &[&str] = &["*"];
const RUST: &[&str] = &["*.rs"];
const PURE: &[&str] = &[
    "tracer/src/event.rs",
    "tracer/src/golang/growth.rs",
    "tracer/src/golang/heap/",
    "tracer/src/heap.rs",
    "tracer/src/heap/",
    "tracer/src/profile.rs",
    "tracer/src/profile/",
    "tracer/src/ranges.rs",
    "tracer/src/unwind.rs",
    "tracer/src/unwind/",
];

/// All rules that look at one file at a time.
pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "head-comment",
        within: RUST,
        except: &[],
        check: Check::HeadComment,
        advice: "say in a `//!` comment at the top what the file is for",
    },
    Rule {
        name: "file-length",
        within: RUST,
        except: &[],
        check: Check::MaxLines(500),
        advice: "split it by concern: 500 lines at most",
    },
    Rule {
        name: "safety-comment",
        within: RUST,
        except: &[],
        check: Check::Safety,
        advice: "say why it is sound: `// SAFETY:` above the block, `# Safety` in the docs of an unsafe fn",
    },
    Rule {
        name: "unsafe-place",
        within: &["tracer/", "xtask/"],
        except: &[
            "tracer/src/bpf.rs",
            "tracer/src/bpf/",
            "tracer/src/launch.rs",
            "tracer/src/launch/",
            "tracer/benches/",
        ],
        check: Check::Words(&["unsafe"]),
        advice: "unsafe code belongs into tracer/src/bpf, tracer/src/launch or tracer-ebpf",
    },
    Rule {
        name: "printing",
        within: &["tracer/src/", "tracer-ebpf/"],
        except: &["tracer/src/main.rs", "tracer/src/cli.rs", "tracer/src/cli/"],
        check: Check::Words(&["println!", "eprintln!", "print!", "eprint!"]),
        advice: "a library prints nothing: write to the `dyn Write` that it was given, or use `tracing`",
    },
    Rule {
        name: "unfinished",
        within: RUST,
        except: &[],
        check: Check::Words(&["todo!", "unimplemented!", "#[ignore]"]),
        advice: "finish it; a test that is left out says why: `#[ignore = \"reason\"]`",
    },
    Rule {
        name: "unfinished-comment",
        within: RUST,
        except: &["xtask/src/tidy/rules.rs"],
        check: Check::Comments(&["FIXME", "TODO", "XXX"]),
        advice: "finish it, or file an issue",
    },
    Rule {
        name: "unfinished-text",
        within: &["*.c", "*.h", "*.cc", "*.cpp", "*.go", "*.sh", "*.toml", ".ci/"],
        except: &[],
        check: Check::Text(&["FIXME", "TODO", "XXX"]),
        advice: "finish it, or file an issue",
    },
    Rule {
        name: "aya-place",
        within: &["tracer/src/"],
        except: &["tracer/src/bpf.rs", "tracer/src/bpf/"],
        check: Check::Paths(&["aya", "aya_log", "aya_obj"]),
        advice: "only tracer/src/bpf knows aya",
    },
    Rule {
        name: "intake-io",
        within: &["tracer/src/collector.rs", "tracer/src/collector/", "tracer/src/files/registry.rs"],
        // Has a descriptor that wakes the collector.
        except: &["tracer/src/collector/requests.rs"],
        check: Check::Paths(&[
            "std::fs",
            "std::io",
            "std::process",
            "crate::space::address_space::AddressSpace",
            "crate::space::maps",
            "crate::process::memory",
            "crate::files::opener",
            "crate::files::root",
            "crate::unwinder",
        ]),
        advice: "who takes records in opens no file and looks into no process: ask the resolvers",
    },
    Rule {
        name: "opening-place",
        within: &[
            "tracer/src/attach.rs",
            "tracer/src/attach/",
            "tracer/src/coverage/",
            "tracer/src/go/",
            "tracer/src/golang/",
            "tracer/src/present.rs",
            "tracer/src/present/",
            "tracer/src/probe/",
            "tracer/src/resolve/",
            "tracer/src/space/",
            "tracer/src/symbolize/",
            "tracer/src/trails.rs",
            "tracer/src/unwinder.rs",
        ],
        // The first opens again what was opened there, the other /dev/null.
        except: &["tracer/src/attach/find.rs", "tracer/src/golang/executable.rs"],
        check: Check::Paths(&[
            "std::fs::File::open",
            "std::fs::OpenOptions",
            "rustix::fs::open",
            "rustix::fs::openat",
            "rustix::fs::openat2",
        ]),
        advice: "what a target has chosen is opened by tracer/src/files, with bounds",
    },
    Rule {
        name: "control-place",
        within: &["tracer/src/"],
        // A traced process has a life, which control/lifecycle.rs decides.
        except: &[
            "tracer/src/main.rs",
            "tracer/src/control.rs",
            "tracer/src/control/",
            "tracer/src/attach.rs",
            "tracer/src/attach/begin.rs",
        ],
        check: Check::Paths(&["crate::control"]),
        advice: "only control knows all stages: tell it, by a channel or a value",
    },
    Rule {
        name: "abi-is-plain",
        within: &["tracer-ebpf/src/lib.rs"],
        except: &[],
        check: Check::Paths(&["aya_ebpf", "aya_log_ebpf", "std", "alloc"]),
        advice: "the ABI is integers only and compiles everywhere",
    },
    Rule {
        name: "clap-place",
        within: &["tracer/src/"],
        except: &["tracer/src/cli.rs", "tracer/src/cli/"],
        check: Check::Paths(&["clap", "clap_complete", "clap_mangen"]),
        advice: "cli turns arguments into plain configuration; nothing else knows clap",
    },
    Rule {
        name: "exit-place",
        within: &["tracer/src/"],
        except: &["tracer/src/main.rs"],
        check: Check::Paths(&["std::process::exit", "std::process::abort", "libc::exit"]),
        advice: "only main ends the process: return an error",
    },
    Rule {
        name: "pure-core",
        within: PURE,
        except: &[],
        check: Check::Paths(&[
            "std::env",
            "std::fs",
            "std::io",
            "std::net",
            "std::os",
            "std::process",
            "std::thread",
            "std::time::Instant",
            "std::time::SystemTime::now",
            "libc",
            "nix",
            "rustix",
        ]),
        advice: "the core does no I/O, takes no clock and starts no thread: pass values in",
    },
    Rule {
        name: "core-imports",
        within: PURE,
        except: &[],
        check: Check::Paths(&[
            "crate::attach",
            "crate::bpf",
            "crate::cli",
            "crate::collector",
            "crate::control",
            "crate::files",
            "crate::go",
            "crate::live",
            "crate::present",
            "crate::report",
            "crate::resolve",
            "crate::serve",
            "crate::space",
            "crate::symbolize",
        ]),
        advice: "the core knows neither what feeds it nor what presents it",
    },
    Rule {
        name: "report-imports",
        within: &["tracer/src/report.rs", "tracer/src/report/", "tracer/src/live/", "tracer/src/serve.rs"],
        except: &[],
        check: Check::Paths(&[
            "crate::attach",
            "crate::bpf",
            "crate::cli",
            "crate::collector",
            "crate::control",
            "crate::event",
            "crate::files",
            "crate::go",
            "crate::golang",
            "crate::heap",
            "crate::launch",
            "crate::present",
            "crate::probe",
            "crate::process",
            "crate::resolve",
            "crate::space",
            "crate::symbolize",
            "crate::unwind",
        ]),
        advice: "what presents sees a Profile and nothing of how it was measured",
    },
    Rule {
        name: "report-output",
        within: &["tracer/src/report.rs", "tracer/src/report/"],
        except: &[],
        check: Check::Paths(&[
            "std::env",
            "std::fs",
            "std::io::stderr",
            "std::io::stdout",
            "std::process",
            "std::thread",
            "std::time::Instant",
            "std::time::SystemTime::now",
        ]),
        advice: "a report goes to the `dyn Write` that it was given and is a function of its Profile",
    },
    Rule {
        name: "registry-host",
        within: ANY,
        except: &["Cargo.lock", "tests/programs/rust_allocators/Cargo.lock"],
        // In pieces, so that this file keeps the rule.
        check: Check::Text(&[
            concat!("crates", ".io"),
            concat!("debian", ".org/debian"),
            concat!("golang", ".org/proxy"),
            concat!("proxy.", "golang"),
            concat!("registry.", "npmjs"),
            concat!("pypi", ".org"),
            concat!("python", "hosted"),
            concat!("repo1.", "maven"),
        ]),
        advice: "name packages, not the hosts that they come from: those differ between machines",
    },
    Rule {
        name: "home-path",
        within: ANY,
        except: &[],
        check: Check::HomePaths,
        advice: "use a path in the repository, a temporary folder or an environment variable",
    },
];
