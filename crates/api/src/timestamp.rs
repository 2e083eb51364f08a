//! Timestamps on the wire (Smithy: `timestampFormat`; RFC 3339; RFC 9110 section 5.6.7).

use time::format_description::well_known::Rfc3339;
use time::format_description::{BorrowedFormatItem, FormatItem};
use time::macros::format_description;
use time::{Date, OffsetDateTime, PrimitiveDateTime, UtcOffset};

const DATE: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]");
const HTTP_DATE: &[FormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

/// `2026-01-01T00:00:00Z`, or with milliseconds `2026-01-01T00:00:00.000Z`; in UTC.
pub fn iso8601(time: OffsetDateTime, millis: bool) -> String {
    let time = time.to_offset(UtcOffset::UTC);
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second, milli) = time.to_hms_milli();
    let month = u8::from(month);
    if millis {
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
    } else {
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Seconds since 1970 with millisecond precision.
pub fn epoch_seconds(time: OffsetDateTime) -> f64 {
    (time.unix_timestamp_nanos() / 1_000_000) as f64 / 1000.0
}

/// Reads an RFC 3339 time, a date, an HTTP date, or seconds since 1970.
pub fn parse(text: &str) -> Option<OffsetDateTime> {
    let text = text.trim();
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Some(time);
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
