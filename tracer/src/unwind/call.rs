//! Whether an address can be one that a call returns to: by the instruction before it.

/// Length of the longest call that is looked for, bytes.
pub const LONGEST_CALL: usize = 7;

/// Whether `code` can end with a near call (opcodes E8 and FF /2; Intel's manual, volume 2, CALL and section 2.1).
pub fn ends_with_call(code: &[u8]) -> bool {
    let behind = |length: usize| code.len().checked_sub(length).map(|at| &code[at..]);
    if behind(5).is_some_and(|call| call[0] == 0xe8) {
        return true;
    }
    (2..=LONGEST_CALL).any(|length| behind(length).is_some_and(|call| indirect_call(call) == Some(length)))
}

/// Whether the code before `end`, which `read` reads, ends with a call.
pub fn ends_a_call(end: u64, read: impl Fn(u64, &mut [u8]) -> bool) -> bool {
    let Some(start) = end.checked_sub(LONGEST_CALL as u64) else { return false };
    let mut code = [0; LONGEST_CALL];
    // What can be read may begin with the call.
    (0..LONGEST_CALL - 1)
        .find(|skipped| read(start + *skipped as u64, &mut code[*skipped..]))
        .is_some_and(|skipped| ends_with_call(&code[skipped..]))
}

/// Length of the indirect call that `code` begins with.
fn indirect_call(code: &[u8]) -> Option<usize> {
    let (opcode, modrm) = (*code.first()?, *code.get(1)?);
    let (mode, operation, register) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
    if opcode != 0xff || operation != 2 {
        return None;
    }
    let scaled = mode != 3 && register == 4;
    let displacement = match mode {
        0 if register == 5 => 4,
        0 if scaled && code.get(2)? & 7 == 5 => 4,
        1 => 1,
        2 => 4,
        _ => 0,
    };
    Some(2 + usize::from(scaled) + displacement)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_every_length() {
        for (code, call) in [
            (&[0xe8, 1, 2, 3, 4][..], true),
            (&[0xff, 0xd0], true),                   // call rax
            (&[0x41, 0xff, 0xd3], true),             // call r11
            (&[0xff, 0x10], true),                   // call [rax]
            (&[0xff, 0x14, 0xc8], true),             // call [rax+rcx*8]
            (&[0xff, 0x53, 0x10], true),             // call [rbx+16]
            (&[0xff, 0x54, 0x24, 0x08], true),       // call [rsp+8]
            (&[0xff, 0x15, 1, 2, 3, 4], true),       // call [rip+n]
            (&[0xff, 0x93, 1, 2, 3, 4], true),       // call [rbx+n]
            (&[0xff, 0x94, 0x24, 1, 2, 3, 4], true), // call [rsp+n]
            (&[0xff, 0x14, 0x25, 1, 2, 3, 4], true), // call [n]
            (&[0xff, 0xe0], false),                  // jmp rax
            (&[0xff, 0x14], false),                  // its last byte is missing
            (&[0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90], false),
            (&[0xe8, 1, 2, 3, 4, 0x90], false),
            (&[0xe8, 1, 2], false),
            (&[], false),
        ] {
            assert_eq!(ends_with_call(code), call, "{code:02x?}");
        }
    }
}
