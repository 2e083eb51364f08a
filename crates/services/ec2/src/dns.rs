//! Names that follow from addresses and ids (Amazon VPC User Guide, "DNS attributes for your VPC"; EC2 User Guide, "EC2
//! instance hostnames and domains").

use std::net::Ipv4Addr;

use sha2::{Digest, Sha256};

/// The domain of private names in a region; also the `domain-name` of the default DHCP options.
#[must_use]
pub fn private_domain(region: &str) -> String {
    if region == "us-east-1" { "ec2.internal".to_owned() } else { format!("{region}.compute.internal") }
}

/// The name of a private address, as `ip-172-31-0-5.ec2.internal`.
#[must_use]
pub fn private_dns_name(region: &str, ip: Ipv4Addr) -> String {
    let [a, b, c, d] = ip.octets();
    format!("ip-{a}-{b}-{c}-{d}.{}", private_domain(region))
}

/// The name of a public address, as `ec2-203-0-113-25.compute-1.amazonaws.com`.
#[must_use]
pub fn public_dns_name(region: &str, ip: Ipv4Addr) -> String {
    let [a, b, c, d] = ip.octets();
    let zone = if region == "us-east-1" { "compute-1".to_owned() } else { format!("{region}.compute") };
    let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    format!("ec2-{a}-{b}-{c}-{d}.{zone}.{suffix}")
}

/// The hardware address of an interface: it follows from the interface's id, is locally administered and unicast.
#[must_use]
pub fn mac_address(network_interface_id: &str) -> String {
    let digest = Sha256::digest(network_interface_id.as_bytes());
    format!("06:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", digest[0], digest[1], digest[2], digest[3], digest[4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_region() {
        let ip = Ipv4Addr::new(172, 31, 0, 5);
        assert_eq!(private_dns_name("us-east-1", ip), "ip-172-31-0-5.ec2.internal");
        assert_eq!(private_dns_name("eu-central-1", ip), "ip-172-31-0-5.eu-central-1.compute.internal");
        let ip = Ipv4Addr::new(203, 0, 113, 25);
        assert_eq!(public_dns_name("us-east-1", ip), "ec2-203-0-113-25.compute-1.amazonaws.com");
        assert_eq!(public_dns_name("eu-west-1", ip), "ec2-203-0-113-25.eu-west-1.compute.amazonaws.com");
        assert_eq!(public_dns_name("cn-north-1", ip), "ec2-203-0-113-25.cn-north-1.compute.amazonaws.com.cn");
    }

    #[test]
    fn hardware_addresses_are_local_unicast_and_follow_from_the_id() {
        let mac = mac_address("eni-00000000000000001");
        assert_eq!(mac, mac_address("eni-00000000000000001"));
        assert_ne!(mac, mac_address("eni-00000000000000002"));
        let octets: Vec<u8> = mac.split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect();
        assert_eq!((octets.len(), octets[0] & 0b11), (6, 0b10));
    }
}
