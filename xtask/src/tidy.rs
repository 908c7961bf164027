//! `tidy`: the repository's own rules, which neither the compiler nor clippy knows.
//!
//! The rules are a table in [`rules`]; this file finds the files and prints what breaks a rule, as `file:line: rule`.

mod check;
mod circles;
mod names;
mod paths;
mod rules;
mod source;

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::{
    command,
    tidy::{check::violations, circles::circles, names::unknown_names, rules::RULES, source::Source},
    workspace::Workspace,
};

/// Checks every file of the repository, those not yet added included.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let tracked = git_files(workspace, &["--cached"])?;
    let new = git_files(workspace, &["--others", "--exclude-standard"])?;
    let mut broken = 0;
    if !tracked.iter().any(|path| path == "Cargo.lock") {
        println!("Cargo.lock:1: lock-file: must be tracked, so that every build takes the same dependencies");
        broken += 1;
    }
    let files = tracked.into_iter().chain(new).filter_map(|path| read(workspace, path).transpose());
    let sources: Vec<Source> = files.collect::<Result<_>>()?;
    for violation in sources.iter().flat_map(|source| RULES.iter().flat_map(|rule| violations(source, rule))) {
        println!("{violation}");
        broken += 1;
    }
    for circle in circles(&sources) {
        println!("{circle}");
        broken += 1;
    }
    for (path, line, name) in unknown_names(&sources) {
        println!("{path}:{line}: name: `{name}`: there is no such test, file or folder");
        broken += 1;
    }
    if broken > 0 {
        bail!("tidy: {broken} places break a rule");
    }
    println!("tidy: {} files keep {} rules", sources.len(), RULES.len() + 3);
    Ok(())
}

fn git_files(workspace: &Workspace, options: &[&str]) -> Result<Vec<String>> {
    let mut git = command::program("git");
    git.arg("ls-files").arg("-z").args(options).current_dir(&workspace.root);
    let listing = command::output(&mut git)?;
    Ok(listing.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
}

/// A file's text; `None` for what is no text, and for what is deleted but still in git's index.
fn read(workspace: &Workspace, path: String) -> Result<Option<Source>> {
    let file = workspace.root.join(&path);
    if !file.is_file() {
        return Ok(None);
    }
    let bytes = fs::read(&file).with_context(|| format!("cannot read {path}"))?;
    Ok(String::from_utf8(bytes).ok().map(|text| Source::new(path, text)))
}
