//! libFuzzer's program: searches for inputs that one of the [`TARGETS`] cannot stand, the one that `FUZZ_TARGET` names.
#![no_main]

use std::{env, sync::LazyLock};

use tracer_fuzz::{TARGETS, Target};

/// What the inputs are for.
static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let wanted = env::var("FUZZ_TARGET").expect("FUZZ_TARGET is the name of a target");
    let found = TARGETS.iter().find(|(name, _)| *name == wanted);
    found.unwrap_or_else(|| panic!("no target `{wanted}`: see TARGETS")).1
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
