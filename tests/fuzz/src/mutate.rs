//! Inputs that are nearly right: valid ones, changed.

use rand::Rng;

/// What mutations insert: what decoders take for structure, and what is at their limits.
const TOKENS: &[&str] = &[
    "&",
    "=",
    "=&",
    ".",
    ".1",
    ".0",
    ".-1",
    ".01",
    ".999999999",
    ".4294967295",
    ".4294967296",
    ".member.1",
    ".entry.1.key",
    "..",
    "%",
    "%00",
    "%FF",
    "%F0%9F%98%80",
    "+",
    "Action=",
    "Version=2026-01-01",
    "X-Amz-Algorithm=AWS4-HMAC-SHA256",
    "{",
    "}",
    "{}",
    "[",
    "]",
    "[[",
    "{\"Inner\":",
    "\"",
    "\\u0000",
    "\\ud800",
    ",",
    ":",
    "null",
    "true",
    "-0",
    "1e999",
    "1e-999",
    "18446744073709551616",
    "-9223372036854775809",
    "NaN",
    "\n",
    "\n\n",
    "\r",
    "\0",
    "\u{7f}",
    "\u{fffe}",
    "ä",
    "😀",
    "/",
    "//",
    "/../",
    "?",
    "#",
    ";",
    "Credential=",
    "SignedHeaders=host",
    "Signature=",
    "aws4_request",
    "Content-Length: 99999999999999999999\n",
    "Transfer-Encoding: chunked\n",
    "X-Meta-: \n",
    "]]>",
    "<",
    "&amp;",
];

/// Changes an input in one to eight ways.
pub fn mutate(rng: &mut impl Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let pick = |rng: &mut dyn rand::RngCore| seeds[rng.random_range(0..seeds.len())].clone();
    let mut data = pick(rng);
    for _ in 0..rng.random_range(1..=8) {
        let at = rng.random_range(0..=data.len());
        let to = rng.random_range(at..=data.len().min(at + 64));
        match rng.random_range(0..7) {
            0 => data.extend(pick(rng)),
            1 => drop(data.drain(at..to)),
            2 => {
                let piece = data[at..to].to_vec();
                let times = rng.random_range(1..64);
                data.splice(at..at, piece.repeat(times));
            }
            3 => {
                let other = pick(rng);
                data.splice(at.., other[other.len().min(at)..].to_vec());
            }
            4 => drop(data.splice(at..to, std::iter::once(rng.random()))),
            _ => {
                let token = TOKENS[rng.random_range(0..TOKENS.len())];
                data.splice(at..at, token.bytes());
            }
        }
    }
    data
}
