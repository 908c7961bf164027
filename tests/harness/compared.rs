//! The BPF programs that tests load besides those of the product.

use tracer::bpf::{Config, Object, Programs};

static OBJECT: &Object<[u8]> = &Object::new(*include_bytes!(concat!(env!("OUT_DIR"), "/tracer-bpf-compared.o")));

/// Loads them: those of the product are among them.
pub(crate) fn load(config: Config) -> Programs {
    Programs::load_object(OBJECT, config).unwrap()
}
