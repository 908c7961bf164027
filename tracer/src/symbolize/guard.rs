//! Keeping a panic of a library on hostile data from ending the program.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What `f` returns, or `None` when it panics; then nothing that `f` may have changed must be used again. `what` is for
/// the log. Calls must not be nested.
pub(super) fn guarded<T>(what: &str, f: impl FnOnce() -> T) -> Option<T> {
    silence();
    GUARDED.set(true);
    // The libraries that read symbols check what they read, but they index, add and unwrap in thousands of places, and a
    // file of the target can have been made to hit one that is wrong. The caller throws away what `f` borrowed.
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    GUARDED.set(false);
    result
        .inspect_err(|panic| {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
            tracing::debug!("{what} panicked: {}", message.escape_debug());
        })
        .ok()
}

/// Panics that are caught here are not printed: the text would be the target's, in the middle of a report.
fn silence() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                print(panic);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_caught() {
        assert_eq!(guarded("nothing", || 1), Some(1));
        assert_eq!(guarded("a test", || panic!("expected")), None::<()>);
        assert!(!GUARDED.get());
    }
}
