//! What a worker does next, the most urgent first.

use super::{processes::Processes, queue::Queue, worker::Job};
use crate::files::module::Module;

/// What is to be done next by a worker; `is_short`: by the one that others wait for, which is given what takes little time. Files that
/// `is_known` are not looked at in the background.
pub(super) fn next_job(
    queue: &mut Queue,
    processes: &mut Processes,
    is_short: bool,
    may_work_in_background: bool,
    is_known: impl Fn(&Module) -> bool,
) -> Option<Job> {
    let urgent = if is_short { queue.next_short() } else { queue.next_urgent() };
    let needed = urgent.or_else(|| if is_short { None } else { processes.next_to_locate() });
    if needed.is_some() || !may_work_in_background {
        return needed;
    }
    // What a process has loaded may allocate: that waits for no file that nobody has met, and takes no time to speak of.
    let compare = processes.next_to_compare();
    compare.or_else(|| if is_short { None } else { queue.next_in_background(is_known) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::event::Image;

    fn file() -> Arc<Module> {
        Arc::new(Module::of_file("a file", tempfile::tempfile().unwrap()).unwrap())
    }

    #[test]
    fn stacks_of_images_that_have_ended_are_looked_up() {
        let (mut queue, mut processes) = (Queue::default(), Processes::default());
        processes.add(Image(1), vec![(crate::heap::StackIndex::from_raw(7), Vec::new())]);
        assert!(processes.has_stacks());
        let Some(Job::Locate(Image(1), mut space, stacks)) =
            next_job(&mut queue, &mut processes, false, false, |_| false)
        else {
            panic!("nothing to look up");
        };
        assert!(stacks.len() == 1 && space.refresh().is_err());
        assert!(!processes.has_stacks() && processes.is_busy());
        processes.give_back(Image(1), space);
        assert!(!processes.is_busy());
    }

    #[test]
    fn stacks_of_the_living_come_first_and_those_of_ended_ones_are_bounded() {
        let (mut queue, mut processes) = (Queue::default(), Processes::default());
        let stacks = |many: usize| vec![(crate::heap::StackIndex::from_raw(7), Vec::new()); many];
        let most = 1 << 16;
        processes.add(Image(1), stacks(most - 1));
        processes.add(Image(2), stacks(3));
        processes.add(Image(3), stacks(3));
        processes.begin(Image(4), 17);
        processes.add(Image(4), stacks(1));
        let mut next = || match next_job(&mut queue, &mut processes, false, false, |_| false) {
            Some(Job::Locate(image, _, stacks)) => Some((image, stacks.len())),
            _ => None,
        };
        let order = [next(), next(), next(), next()];
        assert_eq!(order, [Some((Image(4), 1)), Some((Image(1), most - 1)), Some((Image(2), 1)), None]);
        processes.add(Image(3), stacks(3));
        assert!(processes.has_stacks(), "there is room again");
    }

    #[test]
    fn mappings_are_compared_whatever_is_done_in_the_background() {
        let (mut queue, mut processes) = (Queue::default(), Processes::default());
        queue.compile_later(file());
        queue.compile_later(file());
        // One worker is at the first of them.
        assert!(matches!(queue.next_in_background(|_| false), Some(Job::Compile(None, _))));
        processes.begin(Image(1), 17);
        for is_short in [true, false] {
            processes.may_compare();
            processes.find_changed(|_| None);
            let mut next = |may_work| next_job(&mut queue, &mut processes, is_short, may_work, |_| false);
            assert!(next(false).is_none());
            assert!(matches!(next(true), Some(Job::Mappings(Image(1), 17))));
            assert!(next(true).is_none(), "nothing else");
            processes.has_changed(Image(1), Some(7));
        }
        queue.is_done_in_background();
        while !queue.rest().is_zero() {}
        processes.may_compare();
        processes.find_changed(|_| None);
        let mut next = |is_short| next_job(&mut queue, &mut processes, is_short, true, |_| false);
        assert!(matches!(next(false), Some(Job::Mappings(..))), "before files of the machine");
        assert!(next(true).is_none(), "one after the other, and files are not short");
        assert!(matches!(next(false), Some(Job::Compile(None, _))));
    }
}
