//! The driver: from a VPC's specification to namespaces, links, routes and rules.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::Ipv4Net;
use serde::Deserialize;

use crate::names::{interface_name, uplink_name, valid_id};
use crate::spec::{InterfaceSpec, Transit, VpcSpec};
use crate::{Connection, Error, arp, command, conntrack, namespace, ruleset};

/// The namespace's end of the veth pair to the host.
pub(crate) const UPLINK: &str = "uplink";

/// The address of every tap's own end. Guests take it for that of every other address; they find the same where they move to.
const TAP_MAC: &str = "02:68:61:61:72:01";

/// The metadata service, and the resolver's address that does not depend on the VPC.
const SERVICE_ADDRESSES: [Ipv4Addr; 2] =
    [Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(169, 254, 169, 253)];

/// What the driver is told once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Prefix of everything on the machine that has a name of its own, as `haar`; it tells daemons on one machine apart.
    pub name: String,
    /// The pool of public addresses, at least a /30.
    pub public_pool: Ipv4Net,
}

/// Makes the machine's networks match specifications. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Driver {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    /// What this process has last applied to each VPC; the lock is held while a VPC is worked on.
    applied: Mutex<HashMap<String, Arc<Mutex<Applied>>>>,
    host: Mutex<bool>,
}

#[derive(Debug, Default)]
struct Applied {
    /// The namespace, its uplink and its own addresses are as asked for.
    base: Option<(Ipv4Net, Vec<Ipv4Net>, bool)>,
    interfaces: BTreeMap<String, InterfaceSpec>,
    /// Public addresses that are routed here, and those of the host that foreign ones are reached from.
    routes: Option<(BTreeSet<Ipv4Addr>, BTreeSet<Ipv4Addr>)>,
    rules: String,
}

impl Driver {
    /// A driver; nothing is made yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the name or the pool cannot be used.
    pub fn new(config: Config) -> Result<Self, Error> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if config.name.is_empty() || config.name.len() > 32 || !config.name.chars().all(plain) {
            return Err(Error::Invalid(format!(
                "the name '{}' is not 1 to 32 lower-case letters, digits and dashes",
                config.name
            )));
        }
        if config.public_pool.prefix_len() > 30 {
            return Err(Error::Invalid(format!(
                "the public pool {} is smaller than a /30",
                config.public_pool
            )));
        }
        Ok(Self { inner: Arc::new(Inner { config, applied: Mutex::default(), host: Mutex::new(false) }) })
    }

    /// The host's address on every uplink: what guests see the host as.
    #[must_use]
    pub fn host_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.inner.config.public_pool.network()) + 1)
    }

    /// Path of a VPC's namespace, for `setns(2)`.
    #[must_use]
    pub fn namespace(&self, vpc_id: &str) -> PathBuf {
        namespace::path(&self.inner.namespace_name(vpc_id))
    }

    /// Makes the machine match the specification. Interfaces that are not in it are removed.
    ///
    /// # Errors
    /// [`Error::Invalid`] before anything is changed; else what the system said. A later call mends what was left.
    pub async fn sync(&self, vpc: VpcSpec) -> Result<(), Error> {
        self.blocking(move |inner| inner.sync(&vpc)).await
    }

    /// Has the next [`Driver::sync`] of a VPC look which public addresses are routed to it: another daemon of this host may have had one
    /// meanwhile.
    ///
    /// # Errors
    /// What kept it from being noted.
    pub async fn look_for_routes(&self, vpc_id: &str) -> Result<(), Error> {
        let vpc_id = vpc_id.to_owned();
        self.blocking(move |inner| {
            lock(&inner.applied(&vpc_id)).routes = None;
            Ok(())
        })
        .await
    }

    /// Removes a VPC's network. There may be none.
    ///
    /// # Errors
    /// What the system said.
    pub async fn remove(&self, vpc_id: &str) -> Result<(), Error> {
        let vpc_id = vpc_id.to_owned();
        self.blocking(move |inner| inner.remove(&vpc_id)).await
    }

    /// Ids of the VPCs that have a network on this machine, of this driver's name.
    ///
    /// # Errors
    /// What the system said.
    pub async fn list(&self) -> Result<Vec<String>, Error> {
        self.blocking(Inner::list).await
    }

    /// Removes every VPC's network and what was made on the host.
    ///
    /// # Errors
    /// What the system said.
    pub async fn remove_all(&self) -> Result<(), Error> {
        self.blocking(|inner| {
            for vpc_id in inner.list()? {
                inner.remove(&vpc_id)?;
            }
            inner.remove_host()
        })
        .await
    }

    /// Index, in the VPC's namespace, of each of these interfaces that exists.
    ///
    /// # Errors
    /// What the system said.
    pub async fn interface_indexes(
        &self,
        vpc_id: &str,
        ids: Vec<String>,
    ) -> Result<HashMap<String, u32>, Error> {
        let name = self.inner.namespace_name(vpc_id);
        self.blocking(move |_| {
            namespace::within(&name, || {
                let index = |id: &String| nix::net::if_::if_nametoindex(interface_name(id).as_str()).ok();
                Ok(ids.iter().filter_map(|id| Some((id.clone(), index(id)?))).collect())
            })
        })
        .await
    }

    /// Whether the guest behind an interface answers an ARP request for its address, within a second.
    ///
    /// # Errors
    /// [`Error::NoNamespace`], or what the system said.
    pub async fn answers_arp(
        &self,
        vpc_id: &str,
        interface_id: &str,
        address: Ipv4Addr,
    ) -> Result<bool, Error> {
        let (name, link) = (self.inner.namespace_name(vpc_id), interface_name(interface_id));
        self.blocking(move |_| namespace::within(&name, || arp::answers(&link, address))).await
    }

    /// A UDP socket in the VPC's namespace.
    ///
    /// # Errors
    /// [`Error::NoNamespace`], or what the system said.
    pub async fn bind_udp(&self, vpc_id: &str, address: SocketAddrV4) -> Result<UdpSocket, Error> {
        self.bind(vpc_id, move || UdpSocket::bind(address), address).await
    }

    /// A listening TCP socket in the VPC's namespace.
    ///
    /// # Errors
    /// [`Error::NoNamespace`], or what the system said.
    pub async fn bind_tcp(&self, vpc_id: &str, address: SocketAddrV4) -> Result<TcpListener, Error> {
        self.bind(vpc_id, move || TcpListener::bind(address), address).await
    }

    async fn bind<S: Send + 'static>(
        &self,
        vpc_id: &str,
        make: impl FnOnce() -> std::io::Result<S> + Send + 'static,
        address: SocketAddrV4,
    ) -> Result<S, Error> {
        let name = self.inner.namespace_name(vpc_id);
        self.blocking(move |_| {
            namespace::within(&name, || make().map_err(Error::io(format!("bind {address} in {name}"))))
        })
        .await
    }

    /// Runs blocking work that goes on to its end even when the caller stops waiting.
    /// The connections of a guest, by its private address, with what lies beyond the internet gateway.
    ///
    /// # Errors
    /// [`Error::NoNamespace`]; what the system said.
    pub async fn connections(&self, vpc_id: &str, private_ip: Ipv4Addr) -> Result<Vec<Connection>, Error> {
        let name = self.inner.namespace_name(vpc_id);
        self.blocking(move |_| namespace::within(&name, || conntrack::of(private_ip))).await
    }

    /// Has a VPC's network know connections of a guest that moves here, so that they go on.
    ///
    /// # Errors
    /// [`Error::NoNamespace`]; what the system said.
    pub async fn track(&self, vpc_id: &str, connections: Vec<Connection>) -> Result<(), Error> {
        let name = self.inner.namespace_name(vpc_id);
        self.blocking(move |_| namespace::within(&name, || conntrack::track(&connections))).await
    }

    async fn blocking<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<R, Error> + Send + 'static,
    ) -> Result<R, Error> {
        let inner = self.inner.clone();
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is behind the locks is only a memory of what was done: after a panic, more is done again.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn namespace_name(&self, vpc_id: &str) -> String {
        format!("{}-{vpc_id}", self.config.name)
    }

    fn list(&self) -> Result<Vec<String>, Error> {
        let prefix = format!("{}-", self.config.name);
        let names = namespace::list(&prefix)?;
        Ok(names
            .iter()
            .map(|name| name[prefix.len()..].to_owned())
            .filter(|id| valid_id(id, "vpc"))
            .collect())
    }

    fn applied(&self, vpc_id: &str) -> Arc<Mutex<Applied>> {
        lock(&self.applied).entry(vpc_id.to_owned()).or_default().clone()
    }

    fn remove(&self, vpc_id: &str) -> Result<(), Error> {
        let applied = self.applied(vpc_id);
        let mut applied = lock(&applied);
        *applied = Applied::default();
        // The host's routes go with the uplink. The kernel clears a namespace in its own time, and not at all while a process
        // holds a socket in it, so the uplink does not wait for that.
        delete_links(&[uplink_name(vpc_id)])?;
        namespace::remove(&self.namespace_name(vpc_id))?;
        self.remove_host()
    }

    /// Removes what was made on the host itself, unless a VPC still needs it. Where there is no nftables, nothing was made.
    fn remove_host(&self) -> Result<(), Error> {
        // Held from the look to the end, so that a VPC that is being made either is seen or makes it again.
        let mut done = lock(&self.host);
        if !self.list()?.is_empty() {
            return Ok(());
        }
        *done = false;
        let table = &self.config.name;
        match command::nft(&format!("table inet {table}\ndelete table inet {table}\n")) {
            Err(Error::ToolMissing(_)) => Ok(()),
            removed => removed,
        }
    }

    fn sync(&self, vpc: &VpcSpec) -> Result<(), Error> {
        check(vpc)?;
        let applied = self.applied(&vpc.id);
        let mut applied = lock(&applied);
        let name = self.namespace_name(&vpc.id);
        if !namespace::exists(&name) {
            *applied = Applied::default();
        }
        let base = (vpc.cidr, vpc.subnets.clone(), vpc.internet_gateway);
        if applied.base.as_ref() != Some(&base) {
            self.ensure_namespace(vpc, &name)?;
            // What an earlier process left is looked up once.
            applied.interfaces.clear();
            let present = namespace::within(&name, present_interfaces)?;
            let wanted: BTreeSet<_> = vpc.interfaces.iter().map(|i| interface_name(&i.id)).collect();
            let stale: Vec<_> = present.into_iter().filter(|name| !wanted.contains(name)).collect();
            namespace::within(&name, || delete_links(&stale))?;
            applied.base = Some(base);
        }
        // After the namespace: what the host has goes with the last one.
        self.ensure_host()?;
        // Rules first: an interface never exists without its rules.
        let rules = ruleset::of_vpc(vpc);
        if applied.rules != rules {
            applied.rules.clear();
            namespace::within(&name, || command::nft(&rules))?;
            applied.rules = rules;
        }
        if let Err(error) = sync_interfaces(vpc, &name, &mut applied) {
            // What was made or is left is looked for at the next try.
            applied.base = None;
            return Err(error);
        }
        self.sync_public_routes(vpc, &mut applied)
    }

    /// Makes the host forward and masquerade for the public pool.
    fn ensure_host(&self) -> Result<(), Error> {
        let mut done = lock(&self.host);
        if *done {
            return Ok(());
        }
        write_sysctl("net/ipv4/ip_forward", "1")?;
        let Config { name, public_pool } = &self.config;
        command::nft(&format!(
            "table inet {name}\ndelete table inet {name}\ntable inet {name} {{\n \
             set foreign {{ type ipv4_addr; }}\n \
             chain postrouting {{\n  type nat hook postrouting priority srcnat;\n  \
             ip saddr {public_pool} ip daddr != {public_pool} masquerade\n  \
             ip saddr @foreign oifname != \"hv*\" masquerade\n }}\n}}\n"
        ))?;
        *done = true;
        Ok(())
    }

    /// Makes the namespace, its addresses and its uplink.
    fn ensure_namespace(&self, vpc: &VpcSpec, name: &str) -> Result<(), Error> {
        namespace::create(name)?;
        let mut batch = String::from("link set lo up\n");
        for address in local_addresses(vpc) {
            let _ = writeln!(batch, "address replace {address}/32 dev lo");
        }
        // An address of the VPC that no interface has is nowhere, rather than beyond the gateway.
        let _ = writeln!(batch, "route replace unreachable {}", vpc.cidr);
        namespace::within(name, || {
            // IPv6 is not offered, so none of it moves.
            write_sysctl("net/ipv6/conf/all/disable_ipv6", "1").or_else(ignore_missing)?;
            write_sysctl("net/ipv6/conf/default/disable_ipv6", "1").or_else(ignore_missing)?;
            write_sysctl("net/ipv4/ip_forward", "1")?;
            write_sysctl("net/ipv4/conf/all/send_redirects", "0")?;
            write_sysctl("net/ipv4/conf/default/send_redirects", "0")?;
            command::ip(&batch)
        })?;
        let host_name = uplink_name(&vpc.id);
        let has_uplink = nix::net::if_::if_nametoindex(host_name.as_str()).is_ok();
        if !vpc.internet_gateway {
            return if has_uplink { command::ip(&format!("link delete {host_name}\n")) } else { Ok(()) };
        }
        let pool = u32::from(self.config.public_pool.network());
        let (host_end, vpc_end) = (Ipv4Addr::from(pool + 1), Ipv4Addr::from(pool + 2));
        let mut batch = String::new();
        if !has_uplink {
            let _ = writeln!(batch, "link add {host_name} type veth peer name {UPLINK} netns {name}");
        }
        let _ = write!(batch, "address replace {host_end}/32 dev {host_name}\nlink set {host_name} up\n");
        command::ip(&batch)?;
        write_sysctl(&format!("net/ipv4/conf/{host_name}/send_redirects"), "0")?;
        // A guest may reach another one of the pool through the same uplink it came by.
        write_sysctl(&format!("net/ipv4/conf/{host_name}/rp_filter"), "0")?;
        namespace::within(name, || {
            command::ip(&format!(
                "address replace {vpc_end}/32 dev {UPLINK}\nlink set {UPLINK} up\n\
                 route replace default via {host_end} dev {UPLINK} onlink\n"
            ))
        })
    }

    /// Routes the public addresses of the VPC's interfaces to its uplink.
    fn sync_public_routes(&self, vpc: &VpcSpec, applied: &mut Applied) -> Result<(), Error> {
        let addresses = |transit: Transit| -> BTreeMap<Ipv4Addr, Option<Ipv4Addr>> {
            let of = vpc.interfaces.iter().filter(|i| vpc.internet_gateway && i.transit == transit);
            of.filter_map(|interface| Some((interface.public_ip?, interface.foreign_host))).collect()
        };
        let (wanted, leaving) = (addresses(Transit::None), addresses(Transit::Leaving));
        let public: BTreeSet<Ipv4Addr> = wanted.keys().chain(leaving.keys()).copied().collect();
        let hosts: BTreeSet<Ipv4Addr> = wanted.values().chain(leaving.values()).copied().flatten().collect();
        let routes = Some((public, hosts));
        if applied.routes == routes {
            return Ok(());
        }
        // After a failure, what is there is looked up again.
        applied.routes = None;
        let Some((public, hosts)) = &routes else { return Ok(()) };
        let host_name = uplink_name(&vpc.id);
        let pool = u32::from(self.config.public_pool.network());
        let (host_end, vpc_end) = (Ipv4Addr::from(pool + 1), Ipv4Addr::from(pool + 2));
        // Another daemon may have taken an address over, so that what is there is looked up.
        let present = if vpc.internet_gateway { routed_addresses(&host_name)? } else { BTreeSet::new() };
        let known =
            if vpc.internet_gateway { local_addresses_of(&host_name, host_end)? } else { BTreeSet::new() };
        let (mut batch, mut rules) = (String::new(), String::new());
        let table = &self.config.name;
        for address in present.difference(public) {
            let _ = writeln!(batch, "route delete {address}/32 dev {host_name}");
            if !self.config.public_pool.contains(address) {
                // Added, so that it is there to be deleted.
                let _ = writeln!(rules, "add element inet {table} foreign {{ {address} }}");
                let _ = writeln!(rules, "delete element inet {table} foreign {{ {address} }}");
            }
        }
        for host in hosts.difference(&known) {
            let _ = writeln!(batch, "address replace {host}/32 dev {host_name}");
        }
        for (address, host) in &wanted {
            let host = host.unwrap_or(host_end);
            if !present.contains(address) {
                let _ = writeln!(
                    batch,
                    "route replace {address}/32 via {vpc_end} dev {host_name} src {host} onlink"
                );
            }
            if !self.config.public_pool.contains(address) {
                let _ = writeln!(rules, "add element inet {table} foreign {{ {address} }}");
            }
        }
        for host in known.difference(hosts) {
            let _ = writeln!(batch, "address delete {host}/32 dev {host_name}");
        }
        command::ip(&batch)?;
        if !rules.is_empty() {
            command::nft(&rules)?;
        }
        applied.routes = routes;
        Ok(())
    }
}

/// Checks everything that becomes part of a command or a ruleset.
fn check(vpc: &VpcSpec) -> Result<(), Error> {
    let id = |id: &str, prefix: &str| {
        if valid_id(id, prefix) {
            Ok(())
        } else {
            Err(Error::Invalid(format!("'{id}' is not an id of a {prefix}")))
        }
    };
    id(&vpc.id, "vpc")?;
    for interface in &vpc.interfaces {
        id(&interface.id, "eni")?;
        interface.groups.iter().try_for_each(|group| id(group, "sg"))?;
        if !vpc.cidr.contains(&interface.private_ip) {
            return Err(Error::Invalid(format!(
                "{} of {} is not in {}",
                interface.private_ip, interface.id, vpc.cidr
            )));
        }
    }
    for group in &vpc.groups {
        id(&group.id, "sg")?;
        for rule in group.ingress.iter().chain(&group.egress) {
            if let crate::Peer::Group(peer) = &rule.peer {
                id(peer, "sg")?;
            }
        }
    }
    Ok(())
}

/// Addresses at which the namespace itself answers: the router of each subnet, the resolver, the metadata service.
fn local_addresses(vpc: &VpcSpec) -> BTreeSet<Ipv4Addr> {
    let mut addresses = BTreeSet::from(SERVICE_ADDRESSES);
    addresses.insert(Ipv4Addr::from(u32::from(vpc.cidr.network()) + 2));
    addresses.extend(vpc.subnets.iter().map(|subnet| Ipv4Addr::from(u32::from(subnet.network()) + 1)));
    addresses
}

fn sync_interfaces(vpc: &VpcSpec, name: &str, applied: &mut Applied) -> Result<(), Error> {
    let wanted: BTreeMap<_, _> = vpc.interfaces.iter().map(|i| (i.id.clone(), i.clone())).collect();
    let gone: Vec<_> = applied.interfaces.keys().filter(|id| !wanted.contains_key(*id)).cloned().collect();
    let changed: Vec<_> = vpc
        .interfaces
        .iter()
        .filter(|i| applied.interfaces.get(&i.id).is_none_or(|was| !same_link(was, i)))
        .collect();
    if gone.is_empty() && changed.is_empty() {
        applied.interfaces = wanted;
        return Ok(());
    }
    namespace::within(name, || {
        delete_links(&gone.iter().map(|id| interface_name(id)).collect::<Vec<_>>())?;
        let (mut links, mut shaping, mut new) = (String::new(), String::new(), Vec::new());
        for interface in &changed {
            let tap = interface_name(&interface.id);
            if nix::net::if_::if_nametoindex(tap.as_str()).is_err() {
                let _ = writeln!(links, "tuntap add dev {tap} mode tap");
                new.push(interface.private_ip);
            }
            let InterfaceSpec { id, private_ip, .. } = interface;
            let mac = interface.mac.map(|byte| format!("{byte:02x}")).join(":");
            let _ = write!(
                links,
                "link set {tap} address {TAP_MAC} alias {id} up\nroute replace {private_ip}/32 dev {tap}\n\
                 neighbour replace {private_ip} lladdr {mac} dev {tap} nud permanent\n"
            );
            if let Some(mbps) = interface.bandwidth_mbps {
                // A burst of 50 ms, but never less than a few packets.
                let burst = (mbps * 1_000_000 / 8 / 20).max(64 * 1024);
                let _ = writeln!(
                    shaping,
                    "qdisc replace dev {tap} root tbf rate {mbps}mbit burst {burst} latency 50ms"
                );
            }
        }
        // What its address was in before may no longer be allowed.
        conntrack::forget(&new)?;
        command::ip(&links)?;
        for interface in &changed {
            let tap = interface_name(&interface.id);
            // The namespace answers for every address that lies elsewhere, at once.
            write_sysctl(&format!("net/ipv4/conf/{tap}/proxy_arp"), "1")?;
            write_sysctl(&format!("net/ipv4/neigh/{tap}/proxy_delay"), "0")?;
        }
        command::tc(&shaping)
    })?;
    applied.interfaces = wanted;
    Ok(())
}

/// Whether the links of two specifications of an interface are the same; rules apart.
fn same_link(a: &InterfaceSpec, b: &InterfaceSpec) -> bool {
    (a.mac, a.private_ip, a.bandwidth_mbps) == (b.mac, b.private_ip, b.bandwidth_mbps)
}

fn delete_links(names: &[String]) -> Result<(), Error> {
    let mut batch = String::new();
    for name in names {
        if nix::net::if_::if_nametoindex(name.as_str()).is_ok() {
            let _ = writeln!(batch, "link delete {name}");
        }
    }
    command::ip(&batch)
}

#[derive(Deserialize)]
struct Link {
    ifname: String,
    ifalias: Option<String>,
}

/// Names of the interfaces in the calling thread's namespace that stand for a network interface.
fn present_interfaces() -> Result<Vec<String>, Error> {
    let links: Vec<Link> = parse("ip", &command::run("ip", &["-json", "link", "show"], "")?)?;
    // Those that were made but not yet named in full count too: the name alone tells.
    let ours = |link: &Link| {
        link.ifalias.as_ref().is_some_and(|id| valid_id(id, "eni")) || link.ifname.starts_with('h')
    };
    Ok(links.into_iter().filter(ours).map(|link| link.ifname).collect())
}

#[derive(Deserialize)]
struct RouteEntry {
    dst: String,
}

/// Addresses that the host routes to an uplink.
fn routed_addresses(host_name: &str) -> Result<BTreeSet<Ipv4Addr>, Error> {
    let routes: Vec<RouteEntry> =
        parse("ip", &command::run("ip", &["-json", "route", "show", "dev", host_name], "")?)?;
    Ok(routes.iter().filter_map(|route| route.dst.parse().ok()).collect())
}

#[derive(Deserialize)]
struct LinkAddresses {
    #[serde(default)]
    addr_info: Vec<LinkAddress>,
}

#[derive(Deserialize)]
struct LinkAddress {
    local: Option<Ipv4Addr>,
}

/// The host's addresses on an uplink, but for the one that every uplink has.
fn local_addresses_of(host_name: &str, host_end: Ipv4Addr) -> Result<BTreeSet<Ipv4Addr>, Error> {
    let links: Vec<LinkAddresses> =
        parse("ip", &command::run("ip", &["-json", "-4", "address", "show", "dev", host_name], "")?)?;
    let addresses = links.into_iter().flat_map(|link| link.addr_info).filter_map(|address| address.local);
    Ok(addresses.filter(|address| *address != host_end).collect())
}

fn parse<T: serde::de::DeserializeOwned>(tool: &'static str, json: &str) -> Result<Vec<T>, Error> {
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(json)
        .map_err(|error| Error::Tool { tool, stderr: format!("printed what cannot be read: {error}") })
}

fn write_sysctl(name: &str, value: &str) -> Result<(), Error> {
    std::fs::write(format!("/proc/sys/{name}"), value).map_err(Error::io(format!("set {name}")))
}

fn ignore_missing(error: Error) -> Result<(), Error> {
    match error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => Err(other),
    }
}
