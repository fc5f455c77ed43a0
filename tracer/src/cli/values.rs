//! Values on the command line: sizes, durations, domains.

use std::str::FromStr;
use std::time::Duration;

use tracer_common::probe::Domain;

/// A size: `64`, `4KiB`, `1MiB`; bytes.
///
/// # Errors
/// When `text` is no size.
pub fn size_bytes(text: &str) -> Result<u64, String> {
    bytesize::ByteSize::from_str(text)
        .map(|size| size.as_u64())
        .map_err(|_| "a size is a number of bytes, or one with a unit: 64, 4KiB, 1MiB".to_owned())
}

/// A duration: `30s`, `5m`, `1h`; longer than nothing.
///
/// # Errors
/// When `text` is no duration.
pub fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("a duration is a number with a unit: 500ms, 30s, 5m, 1h".to_owned()),
    }
}

/// A domain by its name.
///
/// # Errors
/// When `text` names none.
pub fn domain(text: &str) -> Result<Domain, String> {
    Domain::ALL.into_iter().find(|domain| domain.name() == text).ok_or_else(|| {
        let names: Vec<_> = Domain::ALL.iter().map(|domain| domain.name()).collect();
        format!("a domain is one of {}", names.join(", "))
    })
}

/// A share in percent, 0 to 100.
///
/// # Errors
/// When `text` is none.
pub fn percent(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|share| (0.0..=100.0).contains(share))
        .ok_or_else(|| "a share is a number from 0 to 100".to_owned())
}

/// A share that tracing may take, percent: more than 0, and at most 90.
///
/// # Errors
/// When `text` is none.
pub fn overhead(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|share| (0.1..=90.0).contains(share))
        .ok_or_else(|| "a number of percent from 0.1 to 90".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_where_they_say_so() {
        assert_eq!(size_bytes("64"), Ok(64));
        assert_eq!(size_bytes("4KiB"), Ok(4096));
        assert_eq!(size_bytes("1MiB"), Ok(1 << 20));
        assert!(size_bytes("-1").is_err());
        assert!(size_bytes("many").is_err());
    }

    #[test]
    fn durations_need_a_unit_and_a_length() {
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert!(duration("0s").is_err());
        assert!(duration("5").is_err());
    }

    #[test]
    fn domains_and_shares_are_checked() {
        assert_eq!(domain("py-mem"), Ok(Domain::PyMem));
        assert!(domain("heap").is_err());
        assert_eq!(percent("0.5"), Ok(0.5));
        assert!(percent("101").is_err());
        assert!(percent("NaN").is_err());
    }
}
