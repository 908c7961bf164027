//! Allocation sites of Go programs in reports: how near to the truth an estimate by samples must come.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{
    report::{Held, Report, Stack},
    site::{Amount, Site},
    truth::Truth,
};

/// Standard deviation of an estimate of `bytes` in equal blocks, of which one is sampled every `mean` bytes on average: a
/// block of size s is sampled with p = 1 - exp(-s/mean), and then counts s/p.
pub(crate) fn deviation(bytes: f64, blocks: f64, mean: f64) -> f64 {
    if bytes == 0.0 || blocks == 0.0 {
        return 0.0;
    }
    let size = bytes / blocks;
    let p = 1.0 - (-size / mean).exp();
    (bytes * size * (1.0 - p) / p).sqrt()
}

/// Smallest size of what the runtime allocates for itself, below a site, when an allocation must wait for the garbage
/// collector. It happens seldom, but one sample of it counts for many.
const OF_THE_COLLECTOR: f64 = 96.0;

/// What a report says of the sites of `truth`: each stack belongs to the innermost of them on it.
fn reported(report: &Report, truth: &Truth) -> BTreeMap<String, (Held, Held)> {
    let mut sites: BTreeMap<String, (Held, Held)> = BTreeMap::new();
    for stack in &report.stacks {
        if let Some(site) = site_of(stack, truth) {
            let (held, allocated) = sites.entry(site.to_owned()).or_default();
            *held = *held + stack.held;
            *allocated = *allocated + stack.allocated;
        }
    }
    sites
}

fn site_of<'a>(stack: &'a Stack, truth: &Truth) -> Option<&'a str> {
    let mut innermost = stack.functions.iter().rev();
    innermost.find(|function| truth.sites.contains_key(*function)).map(String::as_str)
}

/// Compares every site with its truth: within a tenth, or four standard deviations of what samples can tell; sites that
/// hold nothing with hardly anything; the sums within a twentieth.
#[track_caller]
pub(crate) fn check_sites(what: &str, report: &Report, truth: &Truth, mean: f64) {
    let reported = reported(report, truth);
    let all_held: u64 = truth.sites.values().map(|site| site.held.bytes).sum();
    let mut wrong = String::new();
    let (mut variance, mut sum) = (0.0, 0);
    for (name, site) in &truth.sites {
        let (held, allocated) = reported.get(name).copied().unwrap_or_default();
        sum += held.bytes;
        let deviation = deviation(site.held.bytes as f64, site.held.blocks as f64, mean);
        variance += deviation * deviation;
        if site.held.blocks == 0 {
            if held.bytes * 100 > all_held * 3 {
                let _ = writeln!(wrong, "  {name}: holds nothing of {all_held} bytes, but is reported with {held}");
            }
        } else {
            check_amount(&mut wrong, name, "held", *site, site.held, held, mean);
        }
        check_amount(&mut wrong, name, "allocated", *site, site.allocated, allocated, mean);
    }
    let least: f64 = truth.sites.values().map(|site| site.bounds(site.held).0).sum();
    check_sum(&mut wrong, "the sites", sum, (least, all_held as f64), variance);

    // The rest is what the runtime and its containers have allocated, in small blocks.
    let growth = truth.fact("heap_growth") as f64;
    let rest = (growth - all_held as f64).max(0.0);
    let bounds = (growth - (all_held as f64 - least), growth);
    check_sum(&mut wrong, "the heap", report.outstanding().bytes, bounds, variance + rest * mean);
    assert!(
        wrong.is_empty(),
        "{what}: sites are not reported as they are\n{wrong}  with quality {}",
        report.json["quality"]
    );
}

fn check_amount(wrong: &mut String, name: &str, what: &str, site: Site, truth: Amount, reported: Held, mean: f64) {
    let (least, most) = site.bounds(truth);
    let deviation = 4.0 * deviation(most, truth.blocks as f64, mean);
    let bytes = reported.bytes as f64;
    if bytes < least - deviation.max(least / 10.0) || bytes > most + deviation.max(most / 10.0) {
        let _ = writeln!(
            wrong,
            "  {name}: {what} {} bytes ({} asked for) in {} blocks in truth, reported {reported}: off by {:+.1} %, where \
             4 standard deviations are {:.1} %",
            truth.bytes,
            truth.requested,
            truth.blocks,
            100.0 * (bytes - most) / most,
            100.0 * deviation / most
        );
    }
    // Blocks that objects share are not counted as those are.
    let blocks = truth.blocks as f64;
    let slack = (blocks / 10.0).max(deviation / most * blocks) + 2.0 * mean / OF_THE_COLLECTOR;
    if site.is_even && !site.is_tiny && (reported.blocks as f64 - blocks).abs() > slack {
        let _ = writeln!(wrong, "  {name}: {what} {} blocks in truth, reported {reported}", truth.blocks);
    }
}

fn check_sum(wrong: &mut String, what: &str, reported: u64, (least, most): (f64, f64), variance: f64) {
    let deviation = 4.0 * variance.sqrt();
    let bytes = reported as f64;
    if bytes < least - deviation.max(least / 20.0) || bytes > most + deviation.max(most / 20.0) {
        let _ = writeln!(
            wrong,
            "  {what}: {least} to {most} bytes in truth, reported {reported}: off by {:+.1} %, where 4 standard deviations \
             are {:.1} %",
            100.0 * (bytes - most) / most,
            100.0 * deviation / most
        );
    }
}

/// Where the innermost function of each stack of a site was called from: functions and lines, root first.
pub(crate) fn callers_of(report: &Report, site: &str) -> BTreeSet<Vec<(String, String)>> {
    let mut callers = BTreeSet::new();
    for stack in &report.stacks {
        if let Some(at) = stack.functions.iter().rposition(|function| function == site) {
            let frames = stack.functions.iter().zip(&stack.places).take(at + 1);
            callers.insert(frames.map(|(function, place)| (function.clone(), place.clone())).collect());
        }
    }
    callers
}
