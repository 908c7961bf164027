//! Whose memory is read next. Pure.

use std::collections::VecDeque;

use crate::event::Image;

/// Images in the order in which they were read, those first that were read longest ago.
#[derive(Debug, Default)]
pub(super) struct Turns(VecDeque<Image>);

impl Turns {
    /// An image was read.
    pub(super) fn was_read(&mut self, image: Image) {
        self.0.push_back(image);
    }

    /// The one that is to be read next; it has a turn again once it [was read](Self::was_read).
    pub(super) fn next(&mut self) -> Option<Image> {
        self.0.pop_front()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::share::Share;

    const SHARE: u32 = 100;
    const MOST: Duration = Duration::from_millis(10);

    /// What `count` images whose readings take `cost` each take in `ticks` times 200 ms, and how often each was read.
    fn simulated(count: u32, cost: Duration, ticks: u32) -> (Duration, Vec<u32>) {
        let mut now = Instant::now();
        let (mut left, mut turns) = (Share::new(SHARE, MOST, now), Turns::default());
        (0..count).for_each(|image| turns.was_read(Image(image)));
        let (mut taken, mut times) = (Duration::ZERO, vec![0; count as usize]);
        for _ in 0..ticks {
            for _ in 0..turns.len() {
                if !left.has_some(now) {
                    break;
                }
                let image = turns.next().unwrap();
                left.spend(cost);
                taken += cost;
                times[image.0 as usize] += 1;
                turns.was_read(image);
            }
            now += Duration::from_millis(200);
        }
        (taken, times)
    }

    #[test]
    fn few_are_read_each_time() {
        let (_, times) = simulated(10, Duration::from_micros(50), 1_000);
        assert_eq!(times, [1_000; 10]);
    }

    #[test]
    fn many_take_no_more_than_their_share_and_each_has_its_turn() {
        for (count, micros) in [(500, 50), (5_000, 50), (50, 30_000)] {
            let cost = Duration::from_micros(micros);
            let (taken, times) = simulated(count, cost, 10_000);
            let share = Duration::from_millis(200) * 10_000 / SHARE;
            assert!(taken <= share + MOST + cost, "{count}: {taken:?}");
            assert!(taken + cost + MOST >= share, "{count}: {taken:?} is less than there was");
            let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
            assert!(most - least <= 1 && *least > 0, "{count}: {least} to {most} times");
        }
    }
}
