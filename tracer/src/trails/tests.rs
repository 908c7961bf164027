//! Stacks through files whose code is followed by frame pointers: what no call returns to is no caller.

use std::io::Write as _;

use super::*;
use crate::files::module::Module;

/// A file whose code at 0x10 ends with a call, and no other.
fn module(is_guessed: bool) -> Arc<Module> {
    let mut code = vec![0x90; 0x100];
    code[0xb] = 0xe8;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&code).unwrap();
    let module = Module::of_file("/some/file", file).unwrap();
    if is_guessed {
        module.guess();
    }
    Arc::new(module)
}

fn site(module: &Arc<Module>, offset: u64) -> Site {
    Site { addr: 0, place: Place::File(Location { module: Arc::clone(module), offset }) }
}

/// How much is left of a stack, and whether it is told that it was cut.
fn completed(sites: Vec<Site>) -> (usize, bool) {
    let complete = complete(sites, &AddressSpace::new(std::process::id()));
    (complete.sites.len(), complete.is_unproved)
}

#[test]
fn what_a_guess_leads_to_in_a_file_is_proved_by_a_call() {
    let (guessed, known) = (module(true), module(false));
    let direct = site(&guessed, 0x40);
    assert_eq!(completed(vec![direct.clone(), site(&known, 0x10), site(&known, 0x80)]), (3, false));
    assert_eq!(completed(vec![direct.clone(), site(&guessed, 0x10), site(&known, 0x10)]), (3, false));
    assert_eq!(completed(vec![direct.clone(), site(&guessed, 0x10), site(&known, 0x80)]), (2, true));
    assert_eq!(completed(vec![direct, site(&known, 0x80), site(&known, 0x10)]), (1, true));
    assert_eq!(completed(vec![site(&known, 0x80); 3]), (3, false), "by unwind information");
}

#[test]
fn guesses_are_looked_at_before_a_stack_is_taken_for_whole() {
    let (guessed, known) = (module(true), module(false));
    let mut files = Files::default();
    files.add(5, Arc::clone(&known));
    files.add(6, Arc::clone(&guessed));
    let draft = |numbers: [u32; 2]| draft(&numbers.map(|number| place::in_file(number, 0x10)), &files);
    assert!(matches!(draft([5, 5]), Draft::InFiles(_)));
    assert!(matches!(draft([6, 5]), Draft::Addresses(_)));
}

/// Of a process that has ended nobody looks at anything.
#[test]
fn nothing_is_left_behind_a_guess_that_nobody_looks_at() {
    let (guessed, known) = (module(true), module(false));
    let mut sites = vec![site(&known, 0x10), site(&guessed, 0x10), site(&known, 0x10)];
    assert!(without_guesses(&mut sites));
    assert_eq!(sites.len(), 2);
    assert!(!without_guesses(&mut sites));
}
