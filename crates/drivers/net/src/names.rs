//! Names of what the driver makes on the machine, from resource ids.

/// The longest name of a network interface (`IFNAMSIZ` less the closing zero).
const MAX: usize = 15;

/// Prefix and as much of the id's end as fits: ids are random, so their ends tell them apart.
fn name(prefix: &str, id: &str) -> String {
    let digits = id.rsplit('-').next().unwrap_or(id);
    let keep = digits.len().min(MAX - prefix.len());
    format!("{prefix}{}", &digits[digits.len() - keep..])
}

/// Name of an interface's tap, from `eni-…`.
///
/// ```
/// assert_eq!(haar_net::interface_name("eni-0123456789abcdef0"), "h3456789abcdef0");
/// ```
#[must_use]
pub fn interface_name(interface_id: &str) -> String {
    name("h", interface_id)
}

/// Name of the host's end of a VPC's uplink, from `vpc-…`.
///
/// ```
/// assert_eq!(haar_net::uplink_name("vpc-0123456789abcdef0"), "hv456789abcdef0");
/// ```
#[must_use]
pub fn uplink_name(vpc_id: &str) -> String {
    name("hv", vpc_id)
}

/// Whether an id can be made part of names, rulesets and commands: a prefix and hexadecimal digits.
pub(crate) fn valid_id(id: &str, prefix: &str) -> bool {
    id.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-')).is_some_and(|digits| {
        (8..=32).contains(&digits.len())
            && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}
