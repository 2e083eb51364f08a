//! Timestamps on the wire (Smithy: `timestampFormat`; RFC 3339; RFC 9110 section 5.6.7).

use std::fmt;

use time::format_description::well_known::Rfc3339;
use time::format_description::{BorrowedFormatItem, FormatItem};
use time::macros::format_description;
use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, UtcOffset};

const DATE: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]");
const HTTP_DATE: &[FormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

/// `2026-01-01T00:00:00Z`, or with milliseconds `2026-01-01T00:00:00.000Z`; in UTC.
pub fn iso8601(time: OffsetDateTime, millis: bool) -> String {
    let mut text = String::with_capacity(24);
    write(&mut text, time, Some(['-', ':']));
    if millis {
        text.push('.');
        digits(&mut text, time.millisecond().into(), 3);
    }
    text.push('Z');
    text
}

/// `20260101T000000Z`, the format of `X-Amz-Date`; in UTC.
pub fn basic(time: OffsetDateTime) -> String {
    let mut text = String::with_capacity(16);
    write(&mut text, time, None);
    text.push('Z');
    text
}

/// Reads what [`basic`] writes.
pub fn parse_basic(text: &str) -> Option<OffsetDateTime> {
    let text: &[u8; 16] = text.as_bytes().try_into().ok()?;
    let is_one = text.iter().enumerate().all(|(place, byte)| match place {
        8 => *byte == b'T',
        15 => *byte == b'Z',
        _ => byte.is_ascii_digit(),
    });
    let two = |place: usize| (text[place] - b'0') * 10 + text[place + 1] - b'0';
    if !is_one {
        return None;
    }
    let year = i32::from(two(0)) * 100 + i32::from(two(2));
    let date = Date::from_calendar_date(year, Month::try_from(two(4)).ok()?, two(6)).ok()?;
    Some(date.with_hms(two(9), two(11), two(13)).ok()?.assume_utc())
}

/// Writes a time to the second, with what separates the parts of the date and those of the clock. Listings have thousands of times,
/// for which formatting is slow.
fn write(text: &mut String, time: OffsetDateTime, separators: Option<[char; 2]>) {
    let time = time.to_offset(UtcOffset::UTC);
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second) = time.to_hms();
    let [date, clock] = separators.map_or([None; 2], |separators| separators.map(Some));
    digits(text, year.unsigned_abs(), 4);
    let parts = [(date, u8::from(month)), (date, day), (Some('T'), hour), (clock, minute), (clock, second)];
    for (separator, part) in parts {
        text.extend(separator);
        digits(text, part.into(), 2);
    }
}

/// Writes a number with at least this many digits.
fn digits(text: &mut String, number: u32, least: u32) {
    let count = number.checked_ilog10().unwrap_or(0) + 1;
    for place in (0..count.max(least)).rev() {
        let digit = number / 10_u32.pow(place) % 10;
        text.push(char::from(b'0' + digit as u8));
    }
}

/// Seconds since 1970 with millisecond precision.
pub fn epoch_seconds(time: OffsetDateTime) -> f64 {
    (time.unix_timestamp_nanos() / 1_000_000) as f64 / 1000.0
}

/// A time that is written as RFC 3339 says, in UTC, with milliseconds where it has them.
#[derive(Debug, Clone, Copy)]
pub struct Iso8601(pub OffsetDateTime);

/// A time that is written as an HTTP date, such as `Thu, 01 Jan 1970 00:00:00 GMT`.
#[derive(Debug, Clone, Copy)]
pub struct HttpDate(pub OffsetDateTime);

/// A time that is written as seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub struct EpochSeconds(pub OffsetDateTime);

impl fmt::Display for Iso8601 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&iso8601(self.0, self.0.millisecond() != 0))
    }
}

impl fmt::Display for HttpDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_offset(UtcOffset::UTC).format(HTTP_DATE).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

impl fmt::Display for EpochSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", epoch_seconds(self.0))
    }
}

macro_rules! contents {
    ($($type:ident as $json:ident),*) => {$(
        impl crate::xml::Content for $type {
            fn write(&self, w: &mut crate::xml::Writer) {
                w.raw(&self.to_string());
            }
        }

        impl crate::json::Content for $type {
            fn write(&self, w: &mut crate::json::Writer) {
                w.$json(&self.to_string());
            }
        }
    )*};
}

contents!(Iso8601 as string, HttpDate as string, EpochSeconds as raw);

/// Reads an RFC 3339 time, a date, an HTTP date, or seconds since 1970.
pub fn parse(text: &str) -> Option<OffsetDateTime> {
    let text = text.trim();
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return time.checked_to_offset(UtcOffset::UTC);
    }
    if let Ok(date) = Date::parse(text, DATE) {
        return Some(date.midnight().assume_utc());
    }
    if let Ok(time) = PrimitiveDateTime::parse(text, HTTP_DATE) {
        return Some(time.assume_utc());
    }
    from_epoch(text.parse().ok()?)
}

/// The time that many seconds after 1970; `None` where no such time can be told.
pub fn from_epoch(seconds: f64) -> Option<OffsetDateTime> {
    // Beyond this a double does not tell milliseconds, and no calendar year has four digits.
    if !seconds.is_finite() || seconds.abs() > 253_402_300_799.0 {
        return None;
    }
    OffsetDateTime::from_unix_timestamp_nanos((seconds * 1000.0).round() as i128 * 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_cannot_be_told_in_utc_are_none() {
        assert_eq!(parse("9999-12-31T23:59:59-00:01"), None);
        assert_eq!(parse("9999-12-31T23:59:59Z"), Some(time::macros::datetime!(9999-12-31 23:59:59 UTC)));
    }

    #[test]
    fn what_is_written_in_basic_format_is_read() {
        for time in [
            time::macros::datetime!(2015-08-30 12:36:00 UTC),
            time::macros::datetime!(0001-12-31 23:59:59 UTC),
        ] {
            assert_eq!(parse_basic(&basic(time)), Some(time));
        }
        for text in [
            "",
            "2015-08-30T12:36:00Z",
            "20150830T123600",
            "20150830T123600Z ",
            "20150830t123600Z",
            "20151330T123600Z",
            "20150229T123600Z",
            "20150830T240000Z",
            "20150830T126000Z",
            "+0150830T123600Z",
            "2015083éT12360Z",
        ] {
            assert_eq!(parse_basic(text), None, "{text}");
        }
    }
}
