//! The BPF programs that benches compare with.

use anyhow::Result;
use tracer::bpf::{Config, Object, Programs};

static OBJECT: &Object<[u8]> = &Object::new(*include_bytes!(concat!(env!("OUT_DIR"), "/tracer-bpf-compared.o")));

/// Loads them.
pub(crate) fn load() -> Result<Programs> {
    Ok(Programs::load_object(OBJECT, Config::smallest())?)
}
