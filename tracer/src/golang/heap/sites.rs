//! Where to probe allocations of a Go program: functions of its runtime through which each object goes exactly once, and the
//! instruction of each at which its arguments are still in their registers and its caller's address on top of the stack.
//!
//! Which functions these are depends on the version, and on what the compiler has inlined: with a profile (`-pgo`) all of
//! `mallocgc` may be in one piece again.

use std::collections::BTreeMap;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Register};

use crate::golang::{Function, Runtime, Unreadable};

/// What `mallocgc` is split into from Go 1.24 on; each may have twins for one size class (`SC3`) or size (`Size5`, both from
/// 1.26 on), which are called in its place.
const PARTS: [&str; tracer_ebpf::golang::PARTS] = [
    "runtime.mallocgcTiny",
    "runtime.mallocgcSmallNoscan",
    "runtime.mallocgcSmallNoScan",
    "runtime.mallocgcSmallScanNoHeader",
    "runtime.mallocgcSmallScanHeader",
    "runtime.mallocgcLarge",
];
/// All of it in one, before. The names of all its parts begin so, and those of what the parts call.
const WHOLE: &str = "runtime.mallocgc";
/// What gives a span of small objects, what puts that into the thread's cache, and what gives one for a large object.
const CACHE_SPAN: &str = "runtime.(*mcentral).cacheSpan";
const REFILL: &str = "runtime.(*mcache).refill";
const ALLOC_LARGE: &str = "runtime.(*mcache).allocLarge";
/// Helps the garbage collector.
const ASSIST: &str = "runtime.gcAssistAlloc";
/// What is probed where it returns.
const CALLED: [&str; 4] = [CACHE_SPAN, REFILL, ALLOC_LARGE, ASSIST];
/// What calls these, besides all whose names begin with [`WHOLE`].
const CALLERS: [&str; 3] = [REFILL, "runtime.(*mcache).nextFree", "runtime.deductAssistCredit"];

/// How names of functions end that only the parts call.
const INNER: [&str; 1] = ["SlowPath"];
/// How those of twins go on, before a number.
const TWINS: [&str; 2] = ["SC", "Size"];

/// In builds with the address sanitizer only, which makes objects larger behind the entry of [`WHOLE`].
const SANITIZER: &str = "runtime.asanpoison";

/// Most functions that are probed or searched for calls; Go 1.27 has thirty.
const MAX_FUNCTIONS: usize = 256;
/// Bytes of a function that are looked at.
const WINDOW: u32 = 64;
/// Bytes of a function where calls are looked for.
const WHOLE_WINDOW: u32 = 1 << 16;

/// Offsets in the executable file, bytes, and addresses in the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeSites {
    /// Offsets: of functions that allocate.
    pub allocate: Vec<u64>,
    /// Offsets: behind calls that give a span.
    pub new_span: Vec<u64>,
    /// Offsets: behind calls that put one into the thread's cache, where those that give it are inlined.
    pub refilled: Vec<u64>,
    /// Offsets: behind calls to help the garbage collector. Empty where those come before all of `allocate`.
    pub after_assist: Vec<u64>,
    /// Addresses: those of `allocate` at which the garbage collector has been helped already.
    pub assisted: Vec<u64>,
    /// Addresses: the function that is probed besides some of what it calls; from, and behind its end. What is called by it
    /// has been counted.
    pub whole: (u64, u64),
    /// Whether those of `allocate` lie on the check for the end of the stack (up to Go 1.20), which may begin the function
    /// anew, and not behind it.
    pub at_check: bool,
}

/// A function that is, or may be, probed.
struct Entry {
    name: String,
    /// First byte and length, in the executable as linked, bytes.
    address: u64,
    size: u64,
    site: Site,
    /// Of the site, in the file.
    offset: u64,
}

/// What the functions of a program say.
#[derive(Default)]
struct Survey {
    /// Those that allocate.
    entries: Vec<Entry>,
    /// Those that call what matters here: addresses and lengths.
    callers: Vec<(u64, u32)>,
    /// What matters here, by address.
    called: BTreeMap<u64, &'static str>,
    /// Whether any of the parts is inlined into [`WHOLE`].
    merged: bool,
    /// What is inlined such that objects could not be seen: if [`WHOLE`] is probed, and if its parts are.
    hidden: [Option<(String, String)>; 2],
    /// Those of [`CALLED`] that are inlined, and where.
    inlined: BTreeMap<&'static str, String>,
    /// Whether the address sanitizer is there.
    sanitized: bool,
}

/// Finds the instructions to probe.
///
/// # Errors
/// A function is not there, or is compiled to something else than it usually is.
pub fn probe_sites(runtime: &Runtime) -> Result<ProbeSites, Unreadable> {
    let Survey { entries, callers, called, merged, hidden, inlined, sanitized } = survey(runtime)?;
    let split = !merged && entries.iter().any(|entry| is_part(&entry.name));
    if let Some((function, into)) = hidden[usize::from(split)].clone() {
        return Err(Unreadable::Inlined { function, into });
    }
    if sanitized && !split {
        return Err(Unreadable::Sanitized);
    }
    let wanted = |entry: &&Entry| match &*entry.name {
        WHOLE => !split,
        name => is_part(name) && (split || is_twin(name)),
    };
    let allocate: Vec<&Entry> = entries.iter().filter(wanted).collect();
    let calls = behind_calls(runtime, &callers, &called);
    let behind = |name: &str| match inlined.get(name) {
        Some(into) => Err(Unreadable::Inlined { function: name.to_owned(), into: into.clone() }),
        None => calls.get(name).cloned().ok_or_else(|| missing(runtime, name)),
    };
    let (cached, refilled) = match behind(CACHE_SPAN) {
        Err(Unreadable::Inlined { .. }) => (Vec::new(), behind(REFILL)?),
        found => (found?, Vec::new()),
    };
    let mut sites = ProbeSites {
        allocate: allocate.iter().map(|entry| entry.offset).collect(),
        new_span: [cached, behind(ALLOC_LARGE)?].concat(),
        refilled,
        at_check: allocate.iter().any(|entry| entry.site.at_check),
        ..ProbeSites::default()
    };
    if sites.allocate.is_empty() {
        return Err(missing(runtime, WHOLE));
    }
    let in_process = |address: u64| address.wrapping_add(runtime.bias);
    if let Some(whole) = allocate.iter().find(|entry| merged && entry.name == WHOLE) {
        sites.whole = (in_process(whole.address), in_process(whole.address.wrapping_add(whole.size)));
    }
    let assisted = allocate.iter().filter(|entry| is_part(&entry.name) && !is_twin(&entry.name));
    sites.assisted = assisted.map(|entry| in_process(entry.address.wrapping_add(entry.site.offset))).collect();
    if sites.assisted.len() < allocate.len() {
        sites.after_assist = behind(ASSIST)?;
    }
    Ok(sites)
}

fn missing(runtime: &Runtime, name: &str) -> Unreadable {
    Unreadable::NoLayout { version: runtime.executable.version.to_string(), missing: name.to_owned() }
}

/// Looks at all functions, and at what is inlined into them.
fn survey(runtime: &Runtime) -> Result<Survey, Unreadable> {
    let tables = &runtime.executable.tables;
    let mut survey = Survey::default();
    for (name, function, size) in tables.functions() {
        if is_part(&name) || name == WHOLE {
            let entry = entry(runtime, name.clone().into_owned(), function, size);
            survey.entries.push(entry.ok_or_else(|| missing(runtime, &name))?);
        } else if !is_harmless(&name) {
            return Err(Unreadable::Unknown { function: name.into_owned() });
        }
        let address = runtime.address(function);
        if let Some(called) = called(&name) {
            survey.called.extend(address.map(|address| (address, called)));
        }
        if CALLERS.contains(&&*name) || name.starts_with(WHOLE) {
            survey.callers.extend(address.map(|address| (address, size)));
        }
        survey.sanitized |= name == SANITIZER;
        let call = &runtime.executable.layout.inlined_call;
        let inlined =
            tables.inlined(function, call, |offset, buffer| runtime.read_function_data(offset, buffer), matters);
        for inlined in inlined.ok_or(Unreadable::Nonsense("its tree of inlined functions"))? {
            survey.merged |= is_part(&inlined) && name == WHOLE;
            if let Some(called) = called(&inlined) {
                survey.inlined.insert(called, name.clone().into_owned());
            }
            for (hidden, split) in survey.hidden.iter_mut().zip([false, true]) {
                if hidden.is_none() && hides(&inlined, &name, split) {
                    *hidden = Some((inlined.clone().into_owned(), name.clone().into_owned()));
                }
            }
        }
        if survey.entries.len().max(survey.callers.len()) > MAX_FUNCTIONS {
            return Err(Unreadable::Nonsense("its functions that allocate"));
        }
    }
    Ok(survey)
}

fn entry(runtime: &Runtime, name: String, function: Function, size: u32) -> Option<Entry> {
    let (address, code) = runtime.code(function, size, WINDOW)?;
    let site = site(&code)?;
    let offset = runtime.executable.file_offset(address.checked_add(site.offset)?)?;
    Some(Entry { name, address, size: size.into(), site, offset })
}

/// The one of [`CALLED`] that has this name.
fn called(name: &str) -> Option<&'static str> {
    CALLED.into_iter().find(|called| *called == name)
}

/// Whether it matters where a function is inlined; more may be behind its name.
fn matters(name: &[u8]) -> bool {
    name.starts_with(WHOLE.as_bytes()) || CALLED.iter().any(|called| name.starts_with(called.as_bytes()))
}

/// Whether objects could not be seen because a function is inlined into another one. `split`: it is the parts that are probed.
fn hides(name: &str, into: &str, split: bool) -> bool {
    match name {
        WHOLE => !split,
        part if is_part(part) => into != WHOLE && !is_part(into),
        other => !is_harmless(other),
    }
}

/// Offsets in the file behind calls of `called`, by its name.
fn behind_calls(
    runtime: &Runtime,
    callers: &[(u64, u32)],
    called: &BTreeMap<u64, &'static str>,
) -> BTreeMap<&'static str, Vec<u64>> {
    let mut behind: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (address, size) in callers {
        let mut code = vec![0; (*size).min(WHOLE_WINDOW) as usize];
        if runtime.executable.read(*address, &mut code).is_none() {
            continue;
        }
        for call in &mut Decoder::with_ip(64, &code, *address, DecoderOptions::NONE) {
            if call.code() == Code::Call_rel32_64
                && let Some(called) = called.get(&call.near_branch_target())
                && let Some(offset) = runtime.executable.file_offset(call.next_ip())
            {
                behind.entry(called).or_default().push(offset);
            }
        }
    }
    behind
}

fn is_part(name: &str) -> bool {
    PARTS.contains(&name) || is_twin(name)
}

/// Whether it is a part for one size class.
fn is_twin(name: &str) -> bool {
    let name = name.trim_end_matches(|last: char| last.is_ascii_digit());
    TWINS.iter().filter_map(|twin| name.strip_suffix(twin)).any(|part| PARTS.contains(&part))
}

/// Whether objects that go through this function, none of those that are probed, go through one of them, too.
fn is_harmless(name: &str) -> bool {
    // Closures have a dot.
    name.strip_prefix(WHOLE).is_none_or(|rest| rest.contains('.') || INNER.iter().any(|inner| rest.ends_with(inner)))
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
        let twins = ["TinySC2", "TinySize15", "SmallNoScanSC7", "SmallScanNoHeaderSC1"];
        for part in ["Tiny", "SmallNoscan", "SmallScanHeader", "Large"].iter().chain(&twins) {
            assert!(is_part(&format!("runtime.mallocgc{part}")), "{part}");
            assert_eq!(is_twin(&format!("runtime.mallocgc{part}")), twins.contains(part), "{part}");
        }
        for other in ["", "TinySC2x", "TinySlowPath", "SmallNoscanReuse", "Large.func1"] {
            let other = format!("runtime.mallocgc{other}");
            assert!(!is_part(&other), "{other}");
            assert!(!is_twin(&other), "{other}");
        }
        for harmless in
            ["runtime.mallocgcTinySlowPath", "runtime.mallocgc.heapSetType.func1", "runtime.malloc", "main.f"]
        {
            assert!(is_harmless(harmless), "{harmless}");
        }
        for other in ["runtime.mallocgcSmallNoscanReuse", "runtime.mallocgcTinySC2x", "runtime.mallocgcHuge"] {
            assert!(!is_harmless(other), "{other}");
        }
    }

    #[test]
    fn only_what_hides_no_object_may_be_inlined() {
        let part = "runtime.mallocgcTiny";
        for (split, name, into) in [
            (false, part, WHOLE),
            (true, part, "runtime.mallocgcSmallNoscan"),
            (true, WHOLE, "runtime.newobject"),
            (true, "runtime.mallocgcTinySlowPath", "runtime.mallocgcTinySC2"),
        ] {
            assert!(!hides(name, into, split), "{name} in {into}");
        }
        for (split, name, into) in [
            (false, WHOLE, "reflect.unsafe_New"),
            (true, part, "runtime.newobject"),
            (false, "runtime.mallocgcSmallNoscanReuse", WHOLE),
        ] {
            assert!(matters(name.as_bytes()) && hides(name, into, split), "{name} in {into}");
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
