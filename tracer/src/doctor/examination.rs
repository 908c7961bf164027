//! What was examined, as the reports of it take it.

use super::{
    line::{Section, Verdict, verdict},
    process::Process,
};

/// An examination.
#[derive(Clone, Debug)]
pub struct Examination {
    /// Release of the kernel.
    pub release: String,
    /// What was found of the machine.
    pub machine: Vec<Section>,
    /// What was found of a process, if one was asked for.
    pub process: Option<Process>,
}

impl Examination {
    /// What a trace will be.
    pub fn verdict(&self) -> Verdict {
        let process = self.process.as_ref().map(|process| verdict(&process.sections));
        verdict(&self.machine).max(process.unwrap_or(Verdict::Complete))
    }

    /// Everything that was found, with what it is of.
    pub fn sections(&self) -> impl Iterator<Item = &Section> {
        self.machine.iter().chain(self.process.iter().flat_map(|process| &process.sections))
    }
}
