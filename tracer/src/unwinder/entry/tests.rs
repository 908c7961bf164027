//! Programs and libraries in assembler: what is said of where they begin, and of what is beside that.

use std::{fs::File, path::Path};

use tracer_ebpf::unwind::{fp, kind, rule};

use super::*;
use crate::{
    files::elf::Bytes,
    unwind::fixture::build,
    unwinder::{compile_file, tests::rule_of},
};

/// A function that is described, and one that nobody can tell the frame of: how far it moves the stack pointer is in memory.
const FUNCTIONS: &str = "
.balign 32, 0x90
described: .cfi_startproc
    mov $1, %eax
    ret
    .cfi_endproc
.balign 32, 0x90
unproved: sub moved(%rip), %rsp
    call *%rax
    add moved(%rip), %rsp
    ret
.data
moved: .quad 24
.section .note.GNU-stack, \"\", @progbits
";

/// Rules at these symbols of what is made of `text` with `options`.
fn rules<const N: usize>(text: &str, options: &[&str], symbols: [&str; N]) -> [u64; N] {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("output");
    build(&folder.path().join("source.s"), text, &[&["-nostdlib"], options].concat(), &output);
    symbols.map(|symbol| rule_of(&output, symbol))
}

const NONE: u64 = rule(kind::NONE, 0, 0, 0);
const STOP: u64 = rule(kind::STOP, fp::SAME, 0, 0);

/// Where no program begins, no stack ends.
#[test]
fn libraries_have_no_begin() {
    let text = format!(
        ".text\n.globl first\nfirst: sub moved(%rip), %rsp\ncall *%rax\nadd moved(%rip), %rsp\nret\n{FUNCTIONS}"
    );
    let options = ["-shared"];
    assert_eq!(rules(&text, &options, ["first", "unproved"]), [NONE, NONE]);
    // As older linkers do it.
    let options = ["-shared", "-Wl,--entry=first"];
    assert_eq!(rules(&text, &options, ["first", "unproved"]), [NONE, NONE]);
}

#[test]
fn what_is_behind_the_begin_of_a_program_is_something_else() {
    for (end, size, is_whole) in [
        ("mov $60, %eax\nlast: syscall", "", true),
        ("mov $231, %eax\nlast: syscall", "", true),
        ("last: hlt", "", true),
        ("last: jmp *%r12", "", true),
        ("jmp last\nud2\nlast: hlt", "", false),
        ("jmp last\nud2\nlast: hlt", ".size _start, . - _start", true),
    ] {
        let text = format!(
            ".text\nnop\n.globl _start\n_start: mov %rsp, %rdi\ncall described\nmov %eax, %edi\n{end}\n{size}\n\
             behind: sub moved(%rip), %rsp\ncall *%rax\nadd moved(%rip), %rsp\nret\n{FUNCTIONS}"
        );
        let [first, last, behind, unproved] = rules(&text, &["-static"], ["_start", "last", "behind", "unproved"]);
        assert_eq!((first, unproved), (STOP, NONE), "{end}");
        assert_ne!(behind, STOP, "{end}");
        assert_eq!(last == STOP, is_whole, "{end}");
    }
}

/// The loader of this machine: the program is started from there, and what initializes libraries is called.
#[test]
fn the_loader_begins_with_its_own_instructions() {
    let path = Path::new("/lib64/ld-linux-x86-64.so.2");
    let file = File::open(path).unwrap();
    let bytes = Bytes::new(&file);
    let elf = Elf::parse(&bytes).unwrap();
    let code = function(&elf).unwrap();
    assert!((16..256).contains(&(code.end - code.start)), "{code:x?}");
    let (_, table) = compile_file(&file).unwrap();
    assert_eq!([table.rule_at(code.start), table.rule_at(code.end - 1)], [STOP, STOP]);
}
