//! Where to probe allocations of a Go program: functions of its runtime through which each object goes exactly once, and the
//! instruction of each at which its arguments are still in their registers and its caller's address on top of the stack.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Register};

use crate::golang::{Runtime, Unreadable};

/// What `mallocgc` is split into from Go 1.24 on; each may have a digit-ended twin for one size class (`SC3`, from 1.26 on).
const PARTS: [&str; 6] = [
    "runtime.mallocgcTiny",
    "runtime.mallocgcSmallNoscan",
    "runtime.mallocgcSmallNoScan",
    "runtime.mallocgcSmallScanNoHeader",
    "runtime.mallocgcSmallScanHeader",
    "runtime.mallocgcLarge",
];
/// All of it in one, before.
const WHOLE: &str = "runtime.mallocgc";
/// Gives the next object of a span whose cached bits are used up.
const NEXT_FREE: &str = "runtime.(*mspan).nextFreeIndex";
/// Is called for each new large object.
const LARGE: &str = "runtime.(*mspan).initHeapBits";
/// Its predecessor, up to Go 1.19.
const OLD_LARGE: &str = "runtime.heapBits.initSpan";

/// What `mallocgc` calls to help the garbage collector, and its helper that may do so for it.
const ASSIST: &str = "runtime.gcAssistAlloc";
const ASSIST_HELPER: &str = "runtime.deductAssistCredit";

/// Bytes of a function that are looked at.
const WINDOW: u32 = 64;
/// The same where calls are looked for.
const WHOLE_WINDOW: u32 = 1 << 14;

/// Offsets in the executable file, bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeSites {
    /// Of functions that allocate.
    pub allocate: Vec<u64>,
    /// Of `(*mspan).nextFreeIndex`.
    pub next_free_index: Vec<u64>,
    /// Of `(*mspan).initHeapBits`.
    pub init_heap_bits: Vec<u64>,
    /// Of `heapBits.initSpan`, where that is what there is.
    pub init_span: Vec<u64>,
    /// Behind calls to help the garbage collector, where those come between `allocate` and the object: empty where they come
    /// before (from Go 1.24 on).
    pub after_assist: Vec<u64>,
    /// Whether those of `allocate` lie on the check for the end of the stack (up to Go 1.20), which may begin the function
    /// anew, and not behind it.
    pub at_check: bool,
}

/// Finds the instructions to probe.
///
/// # Errors
/// A function is not there, or is compiled to something else than it usually is.
pub fn probe_sites(runtime: &Runtime) -> Result<ProbeSites, Unreadable> {
    let missing =
        |name: &str| Unreadable::NoLayout { version: runtime.executable.version.to_string(), missing: name.to_owned() };
    let mut sites = ProbeSites::default();
    let (mut whole, mut parts, mut checks) = (None, Vec::new(), 0);
    for (name, function, size) in runtime.executable.tables.functions() {
        let part = is_part(&name);
        if !part && ![WHOLE, NEXT_FREE, LARGE, OLD_LARGE].contains(&&*name) {
            continue;
        }
        let site = runtime.code(function, size, WINDOW).and_then(|(address, code)| {
            let site = site(&code)?;
            Some((runtime.executable.file_offset(address + site.offset)?, site.at_check))
        });
        let (offset, at_check) = site.ok_or_else(|| missing(&name))?;
        checks += usize::from(at_check && (part || name == WHOLE));
        match &*name {
            NEXT_FREE => sites.next_free_index.push(offset),
            LARGE => sites.init_heap_bits.push(offset),
            OLD_LARGE => sites.init_span.push(offset),
            WHOLE => whole = Some(offset),
            _ => parts.push(offset),
        }
    }
    if parts.is_empty() {
        sites.after_assist = after_assist(runtime);
    }
    sites.allocate = if parts.is_empty() { whole.into_iter().collect() } else { parts };
    sites.at_check = checks > 0;
    let large = if sites.init_heap_bits.is_empty() { &sites.init_span } else { &sites.init_heap_bits };
    for (found, name) in [(&sites.allocate, WHOLE), (&sites.next_free_index, NEXT_FREE), (large, LARGE)] {
        if found.is_empty() {
            return Err(missing(name));
        }
    }
    Ok(sites)
}

/// Behind the calls of [`ASSIST`], as offsets in the file.
fn after_assist(runtime: &Runtime) -> Vec<u64> {
    let functions = runtime.executable.tables.functions();
    let (mut callers, mut target) = (Vec::new(), None);
    for (name, function, size) in functions.filter(|(name, ..)| [WHOLE, ASSIST_HELPER, ASSIST].contains(&&**name)) {
        match (&*name, runtime.code(function, size, WHOLE_WINDOW)) {
            (ASSIST, Some((address, _))) => target = Some(address),
            (_, code) => callers.extend(code),
        }
    }
    let calls = callers.iter().flat_map(|(address, code)| {
        let decoder = Decoder::with_ip(64, code, *address, DecoderOptions::NONE);
        decoder.into_iter().filter(|instruction| instruction.code() == Code::Call_rel32_64)
    });
    let calls = calls.filter(|call| Some(call.near_branch_target()) == target);
    calls.filter_map(|call| runtime.executable.file_offset(call.next_ip())).collect()
}

fn is_part(name: &str) -> bool {
    let rest = PARTS.iter().filter_map(|part| name.strip_prefix(part));
    let is_class = |rest: &str| {
        let class = rest.strip_prefix("SC");
        class.is_some_and(|class| !class.is_empty() && class.bytes().all(|digit| digit.is_ascii_digit()))
    };
    rest.into_iter().any(|rest| rest.is_empty() || is_class(rest))
}

struct Site {
    offset: u64,
    at_check: bool,
}

/// From Go 1.21 on functions begin with the check of the stack's end and `push rbp`, before with the check and with making
/// room on the stack; those that need no check begin with `push rbp`. The kernel emulates both instructions.
fn site(code: &[u8]) -> Option<Site> {
    let mut check = None;
    for instruction in &mut Decoder::new(64, code, DecoderOptions::NONE) {
        let offset = instruction.ip();
        match instruction.code() {
            Code::Push_r64 if instruction.op0_register() == Register::RBP => {
                return Some(Site { offset, at_check: false });
            }
            Code::Jbe_rel8_64 | Code::Jbe_rel32_64 if check.is_none() => check = Some(offset),
            Code::Cmp_r64_rm64 | Code::Cmp_rm64_r64 | Code::Lea_r64_m if check.is_none() => {}
            // Something else: all that is left is the check.
            _ => return check.map(|offset| Site { offset, at_check: true }),
        }
        if instruction.is_invalid() || instruction.flow_control() == FlowControl::Return {
            break;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_and_their_twins_are_parts() {
        for part in
            ["Tiny", "TinySC2", "SmallNoscan", "SmallNoScanSC7", "SmallScanNoHeaderSC1", "SmallScanHeader", "Large"]
        {
            assert!(is_part(&format!("runtime.mallocgc{part}")), "{part}");
        }
        for other in
            ["runtime.mallocgc", "runtime.mallocgcTinySC", "runtime.mallocgcTinySC2x", "runtime.mallocgcLarge.func1"]
        {
            assert!(!is_part(other), "{other}");
        }
    }

    #[test]
    fn the_site_is_where_the_arguments_are_untouched() {
        // cmp rsp, [r14+16]; jbe +0x70; push rbp; mov rbp, rsp
        let new = [0x49, 0x3b, 0x66, 0x10, 0x0f, 0x86, 0x70, 0, 0, 0, 0x55, 0x48, 0x89, 0xe5];
        // lea r12, [rsp-8]; cmp r12, [r14+16]; jbe +0x70; push rbp
        let large = [0x4c, 0x8d, 0x64, 0x24, 0xf8, 0x4d, 0x3b, 0x66, 0x10, 0x76, 0x70, 0x55];
        // cmp rsp, [r14+16]; jbe +0x70; sub rsp, 0x68
        let old = [0x49, 0x3b, 0x66, 0x10, 0x76, 0x70, 0x48, 0x83, 0xec, 0x68];
        let found = |code: &[u8]| site(code).map(|site| (site.offset, site.at_check));
        assert_eq!(found(&new), Some((10, false)));
        assert_eq!(found(&large), Some((11, false)));
        assert_eq!(found(&old), Some((4, true)));
        assert_eq!(found(&[0x55, 0xc3]), Some((0, false)));
        for hostile in [&[][..], &[0xc3], &[0x0f], &[0xff; 64], &[0x48, 0x89, 0xd8, 0x55]] {
            assert_eq!(found(hostile), None, "{hostile:x?}");
        }
    }
}
