//! How long a guest may be on its way.

use std::time::{Duration, Instant};

/// How long nothing may come through.
const STALL: Duration = Duration::from_secs(30);

/// How long a GiB of memory and disks may take, where nobody says otherwise.
const A_GIB: Duration = Duration::from_secs(800);

/// For how many GiB there is time at least.
const LEAST_GIB: u64 = 2;

/// What is watched of a guest that is being copied: that it comes forward, and is there in time.
pub(super) struct Course {
    begun: Instant,
    timeout: Duration,
    /// How much had come through when it last was more than before, and when that was.
    done: u64,
    since: Instant,
}

impl Course {
    /// That of a guest with so many bytes of memory and disks, whose migration began then, and that comes from now on.
    pub(super) fn new(begun: Instant, bytes: u64, timeout: Option<Duration>) -> Self {
        let gib = u32::try_from((bytes >> 30).max(LEAST_GIB)).unwrap_or(u32::MAX);
        Self { begun, timeout: timeout.unwrap_or(A_GIB.saturating_mul(gib)), done: 0, since: Instant::now() }
    }

    /// Says why the guest is to stay, if it is: by `now` so much has come through, and so much is still to come.
    pub(super) fn end(&mut self, now: Instant, done: u64, left: u64) -> Option<String> {
        if done != self.done {
            (self.done, self.since) = (done, now);
        }
        let mib = left >> 20;
        if now - self.since >= STALL {
            let seconds = STALL.as_secs();
            return Some(format!("nothing has come through for {seconds} s; {mib} MiB were left to be sent"));
        }
        (now - self.begun >= self.timeout).then(|| {
            let seconds = self.timeout.as_secs();
            format!(
                "it had not moved after {seconds} s, as the way is too slow for what the guest writes; {mib} MiB were left to be sent"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_more_time_for_more_bytes_and_none_for_standing_still() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        for (gib, seconds) in [(0, 1600), (2, 1600), (100, 80_000)] {
            let mut course = Course::new(begun, gib << 30, None);
            for second in (0..seconds).step_by(20) {
                assert_eq!(course.end(at(second), second + 1, 5 << 20), None, "{gib} GiB, after {second} s");
            }
            let why = course.end(at(seconds), seconds + 1, 5 << 20).unwrap();
            assert!(
                why.starts_with(&format!("it had not moved after {seconds} s")) && why.contains("5 MiB"),
                "{why}"
            );
        }
        let mut course = Course::new(begun, 0, Some(Duration::from_secs(60)));
        assert_eq!((course.end(at(20), 7, 0), course.end(at(49), 7, 0)), (None, None));
        assert!(course.end(at(50), 7, 0).unwrap().starts_with("nothing has come through for 30 s"));
    }
}
