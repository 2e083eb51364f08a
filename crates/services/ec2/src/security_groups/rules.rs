//! Security group rules in normal form: what AuthorizeSecurityGroupIngress and its kin accept, and what they store.

use std::net::Ipv4Addr;

use haar_api::Error;
use haar_records::ec2::{RuleTarget, SecurityGroupRule};
use ipnet::Ipv4Net;

use crate::error::{Result, invalid_value, missing, unsupported};

/// Most rules of a group in one direction (Amazon VPC quotas, "Inbound or outbound rules per security group").
pub const MAX_RULES: usize = 60;

/// What a security group's texts may consist of, in the words of EC2's errors.
const TEXT_RULE: &str =
    "are strings less than 256 characters from the following set:  a-zA-Z0-9. _-:/()#,@[]+=&;{}!$*";

/// What a rule lets pass: a protocol and its ports, in normal form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// `tcp`, `udp`, `icmp`, a protocol number, or `-1` for all.
    pub protocol: String,
    /// First port, or ICMP type; -1 for all.
    pub from_port: i32,
    /// Last port, or ICMP code; -1 for all.
    pub to_port: i32,
}

impl Traffic {
    /// Every protocol and port.
    #[must_use]
    pub fn all() -> Self {
        Self { protocol: "-1".to_owned(), from_port: -1, to_port: -1 }
    }

    /// Reads protocol and ports as requests have them.
    ///
    /// # Errors
    /// `InvalidParameterValue` for a protocol or port that does not exist, `MissingParameter` without a protocol,
    /// `UnsupportedOperation` for `icmpv6`.
    pub fn parse(protocol: Option<&str>, from_port: Option<i32>, to_port: Option<i32>) -> Result<Self> {
        let given = protocol.filter(|protocol| !protocol.is_empty()).ok_or_else(|| missing("ipProtocol"))?;
        let name = given.to_ascii_lowercase();
        let protocol = match (name.as_str(), name.parse::<u8>()) {
            ("tcp", _) | (_, Ok(6)) => "tcp".to_owned(),
            ("udp", _) | (_, Ok(17)) => "udp".to_owned(),
            ("icmp", _) | (_, Ok(1)) => "icmp".to_owned(),
            ("icmpv6", _) | (_, Ok(58)) => return Err(no_ipv6()),
            ("-1", _) => "-1".to_owned(),
            (_, Ok(number)) => number.to_string(),
            _ => {
                let shown = crate::error::shorten(given);
                return Err(invalid_value(format!(
                    "Invalid value '{shown}' for IP protocol. Unknown protocol."
                )));
            }
        };
        let (from_port, to_port) = match protocol.as_str() {
            "tcp" | "udp" => tcp_udp_ports(from_port, to_port)?,
            "icmp" => icmp_type_and_code(from_port.unwrap_or(-1), to_port.unwrap_or(-1))?,
            // Ports mean nothing to other protocols; EC2 takes and drops them.
            _ => (-1, -1),
        };
        Ok(Self { protocol, from_port, to_port })
    }
}

fn tcp_udp_ports(from: Option<i32>, to: Option<i32>) -> Result<(i32, i32)> {
    let (Some(from), Some(to)) = (from, to) else {
        return Err(invalid_value(
            "Invalid value for portRange. Must specify both from and to ports with TCP/UDP.",
        ));
    };
    for (end, port) in [("from", from), ("to", to)] {
        if !(0..=65535).contains(&port) {
            return Err(invalid_value(format!("TCP/UDP ({end}) port ({port}) out of range")));
        }
    }
    if from > to {
        return Err(invalid_value(format!("Invalid TCP/UDP port range ({from}:{to})")));
    }
    Ok((from, to))
}

fn icmp_type_and_code(icmp_type: i32, code: i32) -> Result<(i32, i32)> {
    for (what, value) in [("type", icmp_type), ("code", code)] {
        if !(-1..=255).contains(&value) {
            return Err(invalid_value(format!("ICMP {what} ({value}) out of range")));
        }
    }
    if icmp_type == -1 && code != -1 {
        return Err(invalid_value(format!("ICMP code ({code}) cannot be specified with all types")));
    }
    Ok((icmp_type, code))
}

/// The refusal of anything of IPv6.
pub fn no_ipv6() -> Error {
    unsupported("IPv6 is not supported: security group rules can only have IPv4 ranges and security groups")
}

/// The canonical form of an IPv4 CIDR block: the address without host bits.
///
/// # Errors
/// `InvalidParameterValue` for anything else.
pub fn cidr(text: &str) -> Result<String> {
    let block = || {
        let (address, prefix) = text.split_once('/')?;
        let prefix = Some(prefix).filter(|p| p.len() <= 2 && p.bytes().all(|b| b.is_ascii_digit()))?;
        Ipv4Net::new(address.parse::<Ipv4Addr>().ok()?, prefix.parse().ok()?).ok()
    };
    let block = block()
        .ok_or_else(|| invalid_value(format!("CIDR block {} is malformed", crate::error::shorten(text))))?;
    Ok(block.trunc().to_string())
}

/// Checks a rule's description.
///
/// # Errors
/// `InvalidParameterValue`.
pub fn check_rule_description(description: &str) -> Result<()> {
    if is_text(description) {
        Ok(())
    } else {
        Err(invalid_value(format!("Invalid rule description. Valid descriptions {TEXT_RULE}")))
    }
}

/// Checks a new group's name.
///
/// # Errors
/// `InvalidParameterValue`; `MissingParameter` for an empty one.
pub fn check_group_name(name: &str) -> Result<()> {
    let invalid = |why: &str| Err(crate::error::invalid_parameter(name, "GroupName", why));
    if name.is_empty() {
        Err(missing("GroupName"))
    } else if !name.is_ascii() {
        invalid("Character sets beyond ASCII are not supported.")
    } else if name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("sg-")) {
        invalid("Group names may not be in the format sg-*.")
    } else if name.eq_ignore_ascii_case("default") {
        Err(invalid_value("Cannot use reserved security group name: default"))
    } else if !is_text(name) || name.trim() != name {
        Err(invalid_value(format!("Invalid security group name. Valid names {TEXT_RULE}")))
    } else {
        Ok(())
    }
}

/// Checks a new group's description.
///
/// # Errors
/// `InvalidParameterValue`; `MissingParameter` for an empty one.
pub fn check_group_description(description: &str) -> Result<()> {
    if description.is_empty() {
        Err(missing("GroupDescription"))
    } else if !description.is_ascii() {
        let why = "Character sets beyond ASCII are not supported.";
        Err(crate::error::invalid_parameter(description, "GroupDescription", why))
    } else if !is_text(description) {
        Err(invalid_value(format!("Invalid security group description. Valid descriptions {TEXT_RULE}")))
    } else {
        Ok(())
    }
}

fn is_text(text: &str) -> bool {
    text.len() <= 255
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b" ._-:/()#,@[]+=&;{}!$*".contains(&b))
}

/// Whether two rules let the same pass; a group has at most one of each.
#[must_use]
pub fn same(rule: &SecurityGroupRule, other: &SecurityGroupRule) -> bool {
    (rule.egress, &rule.protocol, rule.from_port, rule.to_port, &rule.target)
        == (other.egress, &other.protocol, other.from_port, other.to_port, &other.target)
}

/// The refusal of a rule that the group has already, in EC2's words.
#[must_use]
pub fn duplicate(rule: &SecurityGroupRule) -> Error {
    let (RuleTarget::Cidr(peer) | RuleTarget::Group(peer)) = &rule.target;
    let SecurityGroupRule { protocol, from_port, to_port, .. } = rule;
    let traffic = match protocol.as_str() {
        "-1" => "ALL".to_owned(),
        "tcp" | "udp" => format!("{}, from port: {from_port}, to port: {to_port}", protocol.to_uppercase()),
        "icmp" => format!("ICMP, type: {}, code: {}", or_all(*from_port), or_all(*to_port)),
        number => format!("protocol: {number}"),
    };
    let message = format!("the specified rule \"peer: {peer}, {traffic}, ALLOW\" already exists");
    Error::new("InvalidPermission.Duplicate", message)
}

fn or_all(value: i32) -> String {
    if value == -1 { "ALL".to_owned() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use haar_records::Tags;

    use super::*;

    fn traffic(
        protocol: &str,
        from: impl Into<Option<i32>>,
        to: impl Into<Option<i32>>,
    ) -> Result<(String, i32, i32)> {
        Traffic::parse(Some(protocol), from.into(), to.into()).map(|t| (t.protocol, t.from_port, t.to_port))
    }

    fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn protocols_have_one_form() {
        for tcp in ["tcp", "TCP", "6"] {
            assert_eq!(traffic(tcp, 22, 23), Ok(("tcp".into(), 22, 23)));
        }
        assert_eq!(traffic("17", 0, 65535), Ok(("udp".into(), 0, 65535)));
        assert_eq!(traffic("1", 8, -1), Ok(("icmp".into(), 8, -1)));
        assert_eq!(traffic("icmp", None, None), Ok(("icmp".into(), -1, -1)));
        assert_eq!(traffic("-1", 22, 22), Ok(("-1".into(), -1, -1)));
        assert_eq!(traffic("50", 1, 2), Ok(("50".into(), -1, -1)));
        assert_eq!(traffic("050", None, None), Ok(("50".into(), -1, -1)));
    }

    #[test]
    fn what_does_not_exist_is_refused_in_the_words_of_ec2() {
        assert_eq!(
            message(traffic("esp", None, None)),
            "InvalidParameterValue: Invalid value 'esp' for IP protocol. Unknown protocol."
        );
        assert!(message(traffic("256", None, None)).contains("Unknown protocol"));
        assert_eq!(
            message(traffic("tcp", -1, -1)),
            "InvalidParameterValue: TCP/UDP (from) port (-1) out of range"
        );
        assert_eq!(
            message(traffic("tcp", 1, 65536)),
            "InvalidParameterValue: TCP/UDP (to) port (65536) out of range"
        );
        assert_eq!(
            message(traffic("udp", 443, 80)),
            "InvalidParameterValue: Invalid TCP/UDP port range (443:80)"
        );
        assert!(message(traffic("tcp", 22, None)).contains("Must specify both from and to ports"));
        assert_eq!(
            message(traffic("icmp", 8, 65535)),
            "InvalidParameterValue: ICMP code (65535) out of range"
        );
        assert!(traffic("icmp", -1, 0).is_err());
        assert!(message(Traffic::parse(None, None, None)).starts_with("MissingParameter"));
        assert!(message(traffic("58", None, None)).starts_with("UnsupportedOperation"));
    }

    #[test]
    fn cidr_blocks_are_canonical() {
        assert_eq!(cidr("100.68.0.18/18").as_deref(), Ok("100.68.0.0/18"));
        assert_eq!(cidr("0.0.0.0/0").as_deref(), Ok("0.0.0.0/0"));
        assert_eq!(cidr("192.0.2.1/32").as_deref(), Ok("192.0.2.1/32"));
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0/8",
            "::/0",
            "10.0.0.0/8/8",
            "010.0.0.0/8",
        ] {
            assert_eq!(message(cidr(bad)), format!("InvalidParameterValue: CIDR block {bad} is malformed"));
        }
    }

    #[test]
    fn names_and_descriptions_keep_to_their_characters() {
        assert!(check_group_name("my-service_lb (v2)").is_ok());
        assert!(check_group_name(&"n".repeat(255)).is_ok());
        for bad in ["", "sg-1234", "SG-x", "default", "ü", "tab\there", " padded", "a'b"] {
            assert!(check_group_name(bad).is_err(), "{bad:?}");
        }
        assert!(check_group_name(&"n".repeat(256)).is_err());
        assert!(check_group_description("web servers [eu] + $5").is_ok());
        assert!(
            message(check_group_description("it's")).contains("Valid descriptions are strings less than 256")
        );
        assert!(check_rule_description("").is_ok());
        assert!(check_rule_description("a<b").is_err());
    }

    #[test]
    fn duplicates_are_told_as_ec2_tells_them() {
        let mut rule = SecurityGroupRule {
            id: "sgr-1".into(),
            egress: false,
            protocol: "tcp".into(),
            from_port: 22,
            to_port: 22,
            target: RuleTarget::Cidr("0.0.0.0/0".into()),
            description: None,
            tags: Tags::new(),
        };
        let described =
            SecurityGroupRule { id: "sgr-2".into(), description: Some("ssh".into()), ..rule.clone() };
        assert!(same(&rule, &described));
        assert!(!same(&rule, &SecurityGroupRule { egress: true, ..rule.clone() }));
        assert_eq!(
            duplicate(&rule).message,
            "the specified rule \"peer: 0.0.0.0/0, TCP, from port: 22, to port: 22, ALLOW\" already exists"
        );
        (rule.protocol, rule.from_port, rule.to_port) = ("-1".into(), -1, -1);
        assert_eq!(
            duplicate(&rule).message,
            "the specified rule \"peer: 0.0.0.0/0, ALL, ALLOW\" already exists"
        );
    }
}
