//! Figures as people read them: binary sizes, thousands separators, spans of time.

use std::time::{Duration, SystemTime};

/// Binary units above the byte; `u64::MAX` bytes are 16 of the last.
const BINARY_UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// First moment that RFC 3339 cannot write (year 10000), milliseconds since 1970.
const YEAR_10000_MS: u64 = 253_402_300_800_000;

/// A size: `512 B`, `1.5 MiB`.
pub(super) fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would print as `1024.0`.
    while value >= 1023.95 && unit + 1 < BINARY_UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", BINARY_UNITS[unit])
}

/// From one size to another: `0.9 to 1.6 MiB`, `900 B to 1.2 KiB`.
pub(super) fn size_range(low_bytes: u64, high_bytes: u64) -> String {
    let (low, high) = (size(low_bytes), size(high_bytes));
    match (low.split_once(' '), high.split_once(' ')) {
        _ if low == high => high,
        (Some((number, unit)), Some((_, other))) if unit == other => format!("{number} to {high}"),
        _ => format!("{low} to {high}"),
    }
}

/// A whole number with thousands separators: `1,572,864`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut separated = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            separated.push(',');
        }
        separated.push(digit);
    }
    separated
}

/// A number of things: `1 block`, `1,024 blocks`.
pub(super) fn counted(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", count(number))
}

/// A span of time from milliseconds, in at most two units: `850 ms`, `3.2 s`, `4 min 10 s`, `2 h 5 min`.
pub(super) fn span(milliseconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let seconds = milliseconds / 1000;
    let two = |large: u64, large_unit: &str, small: u64, small_unit: &str| {
        if small == 0 {
            format!("{} {large_unit}", count(large))
        } else {
            format!("{} {large_unit} {small} {small_unit}", count(large))
        }
    };
    if milliseconds < 1000 {
        format!("{milliseconds} ms")
    } else if seconds < MINUTE {
        // Cut, not rounded: 59.99 s is not yet a minute.
        format!("{seconds}.{} s", milliseconds % 1000 / 100)
    } else if seconds < HOUR {
        two(seconds / MINUTE, "min", seconds % MINUTE, "s")
    } else if seconds < DAY {
        two(seconds / HOUR, "h", seconds % HOUR / MINUTE, "min")
    } else {
        two(seconds / DAY, "d", seconds % DAY / HOUR, "h")
    }
}

/// A share in percent of a whole: `80.1 %`; `None` when the whole is nothing.
pub(super) fn share(part: u64, whole: u64) -> Option<String> {
    if whole == 0 {
        return None;
    }
    let percent = part as f64 / whole as f64 * 100.0;
    Some(if part > 0 && percent < 0.1 { "< 0.1 %".to_owned() } else { format!("{percent:.1} %") })
}

/// A share between 0 and 1 in percent: `2.1 %`.
pub(super) fn percent(share: f64) -> String {
    if share > 0.0 && share < 0.001 { "< 0.1 %".to_owned() } else { format!("{:.1} %", share * 100.0) }
}

/// A moment from milliseconds since 1970: `2026-07-29 14:03:05 UTC`.
///
/// UTC, because a report is read on other machines than the one that made it.
pub(super) fn moment(unix_ms: u64) -> String {
    if unix_ms >= YEAR_10000_MS {
        return "a time that is not known".to_owned();
    }
    let moment = SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms);
    let text = humantime::format_rfc3339_seconds(moment).to_string();
    format!("{} UTC", text.trim_end_matches('Z').replacen('T', " ", 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_never_1024_of_a_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (30_000, "29.3 KiB"),
            (1_048_524, "1023.9 KiB"),
            (1_048_575, "1.0 MiB"),
            (1_572_864, "1.5 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_range_names_its_unit_once() {
        assert_eq!(size_range(1_048_576, 1_572_864), "1.0 to 1.5 MiB");
        assert_eq!(size_range(900, 1229), "900 B to 1.2 KiB");
        assert_eq!(size_range(0, 100), "0 to 100 B");
        assert_eq!(size_range(1_048_576, 1_048_577), "1.0 MiB");
        assert_eq!([0.0, 0.0004, 0.021, 1.0].map(percent), ["0.0 %", "< 0.1 %", "2.1 %", "100.0 %"]);
    }

    #[test]
    fn counts_have_separators_and_a_plural() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
        assert_eq!(counted(1, "block"), "1 block");
        assert_eq!(counted(2000, "block"), "2,000 blocks");
    }

    #[test]
    fn spans_have_at_most_two_units() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (3_250, "3.2 s"),
            (59_999, "59.9 s"),
            (60_000, "1 min"),
            (250_000, "4 min 10 s"),
            (7_500_000, "2 h 5 min"),
            (86_400_000, "1 d"),
            (u64::MAX, "213,503,982,334 d 14 h"),
        ] {
            assert_eq!(span(ms), text);
        }
    }

    #[test]
    fn a_share_of_nothing_is_none_and_a_small_one_not_zero() {
        assert_eq!(share(0, 0), None);
        assert_eq!(share(0, 5).as_deref(), Some("0.0 %"));
        assert_eq!(share(1, 1_000_000).as_deref(), Some("< 0.1 %"));
        assert_eq!(share(801, 1000).as_deref(), Some("80.1 %"));
        assert_eq!(share(7, 7).as_deref(), Some("100.0 %"));
    }

    #[test]
    fn moments_are_utc_and_total() {
        assert_eq!(moment(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(moment(1_785_333_785_999), "2026-07-29 14:03:05 UTC");
        assert_eq!(moment(YEAR_10000_MS - 1), "9999-12-31 23:59:59 UTC");
        assert_eq!(moment(u64::MAX), "a time that is not known");
    }
}
