//! Amounts, shares and times as people read them.

use std::time::Duration;

use crate::profile::Rate;

/// Bytes with three digits and a binary unit: `1.50 MiB`.
pub fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return count(bytes, "byte");
    }
    let mut value = bytes as f64;
    let mut unit = "bytes";
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if value < 1023.5 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$} {unit}")
}

/// Bytes for people and to the byte: `1.50 MiB (1,572,864 bytes)`.
pub(super) fn exact_size(bytes: u64) -> String {
    if bytes < 1024 { size(bytes) } else { format!("{} ({})", size(bytes), count(bytes, "byte")) }
}

/// A number of things: `1 block`, `1,024 blocks`.
pub fn count(number: u64, thing: &str) -> String {
    let plural = match number {
        1 => "",
        _ if thing.ends_with('s') => "es",
        _ => "s",
    };
    format!("{} {thing}{plural}", self::number(number))
}

/// A number with a comma after every three digits.
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A share in percent, 0 of nothing.
pub(super) fn share(part: u64, whole: u64) -> String {
    let percent = if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
    format!("{percent:.1}%")
}

/// A time span: tenths of a second below a minute, whole seconds above.
pub fn duration(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    if seconds < 59.95 {
        return format!("{seconds:.1}s");
    }
    humantime::format_duration(Duration::from_secs(seconds.round() as u64)).to_string()
}

/// Bytes per second without their sign, with as many digits as it takes to show their error: `977 ± 12 KiB/s`.
pub(super) fn with_error(Rate { per_second, error }: Rate) -> String {
    let (mut rate, mut error, mut unit) = (per_second.abs(), error, "bytes");
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if rate < 1023.5 {
            break;
        }
        (rate, error, unit) = (rate / 1024.0, error / 1024.0, larger);
    }
    let decimals = [9.5, 0.95, 0.095].iter().filter(|least| error < **least).count();
    // Rounded up: not said to be better than it is.
    let step = 10_f64.powi(decimals as i32);
    let error = (error * step - 1e-6).ceil().abs() / step;
    format!("{rate:.decimals$} ± {error:.decimals$} {unit}/s")
}

/// A number of things per second: a tenth when they are few.
pub(super) fn rate(per_second: f64) -> String {
    if per_second < 9.95 { format!("{per_second:.1}") } else { number(per_second.round() as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_and_the_right_unit() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1024, "1.00 KiB"),
            (10_230, "9.99 KiB"),
            (10_239, "10.0 KiB"),
            (102_400, "100 KiB"),
            (1_048_575, "1.00 MiB"),
            (1_572_864, "1.50 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes).replace(',', ""), text);
        }
        assert_eq!(exact_size(1_572_864), "1.50 MiB (1,572,864 bytes)");
        assert_eq!(exact_size(512), "512 bytes");
    }

    #[test]
    fn numbers_are_grouped_and_counted() {
        assert_eq!(count(1, "block"), "1 block");
        assert_eq!(count(0, "block"), "0 blocks");
        assert_eq!(count(999, "block"), "999 blocks");
        assert_eq!(count(1_234_567, "block"), "1,234,567 blocks");
        assert_eq!(share(1, 3), "33.3%");
        assert_eq!(share(0, 0), "0.0%");
    }

    #[test]
    fn spans_and_rates_suit_their_size() {
        for (seconds, text) in
            [(0.04, "0.0s"), (55.24, "55.2s"), (59.96, "1m"), (63.4, "1m 3s"), (3_700.0, "1h 1m 40s")]
        {
            assert_eq!(duration(Duration::from_secs_f64(seconds)), text);
        }
    }
}
