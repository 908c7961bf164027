//! Naming and writing, on a thread of its own: both take their time, and neither is waited for but at the end.

use std::{
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    collector::View,
    config::Config,
    event::Pid,
    golang::Runtime,
    outputs::Outputs,
    present::{GoTrace, Presenter, Trace},
    profile::{GoroutineGroup, Profile, quality::Quality},
    report::Options,
};

/// What a report is made of.
pub struct Material {
    /// What is known of the trace.
    pub trace: Trace,
    /// What all stacks hold, yet to be counted.
    pub view: View,
    /// What Go heaps hold.
    pub go: Vec<GoTrace>,
    /// Goroutines.
    pub goroutines: Vec<GoroutineGroup>,
    /// How fast they grow: see [`Profile::goroutine_growth`].
    pub goroutine_growth: Option<f64>,
}

enum Job {
    Know { pid: Pid, runtime: Arc<Runtime>, exe: String },
    Interval(Box<Material>),
    Last(Box<Material>, mpsc::Sender<Result<Quality>>),
}

/// Who names and writes. When this is dropped, its thread ends before that is over: a file that was made and got no contents is
/// removed by then.
pub struct Writer {
    /// `None` when it is to end.
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread. It writes to `outputs`, keeps at most `memory` bytes of files that names come from, and tells `written` after
    /// each short report whether anybody reads them still.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        outputs: Outputs,
        memory: u64,
        config: &Config,
        written: impl Fn(bool) + Send + 'static,
    ) -> Result<Self> {
        let (jobs, todo) = mpsc::channel();
        let options = Options { top: config.top, value: config.value, by: config.by };
        let work = move || Work { presenter: Presenter::within(memory), outputs, options }.run(&todo, &written);
        let thread = thread::Builder::new().name("writer".to_owned()).spawn(work).context("cannot write reports")?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Names the Go code of a process, whose executable is known to it as `exe`, by the tables of a runtime or plugin of it.
    pub fn know_go(&self, pid: Pid, runtime: Arc<Runtime>, exe: String) {
        self.put(Job::Know { pid, runtime, exe });
    }

    /// Writes a short report.
    pub fn write_interval(&self, material: Material) {
        self.put(Job::Interval(Box::new(material)));
    }

    /// Writes the last report: how good it is.
    ///
    /// # Errors
    /// All that could not be written.
    pub fn finish(self, material: Material) -> Result<Quality> {
        let (reply, answer) = mpsc::channel();
        self.put(Job::Last(Box::new(material), reply));
        answer
            .recv()
            .map_err(|_| anyhow!("reports ended with a bug; please report it, with the output of `tracer -v`"))?
    }

    fn put(&self, job: Job) {
        // Its end shows when the last report is to be written.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        // What it has to say of itself, it has said where somebody waited for a report.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Work {
    presenter: Presenter,
    outputs: Outputs,
    options: Options,
}

impl Work {
    fn run(mut self, jobs: &mpsc::Receiver<Job>, written: &dyn Fn(bool)) {
        for job in jobs {
            match job {
                Job::Know { pid, runtime, exe } => self.presenter.know_go(pid, runtime, &exe),
                Job::Interval(material) => {
                    let profile = self.profile(*material);
                    written(self.outputs.write_interval(&profile, &self.options));
                }
                Job::Last(material, reply) => {
                    let profile = self.profile(*material);
                    let result = self.outputs.write_final(&profile, &self.options);
                    // Replacements of files are over before anybody hears of it.
                    drop(self.outputs);
                    let _ = reply.send(result.map(|()| profile.quality));
                    return;
                }
            }
        }
    }

    fn profile(&mut self, Material { trace, view, go, goroutines, goroutine_growth }: Material) -> Profile {
        let mut profile =
            Profile { goroutines, goroutine_growth, ..self.presenter.profile(trace, view.snapshot(), go) };
        profile.count_cut_goroutines();
        profile
    }
}
