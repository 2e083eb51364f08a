//! The nftables rules of a VPC's namespace, as text.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::driver::UPLINK;
use crate::names::interface_name;
use crate::spec::{GroupSpec, Peer, Ports, Protocol, Rule, VpcSpec};

/// The whole table of a VPC, to replace the one that is there.
///
/// A packet between guests passes the `egress` chain for the sender's groups, then the `ingress` chain for the receiver's.
pub(crate) fn of_vpc(vpc: &VpcSpec) -> String {
    let mut out = String::from("table ip haar\ndelete table ip haar\ntable ip haar {\n");
    sets(vpc, &mut out);
    for group in &vpc.groups {
        group_chain(group, "in", &group.ingress, &mut out);
        group_chain(group, "out", &group.egress, &mut out);
    }
    interface_chains(vpc, &mut out);
    base_chains(vpc, &mut out);
    out.push_str("}\n");
    neighbours(vpc, &mut out);
    out
}

/// The table that lets a guest say of no address but its own that it has it. Each sender of a request becomes an entry in the host's
/// table of neighbours, which is one for all namespaces.
fn neighbours(vpc: &VpcSpec, out: &mut String) {
    out.push_str("table arp haar\ndelete table arp haar\ntable arp haar {\n");
    checked_sources(vpc, out);
    // Who looks whether an address is taken has none yet (RFC 5227), and becomes no entry.
    out.push_str(
        " chain input {\n  type filter hook input priority filter;\n  arp saddr ip 0.0.0.0 return\n  \
         iifname . arp saddr ether . arp saddr ip @sources return\n  iifname @checked drop\n }\n}\n",
    );
}

/// Identifier of a group's set and chains; ids hold a dash, which nftables does not take everywhere.
fn tag(group_id: &str) -> String {
    group_id.replace('-', "_")
}

fn set(out: &mut String, kind: &str, name: &str, spec: &str, elements: impl IntoIterator<Item = String>) {
    let elements: Vec<_> = elements.into_iter().collect();
    let _ = write!(out, " {kind} {name} {{ type {spec};");
    if !elements.is_empty() {
        let _ = write!(out, " elements = {{ {} }};", elements.join(", "));
    }
    out.push_str(" }\n");
}

fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The interfaces whose sources are checked, and what comes from them with the right ones.
fn checked_sources(vpc: &VpcSpec, out: &mut String) {
    let checked = || vpc.interfaces.iter().filter(|i| i.source_dest_check);
    set(out, "set", "checked", "ifname", checked().map(|i| format!("\"{}\"", interface_name(&i.id))));
    set(
        out,
        "set",
        "sources",
        "ifname . ether_addr . ipv4_addr",
        checked().map(|i| format!("\"{}\" . {} . {}", interface_name(&i.id), mac(i.mac), i.private_ip)),
    );
}

fn sets(vpc: &VpcSpec, out: &mut String) {
    checked_sources(vpc, out);
    let checked = vpc.interfaces.iter().filter(|i| i.source_dest_check);
    set(
        out,
        "set",
        "destinations",
        "ifname . ipv4_addr",
        checked.map(|i| format!("\"{}\" . {}", interface_name(&i.id), i.private_ip)),
    );
    let public = || vpc.interfaces.iter().filter_map(|i| Some((i.private_ip, i.public_ip?)));
    set(out, "set", "has_public", "ipv4_addr", public().map(|(private, _)| private.to_string()));
    let to_public = public().map(|(private, public)| format!("{private} : {public}"));
    set(out, "map", "to_public", "ipv4_addr : ipv4_addr", to_public);
    let to_private = public().map(|(private, public)| format!("{public} : {private}"));
    set(out, "map", "to_private", "ipv4_addr : ipv4_addr", to_private);
    // Every group that a rule names, and every group of an interface.
    let named =
        vpc.groups.iter().flat_map(|group| group.ingress.iter().chain(&group.egress)).filter_map(|rule| {
            match &rule.peer {
                Peer::Group(id) => Some(id),
                Peer::Cidr(_) => None,
            }
        });
    for id in named.collect::<BTreeSet<_>>() {
        let members = vpc.interfaces.iter().filter(|i| i.groups.contains(id));
        set(
            out,
            "set",
            &format!("members_{}", tag(id)),
            "ipv4_addr",
            members.map(|i| i.private_ip.to_string()),
        );
    }
}

fn group_chain(group: &GroupSpec, direction: &str, rules: &[Rule], out: &mut String) {
    let _ = writeln!(out, " chain {direction}_{} {{", tag(&group.id));
    for rule in rules {
        let side = if direction == "in" { "saddr" } else { "daddr" };
        let peer = match &rule.peer {
            Peer::Cidr(block) if block.prefix_len() == 0 => String::new(),
            Peer::Cidr(block) => format!("ip {side} {} ", block.trunc()),
            Peer::Group(id) => format!("ip {side} @members_{} ", tag(id)),
        };
        let _ = writeln!(out, "  {peer}{}accept", protocol(rule.protocol));
    }
    out.push_str(" }\n");
}

fn protocol(protocol: Protocol) -> String {
    let ports = |name: &str, ports: Ports| match ports {
        Ports::ALL => format!("meta l4proto {name} "),
        Ports { first, last } if first == last => format!("{name} dport {first} "),
        Ports { first, last } => format!("{name} dport {first}-{last} "),
    };
    match protocol {
        Protocol::All => String::new(),
        Protocol::Tcp(range) => ports("tcp", range),
        Protocol::Udp(range) => ports("udp", range),
        Protocol::Icmp { kind: None, .. } => "meta l4proto icmp ".to_owned(),
        Protocol::Icmp { kind: Some(kind), code: None } => format!("icmp type {kind} "),
        Protocol::Icmp { kind: Some(kind), code: Some(code) } => {
            format!("icmp type {kind} icmp code {code} ")
        }
        Protocol::Number(number) => format!("meta l4proto {number} "),
    }
}

fn interface_chains(vpc: &VpcSpec, out: &mut String) {
    for direction in ["in", "out"] {
        for interface in &vpc.interfaces {
            let name = interface_name(&interface.id);
            let _ = writeln!(out, " chain {direction}_{name} {{");
            for id in &interface.groups {
                if vpc.groups.iter().any(|group| group.id == *id) {
                    let _ = writeln!(out, "  jump {direction}_{}", tag(id));
                }
            }
            out.push_str(" }\n");
        }
        let jumps = vpc.interfaces.iter().map(|interface| {
            let name = interface_name(&interface.id);
            format!("\"{name}\" : jump {direction}_{name}")
        });
        set(out, "map", &format!("{direction}_interface"), "ifname : verdict", jumps);
    }
}

fn base_chains(vpc: &VpcSpec, out: &mut String) {
    // Sources first, before what is spoofed is put together of its fragments (priority -400), and before conntrack sees it. A guest
    // without a lease asks for one from 0.0.0.0.
    out.push_str(
        " chain source_check {\n  ip saddr 0.0.0.0 udp sport 68 udp dport 67 return\n  \
         iifname . ether saddr . ip saddr @sources return\n  drop\n }\n \
         chain prerouting {\n  type filter hook prerouting priority -450;\n  iifname @checked jump source_check\n",
    );
    for interface in &vpc.interfaces {
        if let Some(mbps) = interface.bandwidth_mbps {
            // Bytes a second; a burst of 50 ms.
            let rate = mbps * 1_000_000 / 8 / 1024;
            let burst = (rate / 20).max(64);
            let _ = writeln!(
                out,
                "  iifname \"{}\" limit rate over {} kbytes/second burst {burst} kbytes drop",
                interface_name(&interface.id),
                rate.max(1)
            );
        }
    }
    out.push_str(" }\n");
    let dns = u32::from(vpc.cidr.network()) + 2;
    let _ = write!(
        out,
        " chain input {{\n  type filter hook input priority filter; policy drop;\n  ct state established,related accept\n  \
         iifname \"lo\" accept\n  iifname \"{UPLINK}\" drop\n  udp dport 67 accept\n  \
         ip daddr {{ {}, 169.254.169.253 }} meta l4proto {{ tcp, udp }} th dport 53 accept\n  \
         ip daddr 169.254.169.254 tcp dport {{ 80, 4566 }} accept\n }}\n",
        std::net::Ipv4Addr::from(dns),
    );
    // Without a public address nothing leaves, not even on connections that began while there was one.
    let _ = write!(
        out,
        " chain egress {{\n  type filter hook forward priority filter; policy drop;\n  \
         oifname \"{UPLINK}\" ip saddr != @has_public drop\n  ct state invalid drop\n  \
         ct state established,related accept\n  iifname \"{UPLINK}\" accept\n  iifname vmap @out_interface\n }}\n \
         chain ingress {{\n  type filter hook forward priority filter + 10; policy drop;\n  \
         oifname @checked oifname . ip daddr @destinations jump arrives\n  oifname @checked drop\n  jump arrives\n }}\n \
         chain arrives {{\n  ct state established,related accept\n  oifname \"{UPLINK}\" accept\n  \
         oifname vmap @in_interface\n }}\n"
    );
    let _ = write!(
        out,
        " chain nat_in {{\n  type nat hook prerouting priority dstnat;\n  iifname \"{UPLINK}\" dnat to ip daddr map @to_private\n }}\n \
         chain nat_out {{\n  type nat hook postrouting priority srcnat;\n  oifname \"{UPLINK}\" snat to ip saddr map @to_public\n }}\n"
    );
}
