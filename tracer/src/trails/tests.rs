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
    let draft = |numbers: [u32; 2]| draft(&numbers.map(|number| place::in_file(number, 0x10)), end::ROOT, &files);
    assert!(matches!(draft([5, 5]), Draft::InFiles(_)));
    assert!(matches!(draft([6, 5]), Draft::Addresses(_)));
}

/// How many places a stack has, how many of them are generated code, and whether it is told that it was cut: looked up in a process
/// that has no code at its mere addresses, or has ended.
fn looked_up(places: &[u64], end: u32, files: &Files) -> (usize, usize, bool) {
    let Draft::Addresses(sites) = draft(places, end, files) else { panic!("addresses are looked up") };
    let mut own = AddressSpace::new(std::process::id());
    own.refresh().unwrap();
    let [found, of_ended] = [own, AddressSpace::of_ended()].map(|space| {
        let Complete { sites, is_unproved, .. } = complete(sites.clone(), &space);
        let generated = sites.iter().filter(|site| matches!(site.place, Place::Jit(_))).count();
        (sites.len(), generated, is_unproved)
    });
    assert_eq!(found, of_ended);
    found
}

#[test]
fn code_that_is_not_mapped_any_more_keeps_its_callers() {
    let mut files = Files::default();
    files.add(5, module(false));
    let [call, none] = [0x10, 0x80].map(|offset| place::in_file(5, offset));
    // Nothing is mapped that low.
    let gone = place::at(0x100);
    let looked_up = |places: &[u64], end| looked_up(places, end, &files);
    assert_eq!(looked_up(&[none, gone, call, none], end::ROOT), (4, 1, false));
    assert_eq!(looked_up(&[none, gone, none, call], end::ROOT), (2, 1, true), "no call returns there");
    assert_eq!(looked_up(&[none, gone, gone, call], end::ROOT), (2, 1, true), "nobody knows what was there");
    assert_eq!(looked_up(&[none, call, gone], end::ROOT), (3, 1, false), "a made stack begins there");
    assert_eq!(looked_up(&[none, call, gone], end::NO_MAPPING), (2, 0, false), "its end tells");
    assert_eq!(looked_up(&[gone], end::NO_MAPPING), (1, 0, false), "the direct caller");
}

/// A file may have come to where code was generated.
#[test]
fn generated_code_is_no_file_that_is_mapped_there_now() {
    let mut files = Files::default();
    files.add(5, module(false));
    let here = place::at(looked_up as fn(&[u64], u32, &Files) -> _ as usize as u64 + 1);
    assert_eq!(looked_up(&[place::in_file(5, 0x80), here, place::in_file(5, 0x10)], end::ROOT, &files), (3, 1, false));
}
