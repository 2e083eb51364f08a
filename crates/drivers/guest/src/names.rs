//! The DNS names that EC2 gives to addresses (EC2 User Guide, "EC2 instance hostnames and domains").

use std::net::Ipv4Addr;

/// The domain of private names: `ec2.internal` in us-east-1, `<region>.compute.internal` elsewhere.
#[must_use]
pub fn private_domain(region: &str) -> String {
    if region == "us-east-1" { "ec2.internal".to_owned() } else { format!("{region}.compute.internal") }
}

/// The domain of public names: `compute-1.amazonaws.com` in us-east-1, `<region>.compute.amazonaws.com` elsewhere.
#[must_use]
pub fn public_domain(region: &str) -> String {
    if region == "us-east-1" {
        "compute-1.amazonaws.com".to_owned()
    } else {
        format!("{region}.compute.amazonaws.com")
    }
}

/// As `ip-172-31-0-5`.
#[must_use]
pub fn private_label(ip: Ipv4Addr) -> String {
    label("ip", ip)
}

/// As `ip-172-31-0-5.ec2.internal`.
#[must_use]
pub fn private_dns_name(ip: Ipv4Addr, region: &str) -> String {
    format!("{}.{}", private_label(ip), private_domain(region))
}

/// As `ec2-198-18-0-5.compute-1.amazonaws.com`.
#[must_use]
pub fn public_dns_name(ip: Ipv4Addr, region: &str) -> String {
    format!("{}.{}", label("ec2", ip), public_domain(region))
}

fn label(prefix: &str, ip: Ipv4Addr) -> String {
    let [a, b, c, d] = ip.octets();
    format!("{prefix}-{a}-{b}-{c}-{d}")
}

/// The address of a label `<prefix>-a-b-c-d`, whose numbers are written as [`Ipv4Addr`] writes them.
pub(crate) fn parse_label(prefix: &str, text: &str) -> Option<Ipv4Addr> {
    text.strip_prefix(prefix)?.strip_prefix('-')?.replace('-', ".").parse().ok()
}

/// The address `n` above `ip`, wrapping at the end of the address space.
pub(crate) fn offset(ip: Ipv4Addr, n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(ip).wrapping_add(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_region() {
        let ip = Ipv4Addr::new(198, 18, 0, 5);
        assert_eq!(private_dns_name(ip, "us-east-1"), "ip-198-18-0-5.ec2.internal");
        assert_eq!(private_dns_name(ip, "eu-west-1"), "ip-198-18-0-5.eu-west-1.compute.internal");
        assert_eq!(public_dns_name(ip, "us-east-1"), "ec2-198-18-0-5.compute-1.amazonaws.com");
        assert_eq!(public_dns_name(ip, "eu-west-1"), "ec2-198-18-0-5.eu-west-1.compute.amazonaws.com");
    }

    #[test]
    fn labels_parse_back() {
        let ip = Ipv4Addr::new(10, 0, 255, 1);
        assert_eq!(parse_label("ip", &private_label(ip)), Some(ip));
        for text in [
            "ip-10-0-255",
            "ip-10-0-255-1-2",
            "ip-10-0-256-1",
            "ip-10-0-.1-1",
            "ip10-0-0-1",
            "ip-",
            "ip-01-0-0-1",
            "",
        ] {
            assert_eq!(parse_label("ip", text), None, "{text}");
        }
    }
}
