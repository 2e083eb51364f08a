//! The names that a VPC's resolver knows itself: private and public DNS names of network interfaces, and their reverse
//! (VPC User Guide, "DNS attributes for your VPC").

use std::net::Ipv4Addr;

use hickory_proto::rr::rdata::{A, PTR, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::Ipv4Net;

use crate::names;
use crate::view::{Directory, PublicAddress};

/// Time to live of the answers, in seconds.
const TTL: u32 = 60;

/// The metadata service's address, which has a name of its own.
const IMDS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Which names belong to a VPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// Region; it decides the domains.
    pub region: String,
    /// CIDR block of the VPC; reverse lookups within it are answered here and nowhere else.
    pub vpc_cidr: Ipv4Net,
}

/// What a [`Zone`] says of a name.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    /// Its records of the type that was asked for.
    Records(Vec<Record>),
    /// The name exists and has no such records; the record tells for how long to remember that (RFC 2308).
    NoData(Record),
    /// The name does not exist.
    NoName(Record),
    /// The name is not of this zone.
    Elsewhere,
}

impl Zone {
    /// Looks a name up, whose case does not matter.
    pub(super) fn find(&self, name: &Name, kind: RecordType, directory: &dyn Directory) -> Found {
        let text = name.to_ascii().to_ascii_lowercase();
        let text = text.trim_end_matches('.');
        let private_domain = names::private_domain(&self.region);
        let public_domain = names::public_domain(&self.region);
        if let Some(ip) = parse_reverse(text) {
            self.find_reverse(name, kind, ip, directory)
        } else if text == private_domain {
            let soa = soa(&private_domain);
            if matches!(kind, RecordType::SOA | RecordType::ANY) {
                Found::Records(vec![soa])
            } else {
                Found::NoData(soa)
            }
        } else if let Some(label) = strip_domain(text, &private_domain) {
            let ip = match names::parse_label("ip", label) {
                Some(ip) => directory.interface_at(ip).map(|_| ip),
                None => (label == "instance-data").then_some(IMDS),
            };
            match ip {
                Some(ip) => address(name, kind, ip, &private_domain),
                None => Found::NoName(soa(&private_domain)),
            }
        } else if let Some(public_ip) =
            strip_domain(text, &public_domain).and_then(|l| names::parse_label("ec2", l))
        {
            // Within the VPC the name leads straight to the private address.
            match directory.public_address(public_ip) {
                Some(PublicAddress::Here(private_ip)) => address(name, kind, private_ip, &public_domain),
                Some(PublicAddress::Elsewhere) => address(name, kind, public_ip, &public_domain),
                None => Found::Elsewhere,
            }
        } else {
            Found::Elsewhere
        }
    }

    fn find_reverse(&self, name: &Name, kind: RecordType, ip: Ipv4Addr, directory: &dyn Directory) -> Found {
        let target = if self.vpc_cidr.contains(&ip) {
            directory.interface_at(ip).map(|_| names::private_dns_name(ip, &self.region))
        } else if directory.public_address(ip).is_some() {
            Some(names::public_dns_name(ip, &self.region))
        } else {
            return Found::Elsewhere;
        };
        // The zone cut of a reverse name is at its last octet.
        let [a, b, c, _] = ip.octets();
        let apex = format!("{c}.{b}.{a}.in-addr.arpa");
        match target {
            Some(target) => match (kind, fqdn(&target)) {
                (RecordType::PTR | RecordType::ANY, Some(target)) => {
                    Found::Records(vec![Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target)))])
                }
                _ => Found::NoData(soa(&apex)),
            },
            None => Found::NoName(soa(&apex)),
        }
    }
}

fn address(name: &Name, kind: RecordType, ip: Ipv4Addr, apex: &str) -> Found {
    match kind {
        RecordType::A | RecordType::ANY => {
            Found::Records(vec![Record::from_rdata(name.clone(), TTL, RData::A(A(ip)))])
        }
        _ => Found::NoData(soa(apex)),
    }
}

/// The start of authority of a domain; its last number bounds how long a negative answer is remembered.
fn soa(apex: &str) -> Record {
    let host = |label: &str| fqdn(&format!("{label}.{apex}")).unwrap_or_default();
    let data = SOA::new(host("ns"), host("hostmaster"), 1, 3600, 900, 604_800, TTL);
    Record::from_rdata(fqdn(apex).unwrap_or_default(), TTL, RData::SOA(data))
}

fn fqdn(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// The one label that stands before a domain.
fn strip_domain<'a>(text: &'a str, domain: &str) -> Option<&'a str> {
    text.strip_suffix(domain)?.strip_suffix('.')
}

/// The address of `d.c.b.a.in-addr.arpa`.
fn parse_reverse(text: &str) -> Option<Ipv4Addr> {
    let reversed: Ipv4Addr = text.strip_suffix(".in-addr.arpa")?.parse().ok()?;
    let [d, c, b, a] = reversed.octets();
    Some(Ipv4Addr::new(a, b, c, d))
}
