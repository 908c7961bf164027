//! What the files of a process say: how stacks through each are unwound, and where names come from.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::{
    doctor::line::{Line, Need},
    files::module::Module,
    report::size,
    symbolize::{Names, Symbolizer},
    unwind::Packed,
    unwinder::{code_bytes, compile_file, uncovered_bytes},
};

/// Code without rules that is worth a line of its own: of a file, a twentieth of its code and a page. Often it is no code, but tables
/// of cryptographic libraries.
const PART: u64 = 20;
const LITTLE: u64 = 4096;
/// So much that stacks will be cut: a fourth of a file's code.
const MUCH: u64 = 4;

/// A file with code that a process has mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its path, as the process sees it: hostile text.
    pub path: String,
    /// Bytes of code.
    pub code_bytes: u64,
    /// Those that are unwound by rules from the code itself.
    pub synthesized_bytes: u64,
    /// Those that nothing says of how to unwind.
    pub uncovered_bytes: u64,
    /// Why there are no rules at all.
    pub problem: Option<String>,
    /// What keeps rules that there are from being used, or some from being there: of another kind than how the file was built.
    pub left_out: Option<String>,
    /// Where names of its functions come from; `None` where it cannot be read.
    pub names: Option<Names>,
}

impl File {
    fn is_cut(&self) -> bool {
        self.uncovered_bytes > LITTLE && self.uncovered_bytes > self.code_bytes / PART
    }

    fn words(&self) -> String {
        let Self { path, code_bytes, synthesized_bytes, uncovered_bytes, problem, left_out, names } = self;
        let names = names.as_ref().map_or_else(|| "cannot be read".to_owned(), ToString::to_string);
        if let Some(problem) = problem {
            return format!("{path}: no rules ({problem}); {names}");
        }
        if let Some(left_out) = left_out {
            return format!("{path}: rules are left out ({left_out}); {names}");
        }
        let described = code_bytes.saturating_sub(*synthesized_bytes).saturating_sub(*uncovered_bytes);
        let parts =
            [(described, "described"), (*synthesized_bytes, "from its code"), (*uncovered_bytes, "without rules")];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(bytes, _)| *bytes > 0)
            .map(|(bytes, what)| format!("{} {what}", size(*bytes)))
            .collect();
        format!("{path}: {}; {names}", parts.join(", "))
    }
}

/// The files, each looked at by itself.
pub(super) fn examine(modules: &[Arc<Module>]) -> Vec<File> {
    let mut symbolizer = Symbolizer::new();
    modules.iter().map(|module| one(module, &mut symbolizer)).collect()
}

fn one(module: &Module, symbolizer: &mut Symbolizer) -> File {
    // What is in the file is hostile: should that make the compiler panic, it has no table.
    let compiled = catch_unwind(AssertUnwindSafe(|| {
        let file = module.file().ok_or("it could not be opened")?;
        let (segments, table) = compile_file(file)?;
        let code_bytes = code_bytes(&segments);
        // What has no room in a table of its own is not in use by any.
        let (left_out, synthesized_bytes, uncovered_bytes) = match Packed::default().add(&table) {
            Ok(_) => (table.stats.problem(), table.stats.synthesized_bytes, uncovered_bytes(&segments, &table)),
            Err(full) => (Some(full.to_string()), 0, code_bytes),
        };
        Ok((code_bytes, synthesized_bytes, uncovered_bytes, left_out))
    }));
    let compiled: Result<_, String> =
        compiled.unwrap_or_else(|_| Err("its unwind information makes no sense".to_owned()));
    let names = catch_unwind(AssertUnwindSafe(|| symbolizer.names_of(module))).ok().flatten();
    let path = module.path().to_owned();
    match compiled {
        Ok((code_bytes, synthesized_bytes, uncovered_bytes, left_out)) => {
            File { path, code_bytes, synthesized_bytes, uncovered_bytes, problem: None, left_out, names }
        }
        Err(problem) => File {
            path,
            code_bytes: 0,
            synthesized_bytes: 0,
            uncovered_bytes: 0,
            problem: Some(problem),
            left_out: None,
            names,
        },
    }
}

/// What there is to say of them.
pub(super) fn lines(files: &[File]) -> Vec<Line> {
    let sum = |of: fn(&File) -> u64| files.iter().map(of).fold(0u64, u64::saturating_add);
    let (code, synthesized, uncovered) =
        (sum(|file| file.code_bytes), sum(|file| file.synthesized_bytes), sum(|file| file.uncovered_bytes));
    let stacks = Line::new("unwinding", Need::ForCompleteness, "complete stacks").works(format!(
        "{} files with {} of code: {} of it by rules from the code, {} without",
        files.len(),
        size(code),
        size(synthesized),
        size(uncovered)
    ));
    let mut lines = vec![stacks.with_details(files.iter().map(File::words).collect())];
    let cut = |file: &&File| file.is_cut() || file.problem.is_some() || file.left_out.is_some();
    lines.extend(files.iter().filter(cut).map(|file| {
        let found =
            file.problem.clone().or_else(|| file.left_out.clone()).unwrap_or_else(|| {
                format!("{} of {} have no rules", size(file.uncovered_bytes), size(file.code_bytes))
            });
        let advice = if file.problem.is_none() && file.left_out.is_some() {
            "nothing: the file is too large or makes no sense; stacks may end there, and are counted"
        } else {
            "build it with -fasynchronous-unwind-tables, or nothing: stacks end there, and are counted"
        };
        let is_much = file.problem.is_some() || file.uncovered_bytes > file.code_bytes / MUCH;
        let need = if is_much { Need::ForCompleteness } else { Need::Optional };
        Line::new(file.path.clone(), need, "stacks through it").degraded(found, advice)
    }));
    lines.extend(names(files));
    lines
}

fn names(files: &[File]) -> Option<Line> {
    let line = Line::new("names", Need::Optional, "functions, inlined ones, files and lines in reports");
    let bare: Vec<&File> =
        files.iter().filter(|file| file.names.as_ref().is_some_and(Names::are_exports_only)).collect();
    let Some(first) = bare.first() else {
        return Some(line.works("each file has a table of symbols or debug information"));
    };
    Some(line.degraded(
        format!("{} of {} files have only the names that they export, such as {}", bare.len(), files.len(), first.path),
        "install their debug files (packages *-dbg, *-dbgsym, *-debuginfo; by build id under /usr/lib/debug)",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        doctor::line::{Status, Verdict},
        unwind::fixture::build,
    };

    fn file(code_bytes: u64, uncovered_bytes: u64, problem: Option<&str>) -> File {
        let problem = problem.map(str::to_owned);
        File {
            path: "/x".to_owned(),
            code_bytes,
            synthesized_bytes: 0,
            uncovered_bytes,
            problem,
            left_out: None,
            names: None,
        }
    }

    /// Two functions that are more than half a gigabyte apart: what such a file says is not in use when it is traced.
    #[test]
    fn tables_that_have_no_room_are_told() {
        let function = |name: &str| format!("{name}: .cfi_startproc\nret\n.cfi_endproc\n");
        let text = format!(
            ".text\n{}.section .far, \"ax\", @progbits\n{}.section .note.GNU-stack, \"\", @progbits\n",
            function("near"),
            function("far")
        );
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("far.so");
        let options = ["-shared", "-nostdlib", "-Wl,--section-start=.far=0x60000000"];
        build(&folder.path().join("far.s"), &text, &options, &output);
        let module = Module::of_file("/far.so", std::fs::File::open(&output).unwrap()).unwrap();
        let file = one(&module, &mut Symbolizer::new());
        assert!(file.left_out.as_ref().is_some_and(|left_out| left_out.contains("too many addresses")));
        let lines = lines(&[file]);
        assert_eq!(lines.iter().map(Line::verdict).max(), Some(Verdict::Incomplete));
        let told = format!("{:?}", lines[1]);
        assert!(told.contains("too many addresses") && !told.contains("-fasynchronous"), "{told}");
    }

    #[test]
    fn files_whose_stacks_are_cut_have_lines() {
        for (file, worst) in [
            (file(1 << 20, 0, None), Verdict::Complete),
            (file(1000, 1000, None), Verdict::Complete),
            (file(1 << 20, 5000, None), Verdict::Complete),
            (file(1 << 20, 1 << 17, None), Verdict::Complete),
            (file(1 << 20, 1 << 19, None), Verdict::Incomplete),
            (file(0, 0, Some("no ELF file")), Verdict::Incomplete),
        ] {
            let lines = lines(std::slice::from_ref(&file));
            assert_eq!(lines.iter().map(Line::verdict).max(), Some(worst), "{file:?}");
            assert_eq!(lines[0].status, Status::Works);
        }
    }
}
