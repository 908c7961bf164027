//! What can be seen of one process.

use super::line::Section;

/// A process that was examined.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name, as it chose it: hostile text.
    pub comm: String,
    /// What was found.
    pub sections: Vec<Section>,
}
