//! The dates of the date condition operators.

use std::cmp::Ordering;

/// A moment, compared in seconds since 1970 and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Date {
    seconds: i64,
    nanoseconds: u32,
}

impl Date {
    /// Reads one of the "W3C implementations of the ISO 8601 date formats", or seconds since 1970 (IAM User Guide, "IAM JSON
    /// policy elements: Condition operators"; W3C NOTE-datetime). As IAM does, it takes years of any length, lower case, and
    /// a time without its end.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if !text.contains(['t', 'T', '-']) {
            let seconds = number(text, 1..=19, 0..=i64::MAX)?;
            return Some(Self { seconds, nanoseconds: 0 });
        }
        let (date, time) = text.split_once(['t', 'T']).unwrap_or((text, ""));
        let (sign, date) = date.strip_prefix('-').map_or((1, date), |date| (-1, date));
        let mut date = date.split('-');
        // The years that Java's calendar knows.
        let year = sign * number(date.next()?, 1..=9, 0..=292_278_993)?;
        let month = date.next().map_or(Some(1), |month| number(month, 1..=2, 1..=12))?;
        let day = date.next().map_or(Some(1), |day| number(day, 1..=2, 1..=31))?;
        if date.next().is_some() {
            return None;
        }
        let (time, offset) = split_offset(time)?;
        let mut time = time.split(':');
        let hour = time
            .next()
            .filter(|hour| !hour.is_empty())
            .map_or(Some(0), |hour| number(hour, 1..=2, 0..=23))?;
        let minute = time.next().map_or(Some(0), |minute| number(minute, 1..=2, 0..=59))?;
        let (second, nanoseconds) = time.next().map_or(Some((0, 0)), |second| {
            let (second, fraction) = second.split_once('.').unwrap_or((second, "0"));
            let nanoseconds =
                number(fraction, 1..=9, 0..=999_999_999)? * 10_i64.pow(9 - fraction.len() as u32);
            Some((number(second, 1..=2, 0..=59)?, nanoseconds))
        })?;
        if time.next().is_some() {
            return None;
        }
        let seconds = days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset;
        Some(Self { seconds, nanoseconds: nanoseconds as u32 })
    }
}

/// Digits only, as many and as great as given.
fn number(
    digits: &str,
    length: std::ops::RangeInclusive<usize>,
    range: std::ops::RangeInclusive<i64>,
) -> Option<i64> {
    if !length.contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|number| range.contains(number))
}

/// Splits a time from its offset from UTC: `Z`, `±hh`, `±hh:mm` or nothing; the offset in seconds.
fn split_offset(time: &str) -> Option<(&str, i64)> {
    if let Some(time) = time.strip_suffix(['z', 'Z']) {
        return Some((time, 0));
    }
    let Some(at) = time.find(['+', '-']) else { return Some((time, 0)) };
    let (time, offset) = time.split_at(at);
    let sign = if offset.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = offset[1..].split_once(':').unwrap_or((&offset[1..], "00"));
    let hours = number(hours, 2..=2, 0..=23)?;
    let minutes = number(minutes, 2..=2, 0..=59)?;
    Some((time, sign * (hours * 3_600 + minutes * 60)))
}

/// Days since 1970 in the Gregorian calendar, whose months are counted from March so that the leap day comes last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month.cmp(&3) == Ordering::Less { year - 1 } else { year };
    let since_march = (month + 9) % 12;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 719 468 days lie between 1 March of the year 0 and 1970.
    year * 365 + leap_days + (153 * since_march + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::OffsetDateTime;

    use super::*;

    fn seconds(text: &str) -> Option<i64> {
        Date::parse(text).map(|date| date.seconds)
    }

    #[test]
    fn all_forms_are_read() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970", 1_970),
            ("1970-01", 0),
            ("1970-01-02", 86_400),
            ("1970-01-01T01:30Z", 5_400),
            ("1970-01-01T01:30+01:00", 1_800),
            ("1970-01-01T00:00:00-01:30", 5_400),
            ("1970-01-01t2:00:00.593194+02", 0),
            ("2000-02-29T00:00:00Z", 951_782_400),
            ("1969-12-31T23:59:59Z", -1),
            ("1577836801", 1_577_836_801),
            ("2020-01-01T00:00:01Z", 1_577_836_801),
            ("0", 0),
            ("9223372036854775807", i64::MAX),
        ] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        assert!(Date::parse("2020-01-01T00:00:01.5Z") > Date::parse("2020-01-01T00:00:01Z"));
        assert!(Date::parse("2020-01-01T00:00:01.5Z") < Date::parse("2020-01-01T00:00:01.500000001Z"));
        assert!(Date::parse("-292275054") < Date::parse("0001-01-01"));
        assert!(Date::parse("01T").is_some());
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in [
            "",
            "sdfdsf",
            "234-13",
            "2020-01-32",
            "2020-1-1-1",
            "2020-01-01T24:00Z",
            "2020-01-01T00:60Z",
            "2020-01-01T00:00:60Z",
            "2020-01-01T00:00:00:00Z",
            "2016-12-13t2:00:00.593194+1",
            "2016-12-13t2:00:00.1999999999+10:59",
            "9223372036854775808",
            "2020-01-01T00:00:00ZZ",
            "2020-01-01T00:00:00.Z",
            "+5",
            "1.5",
            "-",
            "T",
            "2020-01-01T00:00:00+é",
        ] {
            assert_eq!(Date::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn dates_are_read_as_written(second in -60_000_000_000_i64..200_000_000_000) {
            let text = crate::date_text(OffsetDateTime::from_unix_timestamp(second).unwrap());
            prop_assert_eq!(seconds(&text), Some(second));
        }

        #[test]
        fn no_text_is_too_odd(text in any::<String>(), like in "[0-9tT:zZ.+-]{0,30}") {
            let _ = (Date::parse(&text), Date::parse(&like));
        }
    }
}
