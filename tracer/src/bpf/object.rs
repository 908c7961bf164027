//! BPF objects as they are embedded in binaries.

/// The object of the product, which `cargo xtask build-ebpf` made; empty in builds that had none.
pub(super) static PRODUCT: &Object<[u8]> = &Object::new(*include_bytes!(concat!(env!("OUT_DIR"), "/tracer-bpf.o")));

/// A BPF object, aligned as parsers of ELF want it.
pub struct Object<T: ?Sized> {
    _align: [u64; 0],
    bytes: T,
}

impl<const LENGTH: usize> Object<[u8; LENGTH]> {
    /// Of these bytes.
    pub const fn new(bytes: [u8; LENGTH]) -> Self {
        Self { _align: [], bytes }
    }
}

impl Object<[u8]> {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
