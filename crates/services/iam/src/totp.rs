//! One-time codes of virtual MFA devices: TOTP (RFC 6238) with SHA-1, six digits and steps of 30 seconds, as authenticator apps make
//! them.

use haar_records::iam::MfaAssignment;
use ring::hmac;
use subtle::ConstantTimeEq as _;
use time::{Duration, OffsetDateTime};

/// Bytes of a seed: 64 letters in Base32.
pub(crate) const SEED: usize = 40;

/// Seconds of a time step.
const STEP: i64 = 30;

/// How many steps a code may come early or late.
const WINDOW: i64 = 1;

/// By how many steps the clock of a device may be off when it is enabled or synchronised.
const MAX_DRIFT: i64 = 20;

/// How many wrong codes in a row are answered at once.
const FREE_FAILURES: u32 = 5;

/// How long no code is taken after one more (RFC 4226, section 7.3: a guesser must be slowed down).
const PAUSE: Duration = Duration::seconds(30);

/// The code of a step.
fn code(seed: &[u8], step: i64) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, seed);
    let tag = hmac::sign(&key, &step.to_be_bytes());
    let tag = tag.as_ref();
    // RFC 4226, section 5.3.
    let offset = usize::from(tag[tag.len() - 1] & 0xf);
    let number = tag[offset..offset + 4].iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    format!("{:06}", (number & 0x7fff_ffff) % 1_000_000)
}

fn is_code(seed: &[u8], step: i64, given: &str) -> bool {
    code(seed, step).as_bytes().ct_eq(given.as_bytes()).into()
}

fn step_of(now: OffsetDateTime) -> i64 {
    now.unix_timestamp().div_euclid(STEP)
}

/// Drift of the clock and step of the second code, if the two are codes of the device in a row, the first after `last_step`.
pub(crate) fn synchronise(
    seed: &[u8],
    now: OffsetDateTime,
    codes: [&str; 2],
    last_step: Option<i64>,
) -> Option<(i64, i64)> {
    let now = step_of(now);
    // What is nearest to the present comes first.
    let mut steps: Vec<i64> = (now - MAX_DRIFT..now + MAX_DRIFT).collect();
    steps.sort_by_key(|step| (step + 1 - now).abs());
    let steps = steps.into_iter().filter(|step| last_step.is_none_or(|last| *step > last));
    let mut fitting =
        steps.filter(|step| is_code(seed, *step, codes[0]) && is_code(seed, step + 1, codes[1]));
    let second = fitting.next()? + 1;
    let drift = second - now;
    // Somebody who types slowly has a clock that is right.
    Some((if drift.abs() <= WINDOW { 0 } else { drift }, second))
}

/// Whether a code is one of the device now, and notes in its assignment that it came.
pub(crate) fn check(seed: &[u8], assignment: &mut MfaAssignment, now: OffsetDateTime, given: &str) -> bool {
    let pause = assignment.failed.filter(|_| assignment.failures >= FREE_FAILURES);
    if pause.is_some_and(|failed| now < failed + PAUSE) {
        return false;
    }
    let expected = step_of(now) + assignment.drift;
    let mut steps = expected - WINDOW..=expected + WINDOW;
    match steps.find(|step| *step > assignment.last_step && is_code(seed, *step, given)) {
        Some(step) => {
            assignment.last_step = step;
            (assignment.failures, assignment.failed) = (0, None);
            true
        }
        None => {
            assignment.failures = assignment.failures.saturating_add(1);
            assignment.failed = Some(now);
            false
        }
    }
}

/// A seed as apps take it (RFC 4648, section 6).
pub(crate) fn base32(seed: &[u8]) -> String {
    data_encoding::BASE32_NOPAD.encode(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).unwrap()
    }

    fn assignment() -> MfaAssignment {
        MfaAssignment {
            user_id: String::new(),
            enable_time: at(0),
            drift: 0,
            last_step: 0,
            failures: 0,
            failed: None,
        }
    }

    #[test]
    fn codes_are_those_of_the_standard() {
        // RFC 6238, appendix B, of which six digits are taken.
        let seed = b"12345678901234567890";
        for (seconds, expected) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(code(seed, step_of(at(seconds))), expected);
        }
    }

    #[test]
    fn two_codes_in_a_row_tell_the_device_and_its_clock() {
        let (seed, now) = (&[7; SEED][..], at(3000));
        let pair = |step: i64| [code(seed, step), code(seed, step + 1)];
        let found = |step: i64, last| {
            let pair = pair(step);
            synchronise(seed, now, [&pair[0], &pair[1]], last)
        };
        assert_eq!(found(99, None), Some((0, 100)));
        assert_eq!(found(98, None), Some((0, 99)));
        assert_eq!(found(103, None), Some((4, 104)));
        assert_eq!(found(85, None), Some((-14, 86)));
        assert_eq!(found(99, Some(99)), None, "the first was taken before");
        assert_eq!(found(130, None), None, "the clock is too far off");
        let [first, second] = pair(99);
        assert_eq!(synchronise(seed, now, [&second, &first], None), None);
        assert_eq!(synchronise(&[8; SEED], now, [&first, &second], None), None);
    }

    #[test]
    fn a_code_is_taken_once_and_about_its_time() {
        let (seed, now) = (&[7; SEED][..], at(3000));
        let mut device = assignment();
        assert!(!check(seed, &mut device, now, &code(seed, 98)));
        assert!(check(seed, &mut device, now, &code(seed, 99)));
        assert!(!check(seed, &mut device, now, &code(seed, 99)), "twice");
        assert!(check(seed, &mut device, now, &code(seed, 101)));
        assert!(!check(seed, &mut device, now, &code(seed, 100)), "earlier than one before");
        assert!(!check(seed, &mut device, now, ""));
        let mut late = MfaAssignment { drift: -14, ..assignment() };
        assert!(check(seed, &mut late, now, &code(seed, 86)));
        assert!(!check(seed, &mut late, now, &code(seed, 100)));
    }

    #[test]
    fn guessing_is_slow() {
        let (seed, now) = (&[7; SEED][..], at(3000));
        let mut device = assignment();
        let right = code(seed, 100);
        let wrong = if right == "000000" { "000001" } else { "000000" };
        for _ in 0..FREE_FAILURES {
            assert!(!check(seed, &mut device, now, wrong));
        }
        assert!(!check(seed, &mut device, now, &right), "even the right one has to wait");
        assert_eq!(device.failures, FREE_FAILURES, "and does not count");
        let later = now + PAUSE;
        assert!(check(seed, &mut device, later, &code(seed, 101)));
        assert_eq!((device.failures, device.failed), (0, None));
    }
}
