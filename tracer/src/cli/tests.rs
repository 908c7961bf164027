//! Command lines, and what they come to.

use std::time::Duration;

use super::*;

fn parse(line: &str) -> Request {
    request(Cli::try_parse_from(std::iter::once("tracer").chain(line.split_whitespace())))
}

fn config(line: &str) -> Config {
    match parse(line) {
        Request::Trace(config) => *config,
        Request::Goroutines(_) | Request::Top(_) | Request::Doctor(_) | Request::Print(_) | Request::Help(_) => {
            panic!("{line}: does not trace")
        }
        Request::Refuse(error) => panic!("{line}: {error}"),
    }
}

fn refusal(line: &str) -> String {
    match parse(line) {
        Request::Refuse(error) => {
            assert_eq!(error.exit_code(), 2, "{line}");
            error.to_string()
        }
        _ => panic!("{line}: accepted"),
    }
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn the_doctor_looks_at_one_process_at_most() {
    assert!(matches!(parse("doctor"), Request::Doctor(DoctorConfig { pid: None, json: false, .. })));
    assert!(matches!(parse("doctor -p 7 --json"), Request::Doctor(DoctorConfig { pid: Some(7), json: true, .. })));
    for line in ["doctor --pid 0", "doctor --pid -1", "doctor --pid x", "doctor 7"] {
        refusal(line);
    }
    for line in ["doctor --pid abc", "doctor --pid 1,2", "goroutines --pid +5"] {
        let said = refusal(line);
        assert!(said.contains("write the id of one process, such as 4711"), "{said}");
    }
}

#[test]
fn units_are_understood() {
    let config = config("-p 7 --pid 8 -p 7 -d 1m --interval 500ms --min-size 4KiB --max-size 1G --buffer-size 100000");
    assert!(matches!(config.subject, Subject::Pids(pids) if pids == [7, 8]));
    assert_eq!(config.duration, Some(Duration::from_secs(60)));
    assert_eq!(self::config("-p 7 -d 5").duration, Some(Duration::from_secs(5)), "seconds, without a unit");
    assert_eq!(config.interval, Some(Duration::from_millis(500)));
    assert_eq!(config.sizes, (4096, 1 << 30));
    assert_eq!(config.buffer_size, 131_072);
}

#[test]
fn processes_are_selected_by_ids_and_more() {
    assert!(matches!(config("--pid 5,6 -p 6,7,").subject, Subject::Pids(pids) if pids == [5, 6, 7]));
    let separated = Cli::try_parse_from(["tracer", "--pid", "8 9\n"]);
    let Request::Trace(traced) = request(separated) else { panic!() };
    assert!(matches!(traced.subject, Subject::Pids(pids) if pids == [8, 9]));
    let Subject::Selected(selection) = config("--comm redis* --user 0 --user root --pid 5").subject else { panic!() };
    assert_eq!(selection.pids, [5]);
    let all = config("--all --exclude-comm x");
    assert!(matches!(&all.subject, Subject::Selected(_)) && all.children);
    assert!(!config("--all --no-children").children);
    for (line, scope) in [
        ("--pid 5", None),
        ("--comm x", None),
        ("--comm x --returns link", Some(Scope::Process)),
        ("--pid 5 --scope file", Some(Scope::File)),
        ("--all", Some(Scope::File)),
        ("--all --scope process", Some(Scope::Process)),
        ("-- ls", Some(Scope::File)),
        ("--no-children -- ls", Some(Scope::Process)),
        ("--returns link -- ls", Some(Scope::Process)),
    ] {
        assert_eq!(config(line).scope, scope, "{line}");
    }
    assert!(matches!(config("--exclude-comm x --exe /usr/bin/*").subject, Subject::Selected(_)));
}

#[test]
fn goroutines_are_a_command_of_their_own() {
    let Request::Goroutines(config) = parse("goroutines --pid 7 -n 3 -o a.svg -o - --format json -q") else { panic!() };
    assert_eq!((config.pid, config.top, config.verbosity), (7, 3, Verbosity::Quiet));
    let formats: Vec<Format> = config.outputs.iter().map(|output| output.format).collect();
    assert_eq!(formats, [Format::Svg, Format::Json]);
    for (line, hint) in [
        ("goroutines", "--pid"),
        ("goroutines --pid 5 --pid 6", "--pid"),
        ("goroutines --pid 5 --duration 5s", "--duration"),
        ("goroutines --pid 5 --format json", "-o -"),
    ] {
        let message = refusal(line);
        assert!(message.contains(hint), "{line}: {message}");
    }
    // One that is to be traced has its name behind the dashes.
    assert!(matches!(self::config("-- goroutines --pid 5").subject, Subject::Command(_)));
}

#[test]
fn top_is_a_command_of_its_own() {
    let Request::Top(config) = parse("top --json --once -i 500ms --sort rss -n 3") else { panic!() };
    assert_eq!((config.interval, config.top, config.sort), (Duration::from_millis(500), 3, Sort::Resident));
    assert!(config.json && config.once);
}

#[test]
fn a_suffix_tells_the_format_or_else_the_flag() {
    let formats = |line: &str| -> Vec<Format> { config(line).outputs.iter().map(|output| output.format).collect() };
    assert_eq!(formats("-p 7 -o a.pb.gz -o a.txt -o -"), [Format::Pprof, Format::Text, Format::Text]);
    assert_eq!(formats("-p 7 --format pprof -o a.svg -o a.gz -o -"), [Format::Svg, Format::Pprof, Format::Pprof]);
}

#[test]
fn a_command_keeps_its_own_flags() {
    let config = config("-q -- ls --pid 5 -v");
    assert!(matches!(config.subject, Subject::Command(command) if command == ["ls", "--pid", "5", "-v"]));
    assert_eq!(config.verbosity, Verbosity::Quiet);
}

#[test]
fn what_makes_no_sense_says_what_to_do() {
    for (line, hint) in [
        ("", "--pid PID"),
        ("", "tracer top"),
        ("top --pid 5", "--pid"),
        ("top --interval 0s", "longer"),
        ("top --sort pid", "growth"),
        ("--pid 0", "--pid"),
        ("--pid 5 -- ls", "give either"),
        ("--all --pid 5", "leave --pid away"),
        ("--all --returns link", "--all"),
        ("--all -- ls", "give either"),
        ("--pid x", "--pid"),
        ("--pid 5,x", "4711,4712"),
        ("--pid 5,0", "4711,4712"),
        ("--pid ,", "4711,4712"),
        ("--pid +5", "4711,4712"),
        ("--comm a[", "--comm"),
        ("--exe bin/x", "whole path"),
        ("--cgroup x", "/proc/PID/cgroup"),
        ("--user nobody-of-this-name", "no user"),
        ("--exclude-comm x", "--all"),
        ("--comm x -- ls", "give either"),
        ("-p 5 -q -v", "cannot be used with"),
        ("-p 5 --min-size 2K --max-size 1K", "larger than --max-size"),
        ("-p 5 -o out.xyz", ".pb.gz or .json"),
        ("-p 5 -o out.svg.gz", ".pb.gz or .json"),
        ("-p 5 --format json", "-o -"),
        ("-p 5 -o - -o -", "only once"),
        ("-p 5 --duration 5x", "unit"),
        ("-p 5 --duration -5", "unit"),
        ("-p 5 --duration 99999999999999999999", "too large"),
        ("-p 5 --duration 0s", "longer"),
        ("-p 5 -d 18446744073709551615s", "ten years"),
        ("-p 5 -d 18446744073709551616s", "too large"),
        ("-p 5 -i 584542y", "ten years"),
        ("-p 5 --min-age 11y", "ten years"),
        ("-p 5 --interval 1ns", "100ms"),
        ("-p 5 --top 18446744073709551616", "--top"),
        ("-p 5 --min-size 5X", "64KiB"),
        ("-p 5 --max-size 99999999999T", "address space"),
        ("-p 5 --buffer-size 1", "4KiB"),
        ("-p 5 --max-memory 1MiB", "128MiB"),
        ("-p 5 --max-memory 10000TiB", "4096TiB"),
        ("-p 5 --value weight", "bytes"),
        ("-p 5 --go-heap none", "sample"),
        ("-p 5 --value mapped --mmap off", "--value mapped cannot be used with --mmap=off"),
        ("-p 5 --min-age 5m --duration 5m", "no block could be held for so long"),
        ("-p 5 --min-age 5s --go-heap buckets", "--min-age cannot be used with --go-heap=buckets: "),
        ("-p 5 --min-age 5s --go-heap enable", "--min-age cannot be used with --go-heap=enable: "),
        ("-p 5 --sample 0", "1GiB"),
        ("-p 5 --max-overhead some", "percent"),
        ("-p 5 --max-overhead -1", "0.1%"),
        ("-p 5 --max-overhead NaN", "0.1%"),
        ("-p 5 --symbol malloc", "FUNCTION=FILE:NAME"),
        ("doctor -p 5 --symbol take=x:y", "posix_memalign"),
    ] {
        let message = refusal(line);
        assert!(message.contains(hint), "{line}: {message}");
    }
}

#[test]
fn help_man_and_completions_come_from_one_definition() {
    for line in ["--generate man", "--generate complete-bash", "--generate complete-fish"] {
        assert!(matches!(parse(line), Request::Print(text) if !text.is_empty()), "{line}");
    }
    for (line, part) in [("--version", "tracer "), ("--help", "Exit status")] {
        let Request::Help(help) = parse(line) else { panic!("{line}") };
        assert!(help.to_string().contains(part), "{line}");
    }
}

#[test]
fn samples_are_of_the_heap_that_can_be_sampled() {
    for (options, sample) in [
        ("", Some(4096)),
        ("--go-heap off", Some(4096)),
        ("--go-heap buckets", Some(4096)),
        ("--go-heap auto", None),
        ("--go-heap sample", None),
        ("--go-heap enable", None),
    ] {
        let config = config(&format!("-p 5 --sample 4KiB {options}"));
        assert_eq!((config.sample, config.go_sample), (sample, 4096), "{options}");
    }
    assert_eq!(config("-p 5 --go-heap off").sample, None);
}

#[test]
fn an_overhead_is_in_percent() {
    for (line, share) in
        [("-p 5", None), ("-p 5 --max-overhead 5", Some(0.05)), ("-p 5 --max-overhead 0.5%", Some(0.005))]
    {
        assert_eq!(config(line).max_overhead, share, "{line}");
    }
}
